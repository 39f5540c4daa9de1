"""A network with weights that can be exchanged: built once, run on batches, asked by the names of the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live.binding import Binder, Bound
from weightsmith.live.devices import check_device, check_libraries, deterministic, find_dtype
from weightsmith.live.greedy import continue_rows
from weightsmith.live.libraries import asking_library
from weightsmith.live.model_source import ModelSource, Source, open_source
from weightsmith.live.name_map import NameMap
from weightsmith.live.network_kinds import NetworkKind, cross_entropy, kind_of
from weightsmith.live.networks import Network, describe_network, network_key
from weightsmith.live.residency import Residency
from weightsmith.live.running_model import IGNORED, Batch
from weightsmith.live.tensor_reading import as_lazy
from weightsmith.live.tokenizer_files import has_tokenizer, read_tokenizer
from weightsmith.live.unstored import make_unstored
from weightsmith.live.watching import Watch, Watched, users_of
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from weightsmith.tensors import LazyTensor


# Inputs that are numbers of the world, and no positions or masks.
_MEASURED = frozenset({"inputs", "input_values", "input_features", "pixel_values"})


class LiveModel:
    """A `RunningModel` of one network in evaluation mode on a device; `plain` if it is none of transformers'.

    `names` maps names in memory and in files. `matched` is the number of tensors of the source that were put in.
    """

    def __init__(self, source: Source, network: Network, device: str, dtype: Any) -> None:
        self._network, self.device, self.dtype = network, device, dtype
        self.module, self.plain = network.module, network.plain
        self.kind = kind_of(network.module, plain=network.plain)
        self._binder = Binder(network)
        bound = self._binder.bind(source)
        self._absent = bound.absent
        make_unstored(network, device, bound.absent)
        self.residency = Residency(network.module, device, bound.absent)
        self.source: Source = source
        self.names: NameMap = bound.names
        self._tokenizer: Any = None
        self._ready = self._is_lent = False

    @property
    def name(self) -> str:
        """The name of what its weights are from."""
        return self.source.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json."""
        return self.source.config

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files beside the weights by name."""
        return self.source.files

    @property
    def matched(self) -> int:
        """The number of tensors of the source, each of which has its place."""
        return len(self.source.tensors)

    # Weights.

    def fill(self) -> None:
        """Read all weights."""
        self._place(self.residency.names)

    def takes(self, source: Source) -> bool:
        """Whether `swap` would put the weights of a source into this network as `load_model` would into its own."""
        same = network_key(source) == self._network.key
        return same and source.tensors.keys() == self.source.tensors.keys()

    def swap(self, given: str | Path | Source | Mapping[str, LazyTensor | Tensor]) -> None:
        """Put other weights in the place of these: a checkpoint's, a source's, or tensors by the names of files.

        Everything is checked before anything is overwritten, and read into the memory that is there. Raises
        CompatibilityError for another network, missing or additional tensors and other shapes.
        """
        source = self._source_of(given)
        if network_key(source) != self._network.key:
            raise CompatibilityError(
                f"{source.name!r} has another config.json than {self.name!r}, so its weights may be of another "
                "network; load it by itself."
            )
        bound = self._binder.bind(source)
        if bound.absent != self._absent:
            raise CompatibilityError(
                f"{source.name!r} and {self.name!r} leave different tensors to their network; load it by itself."
            )
        self._adopt(source, bound, self.residency.placed)

    def put(self, tensors: Mapping[str, LazyTensor | Tensor]) -> None:
        """Put some tensors, by the names of files, in the place of their own; the others stay as they are.

        Raises what `swap` raises, and UsageError for a name that the source has not.
        """
        given = as_lazy(tensors)
        source = ModelSource.like(self.source, {**self.source.tensors, **given})
        self._put(source, given, self.residency.placed)

    def _put(self, source: Source, files: Iterable[str], places: Iterable[str]) -> None:
        """Read stored tensors anew where their places are among some, and what is tied to others than before."""
        touched = self.names.touched_by(files)
        bound = self._binder.bind(source)
        before, after = self.names.owners, bound.names.owners
        changed = {*touched, *(name for name in after if after[name] != before[name])}
        self._adopt(source, bound, [name for name in places if name in changed])

    def rooms(self) -> dict[str, Tensor]:
        """The memory of stored tensors that lie there alone, and element by element as in their files.

        Left out are those that only together make a tensor in memory, and those whose bytes tell whether they are
        tied. Who writes into it says so afterwards: `settle`, or `abandon` where that broke off.
        """
        made_by = {name: origin for origin in self.names.origins for name in origin.memory}
        if {f for origin in self.names.origins for f in origin.files} < set(self.source.tensors):
            # Some place has two equal tensors in the files.
            return {}
        stored = [[n for n in group if n in made_by] for group in self._network.ties]
        open_ties = {name for group in stored if len(group) > 1 for name in group}
        return {
            origin.files[0]: self.residency.room(self.names.owners[origin.memory[0]])
            for origin in self.names.origins
            if origin.convert is None and origin.memory[0] not in open_ties
        }

    def settle(self, written: Iterable[str], others: Iterable[str] = ()) -> None:
        """Run with stored tensors that were written into their `rooms`, and with others of the source read anew."""
        places = self.residency.names
        touched = set(self.names.touched_by(written))
        self.residency.settle([name for name in places if name in touched], self.names)
        self._put(self.source, others, places)

    def abandon(self) -> None:
        """Do not run before all weights are read again: some of them are neither these nor those."""
        self._ready = False

    def _source_of(self, given: str | Path | Source | Mapping[str, LazyTensor | Tensor]) -> Source:
        if isinstance(given, (str, Path)):
            return open_source(given)
        if isinstance(given, Mapping):
            return ModelSource.like(self.source, as_lazy(given))
        return given

    def _adopt(self, source: Source, bound: Bound, names: Sequence[str]) -> None:
        if dict(source.files) != dict(self.files):
            self._tokenizer = None
        self.source, self.names = source, bound.names
        self._place(names)

    def _place(self, names: Sequence[str]) -> None:
        # Where reading fails, the weights are neither these nor those.
        self._ready = False
        self.residency.place(names, self.source, self.names)
        self._ready = len(self.residency.placed) == len(self.residency.names)

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Let a run that places weights by itself ask for outputs."""
        before, self._is_lent = self._is_lent, True
        try:
            yield
        finally:
            self._is_lent = before

    def parameters(self, names: Iterable[str]) -> dict[str, Parameter]:
        """The floating-point weights at places that are in memory, by the names of the tensors' owners."""
        from torch.nn import Parameter

        found = {self.names.owners[name]: self.residency.tensor(name) for name in names}
        return {
            name: tensor
            for name, tensor in found.items()
            if isinstance(tensor, Parameter) and tensor.is_floating_point()
        }

    # What it says.

    def run(self, network: Any, *given: Any, **inputs: Any) -> Any:
        """What a part of the network gives; raises CompatibilityError where it cannot be run on such inputs."""
        if not (self._ready or self._is_lent):
            raise UsageError(
                f"The weights of {self.name!r} are not in memory as a whole; fill it, or run it block by block."
            )
        said = f"The network of {self.name!r} cannot be run as its config.json describes it"
        advice = "correct that, or give data made for it"
        with deterministic(self.device), asking_library(said, advice, CompatibilityError):
            return network(*given, **inputs)

    def logits(self, batch: Batch) -> Tensor:
        """See `RunningModel`; raises UsageError for a network that predicts nothing."""
        if not self.kind.has_logits:
            raise UsageError(
                f"{self.name!r} is a {type(self.module).__name__}, which gives features and no logits."
            )
        found = self._asked(self.module, batch)
        logits: Tensor = found if self.plain else found.logits
        return logits

    def features(self, batch: Batch) -> Tensor:
        """See `RunningModel`; raises UsageError for a plain network without `features`."""
        if not self.plain:
            return self._last_states(batch)
        if not hasattr(self.module, "features"):
            raise UsageError(f"{self.name!r} gives no features.")
        found: Tensor = self._asked(self.module.features, batch)
        return found

    def _last_states(self, batch: Batch) -> Tensor:
        network = self.module.base_model
        if network is not self.module or not self.kind.has_logits:
            states: Tensor = self._asked(network, batch).last_hidden_state
            return states
        # An architecture without a class for what lies below its head.
        found = self._asked(network, batch, output_hidden_states=True)
        every = (
            found.decoder_hidden_states
            if self.kind is NetworkKind.SEQUENCE
            else found.hidden_states
        )
        last: Tensor = every[-1]
        return last

    def pooled(self, batch: Batch) -> Tensor:
        """What the network itself makes of all its last hidden states, [B, ...]."""
        found: Tensor = self._asked(self.module.base_model, batch).pooler_output
        return found

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        """See `RunningModel`; a sequence-to-sequence model reads the labels before each if nothing else is given."""
        if self.kind is NetworkKind.SEQUENCE and "decoder_input_ids" not in batch:
            batch = {**batch, "decoder_input_ids": self._read_before(labels)}
        return cross_entropy(self.kind, self.logits(batch), labels)

    def generate(self, batch: Batch, *, most: int, ends: Sequence[int] = ()) -> list[list[int]]:
        """See `RunningModel`; raises UsageError for a network that generates nothing."""
        if self.kind is NetworkKind.CAUSAL:
            return continue_rows(self._continue, batch["input_ids"], most, ends)
        if self.kind is not NetworkKind.SEQUENCE:
            raise UsageError(f"{self.name!r} is {self.kind.value}, which generates no tokens.")
        encoded = self.run(self.module.get_encoder(), **batch)
        starts = self._starts(batch["input_ids"][:, :1])

        def step(inputs: Mapping[str, Any]) -> Any:
            given = {**batch, "input_ids": None, "encoder_outputs": encoded}
            past = inputs["past_key_values"]
            rows = inputs["rows"]
            return self.run(
                self.module, **given, decoder_input_ids=rows, past_key_values=past, use_cache=True
            )

        return continue_rows(step, starts, most, ends)

    def _continue(self, inputs: Mapping[str, Any]) -> Any:
        past = inputs["past_key_values"]
        return self.run(self.module, input_ids=inputs["rows"], past_key_values=past, use_cache=True)

    def _asked(self, network: Any, batch: Batch, **more: Any) -> Any:
        given = {key: self._rounded(key, value) for key, value in batch.items()}
        if self.plain:
            return self.run(network, given["inputs"])
        if self.kind.has_cache:
            more["use_cache"] = False
        return self.run(network, **given, **more)

    def _rounded(self, key: str, value: Any) -> Any:
        """Measured inputs in the dtype that the network computes in."""
        return value.to(self.dtype) if key in _MEASURED else value

    def _read_before(self, labels: Tensor) -> Tensor:
        """What a decoder reads to predict labels [B, T]: each but the last, behind the token that begins."""
        import torch

        filler = self.module.config.pad_token_id or 0
        known = labels.masked_fill(labels == IGNORED, filler)
        return torch.cat([self._starts(labels[:, :1]), known[:, :-1]], dim=1)

    def _starts(self, like: Tensor) -> Tensor:
        import torch

        return torch.full_like(like, self.decoder_start)

    @property
    def decoder_start(self) -> int:
        """The token with which a decoder begins; raises UsageError where config.json has none."""
        first: int | None = getattr(self.module.config, "decoder_start_token_id", None)
        if first is None:
            raise UsageError(
                f"The config.json of {self.name!r} has no decoder_start_token_id, with which its texts begin; add it."
            )
        return first

    # What it is.

    def number(self, key: str) -> int | None:
        """A number of config.json that counts something, or None; raises UsageError where it is no whole number."""
        value = self.config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(
                f"The config.json of {self.name!r} has {key}: {literal(value)}, which is no number of something; "
                "correct it."
            )
        return value if value is not None and value >= 0 else None

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer beside the weights."""
        return has_tokenizer(self.source)

    def tokenizer(self) -> Any:
        """The tokenizer, as AutoTokenizer reads it; raises UsageError if there is none that it can read."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self.source)
        return self._tokenizer

    def users(self, tensor: str) -> tuple[str, ...]:
        """The modules that hold a stored tensor, or a part of what was made of it: several where it is tied."""
        return users_of(self.names.touched_by([tensor]))

    def watching(self, tensors: Sequence[str], told: Watch) -> Watched:
        """Tell of what goes into and out of the modules that hold stored tensors, until the context ends."""
        return Watched(self.module, {name: self.users(name) for name in tensors}, told)


def load_model(
    given: str | Path | Source, *, device: str = "cpu", dtype: str = "float32", filled: bool = True
) -> LiveModel:
    """The live model of a checkpoint or of a source, computing in `dtype` (float32 or bfloat16).

    With `filled=False` its weights stay in their files, for runs block by block. Raises ResourceError if torch,
    transformers or the device is missing, UsageError for a network that neither transformers nor the registry of
    `plain_models` has, CompatibilityError where tensors and network do not match.
    """
    source = open_source(given) if isinstance(given, (str, Path)) else given
    check_libraries(["torch"])
    computed = find_dtype(dtype)
    network = describe_network(source, computed)
    check_device(device)
    model = LiveModel(source, network, device, computed)
    if filled:
        model.fill()
    return model


class KeptNetwork:
    """One network that is used again for every source that fits it, and built anew for one that does not."""

    def __init__(self) -> None:
        self._model: LiveModel | None = None

    def model_of(self, source: Source, device: str = "cpu") -> LiveModel:
        """The live model of a source; weights of the one before are gone. Raises what `load_model` and `swap` raise."""
        kept, self._model = self._model, None
        if kept is None or kept.device != device or not kept.takes(source):
            # The old network goes before the new one comes.
            del kept
            kept = load_model(source, device=device)
        elif kept.source is not source:
            kept.swap(source)
        self._model = kept
        return kept

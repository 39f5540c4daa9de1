"""Live models: a subject's tensors in the network that its configuration names.

Tensors are handed to transformers under the names that they have in files, because transformers renames some of them
when it loads; a tensor that finds no place, and a place that finds no tensor, is an error.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import sections
from weightsmith.errors import CompatibilityError, ResourceError, UsageError
from weightsmith.evaluation.libraries import asking_library, reason_of
from weightsmith.evaluation.plain_models import Build, find_builder
from weightsmith.evaluation.subjects import Subject, open_subject
from weightsmith.recipes import Recipe
from weightsmith.tensors import LazyTensor
from weightsmith.wording import counted, literal, shown, with_extra

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# Numbers that a configuration gives of modules that are made one by one.
_COUNT = re.compile(
    r"^(?:num|n)_(?:.*_)?(?:layers?|blocks?|experts?|labels|stages?|heads?)$|(?:^|_)(?:layers|depths?)$"
)
_LAYERS = re.compile(r"layers?$|blocks?$|stages?$|depths?$")
# Classes that a network may have whatever its tensors; what its tables may be larger than the checkpoint's.
_MOST_CLASSES = 100_000
_MOST_TIMES, _MOST_MORE = 4, 2**26


@dataclass(slots=True, eq=False)
class LiveModel:
    """A network in float32, in evaluation mode, on a device; `plain` if it is none of transformers'.

    `matched` is the number of tensors of the subject that were put in.
    """

    name: str
    module: Any
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    device: str
    plain: bool
    matched: int
    _tokenizer: Any = field(default=None, repr=False)

    def number(self, key: str) -> int | None:
        """A number of config.json that counts something, or None; raises UsageError where it is no whole number."""
        value = self.config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(
                f"The config.json of {self.name!r} has {key}: {literal(value)}, which is no number of something; "
                "correct it."
            )
        return value if value is not None and value >= 0 else None

    def run(self, network: Any, **inputs: Any) -> Any:
        """What a part of the network gives; raises CompatibilityError where it cannot be run on such inputs."""
        said = f"The network of {self.name!r} cannot be run as its config.json describes it"
        advice = "correct that, or give data made for it"
        with asking_library(said, advice, CompatibilityError):
            return network(**inputs)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer beside the weights."""
        return any(name in self.files for name in ("tokenizer.json", "tokenizer_config.json"))

    def tokenizer(self) -> Any:
        """The tokenizer, as AutoTokenizer reads it; raises UsageError if there is none that it can read."""
        if self._tokenizer is None:
            if not self.has_tokenizer:
                raise UsageError(f"{self.name!r} has no tokenizer; put its files into the folder.")
            self._tokenizer = self._read_tokenizer()
        return self._tokenizer

    def _read_tokenizer(self) -> Any:
        import json

        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for name, data in self.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            (folder / "config.json").write_text(json.dumps(dict(self.config)), "utf-8")
            said = f"transformers cannot read the tokenizer of {self.name!r}"
            with asking_library(said, "correct its files", UsageError):
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_model(given: str | Path | Recipe | Subject, *, device: str = "cpu") -> LiveModel:
    """The live model of a checkpoint or a recipe.

    Raises ResourceError if torch, transformers or the device is missing, UsageError for a network that neither
    transformers nor the registry of `plain_models` has, CompatibilityError where tensors and network do not match.
    """
    subject = given if isinstance(given, Subject) else open_subject(given)
    _check_counts(subject)
    build = find_builder(subject.config)
    _check_libraries(["torch"] if build else ["torch", "transformers"])
    _check_device(device)
    if build:
        module = _plain(subject, build)
    else:
        with quiet_library():
            module = _pretrained(subject)
    module.eval().requires_grad_(False).to(device)
    return LiveModel(
        subject.name,
        module,
        subject.config,
        subject.files,
        device,
        plain=build is not None,
        matched=len(subject.tensors),
    )


def as_torch(tensor: LazyTensor) -> Tensor:
    """A stored tensor in memory, in its own dtype."""
    import torch

    dtype = getattr(torch, str(tensor.dtype))
    if tensor.numel == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    data = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(data))
    return torch.frombuffer(data, dtype=dtype).reshape(tensor.shape)


def _plain(subject: Subject, build: Build) -> Module:
    import torch

    said = f"The config.json of {subject.name!r} does not describe its network"
    with asking_library(said, "correct it", UsageError):
        # Without memory first, since any number may be in a configuration.
        with torch.device("meta"):
            _check_size(subject, build(subject.config))
        module = build(subject.config)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _check_names(
        subject, sorted(own.keys() - subject.tensors), sorted(subject.tensors.keys() - own)
    )
    for name, tensor in subject.tensors.items():
        if tensor.shape != own[name]:
            raise CompatibilityError(
                f"{name!r} of {subject.name!r} has shape {tensor.shape}, but its network has {own[name]}; "
                "correct config.json."
            )
    module.load_state_dict({n: as_torch(t).float() for n, t in subject.tensors.items()})
    return module


def _pretrained(subject: Subject) -> Any:
    import torch

    said = f"transformers does not understand the config.json of {subject.name!r}"
    with asking_library(said, "correct it", UsageError):
        model_class = _model_class(subject)
    options: dict[str, Any] = {}
    if "add_pooling_layer" in signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = any("pooler." in name for name in subject.tensors)
    with asking_library(said, "correct it", UsageError, lambda: _wrong_entry(subject, model_class)):
        config, planned = _described(subject.config, model_class, options)
    _check_size(subject, planned)
    state = {name: as_torch(tensor) for name, tensor in subject.tensors.items()}
    said = f"The tensors of {subject.name!r} do not fit {model_class.__name__}"
    with asking_library(said, "correct config.json", CompatibilityError):
        module, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    _check_names(subject, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]))
    return module


def _described(
    content: Mapping[str, Any], model_class: Any, options: Mapping[str, Any]
) -> tuple[Any, Module]:
    """The configuration as transformers has it, and the network that it describes, without memory."""
    import torch
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[content["model_type"]].from_dict(dict(content))
    with torch.device("meta"):
        return config, model_class(config, **options)


def _wrong_entry(subject: Subject, model_class: Any) -> str | None:
    """The first entry of a configuration without which transformers understands it, if there is one."""
    for key in subject.config:
        rest = {name: value for name, value in subject.config.items() if name != key}
        with suppress(Exception):
            _described(rest, model_class, {})
            return key
    return None


def _model_class(subject: Subject) -> Any:
    import transformers

    named = subject.config.get("architectures") or []
    if not isinstance(named, list) or not named:
        raise UsageError(
            f"The config.json of {subject.name!r} names no architecture; add `architectures` with the class of "
            "transformers that it is."
        )
    found = getattr(transformers, str(named[0]), None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UsageError(
            f"The architecture {named[0]!r} of {subject.name!r} is none of transformers {transformers.__version__}'s; "
            "code of a checkpoint's own is not run."
        )
    return found


def _check_names(subject: Subject, missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        lacks = f"lacks {_some(missing, 'of the network that its config.json describes')}"
        more = f"has {_some(unexpected, 'without a place in the network')}"
        both = " and ".join([*([lacks] if missing else []), *([more] if unexpected else [])])
        raise CompatibilityError(
            f"{subject.name!r} {both}; correct config.json, its `architectures` above all."
        )


def _some(names: list[str], which: str) -> str:
    return f"{counted(len(names), 'tensor')} {which} (such as {shown(names[0])})" if names else ""


def _check_counts(subject: Subject) -> None:
    """Refuse numbers of layers and experts that are made one by one and that the checkpoint cannot have."""
    longest = max((max(t.shape, default=1) for t in subject.tensors.values()), default=1)
    for section in sections(dict(subject.config)):
        for key, value in section.items():
            if not _COUNT.search(key):
                continue
            most = len(subject.tensors) if _LAYERS.search(key) else max(longest, _MOST_CLASSES)
            for count in value if isinstance(value, list) else [value]:
                if _number(count) > most:
                    raise CompatibilityError(
                        f"The config.json of {subject.name!r} says {key}: {literal(count)}, but there are "
                        f"{counted(len(subject.tensors), 'tensor')} of at most {longest} rows or columns; correct it."
                    )


def _number(value: Any) -> float:
    """A number however JSON has it, since networks are built with `int(value)`; 0 for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        return math.inf


def _check_size(subject: Subject, planned: Module) -> None:
    """Refuse a network that is far larger than the checkpoint, or whose tensors have other shapes."""
    made = {**dict(planned.named_parameters()), **dict(planned.named_buffers())}
    described, stored = (
        sum(t.numel() for t in made.values()),
        sum(t.numel for t in subject.tensors.values()),
    )
    if described > _MOST_TIMES * stored + _MOST_MORE:
        raise CompatibilityError(
            f"The config.json of {subject.name!r} describes a network of {counted(described, 'number')}, but the "
            f"checkpoint has {stored:,}; correct it."
        )
    for name in sorted(made.keys() & subject.tensors.keys()):
        own, theirs = tuple(made[name].shape), subject.tensors[name].shape
        if own != theirs and math.prod(own) != math.prod(theirs):
            raise CompatibilityError(
                f"{shown(name)} of {subject.name!r} has the shape {list(theirs)}, but in the network that config.json "
                f"describes it has {list(own)}; correct config.json."
            )


def _check_libraries(needed: list[str]) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ResourceError(f"Evaluation needs {' and '.join(missing)}; {with_extra('eval')}.")


def _check_device(device: str) -> None:
    import torch

    kind = device.partition(":")[0]
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"There is no device {device!r} here ({reason_of(error)}); use --device cpu."
        ) from error
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Models are evaluated on cpu, cuda or mps, not on {device!r}.")


@contextmanager
def quiet_library() -> Iterator[None]:
    """transformers without progress bars and load reports, which are checked here and told in one sentence."""
    import transformers

    logging: Any = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

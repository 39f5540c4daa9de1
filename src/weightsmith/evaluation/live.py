"""Live models: a subject's tensors in the network that its configuration names.

Tensors are handed to transformers under the names that they have in files, because transformers renames some of them
when it loads; a tensor that finds no place, and a place that finds no tensor, is an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import CompatibilityError, ResourceError, UsageError
from weightsmith.evaluation.plain_models import Build, find_builder
from weightsmith.evaluation.subjects import Subject, open_subject
from weightsmith.recipes import Recipe
from weightsmith.tensors.stored import LazyTensor

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


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
            try:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"The tokenizer of {self.name!r} cannot be read ({_first_line(error)})."
                ) from error


def load_model(given: str | Path | Recipe | Subject, *, device: str = "cpu") -> LiveModel:
    """The live model of a checkpoint or a recipe.

    Raises ResourceError if torch, transformers or the device is missing, UsageError for a network that neither
    transformers nor the registry of `plain_models` has, CompatibilityError where tensors and network do not match.
    """
    subject = given if isinstance(given, Subject) else open_subject(given)
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
    try:
        module = build(subject.config)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"The config.json of {subject.name!r} does not describe its network ({error!r})."
        ) from error
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
    from transformers import CONFIG_MAPPING

    model_class = _model_class(subject)
    try:
        config = CONFIG_MAPPING[subject.config["model_type"]].from_dict(dict(subject.config))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"transformers does not understand the config.json of {subject.name!r} ({_first_line(error)})."
        ) from error
    options: dict[str, Any] = {}
    if "add_pooling_layer" in signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = any("pooler." in name for name in subject.tensors)
    state = {name: as_torch(tensor) for name, tensor in subject.tensors.items()}
    try:
        module, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CompatibilityError(
            f"The tensors of {subject.name!r} do not fit {model_class.__name__} as its config.json describes it "
            f"({_first_line(error)})."
        ) from error
    if wrong := found["mismatched_keys"]:
        raise CompatibilityError(
            f"{len(wrong)} tensor(s) of {subject.name!r} have another shape than {model_class.__name__}, such as "
            f"{min(map(str, wrong))}; correct config.json."
        )
    _check_names(subject, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]))
    return module


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
        lacks = (
            f"lacks {len(missing)} of its network's tensors, such as {missing[0]!r}"
            if missing
            else ""
        )
        more = (
            f"has {len(unexpected)} that it does not, such as {unexpected[0]!r}"
            if unexpected
            else ""
        )
        raise CompatibilityError(
            f"{subject.name!r} {' and '.join(filter(None, (lacks, more)))}; correct `architectures` in config.json."
        )


def _check_libraries(needed: list[str]) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"Evaluation needs {' and '.join(missing)}: `pip install weightsmith[eval]`."
        )


def _check_device(device: str) -> None:
    import torch

    kind = device.partition(":")[0]
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"There is no device {device!r} here ({_first_line(error)}); use --device cpu."
        ) from error
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Models are evaluated on cpu, cuda or mps, not on {device!r}.")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


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

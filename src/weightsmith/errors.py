"""Every error that weightsmith raises on purpose: one root, a few leaves, one exit code each.

A message is one sentence that says what is wrong, where (file, tensor, byte), and what to do.
"""

from __future__ import annotations


class WeightsmithError(Exception):
    """Root of the errors that a user can do something about."""

    exit_code = 4


class Malformed(ValueError):
    """Data from a file has another form than it should; the message begins in lower case and names no file.

    Whoever reads the file catches it, with what Python raises in such a case, and `wording.fault` puts both in words.
    """


class UsageError(WeightsmithError):
    """A command or function was called in a way that cannot mean anything."""

    exit_code = 2


class RecipeError(WeightsmithError):
    """A recipe is malformed, ambiguous or asks for something meaningless."""


class CheckpointError(WeightsmithError):
    """A file of a checkpoint is damaged, hostile or of an unknown form."""


class TokenizerError(CheckpointError):
    """A tokenizer or a file of one cannot be read."""


class CompatibilityError(WeightsmithError):
    """Checkpoints that a recipe combines do not fit together."""


class NonFiniteError(WeightsmithError):
    """A NaN or an infinity was found where only finite numbers make sense."""


class GradientError(WeightsmithError):
    """A gradient was asked for at weights where the merge has none."""


class AssertionFailed(WeightsmithError):
    """An `assert:` clause of a recipe does not hold, so the merge was not sealed."""

    exit_code = 1


class OutputError(WeightsmithError):
    """The output exists, is an input, lies inside one, or cannot be written."""


class ResourceError(WeightsmithError):
    """Disk space, memory or another resource ran out."""

    exit_code = 5


class VerificationError(WeightsmithError):
    """A finished checkpoint does not match its manifest."""

    exit_code = 1

"""A checkpoint on disk: its layout, configuration, roles, ties, and what a merged one needs."""

from __future__ import annotations

from weightsmith.checkpoints.checkpoint import Attached as Attached
from weightsmith.checkpoints.checkpoint import Checkpoint as Checkpoint
from weightsmith.checkpoints.checkpoint import assemble as assemble
from weightsmith.checkpoints.checkpoint import open_checkpoint as open_checkpoint
from weightsmith.checkpoints.checkpoint import untied as untied
from weightsmith.checkpoints.compatibility import agreeing as agreeing
from weightsmith.checkpoints.compatibility import compare as compare
from weightsmith.checkpoints.config import changed_keys as changed_keys
from weightsmith.checkpoints.config import merged_config as merged_config
from weightsmith.checkpoints.copied_files import donor_files as donor_files
from weightsmith.checkpoints.formats.bundles import member_of as member_of
from weightsmith.checkpoints.formats.bundles import open_output as open_output
from weightsmith.checkpoints.formats.weights import BareAdapter as BareAdapter
from weightsmith.checkpoints.roles import Kind as Kind
from weightsmith.checkpoints.roles import Role as Role
from weightsmith.checkpoints.stacks import Stack as Stack
from weightsmith.checkpoints.tied_tensors import Tying as Tying

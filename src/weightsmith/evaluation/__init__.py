"""Scores of checkpoints and recipes on the tasks of a suite."""

from __future__ import annotations

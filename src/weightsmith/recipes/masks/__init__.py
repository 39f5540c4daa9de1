"""Masks of task vectors: their files, and those that are still to be found."""

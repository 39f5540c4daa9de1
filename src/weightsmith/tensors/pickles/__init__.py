"""Pickled checkpoints, read by a machine that knows tensors and nothing else."""

"""Backends of the value graph: programs for the native kernels, and torch, the reference, for GPUs and gradients."""

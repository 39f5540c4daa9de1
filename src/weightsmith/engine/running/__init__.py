"""Running: tensors computed tile by tile on threads or a cluster, within the memory that a plan allows."""

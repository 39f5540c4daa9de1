"""Statistics of the experts are needed: Fisher information, Gram matrices, moments, gradients, metrics."""

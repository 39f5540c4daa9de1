"""What methods share: the registry, task vectors, matrices and their spectra, Gram matrices, modifiers."""

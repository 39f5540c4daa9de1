"""A network in parts: cut at its lists of modules, replayed up to each part, its activations kept, its gradients."""

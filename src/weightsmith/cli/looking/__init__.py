"""Commands that look: at checkpoints, at their differences, at the boundaries of layers, at methods."""

"""What a recipe means for checkpoints at hand: the formula of every output tensor, from headers alone."""

"""Commands that run a model over data."""

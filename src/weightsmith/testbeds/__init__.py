"""Real model families, trained on this machine from data that comes inside packages."""

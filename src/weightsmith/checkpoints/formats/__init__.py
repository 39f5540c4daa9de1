"""How checkpoints are kept: dense folders and files, task bundles, delta packages, statistics, states of merges."""

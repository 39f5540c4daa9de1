"""Delta packages: fine-tunes stored as small changes of a base that the package names by its digests."""

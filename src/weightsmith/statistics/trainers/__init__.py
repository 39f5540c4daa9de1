"""What trainers leave behind: Adam's second moments, read from their checkpoints and joined from shards."""

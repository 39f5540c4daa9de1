"""Many experts: the singular directions of their changes are separated, in whole matrices; of adapters (LoRA) too."""

"""Two models: between a base and one expert, or between two experts, along lines and arcs, and weight by weight."""

"""Several fine-tunes of one base: their task vectors added, or weighed by how they lie to one another."""

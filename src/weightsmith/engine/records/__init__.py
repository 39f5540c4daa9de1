"""Records: the journal of a run, the manifest of its output, and what is made from it again."""

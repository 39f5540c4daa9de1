"""Experts disagree: what matters of each task vector is kept, and conflicts of signs are settled."""

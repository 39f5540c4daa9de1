"""Mutation testing: whether the tests notice a small random mistake in the code (`tools/mutants.py`)."""

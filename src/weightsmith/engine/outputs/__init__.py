"""Kinds of output, one file for each; `output` has what the engine asks of every kind."""

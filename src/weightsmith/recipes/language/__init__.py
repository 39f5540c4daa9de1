"""The recipe language: what may be written, in which dialect, and what is said of mistakes; no checkpoint is opened."""

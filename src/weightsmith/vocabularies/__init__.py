"""Vocabularies: reading tokenizers, aligning their tokens, and the rows of tables that belong to them."""

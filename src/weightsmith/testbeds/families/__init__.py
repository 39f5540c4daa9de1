"""Families: the recipe of each, step by step, and what several have in common; imported when one is built."""

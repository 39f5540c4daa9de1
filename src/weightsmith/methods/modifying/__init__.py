"""Modifiers, which change the experts before any method: made sparse, shortened, made robust."""

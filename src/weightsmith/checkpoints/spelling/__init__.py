"""Spellings: the many names that files have for one network's tensors, each read under one canonical name.

Facts about families and formats are tables, held against the libraries by tests; what files keep in one, turned or
apart is read as lazy views.
"""

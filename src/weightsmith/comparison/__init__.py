"""Versions of a model compared the way users feel them, methods on families, diagnostics with what happens."""

"""Layers: taken as they are, weighed one by one, or moved less the deeper or shallower they lie."""

"""Planning: passes, layout, tiles, memory and time of a merge, known from headers alone."""

"""Reports: one self-contained HTML file about a merge, an evaluation, a comparison or a league, with pictures."""

"""One expert after another: continual merging, which goes on from what was merged before."""

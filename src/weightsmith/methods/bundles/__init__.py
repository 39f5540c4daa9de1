"""One model for each task, stored as one: a shared task vector with masks and scales."""

"""What interfaces of image models write: weights of blocks in one line, and their names for methods."""

"""Data: out of archives or drawn here, made into tasks in three splits, and named in suites."""

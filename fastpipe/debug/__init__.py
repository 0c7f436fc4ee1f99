"""Watching requests: one node at a time, or kept in files while a service runs, to be run again and compared."""

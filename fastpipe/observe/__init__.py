"""Seeing inside: metrics and more of running pipes, for tools of others. ``import fastpipe`` imports none of it."""

"""Seeing inside: what pipes do, for people and for the tools of others. ``import fastpipe`` imports none of it."""

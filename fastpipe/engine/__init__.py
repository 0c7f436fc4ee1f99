"""The chapters of the engine, compiled into ``fastpipe._core``; nothing here is imported by Python.

``_core.pyx`` is the first page: its invariants, and which chapter has what.
"""

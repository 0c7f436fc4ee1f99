"""The command ``fastpipe``: draw, check, run, measure, tune and replay what a file describes."""

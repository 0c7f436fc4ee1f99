"""The command ``fastpipe``: draw, check and replay what a file describes."""

"""Which GPU, which stream, and when what is queued there is done."""

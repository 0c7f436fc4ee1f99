"""What a pipe does, as others see it: a room above the pipe, of which nothing is imported until it is asked for."""

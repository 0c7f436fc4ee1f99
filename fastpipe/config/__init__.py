"""What was written, read and checked: from a mapping or a file to a plan of each node, and a graph. Starts nothing."""

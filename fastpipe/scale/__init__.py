"""More than one machine: pipes as replicas in somebody else's cluster. Nothing is imported until it is asked for."""

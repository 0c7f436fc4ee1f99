"""What kind of file is it? Told by magika's model from its bytes: ``python examples/file_types``."""

"""Images as NumPy arrays, on the CPU: decoded, resized, cut out, converted, written."""

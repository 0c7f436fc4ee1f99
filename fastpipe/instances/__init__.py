"""From plans to what runs: instances of backends, their threads, and what replaces an instance that hangs."""

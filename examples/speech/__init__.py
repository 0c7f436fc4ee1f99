"""When does somebody speak? Told by silero's model, of many streams at once: ``python examples/speech``."""

"""State -> desired kernel, and its difference from the actual one. Without I/O."""

"""The decoder and its two memories: pure functions of arrays."""

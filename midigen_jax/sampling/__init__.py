"""From a prompt to its continuations."""

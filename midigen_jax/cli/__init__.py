"""The commands: arguments in, one-line errors out."""

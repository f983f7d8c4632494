"""What a model and its memories are worth."""

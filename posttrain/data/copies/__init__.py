"""Near duplicates, and test prompts that are also in the training data."""

"""What to train, and the runner that trains it."""

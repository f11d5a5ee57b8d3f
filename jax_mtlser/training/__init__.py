"""From batches to trained parameters: losses, step, optimizer, loop, checkpoints."""

"""Which samples make up the batch of a step: pure functions of (seed, epoch, step)."""

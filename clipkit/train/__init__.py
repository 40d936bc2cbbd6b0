"""One training loop for every task: optimizer groups, schedule, checkpoints, guards."""

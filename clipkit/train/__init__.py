"""One loop for every task: optimizer groups, schedule, checkpoints, guards. It knows the Task protocol alone."""

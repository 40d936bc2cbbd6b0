"""What the commands do, a module a workflow, callable from Python."""

"""Tasks, the kinds of training: each has a model, its inputs, its loss and its groups of parameters."""

from clipkit.tasks.base import BaseTask, TaskContext, build_task

__all__ = ["BaseTask", "TaskContext", "build_task"]

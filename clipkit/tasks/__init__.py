"""Kinds of training: each is a model with its inputs, its loss and its groups of parameters."""

from clipkit.tasks.base import BaseTask, TaskContext, build_task

__all__ = ["BaseTask", "TaskContext", "build_task"]

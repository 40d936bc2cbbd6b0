"""Kinds of training: each is a model, its loss and its evaluation, behind the Task protocol."""

from clipkit.tasks.contrastive import ContrastiveTask, build_task

__all__ = ["ContrastiveTask", "build_task"]

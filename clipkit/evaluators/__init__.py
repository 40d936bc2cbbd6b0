"""Kinds of measurement: a model on fixed rows, to numbers."""

from clipkit.evaluators.base import BaseEvaluator, EvaluatorContext, build_evaluator

__all__ = ["BaseEvaluator", "EvaluatorContext", "build_evaluator"]

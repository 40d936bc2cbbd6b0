"""Evaluators: each measures a model on fixed rows."""

from clipkit.evaluators.base import BaseEvaluator, EvaluatorContext, build_evaluator

__all__ = ["BaseEvaluator", "EvaluatorContext", "build_evaluator"]

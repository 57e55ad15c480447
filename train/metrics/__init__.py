"""Metrics: pixel scores from confusion matrices, GlaS object scores, bootstrap intervals."""

from pathseg.train.metrics.object import object_scores

__all__ = ["object_scores"]

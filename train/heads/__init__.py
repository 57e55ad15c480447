"""Segmentation heads on cached features, and the baselines that read images."""

from pathseg.train.heads.fcn import FCNHead
from pathseg.train.heads.linear import LinearHead

__all__ = ["FCNHead", "LinearHead"]

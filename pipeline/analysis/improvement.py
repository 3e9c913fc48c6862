"""How much better, in one number.

Relative improvement (Chen et al., "Cross-Layer Distillation with Semantic Calibration", Eq. 17; Tian et al., 2020) compares a method with
another one by what that other gained over the student alone: `(ours - theirs) / (theirs - alone)`; 1 is 100 %. It says something only where
theirs is better than alone: near it the number is huge, below it the sign turns over, at it there is none (nan).
"""

import math
import statistics
from collections.abc import Sequence


def relative_improvement(ours: float, theirs: float, alone: float) -> float:
    return (ours - theirs) / (theirs - alone) if theirs != alone else math.nan


def average_relative_improvement(settings: Sequence[tuple[float, float, float]]) -> float:
    """The mean over settings of (ours, theirs, alone)."""
    return statistics.fmean(relative_improvement(*setting) for setting in settings)

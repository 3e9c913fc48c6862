"""How much better a method is than another, in one number.

Relative improvement (Chen et al., "Cross-Layer Distillation with Semantic Calibration", Eq. 17; Tian et al.,
2020) measures what a method gains over another one in units of what that other one gains over the baseline:
`(ours - theirs) / (theirs - baseline)`; 1 is 100 %. It only makes sense if theirs is better than the
baseline. Near the baseline the number is very large, below it the sign is wrong, and at it there is none
(nan).
"""

import math
import statistics
from collections.abc import Sequence


def relative_improvement(ours: float, theirs: float, baseline: float) -> float:
    return (ours - theirs) / (theirs - baseline) if theirs != baseline else math.nan


def average_relative_improvement(settings: Sequence[tuple[float, float, float]]) -> float:
    """The mean over settings of (ours, theirs, baseline)."""
    return statistics.fmean(relative_improvement(*setting) for setting in settings)

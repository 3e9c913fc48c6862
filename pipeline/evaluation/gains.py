"""What a run gained over the baseline, with its interval."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.settings import InputError


@dataclass(frozen=True)
class Gain:
    """Mean difference of accuracy and its 95 % interval (None if there is only one seed)."""

    mean: float
    low: float | None
    high: float | None
    n: int  # pairs, or seeds of the smaller side
    paired: bool


def gain(run: Mapping[int, float], baseline: Mapping[int, float]) -> Gain:
    """Accuracy gained over the baseline, both given by seed.

    If all seeds of one side also occur on the other, students of equal seed (equal start, equal order of the
    data) are compared, and the interval is that of the paired t test. Otherwise it is Welch's.
    """
    if not run or not baseline:
        raise InputError("gain: both the run and the baseline need the accuracy of at least one seed.")
    shared = sorted(run.keys() & baseline.keys())
    paired = len(shared) == min(len(run), len(baseline))
    if paired:
        sides = [np.array([run[seed] - baseline[seed] for seed in shared])]
        mean = float(sides[0].mean())
    else:
        sides = [np.array(list(run.values())), np.array(list(baseline.values()))]
        mean = float(sides[0].mean() - sides[1].mean())
    n = min(len(side) for side in sides)
    if n < 2:
        return Gain(mean, None, None, n, paired)
    variances = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(variances)
    if total == 0:
        return Gain(mean, mean, mean, n, paired)
    from scipy.special import stdtrit

    freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, sides, strict=True))
    half = float(stdtrit(freedom, 0.975)) * total**0.5
    return Gain(mean, mean - half, mean + half, n, paired)

"""Which of several trained networks is best on validation: what `train.select` means."""

from collections.abc import Mapping
from typing import Literal

Select = Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"]


def value(scores: Mapping[str, float], select: Select) -> float:
    """The score on validation that decides; the highest is best, so a loss is negative."""
    return -scores["val_loss"] if select == "loss" else scores[f"val_{select}"]


def rank(scores: Mapping[str, float], select: Select) -> tuple[float, ...]:
    """The highest is best. Of equal values, that with the lower loss.

    If the embedding alone was scored, the accuracy of the nearest class mean decides.
    """
    if "val_nearest_mean" in scores:
        return (scores["val_nearest_mean"],)
    return value(scores, select), -scores["val_loss"]

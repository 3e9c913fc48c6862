"""Which maps of student and teacher a run's method associates, and how much each pair weighs (SemCKD)."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from pipeline.analysis.drawing import HeatMap, heat_maps
from pipeline.records.record import Record

Weights = dict[tuple[str, str], float]  # by pair: (map of the student, map of the teacher)


def learned(distilled: Record) -> dict[int, Weights]:
    """The weights in the method's last notes, by seed; empty if it learns no weights."""
    found: dict[int, Weights] = {}
    for name, curve in distilled.curves.items():
        seed = int(name.rpartition("-")[2])
        for column, values in curve.items():
            student, is_pair, teacher = column.removeprefix("note/").partition("~")
            if is_pair:
                found.setdefault(seed, {})[student, teacher] = values[-1]
    return found


def mean(of_seeds: Mapping[int, Weights]) -> Weights:
    """The mean over seeds of each weight."""
    pairs = next(iter(of_seeds.values()), {})
    return {pair: statistics.fmean(weights[pair] for weights in of_seeds.values()) for pair in pairs}


def fixed(distilled: Record) -> Weights:
    """The pairs of maps that the method matches, with weight 1 each."""
    rows = distilled.details["overview"]
    maps = {name for name, *_ in rows} - {"pooled", "logits"}
    return {
        (name, partner): 1.0
        for name, _, _, matched in rows
        for partner in matched.split(", ")
        if {name, partner} <= maps
    }


def warnings(weights: Weights) -> list[str]:
    """Warn if the weights tell nothing about which maps correspond.

    If all maps of the student give most weight to the same map of the teacher, that map is only the easiest
    to match.
    """
    favourites = {
        s: max((t for own, t in weights if own == s), key=lambda t: weights[s, t])
        for s in dict.fromkeys(s for s, _ in weights)
    }
    teachers = {t for _, t in weights}
    if len(set(favourites.values())) > 1 or min(len(favourites), len(teachers)) < 2:
        return []
    (one,) = set(favourites.values())
    found = [weight for (_, t), weight in weights.items() if t == one]
    return [
        f"All {len(favourites)} maps of the student learned most from the teacher's {one} (weights "
        f"{min(found):.2f} to {max(found):.2f}), so the weights do not say which maps correspond."
    ]


def draw(weights: Weights, out: Path) -> None:
    rows, columns = (list(dict.fromkeys(pair[side] for pair in weights)) for side in (0, 1))
    values = [[weights.get((s, t), 0.0) for t in columns] for s in rows]
    panel = HeatMap("weights of the associations", rows, columns, values)
    heat_maps([panel], out, across="maps of the teacher", down="maps of the student")

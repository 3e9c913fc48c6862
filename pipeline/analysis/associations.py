"""Which stages of student and teacher a run's method associates, and how much each pair weighs (SemCKD)."""

import statistics
from pathlib import Path

from pipeline.analysis.drawing import HeatMap, heat_maps
from pipeline.record import Record

Weights = dict[tuple[str, str], float]  # of pairs (student stage, teacher stage)


def learned(distilled: Record) -> Weights:
    """What the method noted of every pair at the end of its training, mean over seeds; empty where it learns no weights."""
    last: dict[tuple[str, str], list[float]] = {}
    for curve in distilled.curves.values():
        for column, values in curve.items():
            student, paired, teacher = column.removeprefix("note/").partition("~")
            if paired:
                last.setdefault((student, teacher), []).append(values[-1])
    return {pair: statistics.fmean(values) for pair, values in last.items()}


def fixed(distilled: Record) -> Weights:
    """The pairs of stages the method matches, 1 each."""
    rows = distilled.details["overview"]
    stages = {name for name, *_ in rows} - {"pooled", "logits"}
    return {(name, partner): 1.0 for name, _, _, met in rows for partner in met.split(", ") if {name, partner} <= stages}


def warnings(weights: Weights) -> list[str]:
    """Where all stages of the student heed the same one of the teacher, nothing was calibrated: its error is merely the smallest."""
    heeded = {s: max((t for own, t in weights if own == s), key=lambda t: weights[s, t]) for s in dict.fromkeys(s for s, _ in weights)}
    teachers = {t for _, t in weights}
    if len(set(heeded.values())) > 1 or min(len(heeded), len(teachers)) < 2:
        return []
    (one,) = set(heeded.values())
    return [f"All {len(heeded)} stages of the student learned most from {one} of the teacher (weights {_range(weights, one)})."]


def draw(weights: Weights, out: Path) -> None:
    rows, columns = (list(dict.fromkeys(pair[side] for pair in weights)) for side in (0, 1))
    panel = HeatMap("weights of the associations", rows, columns, [[weights.get((s, t), 0.0) for t in columns] for s in rows])
    heat_maps([panel], out, across="stages of the teacher", down="stages of the student")


def _range(weights: Weights, teacher: str) -> str:
    found = [weight for (_, t), weight in weights.items() if t == teacher]
    return f"{min(found):.2f} to {max(found):.2f}"

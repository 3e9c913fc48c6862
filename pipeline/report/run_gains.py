"""What runs gain over the baseline, and over one another."""

from typing import TYPE_CHECKING, NamedTuple

from pipeline.records.results import Results, RunResults

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain


class Comparison(NamedTuple):
    """Test accuracies, means over seeds."""

    best: float
    other: float
    baseline: float


def gains_over_baseline(results: Results) -> "dict[str, Gain]":
    """The gain of each run that has a baseline, by name."""
    from pipeline.evaluation.gains import gain

    return {
        name: gain(run.accuracy, results.runs[run.baseline].accuracy)
        for name, run in results.runs.items()
        if run.baseline is not None
    }


def compare_with_best(results: Results) -> list[tuple[RunResults, Comparison]]:
    """The best run beside every other run with the same baseline.

    Runs that gain no more than the baseline's spread over seeds are left out: so small a gain says nothing.
    """
    best = results.best
    if best.baseline is None:
        return []
    baseline = results.runs[best.baseline].records["evaluate"].metrics
    return [
        (run, Comparison(best.mean_accuracy, run.mean_accuracy, baseline["accuracy"]))
        for run in results.ranked
        if run is not best
        and run.baseline == best.baseline
        and run.mean_accuracy - baseline["accuracy"] > baseline.get("spread", 0.0)
    ]

"""What runs gain over the baseline, and over one another."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.records.results import Results, RunResults

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain
    from pipeline.evaluation.image_gains import ImageGain
    from pipeline.evaluation.predictions import AllPredictions


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


def load_all_predictions(results: Results, records: Path) -> "dict[str, AllPredictions]":
    """The stored predictions of each run that has some."""
    from pipeline.evaluation.predictions import load_predictions

    found = {name: load_predictions(records / "evaluate" / f"{name}.npz") for name in results.runs}
    return {name: predictions for name, predictions in found.items() if predictions is not None}


def gains_on_images(
    results: Results, run: RunResults, predictions: "Mapping[str, AllPredictions]"
) -> "tuple[ImageGain, ImageGain] | None":
    """What the method and the file gain over the baseline's on the same test images, if they are known."""
    from pipeline.evaluation.image_gains import are_comparable, of_files, of_methods

    if run.baseline is None or not {run.name, run.baseline} <= predictions.keys():
        return None
    ours, theirs = predictions[run.name], predictions[run.baseline]
    if not are_comparable(ours, theirs):
        return None
    their_seed = results.runs[run.baseline].exported_seed
    return of_methods(ours, theirs), of_files(ours, run.exported_seed, theirs, their_seed)


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

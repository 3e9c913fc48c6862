"""What a reader may do next, from what the results say."""

from collections.abc import Iterator

from pipeline.records.results import Results
from pipeline.report.confusions import frequent_errors
from pipeline.report.run_gains import gains_over_baseline
from pipeline.report.words import percent

NEAR, FAR = 0.01, 0.03  # how much better a teacher is
SEEDS = 5


def next_steps(results: Results, bundle: str) -> list[str]:
    return [
        f"Deploy it: `handdown deploy verify {_plain(bundle)}` checks the bundle, `predict` in the place of "
        "`verify` answers for pictures, and `handdown promote` registers it in MLflow (docs/deploy.md).",
        *_about_gain(results),
        *_about_teacher(results),
        *_about_images(results),
        *_about_int8(results),
        *_about_errors(results),
    ]


def _plain(name: str) -> str:
    """A name beside code, which a backtick would begin or end."""
    return name.replace("`", "'")


def _about_gain(results: Results) -> Iterator[str]:
    best, gain = results.best, gains_over_baseline(results).get(results.best.name)
    if best.method == "ce":
        yield (
            "No method beat the baseline on validation. Try others (docs/methods.md), or let the student "
            "learn from fewer labels, where a teacher helps most."
        )
    elif gain is None:
        yield "Add a run with method `ce` for the same student: without this baseline, no gain is known."
    elif gain.low is None or gain.low <= 0:
        seeds = list(range(max(SEEDS, 2 * len(best.accuracy))))
        setting = f"`runs.{_plain(best.name)}.seeds: {seeds}`"
        yield f"The gain may be chance. More seeds tell: {setting}, and the same for the baseline."


def _about_teacher(results: Results) -> Iterator[str]:
    best = results.best
    ahead = best.records["evaluate"].details["teacher"]["accuracy"] - best.file_accuracy.value
    if ahead < NEAR:
        yield "The file is about as good as its teacher, so a better teacher is what may still help."
    elif ahead > FAR:
        yield (
            f"The teacher is still {percent(ahead)} points better than the file. Train longer "
            "(`train.epochs`), try other methods (docs/methods.md), or take a larger student."
        )


def _about_images(results: Results) -> Iterator[str]:
    subset = results.best.records["distill"].details["subset"]
    there = results.prepare.details["manifest"]["splits"]["train"]
    if subset["images"] < there and not subset.get("unlabelled"):
        yield (
            f"The student learned from {subset['images']:,} of {there:,} training images. With "
            "`protocol.rest: unlabelled` it learns what the teacher answers to the others, too."
        )


def _about_int8(results: Results) -> Iterator[str]:
    int8 = results.best.records["export"].details["formats"].get("int8", {})
    if int8.get("refused"):
        yield f"The int8 file was refused: {'; '.join(int8['refused'])}. docs/deploy.md says what may help."


def _about_errors(results: Results) -> Iterator[str]:
    errors = frequent_errors(results.best, 1)
    if errors:
        worst = errors[0]
        yield (
            "Look at the errors below. The most frequent one is "
            f"{_plain(worst.actual)}, taken for {_plain(worst.predicted)} "
            f"({worst.images} of the test images): more images of these classes, or better labels, may help."
        )

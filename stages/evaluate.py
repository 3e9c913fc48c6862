from collections.abc import Mapping
from pathlib import Path

from pipeline.evaluation.evaluate import evaluate_run
from pipeline.evaluation.predictions import save_predictions
from pipeline.project.command import command
from pipeline.records.record import recording


def stage(
    name: str, data: Path, teacher: Path, students: Path, work: Path, predictions: Path, record: Path
) -> None:
    """Read the test split once: every seed's student, and the teacher beside it."""
    with recording(record, "evaluate", name, {}) as done:
        result, answered = evaluate_run(data, teacher, students, work=work)
        done.add(result)
        save_predictions(predictions, answered)
    print(f"{name}: test accuracy {with_spread(done.metrics)}")


def with_spread(metrics: Mapping[str, float]) -> str:
    n, accuracy = metrics["n"], f"{metrics['accuracy']:.1%}"
    return f"{accuracy} ± {metrics['spread']:.1%} over {n:.0f} seeds" if n > 1 else f"{accuracy} (1 seed)"


if __name__ == "__main__":
    command(stage)

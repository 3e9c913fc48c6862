"""The curves of one training (a seed of a run, a teacher) as a run of MLflow of its own, below its row.

So MLflow draws the same curve of several trainings in one chart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.records.record import Curves, Record
from pipeline.track.naming import Point, metric_name, milliseconds

SKIPPED = ("epoch", "images")
Part = tuple[str, Curves, float]  # a phase, its curve, and the millisecond at which it began


@dataclass(frozen=True)
class Training:
    """What becomes a run of MLflow below a row."""

    name: str
    seed: int | None  # None: of a teacher, or of its knowledge
    parts: list[Part]
    metrics: dict[str, float] = field(default_factory=dict)
    exported: bool = False

    @property
    def last_phase(self) -> str:
        return self.parts[-1][0]

    @property
    def start(self) -> int:
        return round(min(start for _, _, start in self.parts))

    @property
    def end(self) -> int:
        return round(max(start + 1000 * curve["seconds"][-1] for _, curve, start in self.parts))

    def points(self) -> Iterator[Point]:
        for phase, curve, start in self.parts:
            yield from points(curve, start=start, prefix="" if phase == self.last_phase else f"{phase}_")
        for key, value in self.metrics.items():
            yield key, value, self.end, 0


def parts_by_seed(records: list[Record]) -> dict[int | None, list[Part]]:
    """The curves of these stages. Those of one stage were drawn one after the other."""
    found: dict[int | None, list[Part]] = {}
    for record in records:
        seconds = 0.0  # of the curves before
        for key, curve in record.curves.items():
            phase, seed = phase_and_seed(key)
            start = milliseconds(record.started) + 1000 * seconds
            found.setdefault(seed, []).append((phase, curve, start))
            seconds += curve["seconds"][-1]
    return found


def phase_and_seed(key: str) -> tuple[str, int | None]:
    """Of the name of a curve, such as `hint/seed-0`."""
    phase, mark, seed = key.rpartition("/seed-")
    return (phase, int(seed)) if mark else (key, None)


def points(curve: Curves, *, start: float, prefix: str = "", first: int = 0) -> Iterator[Point]:
    """The points of a curve that began at the millisecond `start`, from the point `first` on.

    The step is the number of images that were shown, because epochs of different runs may differ in length.
    Matrices that methods log (`note/a~b`) are left out: they are in the record.
    """
    columns = [each for each in curve if each not in SKIPPED and "~" not in each]
    for i in range(first, len(curve["epoch"])):
        moment, step = round(start + 1000 * curve["seconds"][i]), round(curve["images"][i])
        for column in columns:
            yield metric_name(f"{prefix}{column}"), curve[column][i], moment, step
        if not prefix and (rate := _images_per_s(curve, i)):  # of phases of one training, the last
            yield "system/images_per_s", rate, moment, step


def _images_per_s(curve: Mapping[str, list[float]], i: int) -> float | None:
    """MLflow shows what begins with `system/` on a page of its own."""
    before = (curve["images"][i - 1], curve["seconds"][i - 1]) if i else (0, 0.0)
    images, seconds = curve["images"][i] - before[0], curve["seconds"][i] - before[1]
    return images / seconds if seconds > 0 else None

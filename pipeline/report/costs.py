"""What the training of a run or a teacher cost, from the records of its training stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.record import Record
from pipeline.report.results import Results

HEADER = ["minutes", "images/s", "energy, Wh", "device"]


@dataclass(frozen=True)
class Cost:
    name: str
    seconds: float
    images_per_s: float | None  # seen in training; None where nothing was trained
    energy_wh: float | None  # None where the system told none
    counted: str  # what alone the system told it of, CPU or GPU; empty where nothing else computed
    device: str


def training(results: Results) -> list[Cost]:
    """Teachers first, then what they learned once for several runs; a run's seeds and phases together."""
    images = results.prepare.details["manifest"]["splits"]["train"]
    told = [_cost(name, {record.stage: record}, images) for name, record in results.teachers.items()]
    for name, record in results.knowledge.items():
        told.append(_cost(f"{name} (knowledge)", {record.stage: record}, record.details["sample"]["images"]))
    for run in results.ranked:
        stages = {stage: run.records[stage] for stage in ("pretrain", "distill")}
        told.append(_cost(run.name, stages, run.records["distill"].details["sample"]["images"]))
    return told


def words(cost: Cost) -> list[str]:
    """Under HEADER; empty where nobody measured it."""
    rate = "" if cost.images_per_s is None else f"{cost.images_per_s:,.0f}"
    energy = "" if cost.energy_wh is None else f"{cost.energy_wh:.2f}{cost.counted and f' ({cost.counted} alone)'}"
    return [f"{cost.seconds / 60:.1f}", rate, energy, cost.device]


def note(told: Sequence[Cost]) -> str:
    seen = "All seeds and phases of a run together; images/s counts training images seen, over the time of training and validation."
    if all(cost.energy_wh is None for cost in told):
        return f"{seen} Energy is told where the system counts it; here it doesn’t."
    energy = "Energy is what the counters of processors and GPUs say, other work on them included, memory and cooling not."
    if any(cost.counted for cost in told):
        energy += " Where one of the two could not be read, its share is missing, and the other is named."
    return f"{seen} {energy}"


def _cost(name: str, records: Mapping[str, Record], images: int) -> Cost:
    curves = [curve for record in records.values() for curve in record.curves.values() if curve.get("seconds")]
    seen, busy = sum(images * curve["epoch"][-1] for curve in curves), sum(curve["seconds"][-1] for curve in curves)
    energy_wh, counted = _energy(list(records.values()))
    devices = dict.fromkeys(str(record.environment.get("device", "")) for record in records.values() if record.curves)
    return Cost(
        name,
        seconds=sum(record.seconds for record in records.values()),
        images_per_s=seen / busy if busy else None,
        energy_wh=energy_wh,
        counted=counted,
        device=", ".join(filter(None, devices)),
    )


def _energy(records: Sequence[Record]) -> tuple[float | None, str]:
    """Watt hours of all of them, and what alone they are of: a sum that leaves a stage out would be taken for the cost of training."""
    if all("energy_j" in record.metrics for record in records):
        return sum(record.metrics["energy_j"] for record in records) / 3600, ""
    for part in ("GPU", "CPU"):
        joules = [record.details.get("energy_j", {}).get(part) for record in records]
        if None not in joules:
            return sum(joules) / 3600, part
    return None, ""

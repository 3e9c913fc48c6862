"""What it cost to train a run or a teacher, from the records of its training stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.records.record import Record
from pipeline.records.results import Results

HEADER = ["minutes", "images/s", "energy, Wh", "device"]


@dataclass(frozen=True)
class Cost:
    name: str
    seconds: float
    images_per_s: float | None  # in training; None if nothing was trained
    energy_wh: float | None  # None if the machine did not count it
    counted: str  # "CPU" or "GPU" if only this part of the energy is known, else empty
    device: str


def training_costs(results: Results) -> list[Cost]:
    """Of the teachers, then of their knowledge, then of the runs, with all seeds and phases together."""
    costs = [_cost(name, {record.stage: record}) for name, record in results.teachers.items()]
    for name, record in results.knowledge.items():
        costs.append(_cost(f"{name} (knowledge)", {record.stage: record}))
    for run in results.ranked:
        stages = {stage: run.records[stage] for stage in ("pretrain", "distill")}
        costs.append(_cost(run.name, stages))
    return costs


def cells(cost: Cost) -> list[str]:
    """The cells under HEADER; empty where nothing was measured."""
    rate = "" if cost.images_per_s is None else f"{cost.images_per_s:,.0f}"
    energy = "" if cost.energy_wh is None else f"{cost.energy_wh:.2f}"
    only = f" ({cost.counted} only)" if cost.counted else ""
    return [f"{cost.seconds / 60:.1f}", rate, energy + only, cost.device]


def note(costs: Sequence[Cost]) -> str:
    """How to read the table."""
    times = (
        "All seeds and phases of a run are added up. images/s is the number of training images that the "
        "network was shown, divided by the time of training and validation."
    )
    if all(cost.energy_wh is None for cost in costs):
        return f"{times} Energy is shown if the machine counted it in the whole training. Here it did not."
    energy = (
        "Energy is what the counters of processors and GPUs report. It includes other work on them, but not "
        "memory and cooling."
    )
    if any(cost.counted for cost in costs):
        energy += " “CPU only” and “GPU only” mean that the other one's share is missing: it was not counted."
    return f"{times} {energy}"


def planned(record: Record) -> str:
    """The seconds that `make plan` expected of a stage; empty if there was no plan when it ran."""
    seconds = record.details.get("planned_seconds")
    return "" if seconds is None else f"{seconds:.1f}"


def planned_and_taken(results: Results) -> dict[str, tuple[float, float]]:
    """Seconds by kind of stage, of the stages for which there was a plan when they ran."""
    found: dict[str, tuple[float, float]] = {}
    for record in results.records:
        if (seconds := record.details.get("planned_seconds")) is not None:
            expected, took = found.get(record.stage, (0.0, 0.0))
            found[record.stage] = (expected + seconds, took + record.seconds)
    return found


def _cost(name: str, records: Mapping[str, Record]) -> Cost:
    curves = [
        curve for record in records.values() for curve in record.curves.values() if curve.get("seconds")
    ]
    shown = sum(curve["images"][-1] for curve in curves)
    seconds = sum(curve["seconds"][-1] for curve in curves)
    energy_wh, counted = _energy(list(records.values()))
    devices = dict.fromkeys(
        str(record.environment.get("device", "")) for record in records.values() if record.curves
    )
    return Cost(
        name,
        seconds=sum(record.seconds for record in records.values()),
        images_per_s=shown / seconds if seconds else None,
        energy_wh=energy_wh,
        counted=counted,
        device=", ".join(filter(None, devices)),
    )


def _energy(records: Sequence[Record]) -> tuple[float | None, str]:
    """Watt hours of all stages, and the part if they are only those of the CPU or the GPU.

    None unless every stage has it: a sum without one of them would be taken for the cost of the training.
    """
    if all("energy_j" in record.metrics for record in records):
        return sum(record.metrics["energy_j"] for record in records) / 3600, ""
    for part in ("GPU", "CPU"):
        joules = [record.details.get("energy_j", {}).get(part) for record in records]
        if None not in joules:
            return sum(joules) / 3600, part
    return None, ""

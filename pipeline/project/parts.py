"""The graph cut into parts that may run at the same time: each teacher, its knowledge, each run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.project.ahead import Stage
from pipeline.records.place import SIDE_BY_SIDE
from pipeline.settings import InputError


@dataclass(frozen=True)
class Part:
    """Stages that run one after the other, in this order."""

    name: str  # of a run, or such as teacher@big
    stages: tuple[str, ...]
    after: frozenset[str] = frozenset()  # the names of the parts that must have ended well before


def parts(stages: Sequence[Stage]) -> list[Part]:
    """What is to do side by side. What all of it needs comes before, and what needs all of it comes later."""
    members: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.kind in SIDE_BY_SIDE and stage.state != "up to date":
            members.setdefault(_part(stage.name), []).append(stage)
    return [
        Part(name, tuple(stage.name for stage in own), _before(own) & members.keys() - {name})
        for name, own in members.items()
    ]


def needed_by(some: Iterable[Part], stages: Sequence[Stage]) -> list[str]:
    """The stages that must run before any of these parts begins."""
    by_name = {stage.name: stage for stage in stages}
    before = {name for part in some for own in part.stages for name in by_name[own].before}
    return [
        stage.name
        for stage in stages
        if stage.name in before and stage.kind not in SIDE_BY_SIDE and stage.state != "up to date"
    ]


def ready(waiting: Sequence[Part], ended_well: Collection[str]) -> Part | None:
    """The first part that can begin."""
    return next((part for part in waiting if part.after <= set(ended_well)), None)


def cannot_begin(waiting: Sequence[Part], failed: Collection[str]) -> dict[str, str]:
    """Parts that need one that failed, with its name."""
    blocked: dict[str, str] = dict.fromkeys(failed, "")
    for part in waiting:  # in the order of the graph, so that what a part needs comes before it
        if cause := next((name for name in sorted(part.after) if name in blocked), None):
            blocked[part.name] = blocked[cause] or cause
    return {name: cause for name, cause in blocked.items() if cause}


def seconds_side_by_side(
    todo: Sequence[Part], seconds: Mapping[str, float], jobs: int, share: Callable[[int], float]
) -> float:
    """How long parts take of which `jobs` run at the same time. `seconds`: of each stage, if it runs alone.

    While n parts run, each takes `share(n)` times as long.
    """
    waiting, left, ended, now = list(todo), dict[str, float](), list[str](), 0.0
    while waiting or left:
        while len(left) < jobs and (part := ready(waiting, ended)):
            waiting.remove(part)
            left[part.name] = sum(seconds.get(stage, 0.0) for stage in part.stages)
        first = min(left, key=lambda name: left[name])
        passed, factor = left.pop(first), share(len(left) + 1)
        now += passed * factor
        left = {name: rest - passed for name, rest in left.items()}
        ended.append(first)
    return now


def slower(n: int, *, cores: int, threads: int, devices: int) -> float:
    """How many times as long each of n parts takes: cores and devices are shared, once there are too few."""
    return max(1.0, n * threads / cores, n / devices if devices else 0.0)


def check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise InputError(f"--jobs: {jobs} runs at a time cannot be. Write a number from 1.")


def _before(stages: Sequence[Stage]) -> frozenset[str]:
    return frozenset(_part(name) for stage in stages for name in stage.before)


def _part(stage: str) -> str:
    """All stages of a run are one part. A teacher may have the name of a run."""
    kind, _, key = stage.partition("@")
    return stage if kind in ("teacher", "knowledge") else key


def divided(devices: Sequence[str], jobs: int) -> list[list[str]]:
    """The devices of each slot: a share of its own, or if there are too few, one that others use too."""
    if len(devices) < jobs:
        return [[devices[slot % len(devices)]] if devices else [] for slot in range(jobs)]
    return [list(devices[slot::jobs]) for slot in range(jobs)]


def slots(jobs: int, devices: Sequence[str], cores: int, threads: str = "") -> list[Mapping[str, str]]:
    """What to change in the environment of each slot. `threads` are those of each process, if given."""
    return [
        {"OMP_NUM_THREADS": threads or str(max(1, cores // jobs))}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})
        for own in divided(devices, jobs)
    ]

"""What will run, how long it will take, and how much memory and disk it needs."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path

from pipeline.files import atomic_file
from pipeline.project.ahead import Stage, stages_ahead
from pipeline.project.estimate import Estimate, estimates, look_at_pictures
from pipeline.project.locks import mend_locks
from pipeline.project.parts import check_jobs, parts, seconds_side_by_side, slower
from pipeline.project.side_by_side import cores, devices, free_slots
from pipeline.records.place import PLAN, about, params_key
from pipeline.settings import PARAMS


@dataclass(frozen=True)
class Group:
    """All stages of one kind."""

    kind: str
    counts: str
    seconds: float
    memory_mb: float | None
    device_mb: float
    disk_mb: float
    how: str


def plan(
    data: Path = Path("data/prepared"),
    records: Path = Path("records"),
    teachers: Path = Path("models/teachers"),
    jobs: int = 1,
) -> None:
    """Say what `handdown run` would do, how long it would take, how much memory and disk it would need."""
    check_jobs(jobs)
    mend_locks()
    stages = stages_ahead()
    running = [stage.name for stage in stages if stage.state == "runs"]
    if not running:
        print("Everything is up to date, or comes out of DVC's cache: nothing would run.")
        return
    own = cores()
    threads = int(free_slots(jobs)[0]["OMP_NUM_THREADS"]) if jobs > 1 else None
    from pipeline.params import load_params

    print("Measuring a few steps of each training ...", file=sys.stderr, flush=True)
    params = load_params()
    pictures = look_at_pictures(params, data, is_there="prepare" not in running and data.is_dir())
    start, found = estimates(params, stages, pictures, teachers=teachers, threads=threads)
    seconds = {name: each.seconds for name, each in found.items()}
    write_plan(stages, records, start, seconds, jobs=jobs)
    print(f"From {pictures.how}:\n", *lines(groups(stages, found)), sep="\n")
    if threads is None:
        print(f"\n{_end(sum(seconds.values()))}.")
    else:
        print(f"\n{_with_jobs(stages, found, jobs, threads, own)}")


def _end(seconds: float, how: str = "") -> str:
    ends = datetime.now().astimezone() + timedelta(seconds=seconds)
    return f"Begun now{how}, it would end at about {ends:%H:%M on %d %B} ({about(seconds)} from now)"


def _with_jobs(
    stages: Sequence[Stage], found: Mapping[str, Estimate], jobs: int, threads: int, own: int
) -> str:
    """When it would end, how much memory it would need at once, and what was assumed."""
    seconds = {name: each.seconds for name, each in found.items()}
    share = partial(slower, cores=own, threads=threads, devices=len(devices()))
    wall, most = wall_seconds(stages, seconds, jobs, share), share(min(jobs, len(parts(stages))))
    crowded = f" As they share cores or GPUs, a run is counted up to {most:.2g} times." if most > 1 else ""
    return (
        f"{_end(wall, f', {jobs} runs at a time')}.\nThe stages add up to {about(sum(seconds.values()))}. "
        f"Runs at the same time need up to {_megabytes(memory_at_once(stages, found, jobs))} of memory.\n"
        f"Each was measured alone with {threads} of {own} cores, as it will have.{crowded} That they "
        "also wait for each other at memory and disk is not counted, so it may take longer."
    )


def wall_seconds(
    stages: Sequence[Stage], seconds: Mapping[str, float], jobs: int, share: Callable[[int], float]
) -> float:
    """Of the whole graph: what runs side by side, and before and after it what runs alone."""
    todo = parts(stages)
    at_once = {name for part in todo for name in part.stages}
    alone = sum(each for name, each in seconds.items() if name not in at_once)
    return alone + seconds_side_by_side(todo, seconds, jobs, share)


def memory_at_once(stages: Sequence[Stage], found: Mapping[str, Estimate], jobs: int) -> float:
    """Of the largest parts that may run at the same time, in MB."""
    needs = [
        max((found[name].memory_mb or 0.0 for name in part.stages if name in found), default=0.0)
        for part in parts(stages)
    ]
    return sum(sorted(needs, reverse=True)[:jobs])


def write_plan(
    stages: Sequence[Stage], records: Path, start: float, seconds: Mapping[str, float], *, jobs: int = 1
) -> None:
    """For the stages, which say where in the graph they are. `seconds` by name of a stage, if they are known.

    A stage needs `start` beside its work. `jobs` runs are at work at the same time.
    """
    listed = [
        {"name": stage.name, "runs": stage.state == "runs", "seconds": seconds.get(stage.name)}
        for stage in stages
    ]
    content = {
        "params": params_key(PARAMS),
        "records": str(records),
        "start": start,
        "jobs": jobs,
        "stages": listed,
    }
    with atomic_file(PLAN) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def keep_plan(stages: Sequence[Stage], records: Path = Path("records"), *, jobs: int = 1) -> None:
    """Write down what runs now. What an earlier plan of the same params.yaml measured stays."""
    start, seconds = 0.0, {}
    try:
        old = json.loads(PLAN.read_text())
        if old["params"] == params_key(PARAMS):
            start, seconds = old["start"], {each["name"]: each["seconds"] for each in old["stages"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged
    write_plan(stages, records, start, seconds, jobs=jobs)


def groups(stages: Sequence[Stage], found: Mapping[str, Estimate]) -> list[Group]:
    return [
        _group(kind, list(members), found) for kind, members in groupby(stages, key=lambda each: each.kind)
    ]


def _group(kind: str, stages: Sequence[Stage], found: Mapping[str, Estimate]) -> Group:
    of_kind = [found[stage.name] for stage in stages if stage.name in found]
    memory = [each.memory_mb for each in of_kind if each.memory_mb is not None]
    return Group(
        kind,
        _counts(stages),
        sum(each.seconds for each in of_kind),
        max(memory) if memory else None,
        max((each.device_mb for each in of_kind), default=0.0),
        sum(each.disk_mb for each in of_kind),
        max(of_kind, key=lambda each: each.seconds).how if of_kind else "",
    )


def _counts(stages: Sequence[Stage]) -> str:
    """Such as "3", or "2, 1 up to date"."""
    states = [stage.state for stage in stages]
    others = [f"{states.count(state)} {state}" for state in ("up to date", "cached") if state in states]
    return ", ".join(([str(states.count("runs"))] if "runs" in states else []) + others)


def lines(groups: Sequence[Group]) -> list[str]:
    """The table. `from` is of the longest stage of each kind."""
    has_device = any(group.device_mb for group in groups)
    rows = [["stage", "runs", "time", "memory", *(["GPU"] if has_device else []), "disk", "from"]]
    rows += [_row(group, has_device=has_device) for group in groups]
    total = Group(
        "all",
        "",
        sum(group.seconds for group in groups),
        max((group.memory_mb for group in groups if group.memory_mb is not None), default=None),
        max(group.device_mb for group in groups),
        sum(group.disk_mb for group in groups),
        "",
    )
    rows.append(_row(total, has_device=has_device))
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(group: Group, *, has_device: bool) -> list[str]:
    runs = group.seconds > 0
    memory = "" if group.memory_mb is None else _megabytes(group.memory_mb)
    device = [_megabytes(group.device_mb) if group.device_mb else ""] if has_device else []
    time = about(group.seconds).removeprefix("about ") if runs else ""
    return [
        group.kind,
        group.counts,
        time,
        memory,
        *device,
        _megabytes(group.disk_mb) if runs else "",
        group.how,
    ]


def _megabytes(mb: float) -> str:
    return f"{mb / 1000:.1f} GB" if mb >= 1000 else f"{max(1, round(mb))} MB"

"""Where in the graph this process is, and how long the rest will take: from the file that `make run` writes.

DVC tells each stage its name. Without it, or without that file, nothing is said.
"""

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PLAN = Path(".work/plan.json")  # below DVC_ROOT. It is no output of a stage, so that it makes none stale.
OF_A_RUN = ("pretrain", "distill", "analyse", "evaluate", "export", "benchmark")
# what may run at the same time, for several teachers and runs. A benchmark needs the machine for itself.
SIDE_BY_SIDE = ("teacher", "knowledge", "pretrain", "distill", "analyse", "evaluate", "export")


@dataclass(frozen=True)
class Place:
    """The place of one stage in the graph."""

    words: str  # such as "stage 9 of 27, run 3 of 8"
    planned: float | None  # seconds that the plan gives to the work of this stage; None: there is no plan
    whole: float | None  # seconds that this stage should take with its start; None: nobody knows
    after: float | None  # seconds that all stages after it should take

    def left(self, elapsed: float, least: float = 0.0) -> str:
        """How long the graph will still take, `elapsed` seconds after this stage began; empty if unknown.

        The stage itself will take `least` seconds at least, whatever the plan was.
        """
        if self.whole is None or self.after is None:
            return ""
        return f"{about(max(least, self.whole - elapsed) + self.after)} left"

    def at(self, elapsed: float, least: float = 0.0) -> str:
        return ", ".join(filter(None, (self.words, self.left(elapsed, least))))


def about(seconds: float) -> str:
    """A length of time in words, rounded as a guess is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


@cache
def here() -> Place | None:
    """The place of the stage that this process is; None if it is none, or if params.yaml is another."""
    root, stage = os.environ.get("DVC_ROOT"), os.environ.get("DVC_STAGE")
    if not root or not stage:
        return None
    try:
        plan = json.loads((Path(root) / PLAN).read_text())
        return (
            place_of(stage, plan, Path(root)) if plan["params"] == params_key(Path("params.yaml")) else None
        )
    except (OSError, ValueError, KeyError, TypeError):  # a plan only informs; it never stops a stage
        return None


def params_key(file: Path) -> str:
    """What a plan belongs to."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def place_of(stage: str, plan: Mapping[str, Any], root: Path) -> Place:
    """The place of `stage` among the stages of the plan, in the order in which DVC takes them."""
    names = [each["name"] for each in plan["stages"]]
    mine, start = names.index(stage), plan["start"]
    own, *after = [
        _seconds(each, root / plan["records"], plan["jobs"] if each["name"] != stage else 1)
        for each in plan["stages"][mine:]
        if each["name"] == stage or each["runs"]
    ]
    planned = plan["stages"][mine]["seconds"]
    return Place(
        words=f"stage {mine + 1} of {len(names)}{_of_its_kind(stage, names)}",
        planned=None if planned is None else max(0.1, planned - start),
        whole=own,
        after=None if None in after else sum(each for each in after if each is not None),
    )


def _of_its_kind(stage: str, names: Sequence[str]) -> str:
    """Such as ", run 3 of 8"; empty for a stage that there is once."""
    kind, is_one_of_many, _ = stage.partition("@")
    alike = [name for name in names if name.startswith(f"{kind}@")]
    what = "run" if kind in OF_A_RUN else kind
    return f", {what} {alike.index(stage) + 1} of {len(alike)}" if is_one_of_many else ""


def _seconds(stage: Mapping[str, Any], records: Path, jobs: int) -> float | None:
    """What the plan says, or else what stages of the same kind took before; None if there is neither.

    Of stages of which `jobs` run at the same time, each counts as a part of its time.
    """
    kind = stage["name"].partition("@")[0]
    share = jobs if kind in SIDE_BY_SIDE else 1
    if stage["seconds"] is not None:
        return float(stage["seconds"]) / share
    files = [records / f"{kind}.json", *(records / kind).glob("*.json")]
    took = [json.loads(file.read_text())["seconds"] for file in files if file.is_file()]
    return statistics.fmean(took) / share if took else None

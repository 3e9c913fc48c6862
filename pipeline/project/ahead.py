"""What `dvc repro` will do: its stages in the order in which it takes them, and which of them will run."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.project.dvc import printed_by_dvc, quiet_dvc

# It runs at every start, and what it writes decides whether `check` runs. Older projects have it in dvc.yaml.
ALWAYS = ("tool/dvc.yaml:installed", "installed")
State = Literal["runs", "up to date", "cached"]


@dataclass(frozen=True)
class Stage:
    name: str  # as DVC calls it, such as distill@kd
    state: State
    before: tuple[str, ...] = field(default=(), compare=False)  # the stages that must come before it

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @property
    def key(self) -> str:
        return self.name.partition("@")[2]


def stages_ahead() -> list[Stage]:
    """All stages but the first. `check` runs first, because only it knows which code has changed; ends with
    its exit code.

    A stage is also counted as one that runs if a stage before it runs: nobody can know whether that will
    change anything for it.
    """
    if code := quiet_dvc("repro", "check"):
        sys.exit(code)
    status = json.loads(printed_by_dvc("status", "--json"))
    changed = status.keys() - set(ALWAYS)
    dry = printed_by_dvc("repro", "--dry", "--ignore-errors") if changed else ""
    cached = set(re.findall(r"^Stage '([^']+)' is cached", dry, flags=re.MULTILINE))
    cached -= {name for name in cached if has_other_inputs(status.get(name, []))}
    found = states(*read_dot(printed_by_dvc("dag", "--dot")), changed=changed, cached=cached)
    return [stage for stage in found if stage.name not in ALWAYS]


def has_other_inputs(status: Sequence[Any]) -> bool:
    """Whether more than a stage's outputs changed. With --dry, DVC then asks its cache for the inputs of the
    last time, and calls everything cached."""
    return any(isinstance(change, str) or change.keys() != {"changed outs"} for change in status)


def read_dot(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """From the graph that DVC draws: its stages, and for each those that must come before it."""
    names = re.findall(r'^"([^"]+)";', text, flags=re.MULTILINE)
    order = sorted(names, key=lambda name: name not in ALWAYS)  # DVC draws the stages of another file last
    before: dict[str, list[str]] = {name: [] for name in order}
    for first, then in re.findall(r'^"([^"]+)" -> "([^"]+)";', text, flags=re.MULTILINE):
        before[then].append(first)
    return order, before


def states(
    order: Sequence[str], before: Mapping[str, Sequence[str]], *, changed: set[str], cached: set[str]
) -> list[Stage]:
    """`changed`: stages whose own inputs or outputs have changed. `cached`: DVC kept what they would make."""
    found: dict[str, State] = {}
    for name in order:
        if any(found[other] != "up to date" for other in before[name]):
            found[name] = "runs"
        elif name in changed:
            found[name] = "cached" if name in cached else "runs"
        else:
            found[name] = "up to date"
    return [Stage(name, state, tuple(before[name])) for name, state in found.items()]

"""The lines of `gpu_check` as tables: `python -m experiments.gpu_table LINES.jsonl [--write FILE.md]`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._script import parser_of, print_table

Line = Mapping[str, Any]


def tables(lines: Sequence[Line]) -> str:
    facts = next(line["figures"] for line in lines if line["name"] == "facts")
    parts = [
        f"{facts['device']}, torch {facts['torch']}, CUDA {facts['cuda']}.",
        speeds(lines),
        repeats(lines),
        waits(lines),
    ]
    return "\n\n".join(parts) + "\n"


def speeds(lines: Sequence[Line]) -> str:
    """Training steps, with the share of the peak of a large matrix product in the same precision."""
    rows = [
        "| step | setting | ms | images/s | share of peak | kernel launches |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for line in lines:
        if line["name"].startswith(("speed ", "compiled ")):
            step = line["name"].partition(" ")[2]
            for setting, found in line.get("figures", {}).items():
                rows.append(
                    f"| {step} | {setting} | {found['ms']:.1f} | {found['images/s']:,} "
                    f"| {found['share of peak']:.1%} | {found['launches']} |"
                )
    return "\n".join(rows)


def repeats(lines: Sequence[Line]) -> str:
    found = {
        line["name"].partition(" ")[2]: line["figures"]
        for line in lines
        if line["name"].startswith("repeat ")
    }
    differing = [name for name, figures in found.items() if set(figures["default"].values()) != {"identical"}]
    exact = [name for name in differing if set(found[name]["deterministic"].values()) == {"identical"}]
    return (
        f"The same seed twice, and a training that was stopped and went on: bit-identical for "
        f"{len(found) - len(differing)} of {len(found)} methods with torch's default algorithms, and for "
        f"{len(exact)} of the other {len(differing)} with its deterministic ones."
    )


def waits(lines: Sequence[Line]) -> str:
    """Which lines of code wait for the device, in the loop and in the methods."""
    rows = ["| where | line that waits | times |", "|---|---|--:|"]
    for line in lines:
        places = line.get("figures", {}).get("waits", {})
        flat = places if line["name"].startswith("loop") else {}
        for phase in places.values() if line["name"].startswith("method") else ():
            flat |= {place: times for place, times in phase.items() if place.startswith("pipeline")}
        rows += [
            f"| {line['name']} | `{place.partition(' ')[0]}` | {times} |" for place, times in flat.items()
        ]
    return "\n".join(rows)


def main() -> None:
    parser = parser_of("gpu_table", __doc__)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--write", type=Path, help="a file for the tables")
    given = parser.parse_args()
    print_table(tables([json.loads(line) for line in given.lines.read_text().splitlines()]), given.write)


if __name__ == "__main__":
    main()

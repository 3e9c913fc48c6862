"""Which stages ran with other code than is installed now, from what DVC wrote down when they ran."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def changed_code(code: Path, lock: Path = Path("dvc.lock")) -> list[str]:
    """The stages whose listing in the folder `code` differs from the one that they ran with."""
    ran: dict[str, Any] = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    return [name for name, stage in ran.items() if any(_differ(stage.get("deps", ()), code))]


def _differ(deps: list[dict[str, str]], code: Path) -> Iterator[bool]:
    for dep in deps:
        path = Path(dep["path"])
        if path.is_relative_to(code) and path.is_file():
            yield hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != dep["md5"]


def in_words(stages: list[str], version: str) -> str:
    """Empty if there are none."""
    if not stages:
        return ""
    return (
        f"Code has changed since these stages ran, so they will run again with {version}: "
        f"{', '.join(stages)}. Stages after them run again if what these make changes."
    )

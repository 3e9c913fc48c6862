"""Distillation methods, one a file: a file here is a method, its name is the one to write in params.yaml."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

from pipeline.inputs import unknown

if TYPE_CHECKING:
    from pipeline.methods.base import Method


def names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def load(name: str) -> "type[Method]":
    """The method class that file `name` of this folder defines."""
    if name not in names():
        raise unknown("method.name", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    from pipeline.methods.base import Method

    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__]
    assert len(found) == 1, f"pipeline/methods/{name}.py must define exactly one Method, not {len(found)}"
    return found[0]

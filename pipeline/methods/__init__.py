"""Distillation methods: each file here whose name does not start with an underscore is a method.

The name of the file is the one to write in params.yaml. `_base.py` is the protocol that every method follows.
The other files with an underscore hold what several methods share.
"""

import importlib
import pkgutil
from typing import Any

from pipeline.methods._base import (
    LogitConfig,
    LogitMethod,
    Loss,
    MapMethod,
    MapsConfig,
    Method,
    MethodConfig,
    Pairs,
    Phase,
    Terms,
    WarmUp,
    Weighted,
    map_pairs,
    preactivation_pairs,
    statistics,
    warm_up,
)
from pipeline.settings import unknown

__all__ = [
    "LogitConfig",
    "LogitMethod",
    "Loss",
    "MapMethod",
    "MapsConfig",
    "Method",
    "MethodConfig",
    "Pairs",
    "Phase",
    "Terms",
    "WarmUp",
    "Weighted",
    "load",
    "map_pairs",
    "names",
    "preactivation_pairs",
    "statistics",
    "warm_up",
]


def names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(
        sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    )


def load(name: str) -> type[Method[Any]]:
    """The class of the method called `name`."""
    if name not in names():
        raise unknown("method.name", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"pipeline/methods/{name}.py must define exactly one Method, not {len(found)}"
    return found[0]

"""Strict settings, and the error for input that cannot be used."""

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Base of every Config: an unknown key is refused, and nothing changes after validation."""

    RENAMED: ClassVar[dict[str, str]] = {}  # old key -> new key; the error for an old key names the new one

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_flag(cls, given: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1; and in YAML `yes` and `on` are true."""
        takes_numbers = _kinds(cls.model_fields[info.field_name or ""].annotation) & {int, float}
        if takes_numbers and any(isinstance(each, bool) for each in [given, *_items(given)]):
            raise ValueError(f"a number is needed, not {str(given).lower()}")
        return given


def _kinds(annotation: Any) -> set[type]:
    """All types in it; that of each value of a `Literal`."""
    if inner := get_args(annotation):
        return set().union(*map(_kinds, inner))
    return {annotation if isinstance(annotation, type) else type(annotation)}


def _items(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


class InputError(ValueError):
    """Something that a person gave cannot be used. The message names it and says what to do."""


def unknown(what: str, value: str, legal: Iterable[str]) -> InputError:
    """The error for a name that is not a legal one. It gives the nearest legal name, then all of them."""
    legal = sorted(legal)
    near = difflib.get_close_matches(value, legal, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{what}: there is no {value!r}.{hint} Choose one of: {', '.join(legal) or '(none)'}.")

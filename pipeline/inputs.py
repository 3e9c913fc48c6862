"""What a person gives us: strict settings, and the error that refuses them with a way out."""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Base of every Config: an unknown key is refused and nothing changes after validation."""


class InputError(ValueError):
    """Something given from outside can't be used; the message names it and says what to do."""


def unknown(what: str, value: str, legal: Iterable[str]) -> InputError:
    """The error for a name that isn't among the legal ones: the nearest first, then all of them."""
    legal = sorted(legal)
    near = difflib.get_close_matches(value, legal, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{what}: there is no {value!r}.{hint} Choose one of: {', '.join(legal) or '(none)'}.")

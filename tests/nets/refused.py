"""Why a name cannot be built."""

import pytest

from pipeline.nets import build
from pipeline.settings import InputError


def refusal(name: str) -> str:
    """The error of a network of this name, which is one line about the field `net`."""
    with pytest.raises(InputError) as error:
        build(name, 5)
    assert str(error.value).startswith("net")
    assert "\n" not in str(error.value)
    return str(error.value)

"""What a source offers: pictures by name, with their labels, and how each is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.data.left_out import LeftOut
from pipeline.settings import InputError

# what people call the splits
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Item:
    """One picture."""

    label: int  # NO_LABEL if it is unlabelled
    split: str | None  # None if the source has no splits
    path: str  # identifies the picture within the source
    group: str = ""  # pictures of one group belong to one split; "": a picture for itself


@dataclass(frozen=True)
class Source:
    """All pictures of a source, not yet read.

    `read(i)` returns item i, as the bytes of its file or as a picture. It may be called from any thread.
    """

    where: str  # names the source in messages
    classes: list[str]
    items: list[Item]
    read: Callable[[int], bytes | Image.Image]
    bad: Sequence[LeftOut] = ()  # what cannot be read, as is known before anything is read
    left_out: Sequence[LeftOut] = ()  # other files among the pictures
    stamp: Callable[[int], str] | None = None  # changes with the file of picture i, and does not read it


def refuse_unprintable(names: Sequence[str], what: str) -> None:
    """Raise InputError for a name of a class that is not text. `what` says where it stands."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{what} {name!r} is not valid UTF-8. Rename it.") from None

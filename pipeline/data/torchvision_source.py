"""The pictures of a classification data set of torchvision."""

import inspect
import os
import socket
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.decode import Undecodable
from pipeline.data.items import Item, Source
from pipeline.data.store import SPLITS
from pipeline.settings import InputError, unknown

DOWNLOAD_TIMEOUT = 30.0  # seconds
LABEL_ATTRIBUTES = ("targets", "labels", "_labels")  # where torchvision's data sets keep their labels


def find_torchvision(name: str, root: str) -> Source:
    """The data set of this name, in or below the folder `root`; downloaded to it if it is not there."""
    from torchvision import datasets  # slow to import; only this source needs it

    where = f"data.source 'torchvision:{name}'"
    known = {
        key: value
        for key, value in vars(datasets).items()
        if inspect.isclass(value) and _needs_only_root(value)
    }
    if name not in known:
        raise unknown("data.source: torchvision data set", name, known)
    parts = _parts(known[name], root, where)
    labels = {split: _labels(part, where) for split, part in parts.items()}
    names = _class_names(next(iter(parts.values())), list(labels.values()))
    items: list[Item] = []
    places: list[tuple[Any, int]] = []
    for split, part in parts.items():
        items += [
            Item(int(label), split, f"{name}/{split or 'all'}:{i}") for i, label in enumerate(labels[split])
        ]
        places += [(part, i) for i in range(len(part))]

    def read(i: int) -> Image.Image:
        part, position = places[i]
        try:
            image = part[position][0]
        except (OSError, ValueError) as error:
            raise Undecodable(str(error).partition("\n")[0], "unreadable") from error
        return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))

    return Source(where, names, items, read)


def _needs_only_root(dataset: type) -> bool:
    parameters = inspect.signature(dataset).parameters
    return "root" in parameters and all(
        p.name == "root" or p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in parameters.values()
    )


def _parts(dataset: Any, root: str, where: str) -> dict[str | None, Any]:
    """The data set's splits, as its signature offers them: `train: bool`, `split: str`, or none."""
    parameters = inspect.signature(dataset).parameters
    if "train" in parameters:
        return {
            "train": _open(dataset, root, where, train=True),
            "test": _open(dataset, root, where, train=False),
        }
    if "split" not in parameters:
        return {None: _open(dataset, root, where)}
    parts: dict[str | None, Any] = {}
    for split, spellings in zip(
        SPLITS, (("train", "trainval"), ("val", "valid", "validation"), ("test",)), strict=True
    ):
        for spelling in spellings:
            if split not in parts and (part := _open(dataset, root, where, split=spelling)) is not None:
                parts[split] = part
    if "train" not in parts:
        raise InputError(
            f"{where}: this data set has no split called train or trainval. Choose another one, or export it "
            "to folders."
        )
    return parts


def _open(dataset: Any, root: str, where: str, **split: bool | str) -> Any:
    """The data set below `root`, downloaded if it is missing, or None if it has no such split."""
    try:
        return dataset(root, **split)
    except Exception as error:
        if isinstance(error, ValueError) and "argument split" in str(error):  # torchvision's message for it
            return None
        failure = error
    reason = "torchvision cannot download this set"
    if "download" in inspect.signature(dataset).parameters:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            return dataset(root, download=True, **split)
        except Exception as error:
            failure = error
            reason = f"the download failed ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        finally:
            socket.setdefaulttimeout(before)
    folder = getattr(dataset, "base_folder", None)
    expected = os.path.join(root, folder) if isinstance(folder, str) else root
    raise InputError(
        f"{where}: {dataset.__name__} is not complete below data.root {root!r} (expected below {expected!r}, "
        f"in torchvision's layout), and {reason}. Put its files there, set data.root to the folder that has "
        "them, or use another data.source (digits, folder)."
    ) from failure


def _labels(part: Any, where: str) -> np.ndarray:
    """The label of each item, from an attribute if there is one, or else by reading every item."""
    attributes = (getattr(part, name, None) for name in LABEL_ATTRIBUTES)
    values = next((each for each in attributes if each is not None and len(each) == len(part)), None)
    if values is None:
        values = [part[i][1] for i in range(len(part))]
    try:
        labels = np.asarray(values)
    except (TypeError, ValueError):
        labels = np.empty(0)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{where}: this data set does not give one class for each image. "
            "Choose a classification data set."
        )
    return labels


def _class_names(part: Any, labels: list[np.ndarray]) -> list[str]:
    """The data set's own names, made distinct by their number if necessary, or numbers if it has no names."""
    count = 1 + max(int(each.max(initial=-1)) for each in labels)
    given = getattr(part, "classes", None)
    if not isinstance(given, list | tuple) or len(given) < count:
        return [str(n) for n in range(count)]
    names = [each if isinstance(each, str) else ", ".join(each) for each in given]
    return names if len(set(names)) == len(names) else [f"{n} {each}" for n, each in enumerate(names)]

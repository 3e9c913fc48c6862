"""Where labelled pictures come from: bundled digits, a folder of class folders, or a torchvision data set."""

import inspect
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from pipeline.data.decode import SUFFIXES, Square, Undecodable
from pipeline.data.store import SPLITS
from pipeline.settings import InputError, Settings, unknown

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUT = "root/CLASS/*.jpg, or root/train/CLASS/*.jpg with or without val and test beside it"
DOWNLOAD_TIMEOUT = 30.0  # seconds
LABEL_ATTRIBUTES = ("targets", "labels", "_labels")  # where torchvision's data sets keep their labels


class DataConfig(Settings):
    """Which pictures to learn from, and how they are prepared."""

    source: str = Field(description="digits, folder or torchvision:NAME")
    root: str = Field("data/raw", description="folder of images, or where torchvision keeps its files")
    size: int = Field(ge=8, le=512, description="images become squares of this side")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey")
    square: Square = Field("crop", description="how a picture becomes a square: crop, squash or pad")
    val: float = Field(0.1, gt=0, lt=1, description="share to cut off if the source has no val split")
    test: float = Field(0.2, gt=0, lt=1, description="share to cut off if the source has no test split")
    split_seed: int = Field(0, description="another seed cuts other splits")
    noise: float = Field(
        0.0, ge=0, le=255, description="sigma of Gaussian noise on every picture, in grey levels; 0: none"
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        has_name = source.startswith("torchvision:") and source != "torchvision:"
        if source not in ("digits", "folder") and not has_name:
            raise unknown("data.source", source, ["digits", "folder", "torchvision:NAME"])
        return source

    @model_validator(mode="after")
    def _leaves_some_for_training(self) -> "DataConfig":
        if self.val + self.test >= 1:
            raise InputError(
                f"data.val + data.test is {self.val + self.test:g}, which leaves nothing to train on. "
                "Lower one of them."
            )
        return self


@dataclass(frozen=True)
class Item:
    """One labelled picture."""

    label: int
    split: str | None  # None if the source has no splits
    path: str  # identifies the picture within the source


@dataclass(frozen=True)
class Source:
    """All pictures of a source, not yet read.

    `read(i)` returns item i, as the bytes of its file or as a picture. It may be called from any thread.
    """

    where: str  # names the source in messages
    classes: list[str]
    items: list[Item]
    read: Callable[[int], bytes | Image.Image]
    ignored: int = 0  # other files among the pictures


def find(cfg: DataConfig) -> Source:
    """The pictures that `data.source` names."""
    if cfg.source == "digits":
        return _digits()
    if cfg.source == "folder":
        return _folder(cfg.root)
    return _torchvision(cfg.source.partition(":")[2], cfg.root)


def _digits() -> Source:
    from sklearn.datasets import load_digits  # slow to import; only this source needs it

    bundled = load_digits()
    images = np.rint(bundled.images * (255 / 16)).astype(np.uint8)
    items = [Item(int(label), None, f"digits:{i}") for i, label in enumerate(bundled.target)]
    return Source(
        "data.source 'digits'", [str(n) for n in range(10)], items, lambda i: Image.fromarray(images[i])
    )


def _folder(root_name: str) -> Source:
    root, where = Path(root_name), f"data.root {root_name!r}"
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{where}: the folder of images {kind}. Set data.root to one laid out as {LAYOUT}.")
    found, ignored = _class_folders(root, where)
    classes = sorted({name for _, name, _ in found})
    items = []
    for split, name, folder in sorted(found, key=lambda each: each[2].as_posix()):
        _refuse_unprintable(where, name)
        paths, others = _images(folder)
        ignored += others
        if not paths:
            raise InputError(
                f"{where}: the class folder {folder.relative_to(root).as_posix()!r} holds no images "
                f"({', '.join(sorted(SUFFIXES))}). Put images into it or delete it."
            )
        items += [Item(classes.index(name), split, path.relative_to(root).as_posix()) for path in paths]
    return Source(where, classes, items, lambda i: _bytes(root / items[i].path), ignored)


def _class_folders(root: Path, where: str) -> tuple[list[tuple[str | None, str, Path]], int]:
    """Split, name and folder of each class, and the number of other files beside them."""
    folders, ignored = _children(root)
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS]
    if not splits:
        if not folders:
            raise InputError(f"{where}: there are no class folders in it. Lay it out as {LAYOUT}.")
        return [(None, folder.name, folder) for folder in folders], ignored
    ignored += _refuse_mixed(where, [folder for folder in folders if folder not in splits], splits)
    found: list[tuple[str | None, str, Path]] = []
    for split in splits:
        classes, loose = _children(split)
        ignored += loose
        if not classes:
            raise InputError(
                f"{where}: the split folder {split.name!r} holds no class folders. Lay it out as {LAYOUT}."
            )
        found += [(SPLIT_FOLDERS[split.name.lower()], folder.name, folder) for folder in classes]
    return found, ignored


def _refuse_mixed(where: str, others: list[Path], splits: list[Path]) -> int:
    """Refuse class folders beside split folders, and two folders of one split.

    Folders without images may lie beside split folders. Returns the number of files in them.
    """
    contents = [(folder, *_images(folder)) for folder in others]
    if mixed := [folder.name for folder, paths, _ in contents if paths]:
        raise InputError(
            f"{where}: split folders ({', '.join(folder.name for folder in splits)}) and class folders "
            f"({', '.join(mixed[:5])}) lie side by side. Move the class folders into a split folder. If "
            f"{splits[0].name!r} is a class, move all class folders into root/train."
        )
    for split, count in Counter(SPLIT_FOLDERS[folder.name.lower()] for folder in splits).items():
        if count > 1:
            names = [folder.name for folder in splits if SPLIT_FOLDERS[folder.name.lower()] == split]
            raise InputError(
                f"{where}: {' and '.join(names)} are both the {split} split. Merge them into one folder."
            )
    return sum(count for _, _, count in contents)


def _refuse_unprintable(where: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: the name of the class folder {name!r} is not valid UTF-8. Rename it."
        ) from None


def _children(folder: Path) -> tuple[list[Path], int]:
    """The sub-folders, and the number of visible files beside them."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    return folders, len(visible) - len(folders)


def _images(folder: Path) -> tuple[list[Path], int]:
    """The image files at any depth, sorted by name, and the number of other visible files among them."""
    paths, others, seen = [], 0, set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                paths.append(Path(place, name))
            else:
                others += 1
    return sorted(paths, key=lambda path: path.as_posix()), others


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise Undecodable("not a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Undecodable(error.strerror or str(error)) from error


def _torchvision(name: str, root: str) -> Source:
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
        image = part[position][0]
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

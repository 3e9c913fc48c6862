"""The pictures of a folder of class folders."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.decode import SUFFIXES
from pipeline.data.items import SPLIT_NAMES, Item, Source
from pipeline.data.left_out import LeftOut
from pipeline.data.store import NO_LABEL, UNLABELLED
from pipeline.data.walk import Walked, is_picture, no_picture, read_bytes, stamp, walk_root
from pipeline.settings import InputError

UNLABELLED_NAMES = ("unlabelled", "unlabeled")
LAYOUT = "root/CLASS/*.jpg, or root/train/CLASS/*.jpg with or without val and test beside it"

Class = tuple[str | None, str]  # split and name


def find_folder(root_name: str) -> Source:
    """The pictures in the class folders below `root_name`, and those in a folder `unlabelled`."""
    root, where = Path(root_name), f"data.root {root_name!r}"
    walked = walk_root(root, where, f"Set data.root to a folder laid out as {LAYOUT}.")
    pictures = _by_folder(walked)
    classes = _class_folders(walked.folders, pictures, where)
    names = sorted({name for _, name in classes.values()})
    if empty := [folder for folder in classes if not pictures.get(folder)]:
        raise InputError(
            f"{where}: the class folder {empty[0]!r} holds no images ({', '.join(sorted(SUFFIXES))}). "
            "Put images into it or delete it."
        )
    labels = {name: label for label, name in enumerate(names)}
    items = [
        Item(labels[name], split, path)
        for folder, (split, name) in sorted(classes.items())
        for path in pictures[folder]
    ]
    items += [
        Item(NO_LABEL, UNLABELLED, path)
        for folder, paths in pictures.items()
        if _is_unlabelled(folder)
        for path in paths
    ]
    return Source(
        where,
        names,
        items,
        lambda i: read_bytes(root / items[i].path),
        walked.bad,
        _left_out(walked, {item.path for item in items}),
        lambda i: stamp(root / items[i].path),
    )


def _by_folder(walked: Walked) -> Mapping[str, list[str]]:
    """The pictures by the folder that may be their class: `CLASS`, or `train/CLASS`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in filter(is_picture, walked.files):
        top, *below = path.split("/")[:-1] or [""]
        found[f"{top}/{below[0]}" if below and _split(top) else top].append(path)
    return found


def _split(folder: str) -> str | None:
    return SPLIT_NAMES.get(folder.lower())


def _is_unlabelled(folder: str) -> bool:
    return folder.lower() in UNLABELLED_NAMES


def _class_folders(folders: Sequence[str], pictures: Mapping[str, list[str]], where: str) -> dict[str, Class]:
    tops = [folder for folder in folders if "/" not in folder and not _is_unlabelled(folder)]
    splits = [folder for folder in tops if _split(folder)]
    if not tops:
        raise InputError(f"{where}: there are no class folders in it. Lay it out as {LAYOUT}.")
    found: dict[str, Class] = {folder: (None, folder) for folder in tops}
    if splits:
        _refuse_mixed(where, [top for top in tops if top not in splits and pictures.get(top)], splits)
        found = _in_splits(folders, splits, where)
    return found


def _in_splits(folders: Sequence[str], splits: Sequence[str], where: str) -> dict[str, Class]:
    found: dict[str, Class] = {}
    for folder in folders:
        top, _, name = folder.partition("/")
        if top in splits and name and "/" not in name:
            found[folder] = (_split(top), name)
            if _is_unlabelled(name):
                raise InputError(
                    f"{where}: unlabelled pictures lie beside the split folders. Move {folder!r} to {name!r}."
                )
    for split in splits:
        if not any(folder.startswith(f"{split}/") for folder in found):
            raise InputError(
                f"{where}: the split folder {split!r} holds no class folders. Lay it out as {LAYOUT}."
            )
    return found


def _refuse_mixed(where: str, classes: Sequence[str], splits: Sequence[str]) -> None:
    """Refuse class folders beside split folders, and two folders of one split."""
    if classes:
        raise InputError(
            f"{where}: split folders ({', '.join(splits)}) and class folders ({', '.join(classes[:5])}) lie "
            "side by side. Move the class folders into a split folder. If "
            f"{splits[0]!r} is a class, move all class folders into root/train."
        )
    for split, count in Counter(map(_split, splits)).items():
        if count > 1:
            names = [folder for folder in splits if _split(folder) == split]
            raise InputError(
                f"{where}: {' and '.join(names)} are both the {split} split. Merge them into one folder."
            )


def _left_out(walked: Walked, used: set[str]) -> list[LeftOut]:
    return [
        LeftOut(path, "outside of class folders", "its place does not say its class")
        if is_picture(path)
        else no_picture(path)
        for path in walked.files
        if path not in used
    ]

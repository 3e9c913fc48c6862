"""A bundle's folder, believed only as far as its files prove it: sizes, then hashes, then what bundle.json says."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from zipfile import ZipFile

if TYPE_CHECKING:  # `doctor` works without numpy
    import numpy as np

SCHEMA = 2
Format = Literal["onnx", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
LARGEST = {"bundle.json": 4 << 20, "golden.npz": 64 << 20}  # bytes; what is read must fit into memory whatever the file claims
LARGEST_MODEL = 2 << 30  # where protobuf ends
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class BundleError(ValueError):
    """Something given from outside can't be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Golden:
    """Real images and what the exported files answered to them where they were made."""

    images: "np.ndarray"
    logits: dict[Format, "np.ndarray"]


@dataclass(frozen=True)
class Bundle:
    """A folder whose bundle.json is whole and says what this predictor can do. Its other files are checked as they are read."""

    folder: Path
    facts: Mapping[str, Any]
    fingerprint: str  # sha256 of bundle.json, which holds the hashes of all else

    @property
    def name(self) -> str:
        return cast(str, self.facts["name"])

    @property
    def classes(self) -> list[str]:
        return cast(list[str], self.facts["classes"])

    @property
    def size(self) -> int:
        return cast(int, self.facts["input"]["size"])

    @property
    def channels(self) -> int:
        return cast(int, self.facts["input"]["channels"])

    @property
    def max_batch(self) -> int:
        return cast(int, self.facts["max_batch"])

    @property
    def formats(self) -> list[Format]:
        """Those that the predictor can run: int8 only where it passed its gate."""
        return [format for format in FORMATS if self._missing(format) is None]

    def model(self, format: Format) -> bytes:
        """The ONNX file of a format, as its hash demands."""
        if format not in FORMATS:
            raise BundleError(f"format: there is no {format!r}. Choose one of: {', '.join(FORMATS)}.")
        if why := self._missing(format):
            raise BundleError(f"{self.folder}: {why}. Use format 'onnx'.")
        return self.read(self.facts["formats"][format]["file"])

    def read(self, name: str) -> bytes:
        """One file of the bundle, as long and with the hash that bundle.json says."""
        entry = self.facts["files"].get(name)
        if entry is None:
            raise BundleError(f"{self.folder}: bundle.json lists no file {name!r}. {_AGAIN}")
        if entry["bytes"] > LARGEST.get(name, LARGEST_MODEL):
            raise BundleError(f"{self.folder / name}: {entry['bytes']} bytes are more than such a file may have.")
        content = _content(self.folder / name, entry["bytes"])
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.folder / name} isn't the file that was exported: its size or hash differs. {_AGAIN}")
        return content

    def golden(self) -> Golden:
        """The golden vectors; images that prove nothing are refused."""
        import numpy as np

        where = f"{self.folder / 'golden.npz'}"
        arrays = _arrays(self.read("golden.npz"), where)
        images = arrays.get("images")
        shape = (self.size, self.size, self.channels)
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not 2 <= len(images) <= 64:
            raise BundleError(f"{where}: 'images' isn't 2 to 64 uint8 images of {' x '.join(map(str, shape))}. {_AGAIN}")
        logits: dict[Format, np.ndarray] = {}
        for format in self.formats:
            key = "logits_fp32" if format == "onnx" else "logits_int8"
            values = arrays.get(key)
            if values is None or values.dtype != np.float32 or values.shape != (len(images), len(self.classes)):
                raise BundleError(f"{where}: {key!r} isn't a float32 array of {len(images)} x {len(self.classes)}. {_AGAIN}")
            if not np.isfinite(values).all() or (values == values[:1]).all():
                raise BundleError(f"{where}: {key!r} is the same for every image, or not finite, and so proves nothing. {_AGAIN}")
            logits[format] = values
        return Golden(images, logits)

    def _missing(self, format: Format) -> str | None:
        entry = self.facts["formats"].get(format)
        if entry is None:
            return f"this bundle has no {format} file"
        if format == "int8" and entry.get("accepted") is not True:
            return f"the {format} file of this bundle didn't pass its gate and isn't offered"
        return None


_AGAIN = "Copy the bundle again from where it was made, or export it again."


def open_bundle(folder: Path | str) -> Bundle:
    """The bundle in `folder`. Reads bundle.json only."""
    folder = Path(folder)
    path = folder / "bundle.json"
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: there is no bundle.json in it. Give the folder that the export stage wrote.")
    content = _content(path, LARGEST["bundle.json"])
    if len(content) > LARGEST["bundle.json"]:
        raise BundleError(f"{path} is larger than {LARGEST['bundle.json']} bytes. {_AGAIN}")
    try:
        facts = json.loads(content)
        if not isinstance(facts, dict):
            raise ValueError("it holds no object")
        if facts.get("schema") != SCHEMA:
            raise BundleError(
                f"{path}: its schema is {facts.get('schema')!r}, and this predictor reads {SCHEMA}. Use the predictor of the version that "
                "exported the bundle, or export it again."
            )
        whole = content == sealed({key: value for key, value in facts.items() if key != "seal"}).encode()
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} can't be read ({str(error)[:200]}). {_AGAIN}") from error
    if not whole:
        raise BundleError(f"{path} was changed after the export: its seal is broken. {_AGAIN}")
    try:
        _check(facts)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: {type(error).__name__} {error} in what it says. {_AGAIN}") from error
    return Bundle(folder, facts, hashlib.sha256(content).hexdigest())


def sealed(facts: Mapping[str, Any]) -> str:
    """The text of a bundle.json: one spelling for every content, and its hash at the end, so that any changed byte shows."""
    seal = hashlib.sha256(_text(facts).encode()).hexdigest()
    return _text({**facts, "seal": seal})


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def transform(size: int, channels: int) -> dict[str, Any]:
    """What `data.decode` does, in the fields of a bundle: another transform needs another predictor."""
    return {
        "exif_transpose": True,
        "background": "white",
        "crop": "largest centred square",
        "size": size,
        "filter": "bilinear",
        "antialias": True,
        "mode": "RGB" if channels == 3 else "L",
    }


def _check(facts: Mapping[str, Any]) -> None:
    classes, given = facts["classes"], facts["input"]
    size, channels = given["size"], given["channels"]
    _demand(isinstance(facts["name"], str), "'name' is no text")
    _demand(isinstance(classes, list) and len(classes) >= 2 and all(isinstance(each, str) for each in classes), "'classes' are no names")
    _demand(len(set(classes)) == len(classes), "a class is named twice")
    _demand(type(size) is int and 1 <= size <= 4096 and channels in (1, 3), "'input' is no size of images")
    _demand(given == {"size": size, "channels": channels, "dtype": "uint8", "layout": "NHWC"}, "'input' isn't uint8 NHWC")
    said = {key: value for key, value in facts["transform"].items() if key != "words"}
    _demand(said == transform(size, channels), "'transform' isn't the one this predictor does")
    _demand(facts["outputs"] == ["logits", "probabilities"], "'outputs' aren't logits and probabilities")
    _demand(type(facts["max_batch"]) is int and facts["max_batch"] >= 1, "'max_batch' is no count")
    for name, entry in facts["files"].items():
        _demand(NAME.fullmatch(name) is not None and name != "bundle.json", f"{name!r} is no plain file name")
        _demand(type(entry["bytes"]) is int and entry["bytes"] >= 0 and len(entry["sha256"]) == 64, f"{name!r} has no size and hash")
    for name, entry in facts["formats"].items():
        _demand(entry["file"] in facts["files"], f"the file of format {name!r} isn't listed")
    _demand("onnx" in facts["formats"], "there is no format 'onnx'")
    _demand("golden.npz" in facts["files"], "there are no golden vectors")


def _demand(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise ValueError(otherwise)


def _content(path: Path, most: int) -> bytes:
    """The file's bytes, at most one more than `most`."""
    if not path.is_file():
        raise BundleError(f"{path} is missing. {_AGAIN}")
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror or error}).") from error


def _arrays(content: bytes, where: str) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with ZipFile(BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST["golden.npz"]:
                raise ValueError("its arrays are too large")
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise nearly every type there is on broken bytes
        raise BundleError(f"{where} can't be read ({type(error).__name__}: {str(error)[:200]}). {_AGAIN}") from error

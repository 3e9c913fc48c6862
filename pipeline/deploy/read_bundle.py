"""Read a bundle. Nothing in its folder is trusted before it is checked: size, then hash, then content.

The operators of an ONNX file are checked in `onnx_graph.py`. Then `predictor.py` compares the golden answers.
`verify.py` makes all checks in one go.
"""

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

    from pipeline.data.decode import Square

SCHEMA = 2
Format = Literal["onnx", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
# bytes: a file is read into memory, so its size is limited, whatever bundle.json says
LARGEST = {"bundle.json": 4 << 20, "golden.npz": 64 << 20}
GOLDEN: dict[Format, str] = {"onnx": "fp32", "int8": "int8"}  # ends of the names in golden.npz
LARGEST_MODEL = 2 << 30  # protobuf allows no more
LARGEST_SIDE = 4096  # pixels
DEEPEST = 40  # objects and lists inside of each other; ours are at most ten
# how a picture becomes a square, as fields of the transform
SQUARES: dict[str, dict[str, Any]] = {
    "crop": {"crop": "largest centred square"},
    "squash": {"square": "squash"},
    "pad": {"square": "pad", "border": [128, 128, 128]},
}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_AGAIN = "Copy the bundle again from where it was made, or export it again."


class BundleError(ValueError):
    """Something given from outside cannot be used. The message names it and says what to do."""


@dataclass(frozen=True)
class Golden:
    """Real images, and the exported files' answers to them on the machine where they were made."""

    images: "np.ndarray"
    logits: dict[Format, "np.ndarray"]
    probabilities: dict[Format, "np.ndarray"]  # empty unless they are calibrated


@dataclass(frozen=True)
class Bundle:
    """A folder whose bundle.json is whole and describes what this predictor can run.

    The other files are checked when they are read.
    """

    folder: Path
    facts: Mapping[str, Any]
    fingerprint: str  # sha256 of bundle.json, which holds the hashes of all other files

    @property
    def name(self) -> str:
        return cast(str, self.facts["name"])

    @property
    def classes(self) -> list[str]:
        return cast(list[str], self.facts["classes"])

    @property
    def size(self) -> int:
        """The side of the squares that the student sees."""
        return cast(int, self.facts["input"]["size"])

    @property
    def kept(self) -> int:
        """The side of the squares that pictures become first. The student sees these at `size`."""
        return cast(int, self.facts["transform"].get("kept", self.size))

    @property
    def square(self) -> "Square":
        """How pictures become squares. Bundles from before there was a choice are cropped."""
        return cast("Square", self.facts["transform"].get("square", "crop"))

    @property
    def is_calibrated(self) -> bool:
        return "temperature" in self.facts

    @property
    def temperature(self) -> float:
        """What the logits are divided by for the probabilities."""
        return cast(float, self.facts.get("temperature", 1.0))

    def has_fingerprint(self, expected: str) -> bool:
        return self.fingerprint == expected.lower()

    @property
    def channels(self) -> int:
        return cast(int, self.facts["input"]["channels"])

    @property
    def max_batch(self) -> int:
        return cast(int, self.facts["max_batch"])

    @property
    def formats(self) -> list[Format]:
        """The formats that the predictor can run; int8 only if it passed its gate."""
        return [format for format in FORMATS if self._fault(format) is None]

    def model(self, format: Format) -> bytes:
        """The ONNX file of a format, checked by its hash."""
        if format not in FORMATS:
            raise BundleError(f"format: {format!r} is unknown. Choose one of: {', '.join(FORMATS)}.")
        if fault := self._fault(format):
            raise BundleError(f"{self.folder}: {fault}. Use format 'onnx'.")
        return self.read(self.facts["formats"][format]["file"])

    def read(self, name: str) -> bytes:
        """One file of the bundle, if its size and hash are those in bundle.json."""
        entry = self.facts["files"].get(name)
        if entry is None:
            raise BundleError(f"{self.folder}: bundle.json lists no file {name!r}. {_AGAIN}")
        if entry["bytes"] > (most := LARGEST.get(name, LARGEST_MODEL)):
            raise BundleError(
                f"{self.folder / name}: bundle.json gives it {entry['bytes']} bytes, but {most} are allowed."
            )
        content = _content(self.folder / name, entry["bytes"])
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(
                f"{self.folder / name} is not the file that was exported: its size or hash differs. {_AGAIN}"
            )
        return content

    def golden(self) -> Golden:
        """The golden images and answers. Those that would prove nothing are refused."""
        where = str(self.folder / "golden.npz")
        arrays = _arrays(self.read("golden.npz"), where)
        images = self._golden_images(arrays, where)
        count, calibrated = len(images), self.formats if self.is_calibrated else []
        logits = {
            format: self._golden_answers(arrays, f"logits_{GOLDEN[format]}", count, where)
            for format in self.formats
        }
        probabilities = {
            format: self._golden_answers(arrays, f"probabilities_{GOLDEN[format]}", count, where)
            for format in calibrated
        }
        for answers in logits.values():
            if (answers == answers[:1]).all():
                raise BundleError(
                    f"{where}: the logits are the same for every image, which proves nothing. {_AGAIN}"
                )
        return Golden(images, logits, probabilities)

    def _golden_images(self, arrays: "dict[str, np.ndarray]", where: str) -> "np.ndarray":
        import numpy as np

        images, shape = arrays.get("images"), (self.size, self.size, self.channels)
        if (
            images is None
            or images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != shape
            or not 2 <= len(images) <= 64
        ):
            raise BundleError(
                f"{where}: 'images' is not 2 to 64 uint8 images of {' x '.join(map(str, shape))}. {_AGAIN}"
            )
        return images

    def _golden_answers(
        self, arrays: "dict[str, np.ndarray]", key: str, images: int, where: str
    ) -> "np.ndarray":
        import numpy as np

        answers, shape = arrays.get(key), (images, len(self.classes))
        if answers is None or answers.dtype != np.float32 or answers.shape != shape:
            raise BundleError(
                f"{where}: {key!r} is not a float32 array of {' x '.join(map(str, shape))}. {_AGAIN}"
            )
        if not np.isfinite(answers).all():
            raise BundleError(f"{where}: {key!r} holds NaN or infinity. {_AGAIN}")
        return answers

    def _fault(self, format: Format) -> str | None:
        """Why the predictor cannot run this format; None if it can."""
        entry = self.facts["formats"].get(format)
        if entry is None:
            return f"this bundle has no {format} file"
        if format == "int8" and entry.get("accepted") is not True:
            return "the int8 file of this bundle did not pass its gate, so it cannot be used"
        return None


def open_bundle(folder: Path | str) -> Bundle:
    """The bundle in `folder`. Reads bundle.json only."""
    folder = Path(folder)
    path = folder / "bundle.json"
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it holds no bundle.json. Give the folder that stage export wrote."
        )
    content = _content(path, LARGEST["bundle.json"])
    if len(content) > LARGEST["bundle.json"]:
        raise BundleError(f"{path} is larger than {LARGEST['bundle.json']} bytes. {_AGAIN}")
    facts = _unsealed(content, path)
    try:
        _check(facts)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{path}: its content is wrong ({type(error).__name__}: {error}). {_AGAIN}"
        ) from error
    return Bundle(folder, facts, hashlib.sha256(content).hexdigest())


def sealed(facts: Mapping[str, Any]) -> str:
    """The text of a bundle.json with its own hash at the end.

    Equal facts give equal text, so any changed byte is noticed.
    """
    seal = hashlib.sha256(_text(facts).encode()).hexdigest()
    return _text({**facts, "seal": seal})


def transform(size: int, channels: int, kept: int, square: str = "crop") -> dict[str, Any]:
    """What `data.decode` does, as fields of bundle.json. Another transform needs another predictor.

    `kept` is a field only if it is not `size`, and `square` only if it is not crop.
    """
    return {
        "exif_transpose": True,
        "background": "white",
        **SQUARES[square],
        **({} if kept == size else {"kept": kept}),
        "size": size,
        "filter": "bilinear",
        "antialias": True,
        "mode": "RGB" if channels == 3 else "L",
    }


def _unsealed(content: bytes, path: Path) -> dict[str, Any]:
    """The facts in a bundle.json of our schema with a whole seal."""
    try:
        facts = json.loads(content)
        if not isinstance(facts, dict):
            raise ValueError("it does not hold a JSON object")
        if facts.get("schema") != SCHEMA:
            raise BundleError(
                f"{path}: its schema is {facts.get('schema')!r}, but this predictor reads {SCHEMA}. "
                "Use the predictor of the version that exported the bundle, or export it again."
            )
        is_whole = content == sealed({key: value for key, value in facts.items() if key != "seal"}).encode()
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({str(error)[:200]}). {_AGAIN}") from error
    if not is_whole:
        raise BundleError(f"{path} was changed after the export: its seal is broken. {_AGAIN}")
    return facts


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether more than this many objects and lists are inside of each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return False
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _check(facts: Mapping[str, Any]) -> None:
    _demand(not _is_deeper(facts, DEEPEST), f"it is nested more than {DEEPEST} levels deep")
    _check_interface(facts)
    for name, entry in facts["files"].items():
        is_plain = NAME.fullmatch(name) is not None and name != "bundle.json"
        _demand(is_plain, f"{name!r} is not a plain file name")
        has_size = type(entry["bytes"]) is int and entry["bytes"] >= 0
        _demand(has_size and len(entry["sha256"]) == 64, f"{name!r} has no valid size and hash")
    for name, entry in facts["formats"].items():
        _demand(entry["file"] in facts["files"], f"the file of format {name!r} is not listed")
    _demand("onnx" in facts["formats"], "there is no format 'onnx'")
    _demand("golden.npz" in facts["files"], "there are no golden answers")


def _check_interface(facts: Mapping[str, Any]) -> None:
    classes, pixels = facts["classes"], facts["input"]
    size, channels = pixels["size"], pixels["channels"]
    _demand(isinstance(facts["name"], str), "'name' is not text")
    are_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    _demand(are_names and len(classes) >= 2, "'classes' is not a list of at least two names")
    _demand(len(set(classes)) == len(classes), "'classes' names a class twice")
    _demand(_is_side(size) and channels in (1, 3), "'input' has no valid size and number of channels")
    uint8 = {"size": size, "channels": channels, "dtype": "uint8", "layout": "NHWC"}
    _demand(pixels == uint8, "'input' is not uint8 NHWC")
    fields = {key: value for key, value in facts["transform"].items() if key != "words"}
    _demand(_is_side(kept := fields.get("kept", size)), "'transform' has no valid size 'kept'")
    square = fields.get("square", "crop")
    _demand(isinstance(square, str) and square in SQUARES, "'transform' has no known 'square'")
    is_ours = fields == transform(size, channels, kept, square)
    _demand(is_ours, "'transform' is not the one that this predictor applies")
    _demand(facts["outputs"] == ["logits", "probabilities"], "'outputs' is not logits and probabilities")
    temperature = facts.get("temperature", 1.0)
    is_positive = type(temperature) is float and temperature > 0
    _demand(is_positive, "'temperature' is not a number above 0")
    is_count = type(facts["max_batch"]) is int and facts["max_batch"] >= 1
    _demand(is_count, "'max_batch' is not a number of 1 or more")


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIDE


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
        raise BundleError(f"{path} cannot be read ({error.strerror or error}).") from error


def _arrays(content: bytes, where: str) -> "dict[str, np.ndarray]":
    import numpy as np

    try:
        with ZipFile(BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST["golden.npz"]:
                raise ValueError("its arrays are too large")
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # on broken bytes numpy and zipfile raise nearly every type there is
        raise BundleError(
            f"{where} cannot be read ({type(error).__name__}: {str(error)[:200]}). {_AGAIN}"
        ) from error

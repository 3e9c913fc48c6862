"""The student as a function: pictures in, classes and probabilities out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decode import Readable, Undecodable, decode
from pipeline.deploy import graph
from pipeline.deploy.bundle import Bundle, BundleError, Format, Golden, open_bundle
from pipeline.deploy.runtime import CPU, session

BATCH = 64  # images run at once at most: more gains nothing and costs memory
GOLDEN_AT_LOAD = 2  # enough to see a broken runtime; `verify` runs them all
# largest difference to the golden logits, in parts of the largest: rounding of float32 (torch's and ours), of int8 on another CPU too
TOLERANCE: dict[Format, float] = {"onnx": 3e-4, "int8": 5e-2}


@dataclass(frozen=True, eq=False)
class Answer:
    """What the student says of one picture."""

    classes: Sequence[str]
    probabilities: np.ndarray

    @property
    def label(self) -> str:
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        return float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes, likeliest first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[int(i)], float(self.probabilities[i])) for i in best]


class Predictor:
    """`Predictor(bundle)(pictures)`. Any number of threads may call one predictor at once.

    `format` is "onnx" (float32, answers as evaluated on any CPU) or "int8" (several times faster; see `info` for what it costs).
    `threads` is how many cores one call uses; idle ones sleep unless `spin`. `providers` are used as asked, or refused.
    Nothing of the bundle is executed before its hashes, operators, declared inputs and outputs were checked.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        format: Format = "onnx",
        threads: int = 1,
        spin: bool = False,
        providers: Sequence[str] = (CPU,),
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.format = format
        golden = self.bundle.golden()
        content = self.bundle.model(format)
        name = str(self.bundle.folder / self.bundle.facts["formats"][format]["file"])
        graph.check(content, self.bundle, name=name)
        self._session = session(content, threads=threads, spin=spin, providers=providers, name=name)
        difference = self.deviation(golden, most=GOLDEN_AT_LOAD)
        if not difference <= TOLERANCE[format]:
            advice = "Use format 'onnx'." if format == "int8" else "Run `python -m pipeline.deploy doctor`."
            raise BundleError(
                f"{name} doesn't answer here as it did where it was exported: its logits differ by {difference:.1e} of the largest "
                f"(allowed: {TOLERANCE[format]:.0e}). {advice}"
            )

    def __call__(self, pictures: Iterable[Readable] | np.ndarray) -> list[Answer]:
        """One answer for each picture: files, bytes, open files or Pillow images; or pixels as `run` takes them."""
        if isinstance(pictures, np.ndarray):
            return self.answers(pictures)
        if isinstance(pictures, str | bytes | PathLike) or hasattr(pictures, "read") or hasattr(pictures, "getexif"):
            raise BundleError("Give a list of pictures, even of one.")
        return [answer for batch in self._batches(pictures) for answer in self.answers(batch)]

    def answers(self, images: np.ndarray) -> list[Answer]:
        """One answer for each of these pixels."""
        return [Answer(self.bundle.classes, row) for row in self.run(images)[1]]

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, N x classes, of uint8 pixels N x size x size x channels as `decode` makes them."""
        shape = (self.bundle.size, self.bundle.size, self.bundle.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise BundleError(
                f"Pixels must be uint8 of shape N x {' x '.join(map(str, shape))}, not {images.dtype} of shape {images.shape}."
            )
        step = self.batch
        parts = [self._run(images[start : start + step]) for start in range(0, max(len(images), 1), step)]
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([probabilities for _, probabilities in parts])

    def decode(self, picture: Readable) -> np.ndarray:
        """A picture's pixels exactly as evaluation saw them; Undecodable where it is none."""
        return decode(picture, self.bundle.size, self.bundle.channels)

    def deviation(self, golden: Golden, *, most: int = BATCH) -> float:
        """The largest difference to the golden logits in parts of the largest; infinity where the answers aren't even of their form."""
        want = golden.logits[self.format][:most]
        try:
            logits, probabilities = self.run(golden.images[:most])
        except BundleError:
            raise
        except Exception:  # whatever a runtime raises, the file doesn't answer
            return float("inf")
        if logits.shape != want.shape or not np.isfinite(logits).all() or np.abs(probabilities - _softmax(logits)).max() > 1e-5:
            return float("inf")
        return float(np.abs(logits - want).max() / np.abs(golden.logits[self.format]).max())

    @property
    def batch(self) -> int:
        """How many images run at once."""
        return min(BATCH, self.bundle.max_batch)

    @property
    def providers(self) -> list[str]:
        return list(self._session.get_providers())

    def _run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = self._session.run(["logits", "probabilities"], {"image": images})
        return logits, probabilities

    def _batches(self, pictures: Iterable[Readable]) -> Iterator[np.ndarray]:
        waiting, first = iter(pictures), 0
        while batch := list(islice(waiting, self.batch)):
            yield np.stack([self._decoded(picture, first + i) for i, picture in enumerate(batch)])
            first += len(batch)

    def _decoded(self, picture: Readable, position: int) -> np.ndarray:
        try:
            return self.decode(picture)
        except Undecodable as error:
            which = f" ({picture})" if isinstance(picture, str | PathLike) else ""
            raise BundleError(f"Picture {position}{which} can't be used: {error}.") from error


def _softmax(logits: Any) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(exp / exp.sum(1, keepdims=True))

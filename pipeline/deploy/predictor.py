"""The student as a function: pictures in, classes and probabilities out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decode import Readable, Undecodable, decode
from pipeline.deploy import onnx_graph
from pipeline.deploy.program import PROGRAM
from pipeline.deploy.read_bundle import Bundle, BundleError, Format, Golden, open_bundle
from pipeline.deploy.runtime import CPU, session

UNKNOWN = "unknown"  # the label of an answer that is not sure enough
BATCH = 64  # most images that run at once: more are not faster and cost memory
# Largest difference from the golden logits, as a share of the largest logit. float32: rounding of torch and
# onnxruntime. int8: rounding on another CPU too.
TOLERANCE: dict[Format, float] = {"onnx": 3e-4, "int8": 5e-2}


@dataclass(frozen=True, eq=False)
class Answer:
    """The student's answer to one picture."""

    classes: Sequence[str]
    probabilities: np.ndarray
    min_confidence: float = 0.0

    @property
    def label(self) -> str:
        """The likeliest class, or `unknown` if its probability is too small."""
        return self.guess if self.is_known else UNKNOWN

    @property
    def is_known(self) -> bool:
        return self.probability >= self.min_confidence

    @property
    def guess(self) -> str:
        """The likeliest class, however small its probability is."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes, likeliest first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[int(i)], float(self.probabilities[i])) for i in best]

    def labelled(self, count: int) -> list[tuple[str, float]]:
        """The same, with `unknown` in the place of a guess that is not sure enough."""
        (_, probability), *others = self.top(count)
        return [(self.label, probability), *others]

    def facts(self, count: int) -> dict[str, Any]:
        """For JSON: the label, the probability, the guess if the label is `unknown`, and the likeliest."""
        best = [{"class": name, "probability": round(share, 6)} for name, share in self.top(count)]
        guess = {} if self.is_known else {"guess": self.guess}
        return {"class": self.label, "probability": best[0]["probability"], **guess, "top": best}


class Predictor:
    """`Predictor(bundle)(pictures)`. Any number of threads may call one predictor at once.

    - `format`: "onnx" (float32, answers as evaluated on any CPU) or "int8" (several times faster; `info`
      shows how much accuracy it costs).
    - `threads`: the cores that one call uses. Idle threads sleep, or wait actively if `spin`.
    - `providers`: used as given, or refused.
    - `min_confidence`: answers with a smaller probability have the label `unknown`.
    - `expect`: the fingerprint that the bundle must have.

    Nothing in the bundle runs before its hashes, operators, inputs and outputs are checked.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        format: Format = "onnx",
        threads: int = 1,
        spin: bool = False,
        providers: Sequence[str] = (CPU,),
        min_confidence: float | None = None,
        expect: str = "",
    ) -> None:
        self.min_confidence = _share(min_confidence)
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if expect and not self.bundle.has_fingerprint(expect):
            raise BundleError(
                f"{self.bundle.folder} has the fingerprint {self.bundle.fingerprint}, not the expected "
                f"{expect}: this is another bundle. Use the one that was chosen, or expect this one."
            )
        self.format = format
        golden = self.bundle.golden()
        content = self.bundle.model(format)
        name = str(self.bundle.folder / self.bundle.facts["formats"][format]["file"])
        onnx_graph.check(content, self.bundle, name=name)
        self._session = session(content, threads=threads, spin=spin, providers=providers, name=name)
        difference = self.deviation(golden)
        if not difference <= TOLERANCE[format]:
            advice = "Use format 'onnx'." if format == "int8" else f"Run `{PROGRAM} doctor`."
            raise BundleError(
                f"{name} does not answer here as it did where it was exported: its logits differ by "
                f"{difference:.1e} of the largest (allowed: {TOLERANCE[format]:.0e}). {advice}"
            )

    def __call__(self, pictures: Iterable[Readable] | np.ndarray) -> list[Answer]:
        """One answer for each picture.

        A picture is a file name, bytes, an open file or a Pillow image. An array holds pixels, as for `run`.
        """
        if isinstance(pictures, np.ndarray):
            return self.answers(pictures)
        if isinstance(pictures, str | bytes | PathLike) or any(
            hasattr(pictures, x) for x in ("read", "getexif")
        ):
            raise BundleError("Give a list of pictures, even for one picture.")
        return [answer for batch in self._batches(pictures) for answer in self.answers(batch)]

    def answers(self, images: np.ndarray) -> list[Answer]:
        """One answer for each of these images. They are pixels, as for `run`."""
        return [self.answer(row) for row in self.run(images)[1]]

    def answer(self, probabilities: np.ndarray) -> Answer:
        """The answer of one image's probabilities."""
        return Answer(self.bundle.classes, probabilities, self.min_confidence)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, each N x classes.

        `images` are uint8 pixels, N x size x size x channels, as `decode` makes them.
        """
        shape = (self.bundle.size, self.bundle.size, self.bundle.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise BundleError(
                f"Pixels must be uint8 of shape N x {' x '.join(map(str, shape))}, "
                f"not {images.dtype} of shape {images.shape}."
            )
        step = self.batch
        parts = [self._run(images[start : start + step]) for start in range(0, max(len(images), 1), step)]
        logits, probabilities = zip(*parts, strict=True)
        return np.concatenate(logits), np.concatenate(probabilities)

    def decode(self, picture: Readable) -> np.ndarray:
        """A picture's pixels exactly as in evaluation; raises Undecodable if it cannot be read."""
        bundle = self.bundle
        return decode(picture, bundle.size, bundle.channels, kept=bundle.kept, square=bundle.square)

    def deviation(self, golden: Golden) -> float:
        """The largest difference from the golden logits, as a share of the largest of them.

        Infinity if the answers have the wrong shape or are not finite, or if the runtime fails.
        """
        want = golden.logits[self.format]
        try:
            logits, probabilities = self.run(golden.images)
        except BundleError:
            raise
        except Exception:  # whatever a runtime raises, the file gives no answer
            return float("inf")
        if logits.shape != want.shape or not np.isfinite(logits).all():
            return float("inf")
        if not are_probabilities(probabilities, logits, self.bundle.temperature):
            return float("inf")
        return float(np.abs(logits - want).max() / np.abs(want).max())

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
        remaining, first = iter(pictures), 0
        while batch := list(islice(remaining, self.batch)):
            yield np.stack([self._decoded(picture, first + i) for i, picture in enumerate(batch)])
            first += len(batch)

    def _decoded(self, picture: Readable, position: int) -> np.ndarray:
        try:
            return self.decode(picture)
        except Undecodable as error:
            which = f" ({picture})" if isinstance(picture, str | PathLike) else ""
            raise BundleError(f"Picture {position}{which} cannot be used: {error}.") from error


def _share(min_confidence: float | None) -> float:
    if min_confidence is None:
        return 0.0
    if not 0 < min_confidence < 1:
        raise BundleError(
            f"min_confidence: {min_confidence:g} is not a probability between 0 and 1. Give a number such as "
            "0.8, or leave it out: then every picture gets a class."
        )
    return min_confidence


def are_probabilities(array: np.ndarray, logits: np.ndarray, temperature: float) -> bool:
    """Whether this is the softmax of `logits / temperature`, up to the rounding of float32."""
    scaled = logits.astype(np.float64) / temperature
    if array.shape != scaled.shape or not np.isfinite(scaled).all():
        return False
    allowed = max(1e-5, 1e-7 * float(np.abs(scaled).max(initial=0)))
    return bool(np.abs(array - softmax(scaled)).max(initial=0) <= allowed)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(exp / exp.sum(1, keepdims=True))

"""The gate: an exported file answers as the trained network does, whatever the images and the batch size, or it isn't handed out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.inputs import InputError

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-5  # of the largest logit; sound exports of most trained networks stay 5 to 50 times below it
ROUNDING = 4  # times what float32 costs the network itself, for those that cancel a lot: MobileNets after a short training
ROUNDING_ODD = 10  # the same on noise and the like, which networks amplify: one of 14 images came to 4.1 times, all others below 2
LOOSEST = 1e-4  # on real images, whatever the rounding: weights in half precision must never pass
BATCHES = (1, 2, 3, 7, 64)

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class ParityError(InputError):
    """An export differs from its network, or the comparison would prove nothing."""


@dataclass(frozen=True)
class Parity:
    max_abs: float  # largest difference of a logit on real images
    scale: float  # the network's largest logit on real images
    rel: float  # largest ratio of the two over all cases
    allowed: float  # what that ratio may be
    agreement: float  # top-1 on real images; classes tied within the tolerance count as agreeing
    images: int
    largest_batch: int  # that was run
    cases: dict[str, float]  # the ratio in each case


def check(
    reference: Predict,
    candidate: Predict,
    images: np.ndarray,
    *,
    name: str,
    exact: Callable[[np.ndarray], np.ndarray] | None = None,
    batches: tuple[int, ...] = BATCHES,
) -> Parity:
    """Compare two callables uint8 N x H x W x C -> (logits, probabilities); raise ParityError unless they are the same function.

    All `images` are run at the largest batch, some at each of `batches`; black, white, noise and contrast-stretched images reach
    activations that real ones don't. Differences are measured against the largest logit: float32 rounding scales with it.
    `exact`, the network's logits in float64, is asked only where a difference is beyond the tolerance: it tells what is rounding.
    """
    images = np.asarray(images)
    _refuse_alike(images)
    truth = _run(reference, images)
    _refuse_constant(truth)
    scale = float(np.abs(truth).max())
    largest = min(len(images), max(64, 4_000_000 // (images.shape[1] * images.shape[2])))  # bounds memory for big pictures
    some = {batch: spread(len(images), -(-32 // batch) * batch) for batch in batches if batch != largest}
    trials = [("images", batch, images[rows], truth[rows]) for batch, rows in some.items()]
    trials += [(kind, 7, pixels, _run(reference, pixels)) for kind, pixels in _odd(images).items()]
    trials += [("images", largest, images, truth)]

    cases: dict[str, float] = {}
    faults: list[str] = []
    max_abs, allowed, agreement = 0.0, TOLERANCE, 1.0
    for kind, batch, pixels, want in trials:
        case = f"{kind}, batch {batch}"
        try:
            got = _answers(candidate, pixels, batch)
        except _FaultError as fault:
            faults.append(f"{case}: {fault}")
            continue
        size = max(scale, float(np.abs(want).max()))
        difference = float(np.abs(got - want).max())
        cases[case] = difference / size
        if kind == "images":
            max_abs = max(max_abs, difference)
        here = allowed
        if exact is not None and TOLERANCE < cases[case] <= (LOOSEST if kind == "images" else np.inf):
            times = ROUNDING if kind == "images" else ROUNDING_ODD
            here = max(allowed, times * float(np.abs(exact(pixels) - want).max()) / size)
            if kind == "images":
                here = allowed = min(here, LOOSEST)
        if cases[case] > here:
            faults.append(f"{case}: differs by {cases[case]:.1e} of the largest logit")
        if pixels is images:
            agreement = _agreement(truth, got, tie=2 * allowed * scale)
    if agreement < 1:
        faults.insert(0, f"top-1 agreement is {agreement:.1%} on real images")
    if faults:
        raise ParityError(
            f"{name} doesn't answer as the trained network does, so it isn't handed out; allowed is a difference of {allowed:.0e} of the "
            f"largest logit ({scale:.3g}). {'; '.join(faults[:4])}{f'; and {len(faults) - 4} more' if len(faults) > 4 else ''}. Look for "
            "layers that depend on the batch, on chance, on Python numbers taken from the data or on training mode."
        )
    return Parity(max_abs, scale, max(cases.values()), allowed, agreement, len(images), max(largest, *batches), cases)


def assert_still(model: "nn.Module") -> None:
    """Refuse a module in training mode or with a hook: both make the exporter write another network."""
    for path, module in model.named_modules():
        if module.training:
            raise ParityError(
                f"Module {path or 'itself'!r} of the network to export is in training mode; call .eval() on the whole network."
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ParityError(f"Module {path or 'itself'!r} of the network to export has a forward hook; export a copy without hooks.")


class _FaultError(Exception):
    """What is wrong with a candidate's answer."""


def _answers(candidate: Predict, images: np.ndarray, batch: int) -> np.ndarray:
    """The candidate's logits, its answers' form and probabilities checked."""
    collected = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        try:
            logits, probabilities = candidate(part)
        except Exception as error:  # whatever a runtime raises is the finding
            raise _FaultError(f"fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        for what, array in (("logits", logits), ("probabilities", probabilities)):
            if array.dtype != np.float32 or array.ndim != 2 or len(array) != len(part):
                raise _FaultError(f"its {what} are {array.dtype} of shape {array.shape} for {len(part)} images")
            if not np.isfinite(array).all():
                raise _FaultError(f"its {what} hold NaN or infinity")
        if probabilities.shape != logits.shape or np.abs(probabilities - _softmax(logits)).max() > 1e-5:
            raise _FaultError("its probabilities aren't the softmax of its logits")
        collected.append(logits)
    return np.concatenate(collected)


def _run(reference: Predict, images: np.ndarray) -> np.ndarray:
    return np.concatenate([reference(images[start : start + 64])[0] for start in range(0, len(images), 64)])


def _odd(images: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    some = images[spread(len(images), min(64, len(images)))]
    shape = (14, *images.shape[1:])
    stretched = np.clip((some.astype(np.int16) - 128) * 3 + 128, 0, 255).astype(np.uint8)
    return {
        "black and white": np.stack([np.zeros_like(images[0]), np.full_like(images[0], 255)]),
        "noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "extreme noise": rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255),
        "stretched images": stretched,
    }


def spread(n: int, count: int) -> np.ndarray:
    """`count` rows evenly spread over n, repeated where there are too few."""
    return np.linspace(0, n - 1, count).astype(np.int64)


def _agreement(truth: np.ndarray, got: np.ndarray, tie: float) -> float:
    chosen = np.take_along_axis(truth, got.argmax(1)[:, None], 1)[:, 0]
    return float((chosen >= truth.max(1) - tie).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def _refuse_alike(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise ParityError(f"parity: needs at least two uint8 images N x H x W x C, got {images.dtype} of shape {images.shape}.")
    if (images == images[:1]).all():
        raise ParityError("parity: all images are the same, so a comparison on them proves nothing. Give different real images.")


def _refuse_constant(truth: np.ndarray) -> None:
    """A network that says nothing can't be told from another."""
    if not np.isfinite(truth).all():
        raise ParityError("The trained network gives NaN or infinity on real images; train it again with a smaller learning rate.")
    scale = float(np.abs(truth).max())
    if float(np.ptp(truth, axis=0).max()) <= 1e-3 * scale:
        raise ParityError(
            f"parity: the network answers nearly the same to every image (largest logit {scale:.3g}), so comparing exports with it proves "
            "nothing. It is untrained or collapsed: check its accuracy, learning rate and weights."
        )

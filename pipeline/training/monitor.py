"""What is measured of a loss while a phase is trained: the terms' mean values and shares of the gradient."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.methods import Loss
from pipeline.settings import InputError
from pipeline.taps import processes

BASE = ("ce", "kd")  # labels and plain KD, whose weights say how they share: not a method's own terms
SMALL, LARGE = 0.001, 0.95  # a term whose share of the gradient is outside of these is reported


class Values(NamedTuple):
    """What was measured on one batch, or on one part of a batch."""

    place: str  # to be named in an error
    fraction: float  # of the batch
    values: dict[str, Tensor]


@dataclass
class Means:
    """Collects the values of each step; their means make the next point of the curves.

    Columns: each term by its name, before weighting; `loss`, the weighted sum of the terms; `note/<name>`,
    each note of the method. A value that is not finite stops the training.
    """

    steps: list[Values] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    weights: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(
        self, place: str, loss: Loss, total: Tensor, fraction: float, notes: Mapping[str, Tensor]
    ) -> None:
        """`fraction` is the part of the batch that the values are means of; `place` is named in an error."""
        values = {name: term.value.detach() for name, term in loss.items()} | {"loss": total.detach()}
        self.steps.append(Values(place, fraction, values))
        self.add_notes(place, fraction, notes)

    def add_notes(self, place: str, fraction: float, notes: Mapping[str, Tensor]) -> None:
        values = {f"note/{name}": value.detach() for name, value in notes.items()}
        self.steps.append(Values(place, fraction, values))

    def take(self) -> dict[str, float]:
        """The means since the last call, over all processes."""
        everyones = processes.of_each(self.as_sums())

        def total(part: str, name: str) -> float:
            return sum(each[part][name] for each in everyones)

        means = {name: total("sums", name) / total("weights", name) for name in self.sums}
        self.sums.clear()
        self.weights.clear()
        return means

    def as_sums(self) -> dict[str, dict[str, float]]:
        """All that was collected since the last point, as plain numbers."""
        measured = [value for step in self.steps for value in step.values.values()]
        numbers = iter(torch.stack(measured).tolist() if measured else ())  # one transfer from the device
        for place, fraction, values in self.steps:
            for name in values:
                number = next(numbers)
                if not math.isfinite(number):
                    raise InputError(
                        f"Phase {place}: the term {name!r} is {number}. Lower the learning rate (train.lr, "
                        "or phases.<phase>.lr of the run) or the term's weight, or check the teacher and the "
                        "images."
                    )
                self.sums[name] += fraction * number
                self.weights[name] += fraction
        self.steps.clear()
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    def go_on(self, saved: Mapping[str, Mapping[str, float]]) -> None:
        """From what `as_sums` returned."""
        self.sums.update(saved["sums"])
        self.weights.update(saved["weights"])


def gradient_shares(loss: Loss, student: nn.Module, weight: float = 1.0) -> dict[str, float]:
    """Each weighted term's share of the student's gradient: the norm of its gradient over the sum of norms.

    `weight` is that of this process in the mean over all. Empty if the loss has fewer than two terms or the
    student is frozen.
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if len(loss) < 2 or not trained:
        return {}
    norms = {name: gradient_norm(weight * term * value, trained) for name, (value, term) in loss.items()}
    return {name: norm / (sum(norms.values()) or 1.0) for name, norm in norms.items()}


def gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    """Norm of the gradient of `value` with respect to `parameters` together; 0 if there is no gradient.

    Of several processes' values it is the gradient of the mean.
    """
    if not value.requires_grad:
        return 0.0
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None]
    processes.average(gradients)
    norms = [gradient.norm() for gradient in gradients]
    return torch.stack(norms).norm().item() if norms else 0.0


@cache
def print_once(text: str) -> None:
    """Print a warning that every seed and every point would repeat."""
    print(text)


@dataclass
class Shares:
    """Collects the terms' shares of the gradient; their means, `share of <term>`, belong to the next point.

    A method's own term with a very large or very small share is reported once, and so are labels or KD that
    drown the method's own terms. The balance of labels and KD alone is what their weights ask for.
    """

    phase: str
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, float] = field(default_factory=dict)

    def add(self, shares: Mapping[str, float]) -> None:
        for name, share in shares.items():
            self.measured[name].append(share)

    def take(self) -> dict[str, float]:
        """The means since the last call; if nothing was measured since then, the last means again."""
        if self.measured:
            self.last = {name: sum(shares) / len(shares) for name, shares in self.measured.items()}
            self.measured.clear()
        own = [name for name, share in self.last.items() if name not in BASE and share > 0]
        for name, share in self.last.items() if own and not processes.rank() else ():
            self._warn(name, share)
        return {f"share of {name}": share for name, share in self.last.items()}

    def _warn(self, name: str, share: float) -> None:
        if share >= LARGE:
            problem = f"over {LARGE:.0%} of the student's gradient, so the other terms hardly count"
        elif name not in BASE and 0 < share <= SMALL:  # 0: a term that has been switched off
            problem = f"under {SMALL:.1%} of the student's gradient, so it hardly counts"
        else:
            return
        print_once(
            f"Phase {self.phase}: the term {name!r} makes up {problem}. If this is not intended, change its "
            "weight."
        )

"""What there is to tell of a loss and its terms while a phase is trained."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from pipeline.inputs import InputError
from pipeline.methods.base import Loss

SMALL, LARGE = 0.001, 0.95  # shares of the gradient outside of which a term is named


@dataclass
class Means:
    """Means since the last point: of every term, raw, of their weighted sum, `loss`, and of what the method notes beside them.

    A value that isn't finite stops the stage.
    """

    seen: list[tuple[str, float, dict[str, Tensor]]] = field(default_factory=list)

    def add(self, place: str, loss: Loss, total: Tensor, share: float, notes: Mapping[str, Tensor]) -> None:
        values = {name: term.value.detach() for name, term in loss.items()} | {"loss": total.detach()}
        self.seen.append((place, share, values | {f"note/{name}": value.detach() for name, value in notes.items()}))

    def take(self) -> dict[str, float]:
        numbers = iter(
            torch.stack([value for _, _, values in self.seen for value in values.values()]).tolist()
        )  # the device is waited for once
        sums: dict[str, float] = defaultdict(float)
        shares: dict[str, float] = defaultdict(float)
        for place, share, values in self.seen:
            for name in values:
                number = next(numbers)
                if not math.isfinite(number):
                    raise InputError(
                        f"Phase {place}: the term {name!r} is {number}. Lower the learning rate (train.lr, or phases.<phase>.lr "
                        "of the run) or the term's weight, or check the teacher and the images."
                    )
                sums[name] += share * number
                shares[name] += share
        self.seen.clear()
        return {name: total / shares[name] for name, total in sums.items()}


def gradient_shares(loss: Loss, student: nn.Module) -> dict[str, float]:
    """How much of the student's gradient each weighted term makes up: its norm over the sum of all norms."""
    moving = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if len(loss) < 2 or not moving:
        return {}
    norms = {}
    for name, (value, weight) in loss.items():
        gradients = torch.autograd.grad(weight * value, moving, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        parts = [gradient.norm() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(parts).norm().item() if parts else 0.0
    return {name: norm / (sum(norms.values()) or 1.0) for name, norm in norms.items()}


@cache
def say_once(text: str) -> None:
    """Not again for every seed and every point."""
    print(text)


@dataclass
class Shares:
    """Mean shares of the gradient, `share of <term>`; a term that drowns the others, or that they drown, is named."""

    phase: str
    seen: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, float] = field(default_factory=dict)

    def add(self, shares: Mapping[str, float]) -> None:
        for name, share in shares.items():
            self.seen[name].append(share)

    def take(self) -> dict[str, float]:
        """The means since the last point, or those before where nobody looked since."""
        if self.seen:
            self.last = {name: sum(shares) / len(shares) for name, shares in self.seen.items()}
            self.seen.clear()
        for name, share in self.last.items():
            if share and not SMALL < share < LARGE:  # 0: a term that has been stopped
                what = f"drowns the others: over {LARGE:.0%}" if share >= LARGE else f"is drowned by the others: under {SMALL:.1%}"
                say_once(f"Phase {self.phase}: the term {name!r} {what} of the student's gradient. If that isn't meant, change its weight.")
        return {f"share of {name}": share for name, share in self.last.items()}

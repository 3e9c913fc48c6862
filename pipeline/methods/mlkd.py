"""Multi-level logit distillation (Jin, Wang & Lin, "Multi-Level Logit Distillation", CVPR 2023).

The probabilities P = softmax(z / tau), B x classes, of both networks are matched at three levels. Each term
is a sum over several tau, the paper's prediction augmentation:

- `instance`: `tau^2 * KL(P_t || P_s)`, mean over the batch, as in KD
- `batch`: `||G_t - G_s||^2 / B`, where `G = P P^T`, B x B, says how alike the answers to two images are
- `class`: `||M_t - M_s||^2 / classes`, where `M = P^T P`, classes x classes, says how often two classes are
  confused

Default weights of labels, KD and terms: 0.1, 0 and 0.9, which is the setting of the authors' program, with
tau 2, 3, 4, 5 and 6. `temperature` is not read, unless there is a `kd_weight`.

Our reading: the authors show the networks two views of each image, one of them strongly changed, and have
all terms for both. Here each image has the one view that `augment` gives, as with every other method
(`preset: strong` comes nearest). So published figures took twice the passes of a usual training. Their
program also leaves out images and classes that the teacher is unsure of; the paper's formulas do not.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from pipeline.functional import softened_kl
from pipeline.methods import LogitConfig, LogitMethod, Terms
from pipeline.taps.step import Step


class Config(LogitConfig):
    ce_weight: float = Field(0.1, ge=0)
    term_weight: float = Field(0.9, ge=0)
    temperatures: tuple[float, ...] = Field(
        (2.0, 3.0, 4.0, 5.0, 6.0), min_length=1, description="each tau; every term is summed over them"
    )

    @field_validator("temperatures")
    @classmethod
    def _positive(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if min(temperatures) <= 0:
            raise ValueError("each temperature must be greater than 0")
        return temperatures


class MultiLevel(LogitMethod[Config]):
    def terms(self, step: Step) -> Terms:
        student, teacher = self.logits(step)
        of_all = step.of_all(student), step.of_all(teacher)

        def summed(level: Callable[[Tensor, Tensor, float], Tensor], logits: tuple[Tensor, Tensor]) -> Tensor:
            return torch.stack([level(*logits, tau) for tau in self.cfg.temperatures]).sum()

        return {
            "instance": summed(softened_kl, (student, teacher)),
            "batch": summed(of_batch, of_all),
            "class": summed(of_classes, of_all),
        }


def of_batch(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Mean over images of the squared difference of their rows of `P P^T`."""
    ours, theirs = (F.softmax(logits / tau, dim=1) for logits in (student, teacher))
    return (ours @ ours.T - theirs @ theirs.T).square().sum(1).mean()


def of_classes(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Mean over classes of the squared difference of their rows of `P^T P`."""
    ours, theirs = (F.softmax(logits / tau, dim=1) for logits in (student, teacher))
    return (ours.T @ ours - theirs.T @ theirs).square().sum(1).mean()

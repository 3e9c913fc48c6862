"""Variational information distillation (Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019).

The teacher's map given the student's is Gaussian: its mean is regressed from the student's map, its variance is learned, one a channel c:
`-log q(T | S) = mean over batch, channels and positions of (log v_c + (T - mean(S))^2 / v_c) / 2`, constant left out, summed over
stages, with `v_c = softplus(a_c) + 1e-5` starting at 5. Weights 1, 0 and 1 are those of the CRD paper's tables (1, 1 and 1 in SemCKD's).

Our reading: the paper sums over channels and positions; the tables' weight belongs to the mean. The regressor is one 1x1 convolution with
a bias. The stages are all but the stem, as in those tables; where one network has more, its deepest ones.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods.base import Method, StagesConfig, Terms, stage_pairs
from pipeline.taps import Step

SMALLEST = 1e-5  # variance


class VariationalInformation(Method):
    class Config(StagesConfig):
        initial_variance: float = Field(5.0, gt=1e-4, description="what every channel's variance is before training")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages)
        widths = [(probe.student.stages[s].shape[1], probe.teacher.stages[t].shape[1]) for s, t in self.pairs]
        self.guesses = nn.ModuleList(Guess(s, t, cfg.initial_variance) for s, t in widths)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.stages, step.teacher.stages
        surprises = [guess(student[s], teacher[t]) for guess, (s, t) in zip(self.guesses, self.pairs, strict=True)]
        return {"surprise": torch.stack(surprises).sum()}


class Guess(nn.Module):
    """The Gaussian of a teacher's map given a student's, and the teacher's surprise under it."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Conv2d(student, teacher, 1)
        start = torch.tensor(variance - SMALLEST, dtype=torch.float64)
        self.raw = nn.Parameter(start.expm1().log().float().repeat(teacher))  # the inverse of softplus

    def variance(self) -> Tensor:
        return F.softplus(self.raw) + SMALLEST

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = match_size(student, teacher)
        error = (self.mean(student) - teacher).square().mean((0, 2, 3))  # variances are a channel's, so it's enough to know its mean error
        variance = self.variance()
        return (variance.log() + error / variance).mean() / 2

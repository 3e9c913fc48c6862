"""Variational information distillation (Ahn et al., "Variational Information Distillation for Knowledge
Transfer", 2019).

The teacher's map T (B x C x H x W) is taken as Gaussian, given the student's map S. A regressor computes its
mean from S, and each channel c has a trained variance v_c. The term is the negative log-likelihood without
its constant, mean over batch, channels and positions, sum over maps:
`-log q(T | S) = mean of (log v_c + (T - mean(S))^2 / v_c) / 2`.
The variance is `v_c = softplus(a_c) + 1e-5`, which starts at 5.

Default weights of labels, KD and term: 1, 0 and 1, as in the tables of the CRD paper (SemCKD's: 1, 1 and 1).

Our reading: the paper sums over channels and positions; the weight of the tables belongs to the mean. The
regressor is a 1x1 convolution with a bias. All maps but the stem are matched, as in those tables. If one
network has more of them, only its deepest ones are. Maps of different size are pooled to the smaller size.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import MapMethod, MapsConfig, Terms
from pipeline.taps.step import Step

SMALLEST_VARIANCE = 1e-5


class Config(MapsConfig):
    initial_variance: float = Field(5.0, gt=1e-4, description="variance of each channel before training")


class VariationalInformation(MapMethod[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        widths = [(probe.student.maps[s].shape[1], probe.teacher.maps[t].shape[1]) for s, t in self.pairs]
        self.gaussians = nn.ModuleList(Gaussian(s, t, cfg.initial_variance) for s, t in widths)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.maps, step.teacher.maps
        matched = zip(self.gaussians, self.pairs, strict=True)
        surprises = [gaussian(student[s], teacher[t]) for gaussian, (s, t) in matched]
        return {"surprise": torch.stack(surprises).sum()}


class Gaussian(nn.Module):
    """The Gaussian of the teacher's map, given the student's; called with both, it returns `-log q`."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Conv2d(student, teacher, 1)
        start = torch.tensor(variance - SMALLEST_VARIANCE, dtype=torch.float64)
        self.raw = nn.Parameter(start.expm1().log().float().repeat(teacher))  # the inverse of softplus

    def variance(self) -> Tensor:
        return F.softplus(self.raw) + SMALLEST_VARIANCE

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = match_size(student, teacher)
        # a channel has one variance, so its mean error is enough
        error: Tensor = (self.mean(student) - teacher).square().mean((0, 2, 3))
        variance = self.variance()
        return (variance.log() + error / variance).mean() / 2

"""Overhaul of feature distillation (Heo et al., "A Comprehensive Overhaul of Feature Distillation", 2019).

Maps are compared before their activation. The teacher's map goes through a margin ReLU, `T = max(t, m)` with
`m = E[t | t < 0]` for each channel. The student's goes through a regressor, a 1x1 convolution and a batch
norm, and becomes S. Where T <= 0, S only needs to be no larger. The term is the partial distance, a sum over
channels and positions and a mean over the batch:
`d(T, S) = sum of (0 if S <= T <= 0 else (T - S)^2)`.

Default weights of labels, KD and term: 1, 0 and 0.001, as in mdistiller's tables and like the authors' for
CIFAR. In those tables the deepest map has factor 1, and each one before it half the factor of the next,
because a map usually has twice the size (channels times positions) of the next. It is so here too.

The margin m: if the tapped activation reads the output of a batch norm and nothing else, m is the paper's
formula for a Gaussian, from the scale g and the shift b of the batch norm:
`b - |g| phi(b/g) / Phi(-b/|g|)`.
Otherwise (no batch norm, or a residual sum, as in every ResNet) m is the mean of all negative values of the
probe and of the first epoch.

Our reading: for a residual sum, the authors' code takes the last batch norm of the branch and ignores the
shortcut; ours takes the data. Their code keeps the teacher's batch norms in training mode; here a teacher is
always in eval mode. All maps but the stem are matched. If one network has more of them, only its deepest ones
are. Maps of different size are pooled to the smaller size.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import MapsConfig, Terms
from pipeline.methods._margin import MarginMethod, partial_distance
from pipeline.taps.step import Step


class Config(MapsConfig):
    term_weight: float = Field(0.001, ge=0)


class FeatureOverhaul(MarginMethod[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s, t, 1, bias=False), nn.BatchNorm2d(t)) for s, t in self.widths
        )

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.preactivations, step.teacher.preactivations
        total = torch.zeros((), device=step.student.logits.device)
        for (s, t), margin, regressor in zip(self.pairs, self.margins, self.regressors, strict=True):
            student_map, target = match_size(student[s], margin(teacher[t], step.epoch))
            total = total / 2 + partial_distance(regressor(student_map), target)
        return {"features": total}

"""Overhaul of feature distillation (Heo et al., "A Comprehensive Overhaul of Feature Distillation", 2019).

Maps are compared before their activation. The teacher's goes through a margin ReLU, `T = max(t, m)` with `m = E[t | t < 0]` a channel; the
student's through a regressor, 1x1 convolution and batch norm. Where the teacher is silent (T <= 0) the student need only be at least as
silent: `d(T, S) = sum of (0 if S <= T <= 0 else (T - S)^2)` over channels and positions, mean over the batch. Weights 1, 0 and .001 are
those of mdistiller's tables, like the authors' for CIFAR; there the deepest stage counts 1 and each one before it half of the next, as
maps double in size (channels times positions) from stage to stage, so it's done here.

Where m comes from: if the tapped activation reads the output of a batch norm and nothing else, from its scale g and shift b, by the
paper's formula for a Gaussian, `b - |g| phi(b/g) / Phi(-b/|g|)`. Elsewhere (no batch norm, or a residual sum, as in every ResNet) from
the data: the mean of all negative values seen in the first epoch, starting with the probe's. Ours differs there: the authors' code takes
the last batch norm of the branch and leaves the shortcut out of account. It also keeps the teacher's batch norm in training mode; here a
teacher is always at rest. The stages are all but the stem; where one network has more, its deepest ones.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.margin import Margin, feeding_norms, partial_distance
from pipeline.methods.base import Method, StagesConfig, Terms, preactivation_pairs
from pipeline.taps import Step


class FeatureOverhaul(Method):
    class Config(StagesConfig):
        term_weight: float = Field(0.001, ge=0)

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = preactivation_pairs(probe, cfg.student_stages, cfg.teacher_stages)
        before = [(probe.student.preactivations[s], probe.teacher.preactivations[t]) for s, t in self.pairs]
        norms = feeding_norms(probe)
        self.margins = nn.ModuleList(Margin(t, norms.get(name)) for (_, t), (_, name) in zip(before, self.pairs, strict=True))
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s.shape[1], t.shape[1], 1, bias=False), nn.BatchNorm2d(t.shape[1])) for s, t in before
        )

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.preactivations, step.teacher.preactivations
        total = torch.zeros((), device=step.student.logits.device)
        for (s, t), margin, regressor in zip(self.pairs, self.margins, self.regressors, strict=True):
            reached, wanted = match_size(student[s], margin(teacher[t], step.epoch))
            total = total / 2 + partial_distance(regressor(reached), wanted)
        return {"features": total}

"""Weighted transformed teacher matching (Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher
Matching", ICLR 2024).

As in method ttm, only the teacher is softened, and each image i has a weight. Term `transformed`, where z
(B x classes) are the logits and p is softmax(z_t):
`mean over i of u_i * KL(softmax(z_t / tau) || softmax(z_s))`, with `u_i = sum over classes of p_c^(1 / tau)`.
u is 1 if the teacher is sure of one class, and classes^(1 - 1/tau) if all classes are alike to it. Its
logarithm is the Rényi entropy of p of order 1 / tau, times `1 - 1 / tau`. So images whose softened answer
says more about the classes count more. The teacher alone decides, so u has no gradient.

Default weights of labels, KD and term: 1, 0 and 4, with tau 5, which is the setting for vgg13 -> vgg8 that
the authors' page shows (gamma 0.2, there beside CRD). The paper lists a tau and a weight for each of its
pairs.
"""

from pydantic import Field
from torch import Tensor

from pipeline.functional import transformed_kl
from pipeline.methods import LogitConfig, LogitMethod, Terms
from pipeline.taps.step import Step


class Config(LogitConfig):
    term_weight: float = Field(4.0, ge=0)
    temperature: float = Field(5.0, gt=0, description="tau, divides the teacher's logits; also tau of KD")


class WeightedTransformedTeacher(LogitMethod[Config]):
    def terms(self, step: Step) -> Terms:
        (student, teacher), tau = self.logits(step), self.cfg.temperature
        return {"transformed": (power_sum(teacher, tau) * transformed_kl(student, teacher, tau)).mean()}


def power_sum(logits: Tensor, tau: float) -> Tensor:
    """`sum over classes of softmax(z)^(1 / tau)` of each image."""
    return ((logits / tau).logsumexp(1) - logits.logsumexp(1) / tau).exp()

"""Transformed teacher matching (Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching",
ICLR 2024).

Only the teacher is softened. Term `transformed`, where z (B x classes) are the logits:
`KL(softmax(z_t / tau) || softmax(z_s))`, mean over the batch.
A softmax with tau is a power transform: p^gamma, scaled to sum 1, with gamma = 1 / tau. With p_T and q_T the
softened outputs of both networks, this KL is `tau * KL(p_T || q_T) + (tau - 1) * (H(p_T) - H_gamma(q))`: KD,
and a reward for a large Rényi entropy H_gamma of the student. So the student generalises better, says the
paper. There is no factor tau^2.

Default weights of labels, KD and term: 1, 0 and 45, with tau 10, which is the authors' setting for
vgg13 -> vgg8 (gamma 0.1). The paper lists a tau and a weight for each of its pairs.
"""

from pydantic import Field

from pipeline.functional import transformed_kl
from pipeline.methods import LogitConfig, LogitMethod, Terms
from pipeline.taps.step import Step


class Config(LogitConfig):
    term_weight: float = Field(45.0, ge=0)
    temperature: float = Field(10.0, gt=0, description="tau, divides the teacher's logits; also tau of KD")


class TransformedTeacher(LogitMethod[Config]):
    def terms(self, step: Step) -> Terms:
        return {"transformed": transformed_kl(*self.logits(step), self.cfg.temperature).mean()}

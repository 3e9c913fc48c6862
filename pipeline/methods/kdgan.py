"""KDGAN (Wang, Zhang, Sun & Qi, "KDGAN: Knowledge Distillation with Generative Adversarial Networks", 2018).

Three players: the classifier (student) and the teacher forge labels y for an image x, a discriminator p_d(x, y) tells them from true ones:
`min over the student, max over the discriminator of
 E_true log p_d(x, y) + share * E_student log(1 - p_d(x, y)) + (1 - share) * E_teacher log(1 - p_d(x, y))`, plus distillation between the
two. A forged label is a concrete (Gumbel-softmax) sample `softmax((logits + Gumbel noise) / temperature)`, so that the discriminator's
gradient reaches the student through it. `share` is the paper's alpha; its beta is `kd_weight`, the base's softened KL.

One backward trains both sides: in the term `discriminator` (the value above, negated) forged labels are constants, in the term `deception`
(what of the value depends on the student) the discriminator is one. `term_weight` scales both.

Our reading: the teacher never moves in this project, so its part of the game (its own deception, and gamma, the student teaching it) is
left out; its forged labels still train the discriminator. `p_d(x, y) = sigmoid(y . scores(x))`, where the scores are a small perceptron's
on the teacher's embedding of x: no third network. The paper alternates updates of the players; here they move at the same time. Its weights
differ from data set to data set; ours are an even share, and 1 for labels, KD and the game.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.inputs import InputError
from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step


class KDGAN(Method):
    class Config(MethodConfig):
        kd_weight: float = Field(1.0, ge=0)
        share: float = Field(0.5, gt=0, le=1, description="of the forged labels that is the student's; the rest is the teacher's")
        sample_temperature: float = Field(1.0, gt=0, description="of the concrete distribution; towards 0 samples become one-hot")
        hidden: int = Field(128, ge=1, description="width of the discriminator")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: KDGAN.Config = cfg
        classes, its_classes = probe.student.logits.shape[1], probe.teacher.logits.shape[1]
        if cfg.share < 1 and its_classes != classes:
            raise InputError(
                f"method.share is {cfg.share}, so the teacher forges labels too, but it tells {its_classes} classes apart "
                f"and the student {classes}. Set method.share to 1."
            )
        self.pairs = [("logits", "pooled"), *([("logits", "logits")] if cfg.share < 1 else [])]  # it judges labels by the embedding
        self.discriminator = nn.Sequential(nn.Linear(probe.teacher.pooled.shape[1], cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, classes))

    def terms(self, step: Step) -> Terms:
        share, temperature = self.cfg.share, self.cfg.sample_temperature
        scores = self.discriminator(step.teacher.pooled)
        by_student = F.gumbel_softmax(step.student.logits, temperature)
        value = true_score(scores, step.labels) + share * forged_score(scores, by_student.detach())
        if share < 1:
            by_teacher = F.gumbel_softmax(step.teacher.logits, temperature)
            value = value + (1 - share) * forged_score(scores, by_teacher)
        return {"discriminator": -value, "deception": share * forged_score(scores.detach(), by_student)}


def true_score(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of log p_d(x, y) over true labels, a class index each."""
    return F.logsigmoid(scores.gather(1, labels[:, None])).mean()


def forged_score(scores: Tensor, forged: Tensor) -> Tensor:
    """Mean of log(1 - p_d(x, y)) over forged labels, rows that sum to 1."""
    return F.logsigmoid(-(scores * forged).sum(1)).mean()

"""KDGAN (Wang, Zhang, Sun & Qi, "KDGAN: Knowledge Distillation with Generative Adversarial Networks", 2018).

There are three players. The student and the teacher forge labels y (B x classes) for the images x, and a
discriminator p_d(x, y) tries to recognise the true ones. The student minimises, and the discriminator
maximises, this value:
`E_true log p_d(x, y) + share * E_student log(1 - p_d(x, y)) + (1 - share) * E_teacher log(1 - p_d(x, y))`.
Distillation between the two is added. A forged label is a concrete (Gumbel-softmax) sample,
`softmax((logits + Gumbel noise) / temperature)`, through which the discriminator's gradient reaches the
student. `share` is the paper's alpha. Its beta is `kd_weight`.

One backward pass trains both sides. Term `discriminator` is the negated value, where forged labels are
constants. Term `deception` is the part that depends on the student, where the discriminator is a constant.
`term_weight` scales both.

Our reading: the teacher never changes in this project. So its deception and the distillation from the student
to the teacher (weight gamma) are left out; its forged labels still train the discriminator.
`p_d(x, y) = sigmoid(y . scores(x))`, where the scores are those of a small perceptron on the teacher's pooled
embedding, so no third network is needed. The paper's players move in turn; here they move at the same time.
The paper has other weights for each data set. Ours are 0.5 for `share`, and 1 for labels, KD and terms.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.settings import InputError
from pipeline.taps.step import Step


class Config(MethodConfig):
    kd_weight: float = Field(1.0, ge=0)
    share: float = Field(0.5, gt=0, le=1, description="of the student's labels; the rest are the teacher's")
    sample_temperature: float = Field(
        1.0, gt=0, description="temperature of the forged labels; towards 0 they become one-hot"
    )
    hidden: int = Field(128, ge=1, description="width of the discriminator's hidden layer")


class KDGAN(Method[Config]):
    terms_of = "labelled"

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        classes, teacher_classes = probe.student.logits.shape[1], probe.teacher.logits.shape[1]
        if cfg.share < 1 and teacher_classes != classes:
            raise InputError(
                f"method.share is {cfg.share}, so the teacher forges labels too, but the teacher has "
                f"{teacher_classes} classes and the student {classes}. Set method.share to 1."
            )
        # the discriminator judges the student's labels by the teacher's embedding
        self.pairs = [("logits", "pooled"), *([("logits", "logits")] if cfg.share < 1 else [])]
        self.discriminator = nn.Sequential(
            nn.Linear(probe.teacher.pooled.shape[1], cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, classes)
        )

    def terms(self, step: Step) -> Terms:
        share, temperature = self.cfg.share, self.cfg.sample_temperature
        scores = self.discriminator(step.teacher.pooled)
        by_student = forged(step, step.student.logits, temperature)
        value = true_score(scores, step.labels) + share * forged_score(scores, by_student.detach())
        if share < 1:
            by_teacher = forged(step, step.teacher.logits, temperature)
            value = value + (1 - share) * forged_score(scores, by_teacher)
        return {"discriminator": -value, "deception": share * forged_score(scores.detach(), by_student)}


def forged(step: Step, logits: Tensor, temperature: float) -> Tensor:
    """Concrete samples of labels, B x classes."""
    gumbel = -step.noise(logits.shape[1], Tensor.exponential_, logits.dtype).log()
    return ((logits + gumbel) / temperature).softmax(1)


def true_score(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of log p_d(x, y) over the true labels, B class indices; `scores` are B x classes."""
    return F.logsigmoid(scores.gather(1, labels[:, None])).mean()


def forged_score(scores: Tensor, forged: Tensor) -> Tensor:
    """Mean of log(1 - p_d(x, y)) over forged labels, B x classes, each row of which sums to 1."""
    return F.logsigmoid(-(scores * forged).sum(1)).mean()

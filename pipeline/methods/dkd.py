"""Decoupled knowledge distillation (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022).

KD has two parts. One is about the target, the class of the label: with b = (p_target, 1 - p_target), where p
is softmax(z / tau) of the logits z (B x classes), it is `KL(b of the teacher || b of the student)`, TCKD. The
other is about the classes that are not the target: with q the softmax over their logits alone, it is
`KL(q of the teacher || q of the student)`, NCKD. KD itself is `TCKD + (1 - p_target of the teacher) * NCKD`.
So it learns little about the other classes from images that the teacher is sure of. Here both parts have
weights of their own:

- `target`: `alpha * tau^2 * TCKD`, mean over the batch
- `others`: `beta * tau^2 * NCKD`, mean over the batch

Default weights of labels, KD and terms: 1, 0 and 1, with alpha 1, beta 8 and tau 4, as in the paper's tables.
Its beta differs by pair: 2 for resnet56 -> resnet20, 6 for vgg13 -> vgg8 and WRN-40-2 -> WRN-16-2, 0.5 for
ImageNet with tau 1. In the first 20 of its 240 epochs, the weight of both terms rises: 1/20, 2/20 and so on.

Our reading: this warm-up is a share of the phase, so that it fits phases of any length. An image whose label
is mixed has the class of its larger part as its target. The terms read labels, so images without labels do
not have them.
"""

import torch
from pydantic import Field
from torch import Tensor

from pipeline.functional import softened_kl
from pipeline.methods import LogitConfig, LogitMethod, Terms, WarmUp, warm_up
from pipeline.taps.step import Step


class Config(LogitConfig):
    target_weight: float = Field(1.0, ge=0, description="alpha, factor of the term `target`")
    others_weight: float = Field(8.0, ge=0, description="beta, factor of the term `others`")
    warm_up: WarmUp = 0.083


class Decoupled(LogitMethod[Config]):
    terms_of = "labelled"

    def terms(self, step: Step) -> Terms:
        cfg, tau = self.cfg, self.cfg.temperature
        both = [split(logits / tau, step.labels) for logits in self.logits(step)]
        (target_s, others_s), (target_t, others_t) = both
        factor = warm_up(step.progress, cfg.warm_up) * tau**2
        return {
            "target": cfg.target_weight * factor * softened_kl(target_s, target_t, 1.0),
            "others": cfg.others_weight * factor * softened_kl(others_s, others_t, 1.0),
        }


def split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the target and of all else, B x 2; and of the other classes, B x (classes - 1)."""
    target = labels[:, None]
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= target))
    return torch.cat([logits.gather(1, target), others.logsumexp(1, keepdim=True)], 1), others

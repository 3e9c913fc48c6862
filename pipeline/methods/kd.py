"""Knowledge distillation (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015).

`ce_weight * CE + kd_weight * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))`, where z (B x classes) are
the logits and tau is `temperature`. Every method has these two terms, so this file only sets their weights.

Default weights of labels and KD: 0.1 and 0.9 with tau 4, as in the tables of the papers that compare with KD
(SemCKD's: 1 and 1).
"""

from pydantic import Field

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps import Step


class Config(MethodConfig):
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class KnowledgeDistillation(Method[Config]):
    terms_of = "none"

    def terms(self, step: Step) -> Terms:
        return {}

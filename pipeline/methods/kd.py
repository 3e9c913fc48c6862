"""Knowledge distillation (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015).

`ce_weight * CE + kd_weight * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))`; both terms are the base's, so this file only
sets their weights: 0.1 and 0.9 with tau 4, as in the tables of the papers that compare with it (1 and 1 in SemCKD's).
"""

from pydantic import Field

from pipeline.methods.base import Method, MethodConfig, Terms
from pipeline.taps import Step


class KnowledgeDistillation(Method):
    class Config(MethodConfig):
        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)

    def terms(self, step: Step) -> Terms:
        return {}

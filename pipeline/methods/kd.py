"""Knowledge distillation (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015).

`ce_weight * CE + kd_weight * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))`, where z (B x classes) are
the logits and tau is `temperature`. Every method has these two terms, so this file only sets their weights.

Default weights of labels and KD: 0.1 and 0.9 with tau 4, as in the tables of the papers that compare with KD
(SemCKD's: 1 and 1).

`standardise: true` is logit standardisation (Sun et al., "Logit Standardization in Knowledge Distillation",
CVPR 2024), which every method with a `kd_weight` has. Before the division by tau, the logits of each image
become `(z - mean(z)) / std(z)`, in both networks. So the student learns the order and the relations of the
classes, and need not have logits of the teacher's size. The paper's tables have weight 0.1 for labels and 9
for KD, with tau 2 (3 for some pairs), because standardised logits are small. The deviation is that of the
formula, over all classes; the authors' program divides by one class less.
"""

from pydantic import Field

from pipeline.methods import Method, MethodConfig, Terms
from pipeline.taps.step import Step


class Config(MethodConfig):
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class KnowledgeDistillation(Method[Config]):
    terms_of = "none"

    def terms(self, step: Step) -> Terms:
        return {}

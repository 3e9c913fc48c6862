"""Early-stopped distillation (Cho & Hariharan, "On the Efficacy of Knowledge Distillation", 2019).

Until a share `stop` of the training is done, the loss is that of the method `of`: kd or at. After that it is
the cross-entropy on the labels alone, and the teacher no longer runs. In the paper, distillation helps early
and harms late if the student is too small for its teacher.

Default weights of labels, KD and, with `of: at`, attention: 1, 1 and 1000, as in the tables of the SemCKD
paper. With `kd_weight: 0`, `of: at` is attention without KD. The attention and its maps are those of the
method at.

The paper's other remedy, a teacher that is trained for fewer epochs, is a setting of the teacher:
`teachers.<name>.train.epochs`.

Our reading: the stop is at a fixed share of the phase. The default, 0.625, is where the learning rate first
drops in the recipe of those tables (epoch 150 of 240). A stopped term stays in the loss as 0, so that its
curve goes on.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.functional import attention_difference
from pipeline.methods import Loss, Method, MethodConfig, Terms, Weighted, map_pairs
from pipeline.settings import InputError
from pipeline.taps.step import Step


class Config(MethodConfig):
    kd_weight: float = Field(1.0, ge=0)
    term_weight: float = Field(1000.0, ge=0, description="weight of attention")
    student_maps: tuple[str, ...] = Field(
        (), description="the student's maps for attention; empty: all but the stem"
    )
    teacher_maps: tuple[str, ...] = Field(
        (), description="the teacher's maps for attention; empty: all but the stem"
    )
    of: Literal["kd", "at"] = Field("kd", description="what is stopped: KD, or KD and attention transfer")
    stop: float = Field(
        0.625, gt=0, le=1, description="share of the training after which only the labels count"
    )


class EarlyStopped(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = (
            map_pairs(probe, cfg.student_maps, cfg.teacher_maps) if cfg.of == "at" and cfg.term_weight else []
        )
        self.terms_of = "all" if self.pairs else "none"
        if not cfg.ce_weight and cfg.stop < 1:
            raise InputError(
                f"method.ce_weight is 0, so nothing is left to learn after method.stop ({cfg.stop}). Set one "
                "of them to 1."
            )

    def terms(self, step: Step) -> Terms:
        if not self.pairs:
            return {}
        student, teacher = step.student.maps, step.teacher.maps
        differences = [attention_difference(student[s], teacher[t]) for s, t in self.pairs]
        return {"attention": torch.stack(differences).sum()}

    def loss(self, step: Step) -> Loss:
        cfg = self.cfg
        if step.progress < cfg.stop:
            return super().loss(step)
        stopped = step.student.logits.sum() * 0
        loss = {"ce": Weighted(step.cross_entropy(step.student.logits), cfg.ce_weight)}
        if cfg.kd_weight:
            loss["kd"] = Weighted(stopped, cfg.kd_weight)
        if self.pairs:
            loss["attention"] = Weighted(stopped, cfg.term_weight)
        return loss

"""Early-stopped distillation (Cho & Hariharan, "On the Efficacy of Knowledge Distillation", 2019).

The loss of `of`, kd or at, until a share `stop` of the training is done; from there on the labels alone. The paper sees distillation help
early and hurt late where the student is too small for its teacher. After the stop the teacher isn't run any more.

Weights are those of SemCKD's tables: 1 and 1 for labels and KD, and 1000 for attention beside them with `of: at`, whose stages are those of
at.py; kd_weight 0 leaves attention alone.

The paper's other remedy, a teacher whose own training stops early, is a setting of the teacher: `teachers.<name>.train.epochs`.

Our reading: the stop is a fixed share of the phase, .625 unless told otherwise: where the rate first drops in the recipe of those tables
(150 of 240 epochs). A stopped term stays in the loss as a plain 0, so that the curves keep its column.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.functional import attention_difference
from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, MethodConfig, Terms, Weighted, stage_pairs
from pipeline.taps import Step


class EarlyStopped(Method):
    class Config(MethodConfig):
        kd_weight: float = Field(1.0, ge=0)
        term_weight: float = Field(1000.0, ge=0, description="of attention")
        student_stages: tuple[str, ...] = Field((), description="of attention; empty: all but the stem")
        teacher_stages: tuple[str, ...] = Field((), description="of attention; empty: all but the stem")
        of: Literal["kd", "at"] = Field("kd", description="what is stopped: KD, or attention transfer with it")
        stop: float = Field(0.625, gt=0, le=1, description="share of the training after which the labels are left alone")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: EarlyStopped.Config = cfg
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages) if cfg.of == "at" and cfg.term_weight else []
        if not cfg.ce_weight and cfg.stop < 1:
            raise InputError(f"method.ce_weight is 0, so nothing is left to learn after method.stop ({cfg.stop}). Set one of them to 1.")

    def terms(self, step: Step) -> Terms:
        if not self.pairs:
            return {}
        student, teacher = step.student.stages, step.teacher.stages
        return {"attention": torch.stack([attention_difference(student[s], teacher[t]) for s, t in self.pairs]).sum()}

    def loss(self, step: Step) -> Loss:
        cfg = self.cfg
        if step.progress < cfg.stop:
            return super().loss(step)
        stopped = step.student.logits.sum() * 0
        loss = {"ce": Weighted(F.cross_entropy(step.student.logits, step.labels), cfg.ce_weight)}
        if cfg.kd_weight:
            loss["kd"] = Weighted(stopped, cfg.kd_weight)
        if self.pairs:
            loss["attention"] = Weighted(stopped, cfg.term_weight)
        return loss

"""FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015).

Phase `hint`: the student's layers up to a guided stage and a regressor r are trained so that r(S) = T for the teacher's map T of
the hint stage: `mean((T - r(S))^2)`. Phase `distill`: ordinary KD of the whole student; the regressor is dropped.
`joint: true` is the one-phase form of the CRD paper's tables: the hint is a term beside CE (and KD), weight 100 there.

Our reading: the regressor is a 1x1 convolution with batch norm (the paper's is a larger convolution sized so that maps of different
size agree; here maps are brought to the smaller size by pooling). The hint and guided stage default to the middle one.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods.base import Loss, Method, MethodConfig, Phase, Terms, Weighted
from pipeline.taps import Step, Tapped


class FitNet(Method):
    class Config(MethodConfig):
        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        term_weight: float = Field(100.0, ge=0)
        joint: bool = Field(False, description="one phase: the hint beside CE and KD, instead of before them")
        teacher_stage: str = Field("", description="the hint; empty: the middle stage")
        student_stage: str = Field("", description="the guided stage; empty: the middle stage")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: FitNet.Config = cfg
        self.guided, self.hinting = cfg.student_stage or _middle(probe.student.stages), cfg.teacher_stage or _middle(probe.teacher.stages)
        self.pairs = [(self.guided, self.hinting)]
        guided = probe.student.stage(self.guided, "method.student_stage")
        hint = probe.teacher.stage(self.hinting, "method.teacher_stage")
        self.regressor = nn.Sequential(nn.Conv2d(guided.shape[1], hint.shape[1], 1, bias=False), nn.BatchNorm2d(hint.shape[1]))

    def hint(self, step: Step) -> Tensor:
        guided, hint = match_size(step.student.stages[self.guided], step.teacher.stages[self.hinting])
        return F.mse_loss(self.regressor(guided), hint)

    def terms(self, step: Step) -> Terms:
        return {"hint": self.hint(step)} if self.cfg.joint else {}

    def phases(self, student: Tapped) -> list[Phase]:
        if self.cfg.joint:
            return super().phases(student)
        return [
            Phase("hint", self.hint_loss, (*student.upto(self.guided), self.regressor)),
            Phase("distill", self.loss, (student.net,)),
        ]

    def hint_loss(self, step: Step) -> Loss:
        return {"hint": Weighted(self.hint(step), 1.0)}


def _middle(stages: dict[str, Tensor]) -> str:
    return list(stages)[len(stages) // 2]

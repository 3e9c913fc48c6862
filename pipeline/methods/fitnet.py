"""FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015).

The hint is a map T of the teacher, the guided map S is one of the student. Phase `hint` trains the student's
layers up to S, and a regressor r: `mean((T - r(S))^2)`. Phase `distill` is ordinary KD of the whole student,
without the regressor. `joint: true` has one phase, in which the hint is a term beside labels and KD, as in
the tables of the CRD paper.

Default weights of labels and KD: 0.1 and 0.9. With `joint` the hint has weight 100, as in those tables.

Our reading: r is a 1x1 convolution and a batch norm. The paper's r is a larger convolution that also brings
the maps to one size; here both maps are pooled to the smaller size. By default each map is the middle one of
its network.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import Loss, Method, MethodConfig, Phase, Terms, Weighted
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped


class Config(MethodConfig):
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    term_weight: float = Field(100.0, ge=0, description="weight of the hint if `joint`")
    joint: bool = Field(
        False, description="one phase, with the hint beside labels and KD and not before them"
    )
    teacher_map: str = Field("", description="the hint; empty: the teacher's middle map")
    student_map: str = Field("", description="the guided map; empty: the student's middle map")


class FitNet(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.student_map = cfg.student_map or _middle(probe.student)
        self.teacher_map = cfg.teacher_map or _middle(probe.teacher)
        self.pairs = [(self.student_map, self.teacher_map)]
        self.terms_of = "all" if cfg.joint else "none"
        guided = probe.student.named_map(self.student_map, "method.student_map")
        hint = probe.teacher.named_map(self.teacher_map, "method.teacher_map")
        self.regressor = nn.Sequential(
            nn.Conv2d(guided.shape[1], hint.shape[1], 1, bias=False), nn.BatchNorm2d(hint.shape[1])
        )

    def hint(self, step: Step) -> Tensor:
        guided, hint = match_size(step.student.maps[self.student_map], step.teacher.maps[self.teacher_map])
        return F.mse_loss(self.regressor(guided), hint)

    def terms(self, step: Step) -> Terms:
        return {"hint": self.hint(step)} if self.cfg.joint else {}

    def phases(self, student: Tapped) -> list[Phase]:
        if self.cfg.joint:
            return super().phases(student)
        return [
            Phase("hint", self.hint_loss, (*student.upto(self.student_map), self.regressor)),
            self.last_phase(student.net),
        ]

    def hint_loss(self, step: Step) -> Loss:
        return {"hint": Weighted(self.hint(step), 1.0)}


def _middle(answer: Answer) -> str:
    return list(answer.maps)[len(answer.maps) // 2]

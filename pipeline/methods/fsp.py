"""Flow of the solution procedure (Yim et al., "A Gift from Knowledge Distillation", 2017).

The flow between two stages is `G = F1 F2^T / HW`, a C1 x C2 matrix an instance. Phase `flow`: the student's layers up to the last stage are
trained so that the flows between consecutive stages are the teacher's, `term_weight * sum over flows of mean((G^T - G^S)^2)`.
Phase `distill`: CE and KD as weighted, without a term. Weights 1, 0 and 50 and all stages, the stem included, are those of the CRD
paper's tables.

Our reading: the two maps of a flow are brought to the smaller size by average pooling (the paper's is max pooling). The paper's networks
have equal widths, without which flows can't be compared; here a student's stage of another width is mapped to the teacher's width by a
linear map P, learned in phase `flow` and then dropped: `P1 G^S P2^T` is the flow between the projected maps, at no cost. Stages of
equal width have none. Where one network has more stages, its deepest ones meet the other's.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, MethodConfig, Phase, Terms, Weighted, stage_pairs
from pipeline.taps import Step, Tapped


class FlowOfSolution(Method):
    class Config(MethodConfig):
        term_weight: float = Field(50.0, gt=0, description="in phase flow, which has no other term")
        student_stages: tuple[str, ...] = Field((), description="two or more, shallow to deep; empty: all")
        teacher_stages: tuple[str, ...] = Field((), description="two or more, shallow to deep; empty: all")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = stage_pairs(probe, cfg.student_stages, cfg.teacher_stages, skip=())
        if len(self.pairs) < 2:
            raise InputError(
                f"A flow needs two stages of each network; here {len(self.pairs)} can be paired. Name two or more in method.student_stages "
                "and method.teacher_stages, or the modules whose outputs are stages under `taps` of the network."
            )
        widths = [(probe.student.stages[s].shape[1], probe.teacher.stages[t].shape[1]) for s, t in self.pairs]
        self.widen = nn.ModuleList(nn.Identity() if s == t else nn.Linear(s, t, bias=False) for s, t in widths)

    def terms(self, step: Step) -> Terms:
        return {}

    def phases(self, student: Tapped) -> list[Phase]:
        layers = dict.fromkeys(layer for stage, _ in self.pairs for layer in student.upto(stage))
        return [Phase("flow", self.flow_loss, (*layers, self)), Phase("distill", self.loss, (student.net,))]

    def flow_loss(self, step: Step) -> Loss:
        return {"flow": Weighted(self.difference(step), self.cfg.term_weight)}

    def difference(self, step: Step) -> Tensor:
        students = flows([step.student.stages[s] for s, _ in self.pairs])
        teachers = flows([step.teacher.stages[t] for _, t in self.pairs])
        widened = [second(first(flow.mT).mT) for flow, (first, second) in zip(students, pairwise(self.widen), strict=True)]
        return torch.stack([F.mse_loss(s, t) for s, t in zip(widened, teachers, strict=True)]).sum()


def flows(stages: list[Tensor]) -> list[Tensor]:
    """Between each stage and the next: B x C1 x C2."""
    sized = [match_size(*two) for two in pairwise(stages)]
    return [first.flatten(2) @ second.flatten(2).mT / first[0, 0].numel() for first, second in sized]

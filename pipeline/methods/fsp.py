"""Flow of the solution procedure (Yim et al., "A Gift from Knowledge Distillation", 2017).

The flow between two maps F1 and F2 is `G = F1 F2^T / HW`, a C1 x C2 matrix for each image. Phase `flow`
trains the student's layers up to its last map, so that the flows between consecutive maps become the
teacher's: `term_weight * sum over flows of mean((G^T - G^S)^2)`. Phase `distill` has labels and KD, and no
term.

Default weights of labels, KD and flow: 1, 0 and 50, with all maps including the stem, as in the tables of the
CRD paper.

Our reading: the two maps of a flow are brought to the smaller size by average pooling; the paper uses max
pooling. Flows can only be compared if both networks have the same widths, as in the paper. So if a student's
map has another width than the teacher's, it gets a linear map P to the teacher's width, which phase `flow`
trains and phase `distill` does without. `P1 G^S P2^T` is the flow between the projected maps, at almost no
cost. If one network has more maps, its deepest ones are matched.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import Loss, Method, MethodConfig, Phase, Terms, Weighted, map_pairs
from pipeline.settings import InputError
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped


class Config(MethodConfig):
    term_weight: float = Field(50.0, gt=0, description="weight of the flows in phase flow")
    student_maps: tuple[str, ...] = Field(
        (), description="two or more of the student's maps, shallow to deep; empty: all"
    )
    teacher_maps: tuple[str, ...] = Field(
        (), description="two or more of the teacher's maps, shallow to deep; empty: all"
    )


class FlowOfSolution(Method[Config]):
    terms_of = "none"

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = map_pairs(probe, cfg.student_maps, cfg.teacher_maps, with_stem=True)
        if len(self.pairs) < 2:
            raise InputError(
                f"A flow needs two maps of each network, but only {len(self.pairs)} can be matched. Name two "
                "or more in method.student_maps and method.teacher_maps. Or name more modules whose outputs "
                "are maps under `taps` of the network."
            )
        widths = [(probe.student.maps[s].shape[1], probe.teacher.maps[t].shape[1]) for s, t in self.pairs]
        self.widen = nn.ModuleList(
            nn.Identity() if s == t else nn.Linear(s, t, bias=False) for s, t in widths
        )

    def terms(self, step: Step) -> Terms:
        return {}

    def phases(self, student: Tapped) -> list[Phase]:
        layers = dict.fromkeys(layer for name, _ in self.pairs for layer in student.upto(name))
        return [Phase("flow", self.flow_loss, (*layers, self)), self.last_phase(student.net)]

    def flow_loss(self, step: Step) -> Loss:
        return {"flow": Weighted(self.difference(step), self.cfg.term_weight)}

    def difference(self, step: Step) -> Tensor:
        students = flows([step.student.maps[s] for s, _ in self.pairs])
        teachers = flows([step.teacher.maps[t] for _, t in self.pairs])
        widened = [
            second(first(flow.mT).mT)
            for flow, (first, second) in zip(students, pairwise(self.widen), strict=True)
        ]
        return torch.stack([F.mse_loss(s, t) for s, t in zip(widened, teachers, strict=True)]).sum()


def flows(maps: list[Tensor]) -> list[Tensor]:
    """The flow between each map and the next one, B x C1 x C2."""
    sized = [match_size(*two) for two in pairwise(maps)]
    return [first.flatten(2) @ second.flatten(2).mT / first[0, 0].numel() for first, second in sized]

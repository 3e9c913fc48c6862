"""Matching guided distillation (Yue, Deng & Zhou, "Matching Guided Distillation", 2020).

Maps are compared before their activation, without a regressor: every channel of the teacher is assigned to one of the student's by
the Hungarian algorithm, and those assigned to the same channel are reduced to one. `sparse`: each channel of the student gets the one of
the teacher's that suits it best, the rest is ignored; `random_drop`: one of those assigned to it, drawn anew each step; `absolute_max`:
the value furthest from 0 among them, with its sign. The student's map goes through a batch norm, the teacher's through a margin ReLU
`max(t, m)` with `m = E[t | t < 0]` a channel; the loss is the partial distance `sum of (0 if S <= T <= 0 else (T - S)^2)` over channels and
positions, mean over the batch. The assignment is solved anew every second epoch. Weights 1, 0 and 1e-4, the interval and
`absolute_max` are those of the authors' runs on ImageNet, which match one stage.

Our reading: what an assignment costs is the squared distance of the very maps that are compared (the partial one has no Gram form), over
the first batch of the epoch instead of a pass over the training set; before training, channels are dealt out in turn. Where the teacher's
width is no multiple of the student's, channels of the student may stay without a match, and out of the loss, as when it's the wider one.
The stages are all but the stem (where one network has more, its deepest ones); the deepest counts 1 and each one before it half of the
next. m is the formula of the batch norm that alone feeds the activation, else (no batch norm, or a residual sum) the mean of all negative
values seen in the first epoch, starting with the probe's.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.margin import Margin, feeding_norms, partial_distance
from pipeline.methods.base import Method, StagesConfig, Terms, preactivation_pairs
from pipeline.taps import Step

Reducer = Literal["sparse", "random_drop", "absolute_max"]


class MatchingGuided(Method):
    class Config(StagesConfig):
        term_weight: float = Field(1e-4, ge=0)
        reducer: Reducer = Field("absolute_max", description="how the channels assigned to one channel become one")
        solve_every: int = Field(2, ge=1, description="epochs between two assignments")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: MatchingGuided.Config = cfg
        self.pairs = preactivation_pairs(probe, cfg.student_stages, cfg.teacher_stages)
        before = [(probe.student.preactivations[s], probe.teacher.preactivations[t]) for s, t in self.pairs]
        feeding = feeding_norms(probe)
        self.margins = nn.ModuleList(Margin(t, feeding.get(name)) for (_, t), (_, name) in zip(before, self.pairs, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(s.shape[1]) for s, _ in before)
        self.matchings = nn.ModuleList(Matching(s.shape[1], t.shape[1], cfg.reducer) for s, t in before)
        self.solved_in = -1  # epoch; a phase that goes on starts at the beginning of one

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.preactivations, step.teacher.preactivations
        due = self.training and step.epoch % self.cfg.solve_every == 0 and step.epoch != self.solved_in
        total = torch.zeros((), device=step.student.logits.device)
        for (s, t), margin, norm, matching in zip(self.pairs, self.margins, self.norms, self.matchings, strict=True):
            reached, wanted = match_size(student[s], margin(teacher[t], step.epoch))
            reached = norm(reached)
            if due:
                assert isinstance(matching, Matching)
                matching.solve(reached.detach(), wanted)
            total = total / 2 + partial_distance(*matching(reached, wanted))
        if due:
            self.solved_in = step.epoch
        return {"channels": total}


class Matching(nn.Module):
    """Which channels of a teacher's map belong to which of a student's."""

    table: Tensor
    count: Tensor

    def __init__(self, student: int, teacher: int, reducer: Reducer) -> None:
        super().__init__()
        self.reducer = reducer
        width = 1 if reducer == "sparse" else -(-teacher // student)
        self.complete = teacher >= student if reducer == "sparse" else teacher % student == 0  # no channel of the student goes without
        self.register_buffer("table", torch.zeros(student, width, dtype=torch.int64))  # the teacher's channels, the first one repeated
        self.register_buffer("count", torch.zeros(student, dtype=torch.int64))  # of those that aren't repetitions
        self.assign([(n % student, n) for n in range(min(teacher, student * width))])

    def assign(self, matches: Sequence[tuple[int, int]]) -> None:
        found: list[list[int]] = [[] for _ in self.count]
        for student, teacher in matches:
            found[student].append(teacher)
        width = self.table.shape[1]
        self.table.copy_(torch.tensor([own + (own or [0])[:1] * (width - len(own)) for own in found]))
        self.count.copy_(torch.tensor([len(own) for own in found]))

    def solve(self, student: Tensor, teacher: Tensor) -> None:
        """The assignment with the least sum of squared distances; the student's channels stand in line once for each they may get."""
        from scipy.optimize import linear_sum_assignment

        x, y = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
        cost = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        students, teachers = linear_sum_assignment(cost.repeat(self.table.shape[1], 1).cpu().numpy())
        self.assign([(s % len(x), t) for s, t in zip(students.tolist(), teachers.tolist(), strict=True)])

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map and the reduced one of the teacher, of equal width."""
        teacher = self.reduce(teacher)
        if self.complete:
            return student, teacher
        matched = (self.count > 0)[:, None, None]
        return student * matched, teacher * matched

    def reduce(self, teacher: Tensor) -> Tensor:
        if self.table.shape[1] == 1:
            return teacher.index_select(1, self.table[:, 0])
        if self.reducer == "random_drop":
            draw = torch.rand(len(self.count), device=teacher.device) if self.training else torch.zeros_like(self.count)
            column = (draw * self.count).long()
            return teacher.index_select(1, self.table.gather(1, column[:, None])[:, 0])
        low, high = teacher[:, self.table].aminmax(dim=2)
        return torch.where(high >= -low, high, low)

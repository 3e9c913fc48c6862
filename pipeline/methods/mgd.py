"""Matching guided distillation (Yue, Deng & Zhou, "Matching Guided Distillation", 2020).

Maps are compared before their activation, without a regressor. The Hungarian algorithm assigns each channel
of the teacher to a channel of the student. The teacher's channels that are assigned to the same channel are
reduced to one:

- `sparse`: each channel of the student gets the one channel of the teacher that suits it best; the others are
  ignored
- `random_drop`: one of the assigned channels, drawn anew at each step
- `absolute_max`: at each place the assigned value that is furthest from 0, with its sign

The student's map goes through a batch norm, the teacher's through a margin ReLU, `max(t, m)` with
`m = E[t | t < 0]` for each channel. The loss is the partial distance, a sum over channels and positions and a
mean over the batch:
`sum of (0 if S <= T <= 0 else (T - S)^2)`.
The assignment is solved anew every second epoch.

Default weights of labels, KD and term: 1, 0 and 1e-4. These, the interval and `absolute_max` are from the
authors' runs on ImageNet, which match one map.

Our reading: the cost of an assignment is the squared distance of the maps that are compared, because the
partial distance cannot be computed from a Gram matrix. It is taken over the first batch of the epoch, not
over the training set. Before training, channels are assigned in turn. If the teacher's width is not a
multiple of the student's, channels of the student may get no match; they have no part in the loss. All maps
but the stem are matched. If one network has more of them, only its deepest ones are. The deepest map has
factor 1, and each one before it half the factor of the next. m follows from the batch norm if the activation
reads its output and nothing else. Otherwise (no batch norm, or a residual sum) it is the mean of all negative
values of the probe and of the first epoch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size
from pipeline.methods import MapsConfig, Terms
from pipeline.methods._margin import MarginMethod, partial_distance
from pipeline.taps import processes
from pipeline.taps.step import Step

Reducer = Literal["sparse", "random_drop", "absolute_max"]


class Config(MapsConfig):
    term_weight: float = Field(1e-4, ge=0)
    reducer: Reducer = Field(
        "absolute_max", description="how channels assigned to the same channel become one"
    )
    solve_every: int = Field(2, ge=1, description="epochs from one assignment to the next")


class MatchingGuided(MarginMethod[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(s) for s, _ in self.widths)
        self.matchings = nn.ModuleList(Matching(s, t, cfg.reducer) for s, t in self.widths)

    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.preactivations, step.teacher.preactivations
        due = self.training and step.starts_epoch and step.epoch % self.cfg.solve_every == 0
        total = torch.zeros((), device=step.student.logits.device)
        for (s, t), margin, norm, matching in zip(
            self.pairs, self.margins, self.norms, self.matchings, strict=True
        ):
            student_map, target = match_size(student[s], margin(teacher[t], step.epoch))
            student_map = norm(student_map)
            if due:
                assert isinstance(matching, Matching)
                matching.solve(student_map.detach(), target)
            total = total / 2 + partial_distance(*matching(student_map, target, step.random))
        return {"channels": total}


class Matching(nn.Module):
    """Which channels of the teacher's map are assigned to each channel of the student's map."""

    table: Tensor
    count: Tensor

    def __init__(self, student: int, teacher: int, reducer: Reducer) -> None:
        super().__init__()
        self.reducer = reducer
        width = 1 if reducer == "sparse" else -(-teacher // student)
        # whether each channel of the student has a match, whatever the assignment is
        self.complete = teacher >= student if reducer == "sparse" else teacher % student == 0
        # row s: the teacher's channels assigned to channel s, filled up with the first of them; their number
        self.register_buffer("table", torch.zeros(student, width, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(student, dtype=torch.int64))
        self.assign([(n % student, n) for n in range(min(teacher, student * width))])

    def assign(self, matches: Sequence[tuple[int, int]]) -> None:
        """Set the assignment to these pairs of channels: the student's, the teacher's."""
        rows: list[list[int]] = [[] for _ in self.count]
        for student, teacher in matches:
            rows[student].append(teacher)
        width = self.table.shape[1]
        self.table.copy_(torch.tensor([row + (row or [0])[:1] * (width - len(row)) for row in rows]))
        self.count.copy_(torch.tensor([len(row) for row in rows]))

    def solve(self, student: Tensor, teacher: Tensor) -> None:
        """Set the assignment with the smallest sum of squared distances between channels of the two maps.

        Each channel of the student is repeated as often as it may get a channel of the teacher.
        """
        from scipy.optimize import linear_sum_assignment

        x, y = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
        cost = processes.summed(x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T)
        students, teachers = linear_sum_assignment(cost.repeat(self.table.shape[1], 1).cpu().numpy())
        self.assign([(s % len(x), t) for s, t in zip(students.tolist(), teachers.tolist(), strict=True)])

    def forward(
        self, student: Tensor, teacher: Tensor, random: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The student's map and the teacher's reduced map, both of the student's width."""
        teacher = self.reduce(teacher, random)
        if self.complete:
            return student, teacher
        matched = (self.count > 0)[:, None, None]
        return student * matched, teacher * matched

    def reduce(self, teacher: Tensor, random: torch.Generator | None = None) -> Tensor:
        """The teacher's map with one channel for each channel of the student."""
        if self.table.shape[1] == 1:
            return teacher.index_select(1, self.table[:, 0])
        if self.reducer == "random_drop":
            draw = (
                torch.rand(len(self.count), device=teacher.device, generator=random)
                if self.training
                else torch.zeros_like(self.count)
            )
            column = (draw * self.count).long()
            return teacher.index_select(1, self.table.gather(1, column[:, None])[:, 0])
        low, high = teacher[:, self.table].aminmax(dim=2)
        return torch.where(high >= -low, high, low)

"""Attention transfer (Zagoruyko & Komodakis, "Paying More Attention to Attention", 2017).

The attention of a map F (B x C x H x W) is `Q(F) = n(mean over channels of F^2)`, B x HW, where n scales each
row to length one. The term is the sum over maps of `mean((Q(T) - Q(S))^2)`, with the mean over batch and
positions.

Default weights of labels, KD and term: 1, 0 and 1000, as in the tables of the CRD paper (SemCKD's: 1, 1,
1000).

Our reading: all maps but the stem are matched, as in those tables. If one network has more of them, only its
deepest ones are matched. Maps of different size are pooled to the smaller size before their attention is
taken.
"""

import torch
from pydantic import Field

from pipeline.functional import attention_difference
from pipeline.methods import MapMethod, MapsConfig, Terms
from pipeline.taps.step import Step


class Config(MapsConfig):
    term_weight: float = Field(1000.0, ge=0)


class AttentionTransfer(MapMethod[Config]):
    def terms(self, step: Step) -> Terms:
        student, teacher = step.student.maps, step.teacher.maps
        differences = [attention_difference(student[s], teacher[t]) for s, t in self.pairs]
        return {"attention": torch.stack(differences).sum()}

"""Instance relationship graph (Liu et al., "Knowledge Distillation via Instance Relationship Graph", 2019).

A layer's graph has the instances of a batch as vertices and their squared distances, divided by their mean, as edges E (B x B).
vertices: `||v^T - v^S||_F^2` of pooled embeddings; edges: `||E^T - E^S||_F^2` of the same layer; change: the sum over consecutive layers
l of `||(E^T_l+1 - E^T_l) - (E^S_l+1 - E^S_l)||_F^2`, the layers being the stages but the stem, then the pooled embedding.
Weights 1, 1 and .005 are SemCKD's, the only table that has this method.

Our reading: each norm is divided by B, so that batches of any size weigh alike. Dividing the edges by their mean makes layers and networks
of different width comparable. Vertices of different width are compared through a linear map of the student's, learned; of equal width
as they are. The paper's transformation of vertices between layers (a layer's map minus the next one's) isn't defined where their widths
differ, as they do in every network here, so only the edges' is taken. Where one network has more stages, its deepest ones meet the other's.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import squared_distances
from pipeline.methods.base import Method, StagesConfig, Terms, stage_pairs
from pipeline.taps import Step, View


class InstanceRelationshipGraph(Method):
    class Config(StagesConfig):
        kd_weight: float = Field(1.0, ge=0)
        term_weight: float = Field(0.005, ge=0)

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = [*stage_pairs(probe, cfg.student_stages, cfg.teacher_stages), ("pooled", "pooled")]
        narrow, wide = probe.student.pooled.shape[1], probe.teacher.pooled.shape[1]
        self.widen = nn.Identity() if narrow == wide else nn.Linear(narrow, wide, bias=False)

    def terms(self, step: Step) -> Terms:
        student = layer_edges(step.student, [s for s, _ in self.pairs])
        teacher = layer_edges(step.teacher, [t for _, t in self.pairs])
        return {
            "vertices": per_instance(self.widen(step.student.pooled) - step.teacher.pooled),
            "edges": per_instance(student[-1] - teacher[-1]),
            "change": per_instance(student.diff(dim=0) - teacher.diff(dim=0)),
        }


def per_instance(difference: Tensor) -> Tensor:
    """Squared norm over the batch size, which is that of the last dimension but one."""
    return difference.pow(2).sum() / difference.shape[-2]


def layer_edges(view: View, layers: list[str]) -> Tensor:
    """Layers x B x B, shallow to deep."""
    return torch.stack([edges(view.shown[name]) for name in layers])


def edges(layer: Tensor) -> Tensor:
    """Squared distances over their mean, B x B."""
    distances = squared_distances(layer.flatten(1))
    return distances / (distances.sum() / max(len(layer) * (len(layer) - 1), 1)).clamp_min(1e-12)

"""Instance relationship graph (Liu et al., "Knowledge Distillation via Instance Relationship Graph", 2019).

In the graph of a layer, the images of the batch are the vertices. The edges E (B x B) are their squared
distances in this layer, divided by the mean distance. The layers are all maps but the stem, then the pooled
embedding v (B x D).

- `vertices`: `||v^T - v^S||_F^2`
- `edges`: `||E^T - E^S||_F^2` of the pooled embedding
- `change`: the sum over consecutive layers l of `||(E^T_l+1 - E^T_l) - (E^S_l+1 - E^S_l)||_F^2`

Default weights of labels, KD and terms: 1, 1 and 0.005, from SemCKD's table, the only one that has this
method.

Our reading: each squared norm is divided by B, so that batches of any size weigh alike. The edges are divided
by their mean, so that layers and networks of different width can be compared. If the pooled embeddings differ
in width, a linear map is trained that brings the student's to the width of the teacher's. The paper also
compares how vertices change from layer to layer (the map of a layer minus that of the next one). This is not
defined if layers differ in width, as in all our networks, so only the change of the edges is used. If one
network has more maps, its deepest ones are matched.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import squared_distances
from pipeline.methods import MapMethod, MapsConfig, Terms
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step


class Config(MapsConfig):
    kd_weight: float = Field(1.0, ge=0)
    term_weight: float = Field(0.005, ge=0)


class InstanceRelationshipGraph(MapMethod[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = [*self.pairs, ("pooled", "pooled")]
        narrow, wide = probe.student.pooled.shape[1], probe.teacher.pooled.shape[1]
        self.widen = nn.Identity() if narrow == wide else nn.Linear(narrow, wide, bias=False)

    def terms(self, step: Step) -> Terms:
        student = layer_edges(step, step.student, [s for s, _ in self.pairs])
        teacher = layer_edges(step, step.teacher, [t for _, t in self.pairs])
        return {
            "vertices": per_image(self.widen(step.student.pooled) - step.teacher.pooled),
            "edges": per_image(student[-1] - teacher[-1]),
            "change": per_image(student.diff(dim=0) - teacher.diff(dim=0)),
        }


def per_image(difference: Tensor) -> Tensor:
    """Squared norm divided by B, the size of the last dimension but one."""
    return difference.pow(2).sum() / difference.shape[-2]


def layer_edges(step: Step, answer: Answer, layers: list[str]) -> Tensor:
    """The edges of each of these layers of an answer: layers x B x B."""
    return torch.stack([edges(step.of_all(answer.everything[name])) for name in layers])


def edges(layer: Tensor) -> Tensor:
    """Squared distances between the images divided by their mean, B x ... to B x B."""
    distances = squared_distances(layer.flatten(1))
    return distances / (distances.sum() / max(len(layer) * (len(layer) - 1), 1)).clamp_min(1e-12)

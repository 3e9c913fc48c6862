"""Knowledge review (Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021).

A map of the student learns from the teacher together with all deeper ones, so shallow layers of the teacher
are reviewed with what deep layers of the student know. The maps (B x C x H x W) are walked from deep to
shallow, and the first is the pooled embedding, as a map of 1 x 1.

1. A map becomes x, of a common width, by a 1x1 convolution and a batch norm.
2. Attention-based fusion (ABF): the result r of the map before is enlarged to the size of x. From both, a
   1x1 convolution and a sigmoid make two attention maps a and b (B x 1 x H x W), and the new r is
   `a * x + b * r`. For the first map, r is x.
3. A 3x3 convolution and a batch norm turn r into S, with as many channels as the teacher's map T has.
4. Hierarchical context loss (HCL) compares S with T as they are, and pooled to 4 x 4, 2 x 2 and 1 x 1, as
   far as these are smaller: the mean of the MSEs, with weights 1, 1/2, 1/4 and 1/8.

Term `review` is the sum of HCL over the maps. Default weights of labels, KD and term: 1, 0 and 5, as the
authors have for resnet32x4 -> resnet8x4 and WRN-40-2 -> WRN-16-2 (0.6 for resnet56 -> resnet20, 1 for
resnet110 -> resnet32, 8 for resnet32x4 -> ShuffleNetV2). In the first 20 of their 240 epochs, the weight
rises: 1/20, 2/20 and so on.

Our reading: the warm-up is a share of the phase. The common width is the length of the student's pooled
embedding, 512 at most. All maps but the stem take part; if one network has more of them, only its deepest
ones do. The teacher's map is the one before its activation if it ends in one, as in the authors' program for
CIFAR. r is enlarged by repetition, and S and T are pooled to the smaller size. A batch of one image has no
statistics of 1 x 1 maps, so its batch norms use the running ones.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size, pool_to
from pipeline.methods import MapsConfig, Method, Terms, WarmUp, map_pairs, warm_up
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

WIDEST = 512  # channels of the common width, at most
SIDES = (4, 2, 1)  # of the maps that HCL compares beside the whole ones


class Config(MapsConfig):
    term_weight: float = Field(5.0, ge=0)
    warm_up: WarmUp = 0.083


class KnowledgeReview(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = [*map_pairs(probe, cfg.student_maps, cfg.teacher_maps), ("pooled", "pooled")]
        width = min(WIDEST, probe.student.pooled.shape[1])
        widths = [
            (guided(probe.student, s).shape[1], target(probe.teacher, t).shape[1])
            for s, t in reversed(self.pairs)
        ]
        self.fusions = nn.ModuleList(Fusion(s, width, t, n == 0) for n, (s, t) in enumerate(widths))

    def terms(self, step: Step) -> Terms:
        losses: list[Tensor] = []
        review: Tensor | None = None
        for fusion, (s, t) in zip(self.fusions, reversed(self.pairs), strict=True):
            review, result = fusion(guided(step.student, s), review)
            losses.append(context_loss(result, target(step.teacher, t)))
        return {"review": warm_up(step.progress, self.cfg.warm_up) * torch.stack(losses).sum()}


def guided(answer: Answer, name: str) -> Tensor:
    """A map of the student; the pooled embedding is one of 1 x 1."""
    return answer.pooled[:, :, None, None] if name == "pooled" else answer.maps[name]


def target(answer: Answer, name: str) -> Tensor:
    """A map of the teacher, before its activation if it ends in one."""
    return answer.preactivations[name] if name in answer.preactivations else guided(answer, name)


class Fusion(nn.Module):
    """ABF of one map of the student. Gives r, for the next map, and S, for the teacher."""

    def __init__(self, student: int, width: int, teacher: int, deepest: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(student, width, 1, bias=False), Norm(width))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        self.last = nn.Sequential(nn.Conv2d(width, teacher, 3, padding=1, bias=False), Norm(teacher))

    def forward(self, student: Tensor, review: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.first(student)
        if self.attention is not None and review is not None:
            review = F.interpolate(review, x.shape[2:], mode="nearest")
            of_x, of_review = self.attention(torch.cat([x, review], 1)).chunk(2, 1)
            x = of_x * x + of_review * review
        return x, self.last(x)


class Norm(nn.BatchNorm2d):
    """A batch norm that uses its running statistics if there is one number for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL of two maps."""
    student, teacher = match_size(student, teacher)
    sides = [side for side in SIDES if side < min(student.shape[2:])]
    losses = [F.mse_loss(student, teacher)]
    losses += [F.mse_loss(pool_to(student, side, side), pool_to(teacher, side, side)) for side in sides]
    weights = [0.5**n for n in range(len(losses))]
    total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
    return total / sum(weights)

"""The margin that methods on pre-activations put between a teacher's silence and the student (Heo et al., 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.taps import Step


def partial_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance, sum over an image and mean over the batch, where the student isn't below a teacher that is silent."""
    with torch.no_grad():  # the target is the teacher where it's positive, the lesser of the two elsewhere; three times faster than `where`
        target = torch.minimum(teacher, student).maximum(F.threshold(teacher, 0, -math.inf))
    return F.mse_loss(student, target, reduction="sum") / len(student)


class Margin(nn.Module):
    """Margin ReLU of a teacher's map."""

    margin: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, seen: Tensor, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.from_data = norm is None
        self.register_buffer("total", seen.clamp(max=0).sum((0, 2, 3)))  # of the negative values of a channel
        self.register_buffer("count", (seen < 0).sum((0, 2, 3)).to(seen.dtype))
        self.register_buffer("margin", self.total / self.count.clamp(min=1) if norm is None else margin_of(norm))

    def forward(self, x: Tensor, epoch: int) -> Tensor:
        if self.training and self.from_data and epoch == 0:
            self.total += x.clamp(max=0).sum((0, 2, 3))
            self.count += (x < 0).sum((0, 2, 3))
            self.margin.copy_(self.total / self.count.clamp(min=1))
        return torch.maximum(x, self.margin[:, None, None])


def margin_of(norm: nn.BatchNorm2d) -> Tensor:
    """`E[x | x < 0]` of every channel's Gaussian, by log-probabilities: a channel that is hardly ever negative has one, too."""
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs().clamp_min(norm.eps)
    ratio = mean / deviation
    hazard = (-ratio.square() / 2 - math.log(2 * math.pi) / 2 - torch.special.log_ndtr(-ratio)).exp()
    return (mean - deviation * hazard).clamp(max=0).to(norm.bias.dtype)


def feeding_norms(probe: Step) -> dict[str, nn.BatchNorm2d]:
    """The batch norms of the teacher whose output, and nothing else, is what a stage's activation reads."""
    if probe.teacher_net is None:
        return {}
    outputs: dict[nn.BatchNorm2d, Tensor] = {}
    norms = [module for module in probe.teacher_net.net.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    hooks = [norm.register_forward_hook(lambda norm, _, output: outputs.update({norm: output})) for norm in norms]
    with torch.no_grad():
        before = probe.teacher_net(probe.images).preactivations
    for hook in hooks:
        hook.remove()
    return {stage: norm for stage, read in before.items() for norm, output in outputs.items() if output is read}

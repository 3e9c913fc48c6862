"""The margin ReLU and the partial distance (Heo et al., 2019): shared by the methods on preactivations."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.methods import MapsConfig, Method, preactivation_pairs
from pipeline.taps import processes
from pipeline.taps.step import Step

C = TypeVar("C", bound=MapsConfig)


def partial_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`sum of (0 if S <= T <= 0 else (T - S)^2)` over channels and positions, mean over the batch.

    Where the teacher T is not positive, the student S only needs to be no larger. Both are B x C x H x W.
    """
    # The target is T where T > 0, and the smaller of S and T elsewhere. This is faster than `where`.
    with torch.no_grad():
        target = torch.minimum(teacher, student).maximum(F.threshold(teacher, 0, -math.inf))
    return F.mse_loss(student, target, reduction="sum") / len(student)


class Margin(nn.Module):
    """Margin ReLU of one map of the teacher: `max(x, m)`, with a margin `m = E[x | x < 0]` for each channel.

    `m` follows from the batch norm that feeds the activation. Without one (`norm` is None), it is the mean of
    all negative values of the probe and of the first epoch.
    """

    margin: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, probed: Tensor, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.from_data = norm is None
        # sum and number of the negative values of each channel
        self.register_buffer("total", probed.clamp(max=0).sum((0, 2, 3)))
        self.register_buffer("count", (probed < 0).sum((0, 2, 3)).to(probed.dtype))
        self.register_buffer(
            "margin", self.total / self.count.clamp(min=1) if norm is None else margin_of(norm)
        )

    def forward(self, x: Tensor, epoch: int) -> Tensor:
        if self.training and self.from_data and epoch == 0:
            below = [x.clamp(max=0).sum((0, 2, 3)), (x < 0).sum((0, 2, 3)).to(x.dtype)]
            total, count = processes.summed(torch.stack(below))
            self.total += total
            self.count += count
            self.margin.copy_(self.total / self.count.clamp(min=1))
        return torch.maximum(x, self.margin[:, None, None])


def margin_of(norm: nn.BatchNorm2d) -> Tensor:
    """`E[x | x < 0]` of each channel, taken as Gaussian: `b - |g| phi(b/g) / Phi(-b/|g|)`.

    g is the scale and b the shift of the batch norm. Computed with logarithms of probabilities, so that it is
    finite for a channel that is hardly ever negative.
    """
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs().clamp_min(norm.eps)
    ratio = mean / deviation
    hazard = (-ratio.square() / 2 - math.log(2 * math.pi) / 2 - torch.special.log_ndtr(-ratio)).exp()
    margin: Tensor = (mean - deviation * hazard).clamp(max=0)
    return margin.to(norm.bias.dtype)


def feeding_norms(probe: Step) -> dict[str, nn.BatchNorm2d]:
    """By name of a map: the batch norm of the teacher whose output is all that the map's activation reads."""
    if probe.teacher_net is None:
        return {}
    outputs: dict[nn.BatchNorm2d, Tensor] = {}
    norms = [
        module
        for module in probe.teacher_net.net.modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine
    ]
    hooks = [
        norm.register_forward_hook(lambda norm, _, output: outputs.update({norm: output})) for norm in norms
    ]
    with torch.no_grad():
        inputs = probe.teacher_net(probe.images).preactivations
    for hook in hooks:
        hook.remove()
    return {name: norm for name, read in inputs.items() for norm, output in outputs.items() if output is read}


class MarginMethod(Method[C]):
    """A method that matches maps before their activation, and gives each of the teacher's maps a margin."""

    def __init__(self, cfg: C, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.pairs = preactivation_pairs(probe, cfg.student_maps, cfg.teacher_maps)
        student, teacher = probe.student.preactivations, probe.teacher.preactivations
        self.widths = [(student[s].shape[1], teacher[t].shape[1]) for s, t in self.pairs]
        norms = feeding_norms(probe)
        self.margins = nn.ModuleList(Margin(teacher[t], norms.get(t)) for _, t in self.pairs)

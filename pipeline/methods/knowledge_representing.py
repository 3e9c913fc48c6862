"""Knowledge Representing (Liu et al., "Knowledge Representing: Efficient, Sparse Representation of Prior Knowledge for Knowledge
Distillation", 2019).

Phase `aggregate` (Eq. 9) reads the teacher alone: every `layers` neighbouring convolutions of it become one layer of a shallower network
W~ (`aggregate`), `KL(teacher || W~) + gamma * sum over groups of std(W_group) * ||F_group - F_W~||_2`; the spread of a group's weights
weighs groups where errors pile up. Phase `distill` (Eq. 2 and 10): beside labels and KD, the base's, the student's stages meet layers of
W~, `||F_W~ - r(F_s)||_2` with r a 1x1 convolution and batch norm, and its gradients g are recoded by the sparse penalty
`phi(g) = (|g| + g^2) / eps if |g| >= eps else 0`: the optimiser sees `g + lambda * sign(g) * phi(g)`, so that dominant weights move
further and the others no more than before. eps is learned with the weights, from the mean magnitude of the tensor's. `sparse: false` is
the paper's Dense variant.

Our reading, where the text is silent:
- A group ends where everything the teacher knows passes: after a block, a stage or a layer outside any block, never inside a residual
  branch. So groups have `layers` convolutions or the fewest more that end so; parallel ones (shortcuts, branches) count once. A ResNet of
  26 layers becomes seven layers and a classifier, the 8 of the paper's student.
- A layer of W~ is a 3x3 convolution, batch norm and ReLU; depthwise and 1x1 where the 3x3 would be larger than the whole group
  (bottlenecks, depthwise blocks), wider than 3 where it shrinks a map more than twice. Where the group's map has negative values the
  ReLU stands at the head of the next layer. W is the convolutions' weights. The phases follow each other; the paper alternates them.
- Student and W~ need no equal depth: from the deepest on, each stage of the student (all but the stem) meets the deepest layer of W~, above
  the one just taken, whose map is nearest to its in size.
- Minimising phi literally (through second derivatives) would shrink large gradients, but the text has them enhanced and the update boosted:
  so phi is added to the gradient. It recodes the weights of the convolutions and linear layers, one eps a tensor, kept as its logarithm.
  eps descends on `lambda * mean phi` (Eq. 10): it rises, fast while many gradients are above it, so that the boost fades by itself.
- Gradients of a mean over a batch are far below weights: with a ResNet-8 on CIFAR-10 no convolution had more than 0.3 % of its gradients
  above its mean weight (0 in most), so that eps would never move. `gradients: relative`, the default, brings a tensor's gradients to its
  weights' mean magnitude before phi, and back; at the start those above average are dominant. `raw` is the letter.

gamma, lambda and the weight of the layers aren't in the text. Seen with 500 images of CIFAR-10, resnet14 (77.3 %) to resnet8, one seed,
validation: both phases want steps. 200 of AdamW at 0.003 left W~ 54-73 % off the teacher's maps and at 42 %; 480 at 0.01 brought it to
57.7 %. From the latter the student after 200 steps is where KD is (41.4 and 41.6 %); after 480 at 0.01: KD 52.3 %, Dense 58.7 %, sparse
58.0 %. By 480 steps of SGD at 0.02, which undoes less of what is done to a gradient's size: Dense 48.0 %, sparse 50.8 %.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size, softened_kl
from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, MethodConfig, Phase, Terms, Weighted
from pipeline.taps import Step, Tapped, resting

SMALLEST = 1e-30


class KnowledgeRepresenting(Method):
    class Config(MethodConfig):
        ce_weight: float = Field(0.1, ge=0)
        kd_weight: float = Field(0.9, ge=0)
        term_weight: float = Field(0.1, ge=0)
        layers: int = Field(3, ge=1, description="of the teacher that become one; the paper's c (4 for ImageNet)")
        gamma: float = Field(1.0, ge=0, description="of the groups' distances in phase aggregate")
        sparse: bool = Field(True, description="recode the student's gradients; false: the paper's Dense variant")
        sparse_weight: float = Field(0.03, gt=0, description="lambda, of the sparse recoding penalty")
        gradients: Literal["relative", "raw"] = Field("relative", description="what is held against eps: on the weights' scale, or as is")
        student_stages: tuple[str, ...] = Field((), description="empty: all but the stem")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: KnowledgeRepresenting.Config = cfg
        assert probe.teacher_net is not None, "W~ is made from the teacher's layers"
        assert probe.student_net is not None, "the thresholds are made from the student's weights"
        self.teacher: Tapped = probe.teacher_net  # no module, so the teacher isn't saved with the method
        self.groups = grouped(self.teacher, probe.images, cfg.layers)
        self.aggregate = Aggregate(self.groups, probe.images.shape, classes=probe.teacher.logits.shape[1])
        for name in cfg.student_stages:
            probe.student.stage(name, "method.student_stages")
        stages = cfg.student_stages or [name for name in probe.student.stages if name != "stem"]
        met = matched([probe.student.stages[name] for name in stages], [group.map for group in self.groups])
        self.meetings = [(stages[n], layer) for n, layer in met]  # (of the student, of W~)
        self.pairs = [(stage, end) for stage, layer in self.meetings if (end := _stage_of(self.groups[layer], probe.teacher.stages))]
        self.adapters = nn.ModuleList(adapter_of(probe.student.stages[stage], self.groups[layer].map) for stage, layer in self.meetings)
        self.thresholds = Thresholds(weights_of(probe.student_net.net)) if cfg.sparse else None

    def terms(self, step: Step) -> Terms:
        with torch.no_grad(), step.autocast():
            maps, _ = self.aggregate(step.images)
        meetings = zip(self.adapters, self.meetings, strict=True)
        far = [distance(adapter(step.student.stages[stage]), maps[layer].float()) for adapter, (stage, layer) in meetings]
        return {"layers": torch.stack(far).sum()}

    def phases(self, student: Tapped) -> list[Phase]:
        own = (self.adapters,) if self.thresholds is None else (self.adapters, self.thresholds)
        return [
            Phase("aggregate", self.aggregate_loss, (self.aggregate,), of_teacher=("layers", "gamma", "temperature")),
            Phase("distill", self.loss, (student.net, *own)),
        ]

    def aggregate_loss(self, step: Step) -> Loss:
        with torch.no_grad(), step.autocast():
            wanted, answers = maps_of(self.teacher, [group.path for group in self.groups], step.images)
        with step.autocast():
            maps, logits = self.aggregate(step.images)
        loss = {"kd": Weighted(softened_kl(logits.float(), answers, self.cfg.temperature), 1.0)}
        if self.cfg.gamma:
            far = [group.spread * distance(a.float(), t) for group, a, t in zip(self.groups, maps, wanted, strict=True)]
            loss["groups"] = Weighted(torch.stack(far).sum(), self.cfg.gamma)
        return loss

    @torch.no_grad()
    def after_backward(self, step: Step, student: Tapped) -> None:
        """In phase distill, the student's gradients become the recoded ones, and eps gets its own."""
        if self.thresholds is not None and self.thresholds.log.requires_grad:
            relative = self.cfg.gradients == "relative"
            self.notes["dominant gradients"] = self.thresholds.recode(weights_of(student.net), self.cfg.sparse_weight, relative=relative)


class Thresholds(nn.Module):
    """eps of the sparse recoding penalty, one a tensor of weights."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.stack([weight.detach().abs().mean().clamp_min(SMALLEST).log() for weight in weights]))

    def recode(self, weights: Sequence[Tensor], strength: float, *, relative: bool) -> Tensor:
        """Change the gradients of `weights` and set that of the thresholds; the share of gradients above them comes back."""
        penalties, dominant = [], []
        for weight, eps in zip(weights, self.log.exp(), strict=True):
            if weight.grad is None:  # nothing in the loss depends on it
                penalties.append(torch.zeros_like(eps))
                continue
            scale = weight.abs().mean() / weight.grad.abs().mean().clamp_min(SMALLEST) if relative else torch.ones_like(eps)
            phi = penalty(scale * weight.grad, eps)
            weight.grad += strength * weight.grad.sign() * phi / scale.clamp_min(SMALLEST)
            penalties.append(phi.mean())
            dominant.append((phi > 0).sum())
        self.log.grad = -strength * torch.stack(penalties)  # d phi / d log eps = -phi
        return torch.stack(dominant).sum() / sum(weight.numel() for weight in weights)


def penalty(gradient: Tensor, eps: Tensor) -> Tensor:
    """The sparse recoding penalty of every gradient (Eq. 4)."""
    size = gradient.abs()
    return torch.where(size >= eps, (size + size.square()) / eps, 0)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of two maps of an image, mean over the batch."""
    a, b = match_size(a, b)
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1).mean()


def weights_of(net: nn.Module) -> list[Tensor]:
    """The kernels and matrices that connect neurons."""
    return [module.weight for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def adapter_of(student: Tensor, aggregate: Tensor) -> nn.Module:
    return nn.Sequential(nn.Conv2d(student.shape[1], aggregate.shape[1], 1, bias=False), nn.BatchNorm2d(aggregate.shape[1]))


def matched(student: Sequence[Tensor], layers: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Which layer of W~ each of the student's maps meets; the shallowest maps meet none where there are fewer layers."""
    pairs: list[tuple[int, int]] = []
    for n in reversed(range(len(student))):
        above = range(pairs[-1][1] if pairs else len(layers))
        if above:
            pairs.append((n, min(reversed(above), key=lambda layer: abs(math.log(_size(layers[layer]) / _size(student[n]))))))
    return pairs[::-1]


def _size(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


@dataclass(frozen=True)
class Group:
    """Neighbouring layers of the teacher."""

    path: str  # of the module that ends it
    map: Tensor  # what that module made of the probe
    spread: float  # standard deviation of its weights
    weights: int


class Aggregate(nn.Module):
    """W~: a layer a group, and a linear classifier on the mean of the last map."""

    def __init__(self, groups: Sequence[Group], images: Sequence[int], *, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels, size, signed = images[1], tuple(images[2:]), False
        for group in groups:
            layer: list[nn.Module] = [nn.ReLU()] if signed else []
            layer += convolutions(channels, group.map.shape[1], size, group.map.shape[2:], most=group.weights)
            channels, size, signed = group.map.shape[1], tuple(group.map.shape[2:]), bool((group.map < 0).any())
            layer += [nn.BatchNorm2d(channels)] + ([] if signed else [nn.ReLU()])
            self.layers.append(nn.Sequential(*layer))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps, self.classifier(x.mean((2, 3)))


def convolutions(inputs: int, outputs: int, size: Sequence[int], wanted: Sequence[int], *, most: int) -> list[nn.Module]:
    """One convolution from a map's size to another's, or a depthwise and a 1x1 one where that has more than `most` weights."""
    stride = max(1, round(size[0] / wanted[0])), max(1, round(size[1] / wanted[1]))
    kernel = max(3, 2 * stride[0] - 1), max(3, 2 * stride[1] - 1)  # no pixel is skipped
    padding = kernel[0] // 2, kernel[1] // 2
    if inputs * outputs * kernel[0] * kernel[1] <= most:
        return [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)]
    return [nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False)]


def grouped(teacher: Tapped, images: Tensor, layers: int) -> list[Group]:
    """The teacher's convolutions in the order they run, in groups of at least `layers` that end where a whole module has answered.

    Only modules whose parents are all nn.Sequential, or the network itself, end a group: what they answer is all that later ones see.
    """
    net = teacher.net
    read: dict[int, Tensor] = {}  # what convolutions read: several that read the same count as one layer
    convolutions: list[tuple[int, Tensor]] = []  # the layers so far, and the weights
    ends: list[tuple[int, str, Tensor]] = []

    def note(path: str, module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, nn.Conv2d) and path != teacher.classifier:
            read[id(args[0])] = args[0]
            convolutions.append((len(read), module.weight))
        if isinstance(output, Tensor) and output.ndim == 4 and read and _in_line(net, path):
            ends.append((len(read), path, output))

    hooks = [module.register_forward_hook(partial(note, path)) for path, module in net.named_modules() if path]
    with resting(net):
        teacher(images)
    for hook in hooks:
        hook.remove()
    times = Counter(path for _, path, _ in ends)
    last: dict[int, tuple[str, Tensor]] = {}
    for count, path, output in ends:
        if times[path] == 1 and (count not in last or last[count][1].shape == output.shape):  # not what is pooled for the next layer
            last[count] = path, output
    depth = max(last, default=0)
    if depth < layers:
        raise InputError(
            f"method.layers: {layers} convolutions of the teacher are to become one layer, but {type(net).__name__} shows {depth} "
            "one after the other. Lower method.layers, or choose a convolutional teacher or a method that needs no layers, such as kd."
        )
    groups, start = [], 0
    for count, (path, output) in last.items():
        if count - start >= layers or count == depth:
            weights = torch.cat([weight.flatten() for n, weight in convolutions if start < n <= count])
            groups.append(Group(path, output, weights.std().item(), weights.numel()))
            start = count
    return groups


def _in_line(net: nn.Module, path: str) -> bool:
    parents = path.split(".")[:-1]
    return all(isinstance(net.get_submodule(".".join(parents[: n + 1])), nn.Sequential) for n in range(len(parents)))


def maps_of(teacher: Tapped, paths: Sequence[str], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What these modules answer, and the logits."""
    maps: dict[str, Tensor] = {}
    modules = [teacher.net.get_submodule(path) for path in paths]
    hooks = [
        module.register_forward_hook(lambda _m, _a, output, path=path: maps.update({path: output}))
        for path, module in zip(paths, modules, strict=True)
    ]
    try:
        logits = teacher(images).logits
    finally:
        for hook in hooks:
            hook.remove()
    return [maps[path].float() for path in paths], logits


def _stage_of(group: Group, stages: Mapping[str, Tensor]) -> str:
    """The teacher's stage that the group ends in: the deepest one of its shape, or none."""
    return next((name for name, stage in reversed(list(stages.items())) if stage.shape == group.map.shape), "")

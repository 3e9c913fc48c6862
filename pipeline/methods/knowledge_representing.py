"""Knowledge Representing (Liu et al., "Knowledge Representing: Efficient, Sparse Representation of Prior
Knowledge for Knowledge Distillation", 2019).

Phase `aggregate` (Eq. 9) reads only the teacher. Each group of `layers` consecutive convolutions of the
teacher becomes one layer of a shallower network W~, the aggregate, which is trained with
`KL(teacher || W~) + gamma * sum over groups of std(W_group) * ||F_group - F_W~||_2`.
F is the map (B x C x H x W) at the end of a group, W are the weights of its convolutions. The norm is that of
one image, mean over the batch. The standard deviation gives more weight to groups where errors add up.

Phase `distill` (Eq. 2 and 10) matches maps of the student with maps of W~, beside labels and KD. Term
`layers` is the sum over the matched maps of `||F_W~ - r(F_s)||_2`, where r is a 1x1 convolution and a batch
norm. The student's gradients g are recoded with the sparse penalty:
`phi(g) = (|g| + g^2) / eps if |g| >= eps else 0`.
The optimizer gets `g + lambda * sign(g) * phi(g)`. So dominant weights move further, and the others no more
than before. The threshold eps is trained too, and starts at the mean absolute value of the weights of a
tensor. `sparse: false` is the paper's Dense variant.

With `alternate: true` there is one phase, as in Algorithm 1: W~ and the student take turns at every batch,
each with an optimizer of its own. That of W~ has `aggregate_rate` times the learning rate. In a step the
student moves first, so it learns from W~ as the batch before left it.

`weight_penalty` adds the gradient of `sum |w|` or `sum w^2` of the student's weights instead, to compare with
the sparse penalty (figures 2 and 5; with `sparse: false`).

Default weights of labels, KD and term: 0.1, 0.9 and 0.1. The paper does not give gamma, lambda or the weight
of the term.

Our reading, where the text is silent:

- A group ends where the whole signal passes through one module: after a block, a sequence of blocks, or a
  layer outside of any block, never inside a residual branch. So a group has `layers` convolutions, or as few
  more as this allows. Parallel convolutions (shortcuts, branches) count as one. A ResNet of 26 layers becomes
  seven layers and a classifier, the 8 of the paper's student.
- A layer of W~ is a 3x3 convolution, a batch norm and a ReLU. If the 3x3 convolution would have more weights
  than the whole group (bottlenecks, depthwise blocks), it is a depthwise and a 1x1 convolution instead. The
  kernel is wider than 3 if a map shrinks more than twice. If the group's map has negative values, the ReLU is
  at the start of the next layer instead.
- The student and W~ may differ in depth. From the deepest on, each map of the student (all but the stem) is
  matched with a layer of W~: the one with the map nearest in size, or the deepest of these. It must be
  shallower than the layer matched before. In the paper every layer of the student has a layer of W~: name the
  layers under `taps` of the student, and set `match: order` if there are as many of them as of W~
  (recipes/papers/knowledge_representing_table1.yaml).
- To minimise phi itself (with second derivatives) would make large gradients smaller, but the text wants them
  enhanced. So phi is added to the gradient. This is done for the weights of convolutions and linear layers,
  with one eps for each tensor, stored as its logarithm. eps descends on `lambda * mean phi` (Eq. 10). It
  rises, and faster while many gradients are above it, so the boost fades by itself.
- Gradients of a mean over a batch are far smaller than weights, so eps would hardly ever move
  ([findings.md](findings.md) has an example). `gradients: relative`, the default, brings a tensor's gradients
  to the mean absolute value of its weights before phi, and back after it. So at the start the gradients above
  their mean are the dominant ones. `gradients: raw` is the formula to the letter.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import match_size, softened_kl
from pipeline.methods import Loss, Method, MethodConfig, Phase, Terms, Weighted
from pipeline.settings import InputError
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

TINY = 1e-30  # smaller values count as this in a division or a logarithm


class Config(MethodConfig):
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)
    term_weight: float = Field(0.1, ge=0)
    layers: int = Field(
        3,
        ge=1,
        description="convolutions of the teacher that become one layer; the paper's c (4 for ImageNet)",
    )
    gamma: float = Field(1.0, ge=0, description="weight of the distances of the groups in phase aggregate")
    alternate: bool = Field(
        False,
        description="one phase, in which W~ and the student take turns, as in Algorithm 1; false: W~ first",
    )
    aggregate_rate: float = Field(
        1.0, gt=0, description="with `alternate`: factor of the phase's rate for W~; 10 in the paper"
    )
    match: Literal["size", "order"] = Field(
        "size",
        description="what a map is matched with: the layer of W~ nearest in size, or that of its own number",
    )
    sparse: bool = Field(True, description="recode the student's gradients; false: the paper's Dense variant")
    sparse_weight: float = Field(0.03, gt=0, description="lambda, weight of the sparse penalty")
    gradients: Literal["relative", "raw"] = Field(
        "relative", description="gradients are compared with eps on the scale of the weights, or as they are"
    )
    weight_penalty: Literal["none", "l1", "l2"] = Field(
        "none", description="on the student's weights, to compare with the sparse penalty (figures 2 and 5)"
    )
    weight_penalty_strength: float = Field(1e-4, gt=0, description="lambda of `weight_penalty`")
    student_maps: tuple[str, ...] = Field(
        (), description="names of the student's maps; empty: all but the stem"
    )


class KnowledgeRepresenting(Method[Config]):
    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        assert probe.teacher_net is not None, "W~ is made from the teacher's layers"
        assert probe.student_net is not None, "the thresholds are made from the student's weights"
        self.teacher: Tapped = probe.teacher_net  # not a module, so it is not saved with the method
        self.groups = grouped(self.teacher, probe.teacher_images, cfg.layers)
        self.aggregate = Aggregate(
            self.groups, probe.teacher_images.shape, classes=probe.teacher.logits.shape[1]
        )
        for name in cfg.student_maps:
            probe.student.named_map(name, "method.student_maps")
        names = cfg.student_maps or probe.student.body
        maps = [probe.student.maps[name] for name in names]
        layers = [group.map for group in self.groups]
        matches = match_layers(maps, layers) if cfg.match == "size" else match_in_order(maps, layers)
        self.matches = [(names[n], layer) for n, layer in matches]  # (map of the student, layer of W~)
        self.pairs = [
            (name, end)
            for name, layer in self.matches
            if (end := _map_of(self.groups[layer], probe.teacher.maps))
        ]
        self.adapters = nn.ModuleList(
            adapter_of(probe.student.maps[name], self.groups[layer].map) for name, layer in self.matches
        )
        self.thresholds = Thresholds(weights_of(probe.student_net.net)) if cfg.sparse else None
        self.passed: list[Tensor] = []  # maps of W~ in this step, if it takes turns with the student

    def terms(self, step: Step) -> Terms:
        maps = self.passed
        if not maps:
            with torch.no_grad(), step.autocast():
                maps, _ = self.aggregate(step.teacher_images)
        distances = [
            distance(adapter(step.student.maps[name]), maps[layer].detach().float())
            for adapter, (name, layer) in zip(self.adapters, self.matches, strict=True)
        ]
        return {"layers": torch.stack(distances).sum()}

    def loss(self, step: Step) -> Loss:
        if not self.cfg.alternate:
            return super().loss(step)
        of_aggregate, self.passed = self._aggregate_step(step)
        loss = super().loss(step)
        self.passed = []
        return loss | {f"aggregate {name}": term for name, term in of_aggregate.items()}

    def phases(self, student: Tapped) -> list[Phase]:
        adapters = (self.adapters,) if self.thresholds is None else (self.adapters, self.thresholds)
        settings = ("layers", "gamma", "temperature")
        if self.cfg.alternate:
            both = self.last_phase(student.net, *adapters, self.aggregate)
            return [replace(both, rates=((self.aggregate, self.cfg.aggregate_rate),))]
        return [
            Phase("aggregate", self.aggregate_loss, (self.aggregate,), of_teacher=settings),
            self.last_phase(student.net, *adapters),
        ]

    def aggregate_loss(self, step: Step) -> Loss:
        return self._aggregate_step(step)[0]

    def _aggregate_step(self, step: Step) -> tuple[Loss, list[Tensor]]:
        """The loss of W~ (Eq. 9), and its maps."""
        with torch.no_grad(), step.autocast():
            teacher_maps, teacher_logits = maps_of(
                self.teacher, [g.path for g in self.groups], step.teacher_images
            )
        with step.autocast():
            maps, logits = self.aggregate(step.teacher_images)
        loss = {"kd": Weighted(softened_kl(logits.float(), teacher_logits, self.cfg.temperature), 1.0)}
        if self.cfg.gamma:
            distances = [
                group.spread * distance(a.float(), t)
                for group, a, t in zip(self.groups, maps, teacher_maps, strict=True)
            ]
            loss["groups"] = Weighted(torch.stack(distances).sum(), self.cfg.gamma)
        return loss, maps

    @torch.no_grad()
    def after_backward(self, step: Step, student: Tapped) -> None:
        """In phase `distill`: recode the student's gradients, and set that of eps; add those of a penalty."""
        if self.adapters.training and self.cfg.weight_penalty != "none":
            penalise(weights_of(student.net), self.cfg.weight_penalty, self.cfg.weight_penalty_strength)
        if self.thresholds is not None and self.thresholds.log.requires_grad:
            relative = self.cfg.gradients == "relative"
            self.notes["dominant gradients"] = self.thresholds.recode(
                weights_of(student.net), self.cfg.sparse_weight, relative=relative
            )


class Thresholds(nn.Module):
    """eps of the sparse penalty, one for each tensor of weights."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.log = nn.Parameter(
            torch.stack([weight.detach().abs().mean().clamp_min(TINY).log() for weight in weights])
        )

    def recode(self, weights: Sequence[Tensor], strength: float, *, relative: bool) -> Tensor:
        """Change the gradients of `weights`, and set that of the thresholds.

        Return the share of gradients that are above their threshold.
        """
        penalties, dominant = [], []
        for weight, eps in zip(weights, self.log.exp(), strict=True):
            if weight.grad is None:  # the loss does not depend on it
                penalties.append(torch.zeros_like(eps))
                continue
            scale = torch.ones_like(eps)
            if relative:
                scale = weight.abs().mean() / weight.grad.abs().mean().clamp_min(TINY)
            phi = penalty(scale * weight.grad, eps)
            weight.grad += strength * weight.grad.sign() * phi / scale.clamp_min(TINY)
            penalties.append(phi.mean())
            dominant.append((phi > 0).sum())
        self.log.grad = -strength * torch.stack(penalties)  # d phi / d log eps = -phi
        return torch.stack(dominant).sum() / sum(weight.numel() for weight in weights)


def penalty(gradient: Tensor, eps: Tensor) -> Tensor:
    """The sparse penalty phi of each gradient (Eq. 4)."""
    size = gradient.abs()
    return torch.where(size >= eps, (size + size.square()) / eps, 0)


def penalise(weights: Sequence[Tensor], kind: Literal["l1", "l2"], strength: float) -> None:
    """Add the gradient of `strength * sum |w|`, or of `strength * sum w^2`, to that of each weight."""
    for weight in weights:
        if weight.grad is not None:
            weight.grad += strength * (weight.sign() if kind == "l1" else 2 * weight)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of two maps, B x C x H x W, for each image; mean over the batch."""
    a, b = match_size(a, b)
    distances: Tensor = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    return distances.mean()


def weights_of(net: nn.Module) -> list[Tensor]:
    """The weights of all convolutions and linear layers, without biases."""
    return [module.weight for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def adapter_of(student: Tensor, aggregate: Tensor) -> nn.Module:
    """r: from a map of the student to the width of a map of W~."""
    return nn.Sequential(
        nn.Conv2d(student.shape[1], aggregate.shape[1], 1, bias=False), nn.BatchNorm2d(aggregate.shape[1])
    )


def match_layers(student: Sequence[Tensor], layers: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Pairs of a map of the student and a layer of W~, by their indices, shallow to deep.

    If W~ has too few layers, the shallowest maps of the student are left out.
    """
    pairs: list[tuple[int, int]] = []
    for n in reversed(range(len(student))):
        above = range(pairs[-1][1] if pairs else len(layers))
        if above:
            ratios = {layer: abs(math.log(_size(layers[layer]) / _size(student[n]))) for layer in above}
            pairs.append((n, min(reversed(above), key=ratios.__getitem__)))
    return pairs[::-1]


def match_in_order(student: Sequence[Tensor], layers: Sequence[Tensor]) -> list[tuple[int, int]]:
    """The n-th map with the n-th layer, as `match_layers`."""
    if len(student) != len(layers):
        raise InputError(
            f"method.match is order, but the student has {len(student)} maps to match and W~ has "
            f"{len(layers)} layers. Name {len(layers)} maps in method.student_maps (more can be named under "
            "`taps` of the student), change method.layers, or set method.match to size."
        )
    return [(n, n) for n in range(len(layers))]


def _size(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


@dataclass(frozen=True)
class Group:
    """Consecutive convolutions of the teacher."""

    path: str  # of the module that ends the group
    map: Tensor  # output of that module for the probe
    spread: float  # standard deviation of the weights
    weights: int  # their number


class Aggregate(nn.Module):
    """W~: one layer for each group, and a linear classifier on the mean of the last map.

    `images` is the shape of a batch of images.
    """

    def __init__(self, groups: Sequence[Group], images: Sequence[int], *, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels, size, signed = images[1], tuple(images[2:]), False
        for group in groups:
            layer: list[nn.Module] = [nn.ReLU()] if signed else []
            layer += convolutions(channels, group.map.shape[1], size, group.map.shape[2:], most=group.weights)
            channels, size, signed = (
                group.map.shape[1],
                tuple(group.map.shape[2:]),
                bool((group.map < 0).any()),
            )
            layer += [nn.BatchNorm2d(channels)] + ([] if signed else [nn.ReLU()])
            self.layers.append(nn.Sequential(*layer))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The map of each layer, and the logits."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps, self.classifier(x.mean((2, 3)))


def convolutions(
    inputs: int, outputs: int, size: Sequence[int], new_size: Sequence[int], *, most: int
) -> list[nn.Module]:
    """One convolution from a map of `size` to one of `new_size`; they are its height and width.

    If it would have more than `most` weights, a depthwise and a 1x1 convolution.
    """
    stride = max(1, round(size[0] / new_size[0])), max(1, round(size[1] / new_size[1]))
    kernel = max(3, 2 * stride[0] - 1), max(3, 2 * stride[1] - 1)  # wide enough to skip no position
    padding = kernel[0] // 2, kernel[1] // 2
    if inputs * outputs * kernel[0] * kernel[1] <= most:
        return [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)]
    return [
        nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
    ]


def grouped(teacher: Tapped, images: Tensor, layers: int) -> list[Group]:
    """The teacher's convolutions in the order in which they run, in groups of at least `layers`.

    A group ends with a module whose parents are all nn.Sequential, or the network itself. So its output is
    all that later modules get.
    """
    convolutions, ends = _observe(teacher, images)
    depth = max(ends, default=0)
    if depth < layers:
        raise InputError(
            f"method.layers: {layers} convolutions of the teacher are to become one layer, but "
            f"{type(teacher.net).__name__} has {depth} one after the other. Lower method.layers. Or choose a "
            "convolutional teacher, or a method that does not need one, such as kd."
        )
    groups, start = [], 0
    for end, (path, output) in ends.items():
        if end - start >= layers or end == depth:
            weights = torch.cat([weight.flatten() for n, weight in convolutions if start < n <= end])
            groups.append(Group(path, output, weights.std().item(), weights.numel()))
            start = end
    return groups


def _observe(
    teacher: Tapped, images: Tensor
) -> tuple[list[tuple[int, Tensor]], dict[int, tuple[str, Tensor]]]:
    """The teacher's convolutions and the possible ends of groups, from one pass of the images.

    Depth is the number of convolutions so far. Returned are depth and weights of each convolution; and for
    each depth the path and the output of the module that can end a group there.
    """
    net = teacher.net
    inputs: dict[int, Tensor] = {}  # of convolutions; those that read the same tensor count as one layer
    convolutions: list[tuple[int, Tensor]] = []
    outputs: list[tuple[int, str, Tensor]] = []

    def note(path: str, module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, nn.Conv2d) and path != teacher.classifier:
            inputs[id(args[0])] = args[0]
            convolutions.append((len(inputs), module.weight))
        if isinstance(output, Tensor) and output.ndim == 4 and inputs and _in_line(net, path):
            outputs.append((len(inputs), path, output))

    hooks = [
        module.register_forward_hook(partial(note, path)) for path, module in net.named_modules() if path
    ]
    with in_eval_mode(net):
        teacher(images)
    for hook in hooks:
        hook.remove()
    calls = Counter(path for _, path, _ in outputs)
    ends: dict[int, tuple[str, Tensor]] = {}
    for depth, path, output in outputs:
        # an output of another size at the same depth is already pooled for the next layer
        if calls[path] == 1 and (depth not in ends or ends[depth][1].shape == output.shape):
            ends[depth] = path, output
    return convolutions, ends


def _in_line(net: nn.Module, path: str) -> bool:
    """Whether the parents of the module, below the network itself, are all nn.Sequential."""
    parents = path.split(".")[:-1]
    return all(
        isinstance(net.get_submodule(".".join(parents[: n + 1])), nn.Sequential) for n in range(len(parents))
    )


def maps_of(teacher: Tapped, paths: Sequence[str], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The outputs of these modules, and the logits."""
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


def _map_of(group: Group, maps: Mapping[str, Tensor]) -> str:
    """The name of the teacher's map that the group ends in: the deepest one of its shape, or empty."""
    return next((name for name, x in reversed(list(maps.items())) if x.shape == group.map.shape), "")

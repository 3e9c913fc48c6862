"""Information flow modelling (Passalis, Tzelepi & Tefas, "Heterogeneous Knowledge Distillation Using
Information Flow Modeling", 2020).

An auxiliary teacher stands between the two networks: the student's architecture with twice the width. Phase
`auxiliary` trains it by the labels and by probabilistic knowledge transfer from the teacher (method pkt;
weights 1 and 30000, as in the CRD paper). Phase `distill` makes the neighbours in the student's layers like
those in the auxiliary's.

A layer x (B x C) gives the probability that image i picks image j as its neighbour:
`p_ij = K(x_i, x_j) / sum over k != i of K(x_i, x_k)`.
There are two kernels K: cosine, `(cos(x, y) + 1) / 2`, and t-student, `1 / (1 + ||x - y||)`. The divergence
of two layers is that of Jeffreys, mean over i, sum over both kernels:
`sum over j of (p^A_ij - p^S_ij) log(p^A_ij / p^S_ij)`.

- Term `layers`: the sum over all maps but the stem, each pooled to B x C, times `100 * 0.7^epoch`, since the
  first epochs are the critical ones.
- Term `embedding`: the pooled embedding, with factor 1.

Default weights of labels, KD and terms: 1, 1 and 1, from SemCKD's table, the only one that has this method.
100 and 0.7 are the paper's.

Our reading: the divergence is a sum over a row and a mean over rows, so that batches of any size weigh alike.
Public code divides by B once more. An image is not its own neighbour. Kernels below 1e-7 count as 1e-7. The
auxiliary starts from random weights. `term_weight` is for the student's terms, not for phase `auxiliary`.
"""

import copy
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.functional import exact_distances
from pipeline.methods import Loss, Method, MethodConfig, Pairs, Phase, Terms, Weighted
from pipeline.methods._neighbours import cosine, neighbours, transfer
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped


class Config(MethodConfig):
    kd_weight: float = Field(1.0, ge=0)
    auxiliary_weight: float = Field(
        30000.0, ge=0, description="weight of the transfer from the teacher in phase auxiliary"
    )
    early_weight: float = Field(100.0, ge=0, description="factor of the term `layers` in the first epoch")
    decay: float = Field(0.7, gt=0, le=1, description="factor of early_weight from epoch to epoch")


class InformationFlow(Method[Config]):
    pairs: Pairs = (("pooled", "pooled"),)  # through the auxiliary

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.auxiliary = doubled(probe)
        assert probe.student_net is not None
        self.tapped = Tapped(self.auxiliary, probe.images, taps=probe.student_net.taps)

    def terms(self, step: Step) -> Terms:
        with torch.no_grad(), step.autocast():
            auxiliary = self.tapped(step.images)
        *early, last = (
            divergence(step.of_all(s), step.of_all(a))
            for s, a in zip(layers(step.student), layers(auxiliary), strict=True)
        )
        weight = self.cfg.early_weight * self.cfg.decay**step.epoch
        return {"embedding": last} | ({"layers": weight * torch.stack(early).sum()} if early else {})

    def phases(self, student: Tapped) -> list[Phase]:
        return [
            Phase("auxiliary", self.auxiliary_loss, (self.auxiliary,)),
            self.last_phase(student.net),
        ]

    def auxiliary_loss(self, step: Step) -> Loss:
        with step.autocast():
            auxiliary = self.tapped(step.images)
        ours, theirs = step.of_all(auxiliary.pooled), step.of_all(step.teacher.pooled)
        return {
            "ce": Weighted(step.cross_entropy(auxiliary.logits), 1.0),
            "pkt": Weighted(transfer(ours, theirs), self.cfg.auxiliary_weight),
        }


def layers(answer: Answer) -> list[Tensor]:
    """All maps but the stem, shallow to deep, each pooled to B x C, and the pooled embedding."""
    return [answer.maps[name].mean((2, 3)) for name in answer.body] + [answer.pooled]


def divergence(student: Tensor, auxiliary: Tensor) -> Tensor:
    """Jeffreys' divergence of the neighbours in two layers, B x C; sum over kernels, mean over images."""
    total = student.sum() * 0  # a value with a gradient even for one image, which has no neighbours
    for kernel in (cosine, t_student):
        p_s, p_a = neighbours(kernel(student)), neighbours(kernel(auxiliary))
        total = total + ((p_a - p_s) * (p_a / p_s).log()).sum() / len(student)
    return total


def t_student(x: Tensor) -> Tensor:
    """The t-student kernel `1 / (1 + ||x_i - x_j||)`, B x D to B x B."""
    return 1 / (1 + exact_distances(x, x))


def doubled(probe: Step) -> nn.Module:
    """The student's architecture with twice the width and random weights.

    One pass of the images widens each layer when they reach it: the layer takes as many channels as arrive,
    and gives twice as many as before. The classifier gives as many as before. So the widths also fit where
    the network joins, splits or adds channels.
    """
    assert probe.student_net is not None, "the auxiliary teacher is made from the student"
    net = copy.deepcopy(probe.student_net.net)
    classifier = net.get_submodule(probe.student_net.classifier)
    done: set[nn.Module] = set()
    hooks = []
    for path, module in net.named_modules():
        module._forward_hooks.clear()  # the copy has the hooks of the student's taps
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            hooks.append(
                module.register_forward_pre_hook(partial(_widen, done, 1 if module is classifier else 2))
            )
        elif next(module.parameters(recurse=False), None) is not None and not (
            isinstance(module, nn.PReLU) and module.num_parameters == 1
        ):
            raise _refusal(
                net, f"{path or 'the network itself'}, a {type(module).__name__}, has weights of its own"
            )
    try:
        with in_eval_mode(net):
            shape = net(probe.images).shape
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise _refusal(net, str(error)) from error
    if shape != probe.student.logits.shape:
        raise _refusal(
            net, f"its logits would be {tuple(shape)} instead of {tuple(probe.student.logits.shape)}"
        )
    for hook in hooks:
        hook.remove()
    return net


def _widen(done: set[nn.Module], factor: int, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Widen a layer at its first call. `done` is the set of layers that are wide already."""
    if layer in done:
        return
    done.add(layer)
    width = args[0].shape[-1 if isinstance(layer, nn.Linear) else 1]
    shape: tuple[int, ...] = (width,)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = width, factor * layer.out_features
        shape = (layer.out_features, width)
    elif isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels > 1:  # a depthwise convolution stays one
            layer.out_channels, layer.groups = width * (layer.out_channels // layer.groups), width
        else:
            layer.out_channels *= factor
        layer.in_channels = width
        shape = (layer.out_channels, width // layer.groups, *layer.kernel_size)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = width
    for name, weights in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(weights.new_empty(shape if name == "weight" else shape[:1])))
    for name, state in list(layer.named_buffers(recurse=False)):
        setattr(layer, name, state.new_zeros(shape if state.ndim else ()))
    layer.reset_parameters()  # type: ignore[operator]


def _refusal(net: nn.Module, why: str) -> InputError:
    return InputError(
        "method.name: hkd needs an auxiliary teacher, which is the student with twice the width, but "
        f"{type(net).__name__} cannot be widened: {why}. Choose another student, or a method without an "
        "auxiliary teacher, such as pkt."
    )

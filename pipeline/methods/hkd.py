"""Information flow modelling (Passalis, Tzelepi & Tefas, "Heterogeneous Knowledge Distillation Using Information Flow Modeling", 2020).

An auxiliary teacher, the student's architecture with twice the width, stands between the two networks. Phase `auxiliary` trains it
alone, by the labels and by probabilistic knowledge transfer from the teacher (pkt: 1 and 30000, the CRD paper's weights). Phase `distill`
makes the student's layers carry what the auxiliary's carry. A layer says how likely an instance picks another one as its neighbour,
`p_ij = K(x_i, x_j) / sum over k != i of K(x_i, x_k)`, once with the cosine kernel `(cos(x, y) + 1) / 2` and once with the t-student
kernel `1 / (1 + ||x - y||)`; the divergence of two layers is Jeffreys', `sum over j of (p^A_ij - p^S_ij) log(p^A_ij / p^S_ij)`, mean
over i, sum over both kernels. Term `layers`: all stages but the stem, pooled, which count `100 * .7^epoch`, for the critical early
epochs; term `embedding`: the pooled embedding, which counts 1. Weights 1, 1 and 1 are SemCKD's, the only table that has this method; 100
and .7 are the paper's.

Our reading: the divergence is summed over a row and averaged over rows, so that batches of any size weigh alike; public code divides by B
once more, which at weight 1 leaves nothing of it beside CE. An instance isn't its own neighbour. Kernels below 1e-7 count as 1e-7. The
auxiliary starts from random weights. The weights of its phase are its own: `term_weight` belongs to the student's.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.inputs import InputError
from pipeline.methods.base import Loss, Method, MethodConfig, Pairs, Phase, Terms, Weighted
from pipeline.neighbours import cosine, neighbours, transfer
from pipeline.taps import Step, Tapped, View, resting


class InformationFlow(Method):
    pairs: Pairs = (("pooled", "pooled"),)  # by way of the auxiliary

    class Config(MethodConfig):
        kd_weight: float = Field(1.0, ge=0)
        auxiliary_weight: float = Field(30000.0, ge=0, description="of the transfer from the teacher in phase auxiliary")
        early_weight: float = Field(100.0, ge=0, description="of the stages in the first epoch")
        decay: float = Field(0.7, gt=0, le=1, description="what early_weight is multiplied by after each epoch")

    def __init__(self, cfg: Config, probe: Step, labels: Tensor) -> None:
        super().__init__(cfg, probe, labels)
        self.cfg: InformationFlow.Config = cfg
        self.auxiliary = doubled(probe)
        assert probe.student_net is not None
        self.view = Tapped(self.auxiliary, probe.images, taps=probe.student_net.taps)

    def terms(self, step: Step) -> Terms:
        with torch.no_grad(), step.autocast():
            auxiliary = self.view(step.images)
        *early, last = (divergence(s, a) for s, a in zip(layers(step.student), layers(auxiliary), strict=True))
        weight = self.cfg.early_weight * self.cfg.decay**step.epoch
        return {"embedding": last} | ({"layers": weight * torch.stack(early).sum()} if early else {})

    def phases(self, student: Tapped) -> list[Phase]:
        return [Phase("auxiliary", self.auxiliary_loss, (self.auxiliary,)), Phase("distill", self.loss, (student.net,))]

    def auxiliary_loss(self, step: Step) -> Loss:
        with step.autocast():
            auxiliary = self.view(step.images)
        return {
            "ce": Weighted(F.cross_entropy(auxiliary.logits, step.labels), 1.0),
            "pkt": Weighted(transfer(auxiliary.pooled, step.teacher.pooled), self.cfg.auxiliary_weight),
        }


def layers(view: View) -> list[Tensor]:
    """B x C of every stage but the stem, shallow to deep, and the embedding."""
    return [stage.mean((2, 3)) for name, stage in view.stages.items() if name != "stem"] + [view.pooled]


def divergence(student: Tensor, auxiliary: Tensor) -> Tensor:
    """Jeffreys' divergence of two layers' neighbourhoods, both kernels summed, mean over the instances."""
    total = student.sum() * 0  # one instance has no neighbours
    for kernel in (cosine, t_student):
        p_s, p_a = neighbours(kernel(student)), neighbours(kernel(auxiliary))
        total = total + ((p_a - p_s) * (p_a / p_s).log()).sum() / len(student)
    return total


def t_student(x: Tensor) -> Tensor:
    return 1 / (1 + torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"))  # a batch is small: exact distances cost nothing


def doubled(probe: Step) -> nn.Module:
    """The student's architecture with random weights and twice the width.

    Every layer, when the images first reach it, is made to take as many channels as come in and to give twice as many as it did; only
    the classifier gives what it gave. Whatever joins, splits or adds channels on the way thus fits by itself.
    """
    assert probe.student_net is not None, "the auxiliary teacher is made from the student"
    net = copy.deepcopy(probe.student_net.net)
    classifier = net.get_submodule(probe.student_net.classifier)
    done: set[nn.Module] = set()
    hooks = []
    for path, module in net.named_modules():
        module._forward_hooks.clear()  # the student's taps came along
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            hooks.append(module.register_forward_pre_hook(partial(_widen, done, 1 if module is classifier else 2)))
        elif next(module.parameters(recurse=False), None) is not None and not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            raise _refusal(net, f"{path or 'the network itself'}, a {type(module).__name__}, has weights of its own")
    try:
        with resting(net):
            answers = net(probe.images).shape
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise _refusal(net, str(error)) from error
    if answers != probe.student.logits.shape:
        raise _refusal(net, f"it would answer {tuple(answers)} instead of {tuple(probe.student.logits.shape)}")
    for hook in hooks:
        hook.remove()
    return net


def _widen(done: set[nn.Module], factor: int, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Once a layer, however often it's called."""
    if layer in done:
        return
    done.add(layer)
    width = args[0].shape[-1 if isinstance(layer, nn.Linear) else 1]
    shape: tuple[int, ...] = (width,)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = width, factor * layer.out_features
        shape = (layer.out_features, width)
    elif isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels > 1:  # depthwise stays so
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
        f"method.name: hkd needs an auxiliary teacher, the student with twice the width, but {type(net).__name__} can't be widened: {why}. "
        "Choose another student, or a method without an auxiliary teacher, such as pkt."
    )

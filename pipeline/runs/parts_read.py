"""Which parts of the teacher's answer a phase reads: found by a trial step with copies of what it trains."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.methods import Method, Phase
from pipeline.taps.answer import Answer, Frozen, InParts, LogitsOnly
from pipeline.taps.step import Live
from pipeline.taps.tapped import Tapped
from pipeline.training.loop import set_trainable, step_of
from pipeline.training.recipe import TrainConfig

WHOLE = 1000  # logits of more classes are made of the pooled embedding, if that is smaller

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass
class PartsRead:
    """What a phase reads of its teacher. In place of many logits stands the pooled embedding."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by part, for one image
    frozen: dict[str, Frozen] = field(default_factory=dict)  # those parts that functions make, by name
    maps: tuple[str, ...] = ()  # names of all maps that the teacher has
    preactivations: tuple[str, ...] = ()
    why_live: str = ""  # why stored answers cannot stand in for the network; "": they can
    classify: Callable[[Tensor], Tensor] | None = None  # makes the logits of pooled embeddings


def parts_read(
    phase: Phase,
    batch: Batch,
    cfg: TrainConfig,
    *,
    student: Tapped,
    teacher: Tapped,
    method: Method[Any],
    autocast: Autocast,
) -> PartsRead:
    """Make one step on `batch` as the training loop does, without an optimizer, and watch the teacher.

    The student and the method are copied, so that what they remember of the step is not kept.
    """
    same = {id(each): each for each in (teacher, teacher.net)}  # not copied
    phase, student, method = copy.deepcopy((phase, student, method), same)
    set_trainable(phase, student, method)
    watched = _Watched(teacher, autocast)
    with watched:
        step = replace(
            step_of(batch, cfg, student, teacher, autocast=autocast, starts_epoch=True), stored=watched.answer
        )
        terms = [term.weight * term.value for term in phase.loss(step).values()]
        if with_gradient := [term for term in terms if term.requires_grad]:
            torch.autograd.backward(torch.stack(with_gradient).sum())
        method.after_backward(step, student)
    if step.images.requires_grad:
        watched.found.why_live = "this phase differentiates through it"
    elif watched.calls > watched.asked:
        watched.found.why_live = "this phase runs more of it than its answer needs"
    return watched.found


class _Watched:
    """The answers of a teacher, and what was read of them."""

    def __init__(self, teacher: Tapped, autocast: Autocast) -> None:
        self.teacher, self.autocast, self.found = teacher, autocast, PartsRead()
        self.asked = self.calls = 0  # answers; runs of the network, by anybody

    def __enter__(self) -> None:
        self.hook = self.teacher.net.register_forward_pre_hook(self._count)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def answer(self, live: Live) -> Answer:
        self.asked += 1
        answer = live()

        def give(part: str) -> Tensor:
            value, classify = answer.part(part), None
            if part == "logits":
                classify = self.found.classify = _classifier(self.teacher, answer, self.autocast)
            stored = value if classify is None else answer.pooled
            self.found.shapes[part if classify is None else "pooled"] = tuple(stored.shape[1:])
            return value

        def make(frozen: Frozen) -> Tensor:
            assert not any(each.requires_grad for each in frozen.weights.parameters()), frozen.name
            value = answer.made_by(frozen)
            self.found.shapes[frozen.name], self.found.frozen[frozen.name] = tuple(value.shape[1:]), frozen
            return value

        noted = InParts.like(answer, give, make)
        self.found.maps, self.found.preactivations = tuple(noted.maps), tuple(noted.preactivations)
        return noted

    def _count(self, *_: object) -> None:
        self.calls += 1


def _classifier(teacher: Tapped, answer: Answer, autocast: Autocast) -> Callable[[Tensor], Tensor] | None:
    """What makes the logits of many classes of a smaller pooled embedding: the teacher's last layer.

    None if they are few, or if no linear layer makes them alone.
    """
    if isinstance(answer, LogitsOnly) or not _is_smaller(answer):
        return None
    layer = teacher.net.get_submodule(teacher.classifier)
    sizes = answer.pooled.shape[1], answer.logits.shape[1]
    if not isinstance(layer, nn.Linear) or (layer.in_features, layer.out_features) != sizes:
        return None

    @torch.no_grad()
    def classify(pooled: Tensor) -> Tensor:
        with autocast():
            made: Tensor = layer(pooled)
        return made.float()

    is_all = torch.allclose(classify(answer.pooled), answer.logits, rtol=1e-3, atol=1e-3)
    return classify if is_all else None


def _is_smaller(answer: Answer) -> bool:
    return answer.logits.shape[1] > max(WHOLE, answer.pooled.shape[1])

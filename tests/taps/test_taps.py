import dataclasses
import weakref

import pytest
import torch
import torch.nn.functional as F
from owning import owning, up_to
from torch import Tensor, nn
from world import World, moved, snapshot

from pipeline.settings import InputError
from pipeline.taps.answer import Answer, InParts, LogitsOnly
from pipeline.taps.calls import in_eval_mode
from pipeline.taps.step import Labelled, Live, Step
from pipeline.taps.tapped import Tapped


class Plain(nn.Module):
    """A network without taps of its own: two sizes, one activation called twice, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.second(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_an_answer_holds_what_the_network_computes() -> None:
    net = Plain().eval()
    images = torch.randn(3, 3, 8, 8)
    answer = Tapped(net, images[:1], taps={"a": "first", "b": "second"})(images)
    first = net.first(images)
    second = net.second(first.relu())
    assert torch.equal(answer.maps["a"], first)
    assert torch.equal(answer.maps["b"], second)
    assert torch.equal(answer.pooled, second.relu().mean((2, 3)))
    assert torch.equal(answer.logits, net(images))
    assert answer.preactivations == {}


def test_each_call_of_a_module_has_its_own_tap() -> None:
    net = Plain().eval()
    images = torch.randn(3, 3, 8, 8)
    answer = Tapped(net, images[:1], taps={"a": "act#1", "b": "act#2", "c": "act"})(images)
    first = net.first(images).relu()
    assert torch.equal(answer.maps["a"], first)
    assert torch.equal(answer.maps["b"], net.second(first).relu())
    assert torch.equal(answer.maps["c"], answer.maps["b"])
    with pytest.raises(ValueError, match=r"taps\.a: there is no 'act#3'. Did you mean 'act#"):
        Tapped(net, images[:1], taps={"a": "act#3"})


def test_everything_and_the_body_are_named() -> None:
    answer = World.make().step().student
    assert list(answer.maps) == ["stem", "stage1", "stage2", "stage3"]
    assert answer.body == ["stage1", "stage2", "stage3"]
    assert list(answer.everything) == [*answer.maps, "pooled", "logits"]
    assert answer.named_map("stage2", "method.student_map") is answer.maps["stage2"]
    with pytest.raises(ValueError, match=r"method\.student_map: there is no 'stage4'. Did you mean 'stage"):
        answer.named_map("stage4", "method.student_map")


def test_maps_are_found_by_their_sizes_and_the_classifier_by_its_kind() -> None:
    tapped = Tapped(Plain(), torch.randn(1, 3, 8, 8))
    assert list(tapped.taps) == ["stage1", "stage2"]
    assert tapped.classifier == "head"
    answer = tapped(torch.randn(2, 3, 8, 8))
    assert [tuple(t.shape) for t in answer.maps.values()] == [(2, 4, 8, 8), (2, 6, 4, 4)]


def test_the_preactivation_is_what_the_activation_was_given() -> None:
    world = World.make()
    answer = world.step().student
    assert list(answer.preactivations) == list(answer.maps)
    for name, before in answer.preactivations.items():
        assert torch.equal(before.relu(), answer.maps[name])
        assert (before < 0).any()


def test_tapping_leaves_no_trace_in_the_network() -> None:
    net = Plain().train()
    net.first.eval()
    before = snapshot(net)
    Tapped(net, torch.randn(2, 3, 8, 8)).close()
    assert (net.training, net.first.training, net.act.training) == (True, False, True)
    assert not moved(before, snapshot(net))
    assert not any(module._forward_hooks for module in net.modules())


def test_upto_names_the_layers_that_a_map_depends_on() -> None:
    tapped = Tapped(Plain(), torch.randn(1, 3, 8, 8), taps={"early": "first", "late": "second"})
    assert tapped.upto("early") == (tapped.net.first,)
    assert tapped.upto("late") == (tapped.net.first, tapped.net.act, tapped.net.second)


def test_gradients_of_a_map_reach_exactly_the_layers_that_upto_names() -> None:
    student = World.make().student
    for name in student.taps:
        student.net.zero_grad()
        torch.autograd.backward(student(torch.randn(4, 3, 8, 8)).maps[name].square().sum())
        reached = {id(p) for p in student.net.parameters() if p.grad is not None}
        named = {id(p) for module in student.upto(name) for p in module.parameters()}
        assert reached == named, name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_upto_names_parameters_that_belong_to_no_layer_and_leaves_the_network_as_it_was(stage: int) -> None:
    student = owning(World.make()).student
    names = {id(p): key for key, p in student.net.named_parameters()}
    student.net.requires_grad_(False).train()
    student.net.get_parameter("position").requires_grad_(True)
    before = snapshot(student.net)
    parts = student.upto(f"stage{stage}")
    assert {names[id(p)] for part in parts for p in part.parameters()} == up_to(stage)
    assert [names[id(p)] for p in student.net.parameters() if p.requires_grad] == ["position"]
    assert all(p.grad is None for p in student.net.parameters())
    assert all(module.training for module in student.net.modules())
    assert not moved(before, snapshot(student.net))


def test_a_module_that_a_map_needs_as_a_whole_is_trained_as_a_whole() -> None:
    """So that it is in train mode itself, not only its layers."""
    student = owning(World.make()).student
    attention, block = (student.net.get_submodule(name) for name in ("attention", "block1"))
    assert attention in student.upto("stage2")
    assert block in student.upto("stage2")
    assert block not in student.upto("stage1")  # its last parameter comes after the map


def test_all_but_the_classifier_are_all_other_parameters() -> None:
    for student in (owning(World.make()).student, World.make().student):
        parts = student.all_but_classifier()
        inside = {id(p) for part in parts for p in part.parameters()}
        outside = {key for key, p in student.net.named_parameters() if id(p) not in inside}
        assert outside == {f"{student.classifier}.weight", f"{student.classifier}.bias"}
        assert student.net not in parts


def test_a_network_runs_only_if_its_answer_is_read() -> None:
    world = World.make()
    ran: list[str] = []
    world.student.net.register_forward_hook(lambda *_: ran.append("student"))
    world.teacher.net.register_forward_hook(lambda *_: ran.append("teacher"))
    step = world.step()
    assert ran == []
    assert step.teacher is step.teacher
    assert ran == ["teacher"]
    assert step.student is step.student
    assert ran == ["teacher", "student"]


def test_the_teachers_answer_has_no_graph_unless_the_images_require_gradients() -> None:
    world = World.make()
    assert not world.step().teacher.logits.requires_grad
    step = world.step()
    step.images.requires_grad_()
    (gradient,) = torch.autograd.grad(step.teacher.logits.sum(), step.images)
    assert gradient.abs().sum() > 0


def test_a_teacher_in_train_mode_is_an_assertion_error() -> None:
    world = World.make()
    world.teacher.net.train()
    with pytest.raises(AssertionError, match="eval mode"):
        _ = world.step().teacher


def test_answers_are_float32_under_autocast() -> None:
    world = World.make()
    step = Step(
        world.step().images,
        torch.zeros(8),
        torch.arange(8),
        world.student,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    answer = step.student
    tensors = (*answer.everything.values(), *answer.preactivations.values())
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert not torch.equal(answer.logits, world.step().student.logits)  # it did run in another precision


def test_a_wrong_tap_is_refused_with_the_nearest_path() -> None:
    with pytest.raises(ValueError, match=r"taps\.a: there is no 'secnd'. Did you mean 'second'"):
        Tapped(Plain(), torch.randn(1, 3, 8, 8), taps={"a": "secnd"})


def test_eval_mode_ends_with_an_error() -> None:
    net = Plain().train()
    with pytest.raises(RuntimeError), in_eval_mode(net):
        assert not net.training
        raise RuntimeError
    assert net.training


def test_a_network_that_cannot_take_the_images_is_named_with_their_size() -> None:
    with pytest.raises(ValueError, match=r"Linear cannot take images of 3 x 8 x 8 .*data\.size"):
        Tapped(nn.Linear(5, 2), torch.randn(1, 3, 8, 8))


def test_a_convolution_may_classify() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(2, 3, 8, 8)
    tapped = Tapped(net, images)
    assert tapped.classifier == "2"
    torch.testing.assert_close(tapped(images).pooled, net[:2](images).mean((2, 3)))


def test_a_call_of_the_network_itself_keeps_no_maps() -> None:
    tapped = World.make().student
    for _ in range(3):
        tapped.net(torch.randn(2, 3, 8, 8))
    assert not tapped._caught
    tapped(torch.randn(2, 3, 8, 8))
    assert not tapped._caught


class Mute(nn.Module):
    """A network that gives logits and nothing else."""

    gives_logits_alone = True

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_a_network_that_gives_logits_alone_has_no_taps() -> None:
    images = torch.randn(2, 3, 8, 8)
    tapped = Tapped(Mute().eval(), images)
    assert (tapped.taps, tapped.classifier) == ({}, "")
    answer = tapped(images)
    assert torch.equal(answer.logits, images.mean((2, 3)))
    assert list(answer.everything) == ["logits"]
    assert answer.everything["logits"] is answer.logits
    assert not tapped._caught
    with pytest.raises(ValueError, match=r"taps\.a: there is no 'layer1'"):
        Tapped(Mute(), images, taps={"a": "layer1"})


@pytest.mark.parametrize("read", ["maps", "pooled", "preactivations", "body"])
def test_what_is_not_in_an_answer_of_logits_alone_cannot_be_read(read: str) -> None:
    answer = Tapped(Mute(), torch.randn(2, 3, 8, 8))(torch.randn(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"gives logits alone.* a method that reads logits, such as kd"):
        getattr(answer, read)
    with pytest.raises(InputError, match="gives logits alone"):
        answer.named_map("stage1", "method.teacher_map")
    with pytest.raises(AttributeError):
        _ = answer.logit  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
@pytest.mark.parametrize("are_mixed", [False, True])
def test_cross_entropy_is_the_mean_over_the_labelled_images_however_a_batch_is_split(
    weights: Tensor | None, are_mixed: bool
) -> None:
    logits, labels = torch.randn(8, 3), torch.tensor([0, -1, -1, 2, -1, 1, -1, -1])
    places = labels.ge(0).nonzero()[:, 0]
    targets = torch.rand(8, 3).softmax(1) if are_mixed else None
    shares = F.one_hot(labels[places], 3).float() if targets is None else targets[places]
    alone = Step(
        torch.empty(3),
        labels[places],
        places,
        targets=shares if are_mixed else None,
        label_smoothing=0.1,
        class_weights=weights,
    )
    expected = alone.cross_entropy(logits[places])
    if weights is None:
        torch.testing.assert_close(expected, F.cross_entropy(logits[places], shares, label_smoothing=0.1))
    found = []
    for start, end in ((0, 3), (3, 8)):
        part = labels[start:end]
        step = Step(
            torch.empty(len(part)),
            part,
            torch.arange(start, end),
            targets=None if targets is None else targets[start:end],
            label_smoothing=0.1,
            class_weights=weights,
            labelled=Labelled(part.ge(0).nonzero()[:, 0], 3 / 8),
        )
        found.append((end - start) / 8 * step.cross_entropy(logits[start:end]))
    torch.testing.assert_close(sum(found), expected)


def test_the_labelled_part_has_the_answers_of_the_whole_step() -> None:
    answers = [Answer(torch.randn(4, 3), {"a": torch.randn(4, 2, 2, 2)}, torch.randn(4, 5), {}) for _ in "st"]
    step = Step.of(
        student=answers[0],
        teacher=answers[1],
        labels=torch.tensor([1, -1, 0, -1]),
        index=torch.tensor([7, 30, 8, 31]),
        images=torch.randn(4, 3, 2, 2),
    )
    assert step.labelled_part is step
    part = dataclasses.replace(step, labelled=Labelled(torch.tensor([0, 2]), 0.5))
    part.__dict__.update(student=answers[0], teacher=answers[1])
    few = part.labelled_part
    assert few.labels.tolist() == [1, 0]
    assert few.index.tolist() == [7, 8]
    assert torch.equal(few.images, step.images[[0, 2]])
    for own, whole in ((few.student, answers[0]), (few.teacher, answers[1])):
        assert torch.equal(own.logits, whole.logits[[0, 2]])
        assert torch.equal(own.pooled, whole.pooled[[0, 2]])
        assert torch.equal(own.maps["a"], whole.maps["a"][[0, 2]])
    assert part.labelled_part is few


def whole_answer() -> Answer:
    maps = {name: torch.randn(4, 2, 3, 3) for name in ("stem", "a", "b")}
    return Answer(torch.randn(4, 3), maps, torch.randn(4, 5), {"a": torch.randn(4, 2, 3, 3)})


def test_an_answer_in_parts_is_the_whole_answer_and_gives_only_what_is_read() -> None:
    whole, read = whole_answer(), []

    def give(part: str) -> Tensor:
        read.append(part)
        return whole.part(part)

    answer = InParts.like(whole, give)
    assert (list(answer.maps), list(answer.preactivations), answer.body) == (
        ["stem", "a", "b"],
        ["a"],
        ["a", "b"],
    )
    assert read == []
    few = answer.of(torch.tensor([2, 0]))
    assert torch.equal(few.maps["b"], whole.maps["b"][[2, 0]])
    assert torch.equal(answer.everything["pooled"], whole.pooled)
    assert torch.equal(answer.preactivations["a"], whole.preactivations["a"])
    assert torch.equal(answer.logits, whole.logits)
    assert torch.equal(few.logits, answer.logits[[2, 0]])
    assert read == ["map b", "pooled", "preactivation a", "logits"]
    assert answer.everything.keys() == whole.everything.keys()


def test_of_a_network_that_gives_logits_alone_there_are_no_other_parts() -> None:
    answer = InParts.like(LogitsOnly(torch.ones(2, 3)), lambda part: torch.ones(2, 3))
    assert dict(answer.maps) == {}
    assert torch.equal(answer.logits, torch.ones(2, 3))


def test_a_stored_answer_stands_in_for_the_network() -> None:
    world, whole = World.make(), whole_answer()
    asked: list[Live] = []

    def stored(live: Live) -> Answer:
        asked.append(live)
        return whole

    usual = world.step()
    step = dataclasses.replace(usual, stored=stored)
    assert step.teacher is whole
    assert step.teacher is whole
    (live,) = asked
    assert torch.equal(live().logits, usual.teacher.logits)


def test_a_step_with_a_stored_answer_is_freed_at_once() -> None:
    """A circle of references would keep its memory until Python looks for circles."""
    step = dataclasses.replace(
        World.make().step(), stored=lambda live: InParts(lambda part: live().part(part), ["a"], [])
    )
    assert len(step.teacher.logits) == 8
    gone = weakref.ref(step)
    del step
    assert gone() is None

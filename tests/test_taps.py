import pytest
import torch
from torch import Tensor, nn
from world import World, moved, snapshot

from pipeline.taps import Step, Tapped, resting


class Plain(nn.Module):
    """A network that says nothing of its stages: two sizes, one activation used twice, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.second(x))
        return self.head(x.mean((2, 3)))


def test_a_view_holds_what_the_network_computes() -> None:
    net = Plain().eval()
    images = torch.randn(3, 3, 8, 8)
    view = Tapped(net, images[:1], taps={"a": "first", "b": "second"})(images)
    first = net.first(images)
    second = net.second(first.relu())
    assert torch.equal(view.stages["a"], first)
    assert torch.equal(view.stages["b"], second)
    assert torch.equal(view.pooled, second.relu().mean((2, 3)))
    assert torch.equal(view.logits, net(images))
    assert view.preactivations == {}


def test_stages_are_found_by_their_sizes_and_the_classifier_by_its_kind() -> None:
    tapped = Tapped(Plain(), torch.randn(1, 3, 8, 8))
    assert list(tapped.taps) == ["stage1", "stage2"]
    assert tapped.classifier == "head"
    view = tapped(torch.randn(2, 3, 8, 8))
    assert [tuple(t.shape) for t in view.stages.values()] == [(2, 4, 8, 8), (2, 6, 4, 4)]


def test_the_preactivation_is_what_the_activation_was_given() -> None:
    world = World.make()
    view = world.step().student
    assert list(view.preactivations) == list(view.stages)
    for name, before in view.preactivations.items():
        assert torch.equal(before.relu(), view.stages[name])
        assert (before < 0).any()


def test_looking_leaves_no_trace() -> None:
    net = Plain().train()
    net.first.eval()
    before = snapshot(net)
    Tapped(net, torch.randn(2, 3, 8, 8)).close()
    assert (net.training, net.first.training, net.act.training) == (True, False, True)
    assert not moved(before, snapshot(net))
    assert not any(module._forward_hooks for module in net.modules())


def test_upto_names_the_layers_a_stage_depends_on() -> None:
    tapped = Tapped(Plain(), torch.randn(1, 3, 8, 8), taps={"early": "first", "late": "second"})
    assert tapped.upto("early") == (tapped.net.first,)
    assert tapped.upto("late") == (tapped.net.first, tapped.net.act, tapped.net.second)


def test_gradients_of_a_stage_reach_exactly_the_layers_upto_it() -> None:
    student = World.make().student
    for stage in student.taps:
        student.net.zero_grad()
        student(torch.randn(4, 3, 8, 8)).stages[stage].square().sum().backward()
        reached = {id(p) for p in student.net.parameters() if p.grad is not None}
        named = {id(p) for module in student.upto(stage) for p in module.parameters()}
        assert reached == named, stage


def test_a_network_runs_only_if_its_view_is_read() -> None:
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


def test_the_teacher_has_no_graph_unless_the_images_want_gradients() -> None:
    world = World.make()
    assert not world.step().teacher.logits.requires_grad
    step = world.step()
    step.images.requires_grad_()
    (gradient,) = torch.autograd.grad(step.teacher.logits.sum(), step.images)
    assert gradient.abs().sum() > 0


def test_a_teacher_in_train_mode_is_our_mistake() -> None:
    world = World.make()
    world.teacher.net.train()
    with pytest.raises(AssertionError, match="eval mode"):
        _ = world.step().teacher


def test_views_are_float32_under_autocast() -> None:
    world = World.make()
    step = Step(world.step().images, torch.zeros(8), torch.arange(8), world.student, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    view = step.student
    assert {t.dtype for t in (view.logits, view.pooled, *view.stages.values(), *view.preactivations.values())} == {torch.float32}
    assert not torch.equal(view.logits, world.step().student.logits)  # it did run in another precision


def test_a_wrong_tap_path_names_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"taps\.a: there is no 'secnd'. Did you mean 'second'"):
        Tapped(Plain(), torch.randn(1, 3, 8, 8), taps={"a": "secnd"})


def test_resting_restores_after_an_error() -> None:
    net = Plain().train()
    with pytest.raises(RuntimeError), resting(net):
        assert not net.training
        raise RuntimeError
    assert net.training


def test_a_network_that_can_t_take_the_images_is_named_with_the_size() -> None:
    with pytest.raises(ValueError, match=r"Linear can't take images of 3 x 8 x 8 .*data\.size"):
        Tapped(nn.Linear(5, 2), torch.randn(1, 3, 8, 8))


def test_a_convolution_may_classify() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 8, 8)
    tapped = Tapped(net, images)
    assert tapped.classifier == "2"
    torch.testing.assert_close(tapped(images).pooled, net[:2](images).mean((2, 3)))


def test_the_network_called_by_itself_leaves_no_maps_behind() -> None:
    tapped = World.make().student
    for _ in range(3):
        tapped.net(torch.randn(2, 3, 8, 8))
    assert not tapped._caught
    tapped(torch.randn(2, 3, 8, 8))
    assert not tapped._caught

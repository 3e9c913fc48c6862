import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import QUICK, World, noise

from pipeline import nets
from pipeline.functional import softened_kl
from pipeline.methods._combined import Combined
from pipeline.methods.knowledge_representing import (
    Aggregate,
    Config,
    KnowledgeRepresenting,
    Thresholds,
    distance,
    grouped,
    maps_of,
    match_layers,
    penalty,
    weights_of,
)
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

NAME = "knowledge_representing"


def made(world: World, **settings: object) -> KnowledgeRepresenting:
    method = world.method(NAME, **settings)
    assert isinstance(method, KnowledgeRepresenting)
    return method


def gradients_of(weights: list[Tensor]) -> list[Tensor]:
    """Copies of all gradients."""
    assert all(weight.grad is not None for weight in weights)
    return [weight.grad.clone() for weight in weights if weight.grad is not None]


def changes_gradients(method: KnowledgeRepresenting, world: World) -> bool:
    """Whether the method changes any of the student's gradients after a step; they are random."""
    weights = weights_of(world.student.net)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    before = gradients_of(weights)
    method.after_backward(world.step(), world.student)
    return any(not torch.equal(old, new) for old, new in zip(before, gradients_of(weights), strict=True))


def slow_distance(a: Tensor, b: Tensor) -> float:
    per_image = [
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True)))
        for p, q in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True)
    ]
    return sum(per_image) / len(per_image)


# --- the sparse penalty


def test_the_penalty_of_some_gradients() -> None:
    gradient = torch.tensor([0.0, 0.49, -0.49, 0.5, -0.5, 2.0, -3.0], dtype=torch.float64)
    assert penalty(gradient, torch.tensor(0.5, dtype=torch.float64)).tolist() == pytest.approx(
        [0, 0, 0, 1.5, 1.5, 12, 24]
    )


def slow_penalty(g: float, eps: float) -> float:
    return (abs(g) + g * g) / eps if abs(g) >= eps else 0.0


@pytest.mark.parametrize("relative", [True, False])
def test_recoded_gradients_and_those_of_the_thresholds_equal_the_slow_loop(relative: bool) -> None:
    torch.manual_seed(0)
    weights = [noise(*shape).requires_grad_() for shape in ((3, 2, 3, 3), (4, 5))]
    thresholds = Thresholds(weights).double()
    before, slopes, dominant = [], [], 0
    for weight in weights:
        weight.grad = torch.randn_like(weight) * (0.1 if relative else 1.5)
        before.append(weight.grad.flatten().tolist())
    share = thresholds.recode(weights, 0.3, relative=relative)
    for weight, gradients in zip(weights, before, strict=True):
        values = weight.flatten().tolist()
        eps = sum(map(abs, values)) / len(values)
        scale = eps / (sum(map(abs, gradients)) / len(gradients)) if relative else 1.0
        phis = [slow_penalty(scale * g, eps) for g in gradients]
        expected = [
            g + 0.3 * math.copysign(1, g) * phi / scale for g, phi in zip(gradients, phis, strict=True)
        ]
        assert weight.grad is not None
        assert weight.grad.flatten().tolist() == pytest.approx(expected, rel=1e-9)
        step = 1e-7  # of log eps
        moved = [slow_penalty(scale * g, eps * math.exp(step)) for g in gradients]
        slopes.append(0.3 * (sum(moved) - sum(phis)) / len(phis) / step)  # of lambda * mean phi
        dominant += sum(phi > 0 for phi in phis)
    assert thresholds.log.grad is not None
    assert thresholds.log.grad.tolist() == pytest.approx(slopes, rel=1e-5)
    assert share.item() == pytest.approx(dominant / sum(map(len, before)))
    assert 0.1 < share.item() < 0.6


def test_a_gradient_of_0_and_a_missing_one_are_not_changed() -> None:
    weights = [
        torch.ones(2, 2, requires_grad=True),
        torch.zeros(2, 2, requires_grad=True),
        torch.ones(2, 2, requires_grad=True),
    ]
    thresholds = Thresholds(weights)
    weights[0].grad, weights[1].grad = torch.zeros(2, 2), torch.ones(2, 2)
    thresholds.recode(weights, 0.5, relative=True)
    assert not weights[0].grad.any()
    assert weights[1].grad.isfinite().all()
    assert weights[2].grad is None
    assert thresholds.log.grad is not None
    assert thresholds.log.grad.isfinite().all()
    assert thresholds.log.grad[[0, 2]].tolist() == [0, 0]


def test_thresholds_start_at_the_mean_absolute_value_of_their_weights_and_rise() -> None:
    world = World.make()
    method = made(world)
    assert method.thresholds is not None
    start = method.thresholds.log.detach().exp()
    assert start.tolist() == pytest.approx(
        [weight.abs().mean().item() for weight in weights_of(world.student.net)]
    )
    world.fit(method, 0)
    assert torch.equal(method.thresholds.log.exp(), start)
    curves = world.fit(method, 1)
    assert (method.thresholds.log.exp() > start).all()
    assert 0 < curves["note/dominant gradients"][-1] < 0.5


def test_raw_gradients_below_their_threshold_are_not_changed() -> None:
    world = World.make()
    method = made(world, gradients="raw")
    assert method.thresholds is not None
    method.thresholds.log.requires_grad_().data.fill_(100.0)
    assert not changes_gradients(method, world)
    assert method.thresholds.log.grad is not None
    assert not method.thresholds.log.grad.any()


def test_dense_does_not_change_gradients_and_has_no_thresholds() -> None:
    world = World.make()
    method = made(world, sparse=False)
    assert not [name for name in method.state_dict() if "thresholds" in name]
    assert not changes_gradients(method, world)


@pytest.mark.parametrize("gradients", ["raw", "relative"])
def test_the_setting_of_gradients_reaches_the_students(gradients: str) -> None:
    """Gradients as large as weights would be the same in both."""
    world = World.make()
    method = made(world, gradients=gradients, sparse_weight=0.3)
    assert method.thresholds is not None
    method.thresholds.log.requires_grad_()
    weights = weights_of(world.student.net)
    expected = []
    for weight in weights:
        weight.grad = 5 * torch.randn_like(weight)
        eps = weight.abs().mean().item()
        scale = 1.0 if gradients == "raw" else eps / weight.grad.abs().mean().item()
        values = weight.grad.flatten().tolist()
        expected.append(
            [g + 0.3 * math.copysign(1, g) * slow_penalty(scale * g, eps) / scale for g in values[:5]]
        )
    method.after_backward(world.step(), world.student)
    for gradient, wanted in zip(gradients_of(weights), expected, strict=True):
        assert gradient.flatten()[:5].tolist() == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_penalty_on_weights_adds_its_derivative_in_the_last_phase_only(kind: str) -> None:
    world = World.make()
    method = made(world, sparse=False, weight_penalty=kind, weight_penalty_strength=0.7)
    assert not changes_gradients(method.eval(), world)
    method.train()
    weights = [weight.requires_grad_() for weight in weights_of(world.student.net)]
    sums = [weight.abs().sum() if kind == "l1" else weight.square().sum() for weight in weights]
    wanted = torch.autograd.grad(0.7 * torch.stack(sums).sum(), weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    method.after_backward(world.step(), world.student)
    for gradient, each in zip(gradients_of(weights), wanted, strict=True):
        torch.testing.assert_close(gradient, each)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_penalty": "l3"}, "'none', 'l1' or 'l2'"),
        ({"weight_penalty_strength": 0.0}, "greater than 0"),
        ({"aggregate_rate": 0.0}, "greater than 0"),
        ({"match": "depth"}, "'size' or 'order'"),
        ({"alternate": "often"}, "valid boolean"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(World.make(), **settings)


# --- the groups and the aggregate


def tapped(
    net: nn.Module, *, size: int = 16, channels: int = 3, taps: dict[str, str] | None = None
) -> tuple[Tapped, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(2, channels, size, size)
    return Tapped(net.eval(), images, taps=taps), images


@pytest.mark.parametrize(
    ("name", "layers", "ends"),
    [
        # a stem and blocks of two convolutions; shortcuts do not count
        ("resnet14", 3, ["stage1.0", "stage2.0", "stage3.0", "stage3"]),
        ("resnet14", 1, ["stem", "stage1.0", "stage1", "stage2.0", "stage2", "stage3.0", "stage3"]),
        ("resnet14", 13, ["stage3"]),
        ("vgg8", 2, ["stage1", "stage3", "stage4"]),  # a pooling belongs to the layer after it
        ("wrn_16_1", 4, ["stage1", "stage2", "relu"]),
        ("torchvision:resnet18", 3, ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4"]),
    ],
)
def test_groups_end_with_a_module_that_the_whole_signal_passes(
    name: str, layers: int, ends: list[str]
) -> None:
    groups = grouped(*tapped(nets.build(name, 3), size=64), layers)
    assert [group.path for group in groups] == ends


def test_a_group_has_its_map_and_the_spread_of_its_weights() -> None:
    teacher, images = tapped(nets.build("resnet14", 3))
    group = grouped(teacher, images, 3)[1]
    block = teacher.net.get_submodule("stage1.1"), teacher.net.get_submodule("stage2.0")
    numbers = [
        x
        for part in block
        for conv in part.modules()
        if isinstance(conv, nn.Conv2d)
        for x in conv.weight.flatten().tolist()
    ]
    mean = sum(numbers) / len(numbers)
    assert group.weights == len(numbers)
    assert group.spread == pytest.approx(
        math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)), rel=1e-5
    )
    with torch.no_grad():
        maps, logits = maps_of(teacher, [group.path], images)
        assert torch.equal(maps[0], group.map)
        assert torch.equal(maps[0], teacher.net.get_submodule("stage2.0.relu2")(maps[0]))
        assert torch.equal(logits, teacher.net(images))
    assert maps[0].shape == (2, 32, 8, 8)


@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        "wrn_10_1",
        "vgg8",
        "mobilenet_x0.25",
        "mobilenetv2",
        "shufflenetv1",
        "shufflenetv2_x0.5",
        "allcnn",
    ],
)
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (9, 1)])
def test_the_maps_of_the_aggregate_have_the_shapes_of_the_groups(name: str, size: int, channels: int) -> None:
    teacher, images = tapped(nets.build(name, 5, channels=channels), size=size, channels=channels)
    groups = grouped(teacher, images, 3)
    aggregate = Aggregate(groups, images.shape, classes=5)
    maps, logits = aggregate(images)
    assert logits.shape == (2, 5)
    for x, group in zip(maps, groups, strict=True):
        assert x.shape[1] == group.map.shape[1]
        assert abs(x.shape[2] - group.map.shape[2]) <= size % 2  # a pooling drops a position of an odd size
        assert bool((x < 0).any()) == bool((group.map < 0).any())


def test_there_is_one_relu_between_two_layers_of_the_aggregate() -> None:
    teacher, images = tapped(nets.build("wrn_16_1", 3))
    groups = grouped(teacher, images, 4)
    signed = [bool((group.map < 0).any()) for group in groups]
    assert signed == [True, True, False]
    layers = [
        [type(part) for part in layer.children()]
        for layer in Aggregate(groups, images.shape, classes=3).layers
    ]
    middle = [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
    assert layers == [[nn.Conv2d, nn.BatchNorm2d], middle, [*middle, nn.ReLU]]


def test_a_layer_is_separable_if_a_plain_one_would_be_larger_than_its_group() -> None:
    bottleneck = nn.Sequential(
        nn.Conv2d(32, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 32, 1),
        nn.ReLU(),
    )
    net = nn.Sequential(
        nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.ReLU(), *bottleneck, nn.Flatten(), nn.LazyLinear(2)
    )
    net(torch.zeros(1, 3, 16, 16))
    teacher, images = tapped(net, taps={"stage1": "7"})
    first, *_, second = Aggregate(grouped(teacher, images, 1), images.shape, classes=2).layers
    assert [m.kernel_size for m in first.modules() if isinstance(m, nn.Conv2d)] == [(7, 7)]
    whole = Aggregate(grouped(teacher, images, 3), images.shape, classes=2).layers[0]
    assert [m.stride for m in whole.modules() if isinstance(m, nn.Conv2d)] == [(4, 4)]
    assert [(m.kernel_size, m.groups) for m in second.modules() if isinstance(m, nn.Conv2d)] == [
        ((3, 3), 8),
        ((1, 1), 1),
    ]


@pytest.mark.parametrize(
    ("student", "layers", "pairs"),
    [
        ([16, 8, 4], [16, 16, 8, 4, 4], [(0, 1), (1, 2), (2, 4)]),
        ([16, 8, 4], [16, 4], [(1, 0), (2, 1)]),  # there is no layer for the shallowest map
        ([8, 8], [8, 8, 8], [(0, 1), (1, 2)]),
        ([9, 5], [32, 16, 8], [(0, 1), (1, 2)]),
        ([4, 16], [16, 4], [(1, 0)]),
    ],
)
def test_maps_are_matched_with_layers_of_their_size_in_order(
    student: list[int], layers: list[int], pairs: list[tuple[int, int]]
) -> None:
    maps = [[torch.empty(1, 1, size, size) for size in sizes] for sizes in (student, layers)]
    assert match_layers(*maps) == pairs


EVERY_LAYER = {"one": "stem.2"} | {f"{n}-{k}": f"stage{n}.0.relu{k}" for n in (1, 2, 3) for k in (1, 2)}


def test_every_layer_of_the_student_may_have_its_own_layer_of_w() -> None:
    """As in the paper: the 7 convolutions of a resnet8 with the 7 groups of a resnet26."""
    world = World.make(teacher="resnet26")
    world.student = Tapped(world.student.net, world.step(2).images, taps=EVERY_LAYER)
    method = made(world, match="order")
    assert len(method.groups) == 7
    assert method.matches == [(name, n) for n, name in enumerate(EVERY_LAYER)]
    assert method.terms(world.step())["layers"].isfinite()
    assert [name for name, _ in made(world).matches] != list(EVERY_LAYER)


def test_maps_and_layers_that_are_matched_in_order_are_equally_many() -> None:
    message = r"method\.match is order, but the student has 3 maps to match and W~ has 4 layers\. Name 4 maps"
    with pytest.raises(ValueError, match=message):
        made(World.make(), match="order")


# --- the phases


def test_alternating_is_algorithm_1() -> None:
    """Beside a slow loop with two optimizers: a step of the student for W~ as it is, then a step of W~."""
    world, slow = World.make(), World.make()
    settings = {"alternate": True, "sparse": False, "aggregate_rate": 10.0, "gamma": 0.7}
    torch.manual_seed(3)
    method = made(world, **settings)
    torch.manual_seed(3)
    other = made(slow, **settings)
    cfg = QUICK.model_copy(update={"epochs": 2, "weight_decay": 0.0})
    curves = world.fit(method, cfg=cfg)
    assert set(curves) > {"ce", "kd", "layers", "aggregate kd", "aggregate groups"}
    assert curves["share of aggregate kd"] == [0, 0]

    slow.student.net.train()
    other.train()
    own = [*slow.student.net.parameters(), *other.adapters.parameters()]
    of_student = torch.optim.SGD(own, cfg.lr, 0.9, weight_decay=0, nesterov=True)
    of_aggregate = torch.optim.SGD(other.aggregate.parameters(), 10 * cfg.lr, 0.9, nesterov=True)
    batches = slow.batches(cfg.batch_size)
    paths = [group.path for group in other.groups]
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            maps, logits = other.aggregate(batch.images)
            with torch.no_grad():
                teacher_maps, teacher_logits = maps_of(slow.teacher, paths, batch.images)
            answer = slow.student(batch.images)
            near = [
                (adapter(answer.maps[name]) - maps[layer].detach()).flatten(1).norm(dim=1).mean()
                for adapter, (name, layer) in zip(other.adapters, other.matches, strict=True)
            ]
            loss = 0.1 * F.cross_entropy(answer.logits, batch.labels) + 0.1 * torch.stack(near).sum()
            loss = loss + 0.9 * softened_kl(answer.logits, teacher_logits, 4.0)
            of_student.zero_grad()
            torch.autograd.backward(loss)
            of_student.step()
            loss = softened_kl(logits, teacher_logits, 4.0)
            for group, x, t in zip(other.groups, maps, teacher_maps, strict=True):
                loss = loss + 0.7 * group.spread * (x - t).flatten(1).norm(dim=1).mean()
            of_aggregate.zero_grad()
            torch.autograd.backward(loss)
            of_aggregate.step()
    for mine, theirs in ((world.student.net, slow.student.net), (method, other)):
        for (key, value), wanted in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5, msg=key)


def test_both_rates_hold_beside_a_partner() -> None:
    """Such as KDGAN, in the last line of the paper's tables."""
    world = World.make()
    combined = world.method(NAME, alternate=True, aggregate_rate=10.0, combine={"name": "kdgan"})
    (phase,) = combined.phases(world.student)
    assert isinstance(combined, Combined)
    assert phase.rates == ((combined.main.aggregate, 10.0),)
    terms = {"ce", "kd", "layers", "aggregate kd", "aggregate groups"}
    assert set(phase.loss(world.step())) == terms | {"kdgan discriminator", "kdgan deception"}


def test_a_step_in_turns_leaves_no_maps_to_the_next_one() -> None:
    world = World.make()
    method = made(world, alternate=True).eval()
    usual = method.terms(world.step(4))["layers"].item()
    method.loss(world.step(8))
    assert method.terms(world.step(4))["layers"].item() == usual


def test_defaults_are_those_that_the_tables_of_results_were_made_with() -> None:
    """c is the paper's; it gives none of the others."""
    cfg = KnowledgeRepresenting.Config(name=NAME)
    assert isinstance(cfg, Config)
    found = (cfg.layers, cfg.gamma, cfg.sparse_weight, cfg.term_weight, cfg.ce_weight, cfg.kd_weight)
    assert found == (3, 1.0, 0.03, 0.1, 0.1, 0.9)


def test_without_taking_turns_there_are_two_phases() -> None:
    world = World.make()
    assert [phase.name for phase in made(world).phases(world.student)] == ["aggregate", "distill"]
    (phase,) = made(world, alternate=True).phases(world.student)
    assert (phase.name, phase.of_teacher) == ("distill", ())


def test_the_loss_of_phase_aggregate_equals_the_slow_loop() -> None:
    world = World.make()
    method = made(world, gamma=0.7, temperature=2.0)
    step = world.step(3)
    loss = method.phases(world.student)[0].loss(step)
    maps, logits = method.aggregate(step.images)
    expected = 0.0
    with torch.no_grad():
        teacher_maps, _ = maps_of(world.teacher, [group.path for group in method.groups], step.images)
    for group, x, t in zip(method.groups, maps, teacher_maps, strict=True):
        expected += group.spread * slow_distance(x, t)
    assert loss["groups"].value.item() == pytest.approx(expected, rel=1e-5)
    assert loss["groups"].weight == 0.7
    assert loss["kd"].value.item() == pytest.approx(
        softened_kl(logits, step.teacher.logits, 2.0).item(), rel=1e-5
    )
    assert loss["kd"].weight == 1
    assert set(method.phases(world.student)[0].loss(step)) == {"kd", "groups"}
    assert set(made(world, gamma=0.0).phases(world.student)[0].loss(step)) == {"kd"}


def test_an_aggregate_that_is_the_teacher_has_no_loss() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    ]
    net = nn.Sequential(
        *layers, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ).eval()
    world = World.make()
    world.teacher = Tapped(net, world.step(2).images, taps={"stage1": "5"})
    method = made(world, layers=1).eval()
    method.aggregate.load_state_dict(
        dict(zip(method.aggregate.state_dict(), net.state_dict().values(), strict=True))
    )
    loss = method.phases(world.student)[0].loss(world.step())
    assert loss["groups"].value.item() == pytest.approx(0, abs=1e-4)
    assert loss["kd"].value.item() == pytest.approx(0, abs=1e-6)


def test_phase_aggregate_never_runs_the_student_and_removes_its_hooks() -> None:
    world = World.make()
    method = made(world)
    phase = method.phases(world.student)[0]
    assert (phase.name, phase.trains) == ("aggregate", (method.aggregate,))
    assert phase.of_teacher == ("layers", "gamma", "temperature")
    hooks = [len(module._forward_hooks) for module in world.teacher.net.modules()]
    world.student.net.register_forward_hook(lambda *_: pytest.fail("the student ran"))
    world.fit(method, 0)
    assert [len(module._forward_hooks) for module in world.teacher.net.modules()] == hooks
    assert not any(world.teacher._caught.values())  # otherwise the maps of each batch would stay in memory


def test_the_teacher_is_not_saved_with_the_method_and_runs_only_for_kd() -> None:
    world = World.make()
    method = made(world, kd_weight=0.0)
    parameters = {id(p) for p in method.parameters()}
    assert not [p for p in world.teacher.net.parameters() if id(p) in parameters]
    world.teacher.net.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    world.fit(method, 1)


def test_an_aggregate_fits_any_student() -> None:
    world = World.make()
    method = made(world)
    world.fit(method, 0)
    learned = {name: tensor for name, tensor in method.state_dict().items() if name.startswith("aggregate.")}
    other = World.make(student="vgg8", seed=1)
    another = made(other)
    assert another.load_state_dict(learned, strict=False).unexpected_keys == []
    maps, logits = another.aggregate.eval()(world.step().images)
    expected_maps, expected = method.aggregate.eval()(world.step().images)
    assert torch.equal(logits, expected)
    assert all(torch.equal(x, y) for x, y in zip(maps, expected_maps, strict=True))


def test_the_term_equals_the_slow_loop() -> None:
    world = World.make()
    method = made(world, student_maps=("stage1", "stage3"), layers=4).double().eval()
    assert [group.map.shape[2] for group in method.groups] == [8, 4, 2]
    assert method.matches == [("stage1", 0), ("stage3", 2)]
    for bn in [m for m in method.adapters.modules() if isinstance(m, nn.BatchNorm2d)]:
        bn.running_mean = torch.randn_like(bn.bias)
        bn.weight.data.uniform_(0.5, 2)
    live = world.step(2)
    maps = {"stage1": noise(2, 16, 4, 4), "stage3": noise(2, 64, 2, 2)}  # the aggregate's first map is larger
    student = Answer(torch.zeros(2, 3).double(), maps, torch.zeros(2, 64), {})
    step = Step.of(
        student=student, teacher=student, labels=live.labels, index=live.index, images=live.images.double()
    )
    layers, _ = method.aggregate(step.images)
    expected = 0.0
    for (name, layer), adapter in zip(method.matches, method.adapters, strict=True):
        conv, norm = adapter.children()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        s, t = maps[name].tolist(), F.adaptive_avg_pool2d(layers[layer], maps[name].shape[2]).tolist()
        weights, side = conv.weight.tolist(), len(s[0][0])
        for b in range(2):
            squares = 0.0
            for c in range(len(weights)):
                deviation = (norm.running_var[c].item() + norm.eps) ** 0.5
                for y in range(side):
                    for x in range(side):
                        value = sum(weights[c][k][0][0] * s[b][k][y][x] for k in range(len(s[b])))
                        value = (value - norm.running_mean[c].item()) / deviation
                        value = value * norm.weight[c].item() + norm.bias[c].item()
                        squares += (value - t[b][c][y][x]) ** 2
            expected += math.sqrt(squares) / 2
    assert method.terms(step)["layers"].item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    a, b = noise(2, 3, 4, 4).requires_grad_(), noise(2, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda x: distance(x, b), (a,))
    assert torch.autograd.gradcheck(lambda x: distance(b, x), (a,))
    gradient = torch.tensor([0.1, -0.2, 0.6, -1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        penalty, (gradient, torch.tensor(0.5, dtype=torch.float64, requires_grad=True))
    )


def test_equal_maps_have_distance_0_and_a_finite_gradient() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    value = distance(x, x.detach())
    torch.autograd.backward(value)
    assert value.item() == 0
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_pairs_name_the_maps_of_the_teacher_in_which_groups_end() -> None:
    method = made(World.make())
    assert method.pairs == [("stage1", "stage1"), ("stage2", "stage2"), ("stage3", "stage3")]


@pytest.mark.parametrize("teacher", ["vgg8", "wrn_10_1", "mobilenet_x0.25"])
def test_other_teachers_and_one_image_are_legal(teacher: str) -> None:
    world = World.make(teacher=teacher)
    method = made(world)
    for phase in method.phases(world.student):
        method.eval()
        world.student.net.eval()
        assert all(term.value.isfinite() for term in phase.loss(world.step(1)).values())


# --- what is refused


def test_more_layers_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"method\.layers: 14 convolutions of the .* Chain has 13 one after the other\. Lower .*layers",
    ):
        made(World.make(), layers=14)


def test_a_teacher_without_convolutions_is_refused() -> None:
    world = World.make()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).eval()
    world.teacher = Tapped(net, world.step(2).images)
    with pytest.raises(
        ValueError, match=r"method\.layers: .*Sequential has 0.*choose a convolutional teacher"
    ):
        made(world)

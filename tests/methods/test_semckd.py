import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline.methods import semckd
from pipeline.methods.semckd import (
    Attention,
    Config,
    MapErrors,
    Places,
    RowErrors,
    SemanticCalibration,
    SharedWeights,
)
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

Maps = dict[str, Tensor]
Rows = list[list[float]]
Map = list[list[list[list[float]]]]  # images, channels, height, width
ABLATIONS = ("", "equal", "shared", "no_projection", "no_mlp", "no_similarity")


def random_maps(batch: int, *shapes: tuple[int, int, int]) -> Maps:
    return {
        f"stage{n}": torch.randn(batch, *shape, dtype=torch.float64)
        for n, shape in enumerate(shapes, start=1)
    }


def different(batch: int = 3) -> tuple[Maps, Maps]:
    """Maps of student and teacher that differ in number, widths and sizes, which do not divide each other."""
    return random_maps(batch, (2, 4, 4), (3, 2, 2)), random_maps(batch, (3, 5, 5), (2, 3, 3), (4, 1, 2))


def step_of(student: Maps, teacher: Maps) -> Step:
    size = len(next(iter(student.values())))
    s, t = (
        Answer(torch.randn(size, 3).double(), shown, torch.zeros(size, 1), shown)
        for shown in (student, teacher)
    )
    return Step.of(student=s, teacher=t, labels=torch.arange(size) % 3, index=torch.arange(size))


def made(student: Maps, teacher: Maps, **settings: Any) -> SemanticCalibration:
    """With all parameters different from what their initialisation makes them."""
    method = SemanticCalibration(Config(name="semckd", **settings), step_of(student, teacher), torch.zeros(2))
    for parameter in method.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    return method.double()


def term(method: SemanticCalibration, student: Maps, teacher: Maps) -> Tensor:
    return method.terms(step_of(student, teacher))["features"]


# --- the slow loops


def slow_pool(x: Map, height: int, width: int) -> Map:
    def mean(plane: Rows, i: int, j: int) -> float:
        ys = range(i * len(plane) // height, -(-(i + 1) * len(plane) // height))
        xs = range(j * len(plane[0]) // width, -(-(j + 1) * len(plane[0]) // width))
        return sum(plane[y][x] for y in ys for x in xs) / (len(ys) * len(xs))

    return [
        [[[mean(plane, i, j) for j in range(width)] for i in range(height)] for plane in image] for image in x
    ]


def slow_conv(x: Map, weight: Map) -> Map:
    """Of the same size, and without a bias."""
    reach = len(weight[0][0]) // 2
    height, width = len(x[0][0]), len(x[0][0][0])

    def at(image: list[Rows], o: int, i: int, j: int) -> float:
        total = 0.0
        for c, plane in enumerate(image):
            for y in range(max(0, i - reach), min(height, i + reach + 1)):
                for z in range(max(0, j - reach), min(width, j + reach + 1)):
                    total += weight[o][c][y - i + reach][z - j + reach] * plane[y][z]
        return total

    return [
        [[[at(image, o, i, j) for j in range(width)] for i in range(height)] for o in range(len(weight))]
        for image in x
    ]


def slow_norm_relu(x: Map, scales: list[float], shifts: list[float]) -> Map:
    for c, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
        values = [v for image in x for row in image[c] for v in row]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        for image in x:
            image[c] = [[max(0.0, (v - mean) / spread * scale + shift) for v in row] for row in image[c]]
    return x


def slow_map_errors(projection: nn.Module, student: Tensor, teacher: Tensor, inside: int) -> list[float]:
    """MSE(T[i], P(S)[i]) of each image: convolutions of 1x1, 3x3 and 1x1 (Eq. 6), as wide as `inside`."""
    parameters = list(projection.parameters())
    shapes = [(inside, student.shape[1], 1, 1), (inside, inside, 3, 3), (teacher.shape[1], inside, 1, 1)]
    assert [tuple(p.shape) for p in parameters if p.ndim == 4] == shapes
    first, scale1, shift1, middle, scale2, shift2, last = (p.tolist() for p in parameters)
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    x = slow_norm_relu(slow_conv(slow_pool(student.tolist(), *size), first), scale1, shift1)
    x = slow_conv(slow_norm_relu(slow_conv(x, middle), scale2, shift2), last)
    errors = []
    for image, target in zip(x, slow_pool(teacher.tolist(), *size), strict=True):
        squares = [
            (p - q) ** 2
            for one, two in zip(image, target, strict=True)
            for a, b in zip(one, two, strict=True)
            for p, q in zip(a, b, strict=True)
        ]
        errors.append(sum(squares) / len(squares))
    return errors


def slow_similarities(features: Tensor) -> Rows:
    rows = slow_rows(features)
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def slow_rows(features: Tensor) -> Rows:
    return [[v for plane in image for row in plane for v in row] for image in features.tolist()]


def slow_linear(row: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    """The layer of a row, which may be shorter than the layer is wide."""
    return [
        b + sum(w * v for w, v in zip(weights, row, strict=False))
        for weights, b in zip(weight.tolist(), bias.tolist(), strict=True)
    ]


def slow_embedding(row: list[float], embed: nn.Module, *, is_mlp: bool = True) -> list[float]:
    """Linear-ReLU-Linear (Eq. 9) or, in the ablation no_mlp, linear; then length one."""
    parameters = list(embed.parameters())
    assert [len(p) for p in parameters] == [32] * (4 if is_mlp else 2)
    x = slow_linear(row, *parameters[:2])
    if is_mlp:
        x = slow_linear([max(0.0, v) for v in x], *parameters[2:])
    length = math.sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((v - max(logits)) / temperature) for v in logits]
    return [p / sum(powers) for p in powers]


def slow_attention(
    method: SemanticCalibration, student: Maps, teacher: Maps, *, rows: Callable[[Tensor], Rows]
) -> list[list[list[float]]]:
    """The weights a[i][s][t]."""
    attention, is_mlp = method.weights, method.cfg.ablation != "no_mlp"
    assert isinstance(attention, Attention)
    queries, keys = (
        [
            [slow_embedding(row, layer, is_mlp=is_mlp) for row in rows(x)]
            for x, layer in zip(shown.values(), layers, strict=True)
        ]
        for shown, layers in ((student, attention.queries), (teacher, attention.keys))
    )
    count = len(queries[0])
    return [
        [
            slow_softmax(
                [sum(p * q for p, q in zip(query[i], key[i], strict=True)) for key in keys],
                method.cfg.attention_temperature,
            )
            for query in queries
        ]
        for i in range(count)
    ]


def slow_row_errors(row_errors: RowErrors, student: Tensor, teacher: Tensor) -> list[float]:
    """Of each image."""
    errors = []
    for i in range(len(student)):
        a, b = (slow_embedding(slow_similarities(x)[i], row_errors.values) for x in (student, teacher))
        errors.append(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a))
    return errors


def slow_term(method: SemanticCalibration, student: Maps, teacher: Maps) -> float:
    """Eq. 6-10 and 16, and the ablations of table 6, divided by the number of the student's maps."""
    count = len(student["stage1"])
    match method.cfg.ablation:
        case "equal":
            weights = [[[1 / len(teacher)] * len(teacher)] * len(student)] * count
        case "shared":
            assert isinstance(method.weights, SharedWeights)
            shared = [
                slow_softmax(row, method.cfg.attention_temperature)
                for row in method.weights.logits[0].tolist()
            ]
            weights = [shared] * count
        case "no_similarity":
            weights = slow_attention(method, student, teacher, rows=slow_rows)
        case _:
            weights = slow_attention(method, student, teacher, rows=slow_similarities)
    total = 0.0
    for s, student_map in enumerate(student.values()):
        for t, teacher_map in enumerate(teacher.values()):
            if method.cfg.ablation == "no_projection":
                assert isinstance(method.errors, RowErrors)
                errors = slow_row_errors(method.errors, student_map, teacher_map)
            else:
                assert isinstance(method.errors, MapErrors)
                projection = method.errors.projections[s * len(teacher) + t]
                s_width, t_width = student_map.shape[1], teacher_map.shape[1]
                inside = min(s_width, t_width) if method.cfg.inside == "slim" else 2 * t_width
                errors = slow_map_errors(projection, student_map, teacher_map, inside)
            total += sum(weights[i][s][t] * errors[i] for i in range(count)) / count
    return total / len(student)


@pytest.mark.parametrize(
    "settings", [*({"ablation": ablation} for ablation in ABLATIONS), {"inside": "slim"}], ids=str
)
def test_the_term_equals_the_slow_loop(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    student, teacher = different()
    method = made(student, teacher, attention_temperature=1.5, **settings)
    assert term(method, student, teacher).item() == pytest.approx(
        slow_term(method, student, teacher), rel=1e-9
    )


def test_the_whole_loss_is_that_of_equation_3() -> None:
    torch.manual_seed(0)
    student, teacher = different()
    method, step = made(student, teacher), step_of(student, teacher)
    expected = 400 * slow_term(method, student, teacher)
    logits = zip(
        step.student.logits.tolist(), step.teacher.logits.tolist(), step.labels.tolist(), strict=True
    )
    for z_s, z_t, label in logits:
        expected -= math.log(slow_softmax(z_s, 1.0)[label]) / 3
        softened = zip(slow_softmax(z_s, 4.0), slow_softmax(z_t, 4.0), strict=True)
        expected += 4.0**2 * sum(t * math.log(t / s) for s, t in softened) / 3
    total = sum(weight * value.item() for value, weight in method.loss(step).values())
    assert total == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ablation", ["", "shared", "no_projection", "no_similarity"])
def test_the_gradient_equals_finite_differences(ablation: str) -> None:
    torch.manual_seed(1)
    student, teacher = random_maps(2, (2, 2, 2), (1, 1, 1)), random_maps(2, (2, 1, 2), (1, 2, 2))
    method = made(student, teacher, ablation=ablation)
    inputs = [x.requires_grad_() for x in student.values()]
    small = [parameter for parameter in method.parameters() if parameter.numel() <= 16]

    def features(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return term(method, {"stage1": first, "stage2": second}, teacher)

    assert torch.autograd.gradcheck(features, (*inputs, *small))


# --- the values of the paper and of its authors' program


def test_the_defaults_are_those_of_the_paper() -> None:
    """Section 4.1.4: beta 400 and T 4; Eq. 1 and 3: labels, KD and term are added; Eq. 10: no temperature."""
    cfg = Config(name="semckd")
    assert (cfg.ce_weight, cfg.kd_weight, cfg.term_weight, cfg.temperature) == (1, 1, 400, 4)
    assert (cfg.attention_temperature, cfg.preactivation, cfg.inside, cfg.ablation) == (
        1,
        False,
        "published",
        "",
    )


@pytest.mark.parametrize(("inside", "millions"), [("published", 10.2), ("slim", 1.56)])
def test_projections_are_as_large_as_published(inside: str, millions: float) -> None:
    """From resnet32x4 to resnet8x4. Both have maps of 64, 128 and 256 channels."""
    with torch.device("meta"):
        maps = [torch.empty(1, width, 1, 1) for width in (64, 128, 256)]
        errors = MapErrors(maps, maps, slim=inside == "slim")
    assert sum(p.numel() for p in errors.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_column_starts_as_if_there_were_one_for_each_of_64_images() -> None:
    """As torch initialises a linear layer of 64 inputs: evenly between -1/8 and 1/8."""
    torch.manual_seed(0)
    weight = Places().weight
    assert 0.12 < weight.abs().max() <= 1 / 8
    assert weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)


# --- weights


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_weights_of_each_map_of_the_student_sum_to_one_and_are_noted(ablation: str) -> None:
    student, teacher = different()
    method = made(student, teacher, ablation=ablation)
    weights = method.weights(list(student.values()), list(teacher.values()))
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(2), torch.ones(len(weights), 2).double())
    term(method, student, teacher)
    assert list(method.notes) == [f"{s}~{t}" for s in student for t in teacher]
    assert [note.item() for note in method.notes.values()] == pytest.approx(
        weights.mean(0).flatten().tolist()
    )
    assert not any(note.requires_grad for note in method.notes.values())


def test_equal_maps_of_the_teacher_have_equal_weights() -> None:
    student, teacher = different()
    twins = {"stage1": teacher["stage1"], "stage2": teacher["stage1"]}
    method = made(student, twins)
    assert isinstance(method.weights, Attention)
    method.weights.keys[1].load_state_dict(method.weights.keys[0].state_dict())
    assert torch.allclose(method.weights([*student.values()], [*twins.values()]), torch.tensor(0.5).double())


def test_a_higher_temperature_makes_the_weights_more_equal() -> None:
    student, teacher = different()
    method = made(student, teacher)
    assert isinstance(method.weights, Attention)
    uneven = []
    for temperature in (0.5, 1.0, 4.0, 1e9):
        method.weights.temperature = temperature
        weights = method.weights([*student.values()], [*teacher.values()])
        uneven.append((weights - 1 / 3).abs().max().item())
    assert uneven == sorted(uneven, reverse=True)
    equal = made(student, teacher, ablation="equal")
    equal.errors.load_state_dict(method.errors.state_dict())
    assert uneven[-1] < 1e-6
    assert term(method, student, teacher).item() == pytest.approx(
        term(equal, student, teacher).item(), rel=1e-6
    )


def test_with_one_map_each_the_term_is_a_hint_with_a_projection() -> None:
    student, teacher = random_maps(3, (2, 4, 4)), random_maps(3, (5, 2, 2))
    method = made(student, teacher)
    assert isinstance(method.errors, MapErrors)
    hint = F.mse_loss(method.errors.projections[0](F.avg_pool2d(student["stage1"], 2)), teacher["stage1"])
    assert term(method, student, teacher).item() == pytest.approx(hint.item())


def test_a_student_like_its_teacher_has_nothing_to_learn_without_projections() -> None:
    one = random_maps(3, (2, 4, 4))
    assert term(made(one, one, ablation="no_projection"), one, one) == 0
    assert term(made(one, one), one, one) > 0


def test_gradients_reach_the_student_through_the_weights() -> None:
    student, teacher = different()
    method = made(student, teacher, ablation="no_projection")
    student["stage2"].requires_grad_()
    torch.autograd.backward(method.weights([*student.values()], [*teacher.values()])[0, 1, 0])
    assert student["stage2"].grad is not None
    assert student["stage2"].grad.abs().min() > 0


# --- batches of any size


def test_a_short_batch_uses_the_first_columns_and_a_longer_one_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(semckd, "LONGEST", 5)
    layer, rows = Places(), torch.randn(7, 7)
    assert layer.weight.shape[1] == 5
    assert torch.allclose(layer(rows[:3, :3]), F.linear(rows[:3, :3], layer.weight[:, :3], layer.bias))
    assert torch.allclose(
        layer(rows), F.linear(rows, torch.cat([layer.weight, layer.weight[:, :2]], 1), layer.bias)
    )


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_batch_may_have_any_size(ablation: str, batch: int) -> None:
    method = made(*different(4), ablation=ablation)
    student, teacher = (
        random_maps(batch, (2, 4, 4), (3, 2, 2)),
        random_maps(batch, (3, 5, 5), (2, 3, 3), (4, 1, 2)),
    )
    assert term(method, student, teacher).item() == pytest.approx(
        slow_term(method, student, teacher), rel=1e-9
    )


def test_what_is_learned_from_full_batches_holds_for_a_short_one() -> None:
    """The teacher's first map follows from the student's map, its second one is noise."""
    torch.manual_seed(0)
    turn = torch.randn(6, 4)

    def batch(size: int) -> tuple[Maps, Maps]:
        kind = torch.randn(size, 4, 1, 1)
        student = (kind + 0.3 * torch.randn(size, 4, 2, 2)).relu()
        learnable = torch.einsum("oc,bchw->bohw", turn, student).relu()
        return {"stage1": student}, {"stage1": learnable, "stage2": 2 * torch.randn(size, 6, 2, 2).relu()}

    student, teacher = batch(4)
    method = SemanticCalibration(Config(name="semckd"), step_of(student, teacher), torch.zeros(2))
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(term(method, *batch(16)))
        optimizer.step()
    for size in (16, 5):
        weights = []
        for _ in range(10):
            term(method, *batch(size))
            weights.append(method.notes["stage1~stage1"].item())
        assert sum(weights) / len(weights) > 0.8, size


@pytest.mark.parametrize(
    "settings", [*({"ablation": ablation} for ablation in ABLATIONS), {"preactivation": True}], ids=str
)
def test_short_and_accumulated_batches_train_all_parameters(settings: dict[str, Any]) -> None:
    world = World.make()  # 22 pictures in batches of 8, each in 3 parts
    method = world.method("semckd", **settings)
    before = snapshot(method)
    curves = world.fit(method, cfg=QUICK.model_copy(update={"epochs": 1, "accumulate": 3}))
    assert all(math.isfinite(value) for value in curves["features"])
    parameters = {f"0.{name}" for name, _ in method.named_parameters()}
    assert parameters <= moved(before, snapshot(method))


# --- the maps


def test_maps_before_the_activation_are_used_with_preactivation() -> None:
    student, teacher = different()
    method = made(student, teacher, preactivation=True)
    step = step_of(student, teacher)
    others = step_of(*different())
    answers = [
        Answer(a.logits, b.maps, a.pooled, a.preactivations)
        for a, b in ((step.student, others.student), (step.teacher, others.teacher))
    ]
    mixed = Step.of(student=answers[0], teacher=answers[1], labels=step.labels, index=step.index)
    assert method.terms(mixed)["features"].item() == pytest.approx(
        slow_term(method, student, teacher), rel=1e-9
    )


def test_each_map_of_the_student_is_matched_with_each_of_the_teacher() -> None:
    student, teacher = different()
    step = step_of({"stem": student["stage1"]} | student, {"stem": teacher["stage1"]} | teacher)
    named: tuple[tuple[str, ...], ...] = ((), ("stem", "stage2"))
    for names, expected in zip(named, (("stage1", "stage2"), ("stem", "stage2")), strict=True):
        method = SemanticCalibration(Config(name="semckd", student_maps=names), step, step.labels)
        assert method.pairs == [(s, t) for s in expected for t in ("stage1", "stage2", "stage3")]


@pytest.mark.parametrize(
    "settings", [{"ablation": "none"}, {"attention_temperature": 0}, {"inside": "wide"}], ids=str
)
def test_illegal_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        World.make().method("semckd", **settings)


def test_a_network_without_a_map_but_the_stem_is_refused() -> None:
    bare = step_of({"stem": torch.randn(2, 1, 2, 2)}, {"stem": torch.randn(2, 1, 2, 2)})
    with pytest.raises(ValueError, match="The student has no map to match"):
        SemanticCalibration(Config(name="semckd"), bare, bare.labels)

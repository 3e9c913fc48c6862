import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline.methods import semckd
from pipeline.methods.semckd import Attention, MapErrors, Places, RowErrors, SemanticCalibration, Table
from pipeline.taps import Step, View

Stages = dict[str, Tensor]
Rows = list[list[float]]
Map = list[list[list[list[float]]]]  # instances, channels, height, width
ABLATIONS = ("", "equal", "shared", "no_projection", "no_mlp", "no_similarity")


def maps(batch: int, *shapes: tuple[int, int, int]) -> Stages:
    return {f"stage{n}": torch.randn(batch, *shape, dtype=torch.float64) for n, shape in enumerate(shapes, start=1)}


def unlike(batch: int = 3) -> tuple[Stages, Stages]:
    """Stages of other widths, sizes and number than the teacher's; the smaller size divides no other."""
    return maps(batch, (2, 4, 4), (3, 2, 2)), maps(batch, (3, 5, 5), (2, 3, 3), (4, 1, 2))


def step_of(student: Stages, teacher: Stages) -> Step:
    size = len(next(iter(student.values())))
    s, t = (View(torch.randn(size, 3).double(), stages, torch.zeros(size, 1), stages) for stages in (student, teacher))
    return Step.of(student=s, teacher=t, labels=torch.arange(size) % 3, index=torch.arange(size))


def made(student: Stages, teacher: Stages, **settings: Any) -> SemanticCalibration:
    """With no parameter where its initialisation puts it."""
    method = SemanticCalibration(SemanticCalibration.Config(name="semckd", **settings), step_of(student, teacher), torch.zeros(2))
    for parameter in method.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    return method.double()


def term(method: SemanticCalibration, student: Stages, teacher: Stages) -> Tensor:
    return method.terms(step_of(student, teacher))["features"]


# --- the formulas, one number at a time


def slow_pool(x: Map, height: int, width: int) -> Map:
    def mean(plane: Rows, i: int, j: int) -> float:
        ys = range(i * len(plane) // height, -(-(i + 1) * len(plane) // height))
        xs = range(j * len(plane[0]) // width, -(-(j + 1) * len(plane[0]) // width))
        return sum(plane[y][x] for y in ys for x in xs) / (len(ys) * len(xs))

    return [[[[mean(plane, i, j) for j in range(width)] for i in range(height)] for plane in image] for image in x]


def slow_conv(x: Map, conv: nn.Conv2d) -> Map:
    weight, reach = conv.weight.tolist(), conv.weight.shape[2] // 2
    bias = [0.0] * len(weight) if conv.bias is None else conv.bias.tolist()
    height, width = len(x[0][0]), len(x[0][0][0])

    def at(image: list[Rows], o: int, i: int, j: int) -> float:
        total = bias[o]
        for c, plane in enumerate(image):
            for y in range(max(0, i - reach), min(height, i + reach + 1)):
                for z in range(max(0, j - reach), min(width, j + reach + 1)):
                    total += weight[o][c][y - i + reach][z - j + reach] * plane[y][z]
        return total

    return [[[[at(image, o, i, j) for j in range(width)] for i in range(height)] for o in range(len(weight))] for image in x]


def slow_norm_relu(x: Map, norm: nn.BatchNorm2d) -> Map:
    for c, (scale, shift) in enumerate(zip(norm.weight.tolist(), norm.bias.tolist(), strict=True)):
        values = [v for image in x for row in image[c] for v in row]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + norm.eps)
        for image in x:
            image[c] = [[max(0.0, (v - mean) / spread * scale + shift) for v in row] for row in image[c]]
    return x


def slow_map_errors(projection: nn.Module, student: Tensor, teacher: Tensor) -> list[float]:
    """MSE(T[i], P(S)[i]) of every instance."""
    convs = [layer for layer in projection.children() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in projection.children() if isinstance(layer, nn.BatchNorm2d)]
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    x = slow_norm_relu(slow_conv(slow_pool(student.tolist(), *size), convs[0]), norms[0])
    x = slow_conv(slow_norm_relu(slow_conv(x, convs[1]), norms[1]), convs[2])
    wanted = slow_pool(teacher.tolist(), *size)
    errors = []
    for image, goal in zip(x, wanted, strict=True):
        squares = [
            (p - q) ** 2
            for one, two in zip(image, goal, strict=True)
            for a, b in zip(one, two, strict=True)
            for p, q in zip(a, b, strict=True)
        ]
        errors.append(sum(squares) / len(squares))
    return errors


def slow_similarities(features: Tensor) -> Rows:
    rows = [[v for plane in image for row in plane for v in row] for image in features.tolist()]
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def slow_rows(features: Tensor) -> Rows:
    return [[v for plane in image for row in plane for v in row] for image in features.tolist()]


def slow_linear(row: list[float], layer: nn.Linear) -> list[float]:
    """Of a row that may be shorter than the layer is wide."""
    return [
        b + sum(w * v for w, v in zip(weights, row, strict=False))
        for weights, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def slow_embedding(row: list[float], embed: Any) -> list[float]:
    first, *rest = [layer for layer in embed if isinstance(layer, nn.Linear)]
    x = slow_linear(row, first)
    for layer in rest:  # there is one, but in the ablation no_mlp
        x = slow_linear([max(0.0, v) for v in x], layer)
    length = math.sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((v - max(logits)) / temperature) for v in logits]
    return [p / sum(powers) for p in powers]


def slow_attention(
    method: SemanticCalibration, student: Stages, teacher: Stages, *, rows: Callable[[Tensor], Rows]
) -> list[list[list[float]]]:
    """a[i][s][t]"""
    attention = method.weights
    assert isinstance(attention, Attention)
    queries = [[slow_embedding(row, layer) for row in rows(x)] for x, layer in zip(student.values(), attention.queries, strict=True)]
    keys = [[slow_embedding(row, layer) for row in rows(x)] for x, layer in zip(teacher.values(), attention.keys, strict=True)]
    count = len(queries[0])
    return [
        [
            slow_softmax([sum(p * q for p, q in zip(query[i], key[i], strict=True)) for key in keys], method.cfg.attention_temperature)
            for query in queries
        ]
        for i in range(count)
    ]


def slow_term(method: SemanticCalibration, student: Stages, teacher: Stages) -> float:
    """Eq. 6-10 and 16 and the ablations of table 6, each written out."""
    count = len(student["stage1"])
    uniform = 1 / len(teacher)
    match method.cfg.ablation:
        case "equal":
            weights = [[[uniform] * len(teacher)] * len(student)] * count
        case "shared":
            assert isinstance(method.weights, Table)
            shared = [slow_softmax(row, method.cfg.attention_temperature) for row in method.weights.logits[0].tolist()]
            weights = [shared] * count
        case "no_similarity":
            weights = slow_attention(method, student, teacher, rows=slow_rows)
        case _:
            weights = slow_attention(method, student, teacher, rows=slow_similarities)
    total = 0.0
    for s, reached in enumerate(student.values()):
        for t, wanted in enumerate(teacher.values()):
            if method.cfg.ablation == "no_projection":
                assert isinstance(method.errors, RowErrors)
                errors = []
                for i in range(count):
                    a, b = (slow_embedding(slow_similarities(x)[i], method.errors.values) for x in (reached, wanted))
                    errors.append(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a))
            else:
                assert isinstance(method.errors, MapErrors)
                errors = slow_map_errors(method.errors.projections[s * len(teacher) + t], reached, wanted)
            total += sum(weights[i][s][t] * errors[i] for i in range(count)) / count
    return total


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_term_equals_the_slow_loop(ablation: str) -> None:
    torch.manual_seed(0)
    student, teacher = unlike()
    method = made(student, teacher, ablation=ablation, attention_temperature=1.5)
    assert term(method, student, teacher).item() == pytest.approx(slow_term(method, student, teacher), rel=1e-9)


def test_the_whole_loss_is_that_of_equation_3() -> None:
    torch.manual_seed(0)
    student, teacher = unlike()
    method, step = made(student, teacher), step_of(student, teacher)
    expected = 400 * slow_term(method, student, teacher)
    for z_s, z_t, label in zip(step.student.logits.tolist(), step.teacher.logits.tolist(), step.labels.tolist(), strict=True):
        expected -= math.log(slow_softmax(z_s, 1.0)[label]) / 3
        expected += 16 * sum(t * math.log(t / s) for s, t in zip(slow_softmax(z_s, 4.0), slow_softmax(z_t, 4.0), strict=True)) / 3
    assert sum(weight * value.item() for value, weight in method.loss(step).values()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ablation", ["", "shared", "no_projection", "no_similarity"])
def test_gradcheck(ablation: str) -> None:
    torch.manual_seed(1)
    student, teacher = maps(2, (2, 2, 2), (1, 1, 1)), maps(2, (2, 1, 2), (1, 2, 2))
    method = made(student, teacher, ablation=ablation)
    stages = [stage.requires_grad_() for stage in student.values()]
    small = [parameter for parameter in method.parameters() if parameter.numel() <= 8]

    def features(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return term(method, {"stage1": first, "stage2": second}, teacher)

    assert torch.autograd.gradcheck(features, (*stages, *small))


# --- weights


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_what_a_student_stage_heeds_sums_to_one_and_is_noted(ablation: str) -> None:
    student, teacher = unlike()
    method = made(student, teacher, ablation=ablation)
    weights = method.weights(list(student.values()), list(teacher.values()))
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(2), torch.ones(len(weights), 2).double())
    term(method, student, teacher)
    assert list(method.notes) == [f"{s}~{t}" for s in student for t in teacher]
    assert [note.item() for note in method.notes.values()] == pytest.approx(weights.mean(0).flatten().tolist())
    assert not any(note.requires_grad for note in method.notes.values())


def test_stages_that_look_the_same_are_heeded_the_same() -> None:
    student, teacher = unlike()
    twins = {"stage1": teacher["stage1"], "stage2": teacher["stage1"]}
    method = made(student, twins)
    assert isinstance(method.weights, Attention)
    method.weights.keys[1].load_state_dict(method.weights.keys[0].state_dict())
    assert torch.allclose(method.weights([*student.values()], [*twins.values()]), torch.tensor(0.5).double())


def test_the_hotter_the_attention_the_more_equal() -> None:
    student, teacher = unlike()
    method = made(student, teacher)
    uneven = []
    for temperature in (0.5, 1.0, 4.0, 1e9):
        method.weights.temperature = temperature  # type: ignore[assignment]
        weights = method.weights([*student.values()], [*teacher.values()])
        uneven.append((weights - 1 / 3).abs().max().item())
    assert uneven == sorted(uneven, reverse=True)
    equal = made(student, teacher, ablation="equal")
    equal.errors.load_state_dict(method.errors.state_dict())
    assert uneven[-1] < 1e-6
    assert term(method, student, teacher).item() == pytest.approx(term(equal, student, teacher).item(), rel=1e-6)


def test_one_stage_each_is_a_hint_with_a_projection() -> None:
    student, teacher = maps(3, (2, 4, 4)), maps(3, (5, 2, 2))
    method = made(student, teacher)
    assert isinstance(method.errors, MapErrors)
    hint = F.mse_loss(method.errors.projections[0](F.avg_pool2d(student["stage1"], 2)), teacher["stage1"])
    assert term(method, student, teacher).item() == pytest.approx(hint.item())


def test_without_projections_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    one = maps(3, (2, 4, 4))
    assert term(made(one, one, ablation="no_projection"), one, one) == 0
    assert term(made(one, one), one, one) > 0


def test_gradients_reach_the_student_through_what_it_heeds() -> None:
    student, teacher = unlike()
    method = made(student, teacher, ablation="no_projection")
    student["stage2"].requires_grad_()
    method.weights([*student.values()], [*teacher.values()])[0, 1, 0].backward()
    assert student["stage2"].grad is not None
    assert student["stage2"].grad.abs().min() > 0


# --- batches of any size


def test_a_short_batch_uses_the_first_columns_and_an_endless_one_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semckd, "LONGEST", 5)
    layer, rows = Places(), torch.randn(7, 7)
    assert layer.weight.shape[1] == 5
    assert torch.allclose(layer(rows[:3, :3]), F.linear(rows[:3, :3], layer.weight[:, :3], layer.bias))
    assert torch.allclose(layer(rows), F.linear(rows, torch.cat([layer.weight, layer.weight[:, :2]], 1), layer.bias))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_batch_of_any_size_will_do(ablation: str, batch: int) -> None:
    method = made(*unlike(4), ablation=ablation)
    student, teacher = maps(batch, (2, 4, 4), (3, 2, 2)), maps(batch, (3, 5, 5), (2, 3, 3), (4, 1, 2))
    assert term(method, student, teacher).item() == pytest.approx(slow_term(method, student, teacher), rel=1e-9)


def test_what_full_batches_taught_holds_in_a_short_one() -> None:
    """The first teacher stage can be had from the student's, the second is noise."""
    torch.manual_seed(0)
    turn = torch.randn(6, 4)

    def batch(size: int) -> tuple[Stages, Stages]:
        kind = torch.randn(size, 4, 1, 1)
        student = (kind + 0.3 * torch.randn(size, 4, 2, 2)).relu()
        learnable = torch.einsum("oc,bchw->bohw", turn, student).relu()
        return {"stage1": student}, {"stage1": learnable, "stage2": 2 * torch.randn(size, 6, 2, 2).relu()}

    student, teacher = batch(4)
    method = SemanticCalibration(SemanticCalibration.Config(name="semckd"), step_of(student, teacher), torch.zeros(2))
    optimiser = torch.optim.Adam(method.parameters(), 0.02)
    for _ in range(40):
        optimiser.zero_grad()
        term(method, *batch(16)).backward()
        optimiser.step()
    heeded = {}
    for size in (16, 5):
        several = []
        for _ in range(10):
            term(method, *batch(size))
            several.append(method.notes["stage1~stage1"].item())
        heeded[size] = sum(several) / len(several)
    assert heeded[16] > 0.8
    assert heeded[5] > 0.8


@pytest.mark.parametrize("settings", [*({"ablation": ablation} for ablation in ABLATIONS), {"preactivation": True}], ids=str)
def test_it_trains_over_short_and_cut_batches(settings: dict[str, Any]) -> None:
    world = World.make()  # 22 pictures in batches of 8, each in 3 parts
    method = world.method("semckd", **settings)
    before = snapshot(method)
    curves = world.fit(method, cfg=QUICK.model_copy(update={"epochs": 1, "accumulate": 3}))
    assert all(math.isfinite(value) for value in curves["features"])
    parameters = {f"0.{name}" for name, _ in method.named_parameters()}
    assert parameters <= moved(before, snapshot(method))


# --- stages


def test_maps_before_the_activation_are_taken_if_asked_for() -> None:
    student, teacher = unlike()
    method = made(student, teacher, preactivation=True)
    step = step_of(student, teacher)
    others = step_of(*unlike())
    views = [
        View(a.logits, b.stages, a.pooled, a.preactivations) for a, b in ((step.student, others.student), (step.teacher, others.teacher))
    ]
    mixed = Step.of(student=views[0], teacher=views[1], labels=step.labels, index=step.index)
    assert method.terms(mixed)["features"].item() == pytest.approx(slow_term(method, student, teacher), rel=1e-9)


def test_the_stem_is_left_out_unless_it_is_named() -> None:
    student, teacher = unlike()
    step = step_of({"stem": student["stage1"]} | student, {"stem": teacher["stage1"]} | teacher)
    made_of = {
        names: SemanticCalibration(SemanticCalibration.Config(name="semckd", student_stages=names), step, step.labels)
        for names in ((), ("stem", "stage2"))
    }
    assert made_of[()].students == ("stage1", "stage2")
    assert made_of[("stem", "stage2")].students == ("stem", "stage2")
    assert made_of[()].teachers == made_of[("stem", "stage2")].teachers == ("stage1", "stage2", "stage3")
    assert ("stem", "stage3") in made_of[("stem", "stage2")].pairs


def test_a_stage_without_an_activation_is_refused_by_name() -> None:
    student, teacher = unlike()
    step = step_of(student, teacher)
    view = View(step.teacher.logits, teacher, step.teacher.pooled, {"stage1": teacher["stage1"]})
    probe = Step.of(student=step.student, teacher=view, labels=step.labels, index=step.index)
    with pytest.raises(ValueError, match=r"method\.teacher_stages: stage 'stage2' of the teacher ends in no activation.*: stage1; or let"):
        SemanticCalibration(SemanticCalibration.Config(name="semckd", preactivation=True), probe, step.labels)
    assert SemanticCalibration(SemanticCalibration.Config(name="semckd"), probe, step.labels).pairs


def test_what_a_person_gets_wrong_is_named() -> None:
    world = World.make()
    with pytest.raises(ValueError, match=r"method\.teacher_stages: there is no 'stage9'. Did you mean 'stage3'"):
        world.method("semckd", teacher_stages=("stage1", "stage9"))
    with pytest.raises(ValueError, match="ablation"):
        world.method("semckd", ablation="none")
    with pytest.raises(ValueError, match="attention_temperature"):
        world.method("semckd", attention_temperature=0)
    bare = step_of({"stem": torch.randn(2, 1, 2, 2)}, {"stem": torch.randn(2, 1, 2, 2)})
    with pytest.raises(ValueError, match="shows no stage to match"):
        SemanticCalibration(SemanticCalibration.Config(name="semckd"), bare, bare.labels)

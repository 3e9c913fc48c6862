from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import World, noise

from pipeline.methods.fsp import Config, FlowOfSolution, flows
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

Maps = dict[str, Tensor]
Rows = list[list[float]]


def step_of(student: Maps, teacher: Maps) -> Step:
    s, t = (Answer(torch.zeros(2, 3), maps, torch.zeros(2, 4), {}) for maps in (student, teacher))
    return Step.of(student=s, teacher=t, labels=torch.zeros(2).long(), index=torch.arange(2))


def made(student: Maps, teacher: Maps, **settings: Any) -> FlowOfSolution:
    return FlowOfSolution(Config(name="fsp", **settings), step_of(student, teacher), torch.zeros(2)).double()


def term(student: Maps, teacher: Maps) -> float:
    return made(student, teacher).difference(step_of(student, teacher)).item()


def slow_flow(first: list[Rows], second: list[Rows]) -> Rows:
    """Of one image; both maps are C x H x W, of one size."""
    height, width = len(first[0]), len(first[0][0])
    places = [(y, x) for y in range(height) for x in range(width)]
    return [[sum(a[y][x] * b[y][x] for y, x in places) / len(places) for b in second] for a in first]


def slow_term(student: list[Tensor], teacher: list[Tensor]) -> float:
    total = 0.0
    for n in range(len(student) - 1):
        errors = []
        for b in range(len(student[0])):
            g_s = slow_flow(student[n][b].tolist(), student[n + 1][b].tolist())
            g_t = slow_flow(teacher[n][b].tolist(), teacher[n + 1][b].tolist())
            errors += [
                (p - q) ** 2
                for row_s, row_t in zip(g_s, g_t, strict=True)
                for p, q in zip(row_s, row_t, strict=True)
            ]
        total += sum(errors) / len(errors)
    return total


def three(size: int, *widths: int) -> Maps:
    return {
        name: noise(2, width, size, size)
        for name, width in zip(("stem", "stage1", "stage2"), widths, strict=True)
    }


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = three(2, 2, 3, 4), three(3, 2, 3, 4)
    assert term(student, teacher) == pytest.approx(
        slow_term([*student.values()], [*teacher.values()]), rel=1e-9
    )


def test_the_maps_of_a_flow_are_pooled_to_the_smaller_one() -> None:
    big, small = noise(2, 3, 4, 4), noise(2, 5, 2, 2)
    pooled = torch.stack(
        [big[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], 2
    ).view(2, 3, 2, 2)
    (flow,) = flows([big, small])
    for b in range(2):
        assert torch.allclose(
            flow[b], torch.tensor(slow_flow(pooled[b].tolist(), small[b].tolist()), dtype=torch.float64)
        )


def test_maps_of_another_width_have_the_flow_between_projected_maps() -> None:
    torch.manual_seed(0)
    student, teacher = three(2, 2, 3, 3), three(2, 4, 3, 5)
    method = made(student, teacher)
    first, same, last = method.widen
    assert isinstance(same, nn.Identity)
    widened = [
        first(student["stem"].movedim(1, -1)).movedim(-1, 1),
        student["stage1"],
        last(student["stage2"].movedim(1, -1)).movedim(-1, 1),
    ]
    slow = slow_term(widened, [*teacher.values()])
    assert method.difference(step_of(student, teacher)).item() == pytest.approx(slow, rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = three(3, 2, 3, 4)
    assert term(same, same) == 0
    assert not list(made(same, same).parameters())


def test_positions_do_not_matter() -> None:
    student, teacher = three(3, 2, 3, 4), three(3, 2, 3, 4)
    turned = {name: x.transpose(2, 3).flip(2) for name, x in student.items()}
    assert term(turned, teacher) == pytest.approx(term(student, teacher))


def test_the_gradient_equals_finite_differences() -> None:
    student, teacher = three(2, 2, 2, 3), three(3, 2, 4, 3)
    method = made(student, teacher)

    def difference(*maps: Tensor) -> Tensor:
        return method.difference(step_of(dict(zip(student, maps, strict=True)), teacher))

    assert torch.autograd.gradcheck(difference, tuple(x.requires_grad_() for x in student.values()))


def test_one_image_is_enough() -> None:
    student, teacher = ({name: x[:1] for name, x in three(3, 2, 3, 4).items()} for _ in range(2))
    assert term(student, teacher) == pytest.approx(
        slow_term([*student.values()], [*teacher.values()]), rel=1e-9
    )


def test_phase_flow_trains_all_but_the_classifier_and_phase_distill_has_no_term() -> None:
    world = World.make()
    method = world.method("fsp")
    flow, distill = method.phases(world.student)
    trained = {id(p) for module in flow.trains for p in module.parameters()}
    others = {name for name, p in world.student.net.named_parameters() if id(p) not in trained}
    assert others == {f"{world.student.classifier}.weight", f"{world.student.classifier}.bias"}
    assert {name: weight for name, (_, weight) in flow.loss(world.step()).items()} == {"flow": 50.0}
    assert set(distill.loss(world.step())) == {"ce"}


def test_the_flows_of_a_wider_teacher_are_learned() -> None:
    world = World.make(teacher="wrn_10_2")
    method = world.method("fsp")
    losses = world.fit(method, 0)["flow"]
    assert losses[-1] < losses[0]
    assert [p.shape for p in method.parameters()] == [(32, 16), (64, 32), (128, 64)]


def test_the_stem_is_matched_too() -> None:
    maps = three(2, 1, 1, 1)
    assert made(maps, maps).pairs == [("stem", "stem"), ("stage1", "stage1"), ("stage2", "stage2")]


def test_less_than_two_maps_are_refused() -> None:
    maps = three(2, 1, 1, 1)
    with pytest.raises(
        ValueError, match=r"A flow needs two maps of each network, but only 1 .*method\.student_maps"
    ):
        made(maps, maps, student_maps=("stem",))

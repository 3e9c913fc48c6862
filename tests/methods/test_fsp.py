from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import World

from pipeline.methods.fsp import FlowOfSolution, flows
from pipeline.taps import Step, View

Stages = dict[str, Tensor]


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def stepped(student: Stages, teacher: Stages) -> Step:
    s, t = (View(torch.zeros(2, 3), stages, torch.zeros(2, 4), {}) for stages in (student, teacher))
    return Step.of(student=s, teacher=t, labels=torch.zeros(2).long(), index=torch.arange(2))


def made(student: Stages, teacher: Stages, **settings: Any) -> FlowOfSolution:
    return FlowOfSolution(FlowOfSolution.Config(name="fsp", **settings), stepped(student, teacher), torch.zeros(2)).double()


def term(student: Stages, teacher: Stages) -> float:
    return made(student, teacher).difference(stepped(student, teacher)).item()


def slow_flow(first: list, second: list) -> list[list[float]]:
    """Of one instance, both maps C x H x W of one size."""
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
            errors += [(p - q) ** 2 for row_s, row_t in zip(g_s, g_t, strict=True) for p, q in zip(row_s, row_t, strict=True)]
        total += sum(errors) / len(errors)
    return total


def three(size: int, *widths: int) -> Stages:
    return {name: maps(2, width, size, size) for name, width in zip(("stem", "stage1", "stage2"), widths, strict=True)}


def test_the_term_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    student, teacher = three(2, 2, 3, 4), three(3, 2, 3, 4)
    assert term(student, teacher) == pytest.approx(slow_term([*student.values()], [*teacher.values()]), rel=1e-9)


def test_the_maps_of_a_flow_meet_at_the_smaller_size() -> None:
    big, small = maps(2, 3, 4, 4), maps(2, 5, 2, 2)
    pooled = torch.stack([big[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)], 2).view(2, 3, 2, 2)
    (flow,) = flows([big, small])
    for b in range(2):
        assert torch.allclose(flow[b], torch.tensor(slow_flow(pooled[b].tolist(), small[b].tolist()), dtype=torch.float64))


def test_another_width_is_the_flow_between_projected_maps() -> None:
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
    assert method.difference(stepped(student, teacher)).item() == pytest.approx(slow, rel=1e-9)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn() -> None:
    same = three(3, 2, 3, 4)
    assert term(same, same) == 0
    assert not list(made(same, same).parameters())


def test_where_things_are_does_not_matter() -> None:
    student, teacher = three(3, 2, 3, 4), three(3, 2, 3, 4)
    turned = {name: stage.transpose(2, 3).flip(2) for name, stage in student.items()}
    assert term(turned, teacher) == pytest.approx(term(student, teacher))


def test_gradcheck() -> None:
    student, teacher = three(2, 2, 2, 3), three(3, 2, 4, 3)
    method = made(student, teacher)

    def difference(*stages: Tensor) -> Tensor:
        return method.difference(stepped(dict(zip(student, stages, strict=True)), teacher))

    assert torch.autograd.gradcheck(difference, tuple(stage.requires_grad_() for stage in student.values()))


def test_one_instance_is_fine() -> None:
    student, teacher = ({name: stage[:1] for name, stage in three(3, 2, 3, 4).items()} for _ in range(2))
    assert term(student, teacher) == pytest.approx(slow_term([*student.values()], [*teacher.values()]), rel=1e-9)


def test_the_flow_phase_trains_all_but_the_classifier_and_the_distill_phase_has_no_term() -> None:
    world = World.make()
    method = world.method("fsp")
    flow, distill = method.phases(world.student)
    trained = {id(p) for module in flow.trains for p in module.parameters()}
    left = {name for name, p in world.student.net.named_parameters() if id(p) not in trained}
    assert left == {f"{world.student.classifier}.weight", f"{world.student.classifier}.bias"}
    assert {name: weight for name, (_, weight) in flow.loss(world.step()).items()} == {"flow": 50.0}
    assert set(distill.loss(world.step())) == {"ce"}


def test_a_wider_teacher_can_be_followed() -> None:
    world = World.make(teacher="wrn_10_2")
    method = world.method("fsp")
    losses = world.fit(method, 0)["flow"]
    assert losses[-1] < losses[0]
    assert [p.shape for p in method.parameters()] == [(32, 16), (64, 32), (128, 64)]


def test_stages_are_paired_from_the_deepest_unless_they_are_named() -> None:
    student = three(2, 1, 1, 1)
    teacher = student | {"stage3": maps(2, 1, 2, 2)}
    assert made(student, teacher).pairs == [("stem", "stage1"), ("stage1", "stage2"), ("stage2", "stage3")]
    assert made(student, teacher, student_stages=("stem", "stage2")).pairs == [("stem", "stage2"), ("stage2", "stage3")]


def test_stages_without_a_flow_are_refused() -> None:
    stages = three(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"method\.teacher_stages: there is no 'stage9'. Did you mean 'stage2'"):
        made(stages, stages, teacher_stages=("stage9",))
    with pytest.raises(ValueError, match=r"method\.student_stages names 3 stages, but there are 2 in the other"):
        made(stages, stages, student_stages=tuple(stages), teacher_stages=("stem", "stage1"))
    with pytest.raises(ValueError, match=r"A flow needs two stages.*method\.student_stages"):
        made(stages, stages, student_stages=("stem",))

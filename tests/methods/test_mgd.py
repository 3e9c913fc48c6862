from functools import partial
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from world import World, maps, method_on_maps, step_of_maps

from pipeline.methods._margin import partial_distance
from pipeline.methods.mgd import Matching, MatchingGuided, Reducer

REDUCERS: list[Reducer] = ["sparse", "random_drop", "absolute_max"]
made = partial(method_on_maps, MatchingGuided)


def matchings(method: MatchingGuided) -> list[Matching]:
    return [matching for matching in method.matchings if isinstance(matching, Matching)]


def assigned(matching: Matching) -> dict[int, set[int]]:
    """By channel of the student: the teacher's channels that are assigned to it."""
    return {
        s: set(row[:count])
        for s, (row, count) in enumerate(zip(matching.table.tolist(), matching.count.tolist(), strict=True))
    }


def distance(x: Tensor, y: Tensor) -> float:
    x_values: list[float] = x.flatten().tolist()
    y_values: list[float] = y.flatten().tolist()
    return sum((a - b) ** 2 for a, b in zip(x_values, y_values, strict=True))


def cheapest(student: Tensor, teacher: Tensor, each: int) -> dict[int, set[int]]:
    """The cheapest of all ways to assign `each` channels of the teacher to each channel of the student."""
    slots = [n for n in range(student.shape[1]) for _ in range(each)]
    cost = [
        [distance(student[:, s], teacher[:, t]) for t in range(teacher.shape[1])]
        for s in range(student.shape[1])
    ]
    ways = permutations(range(teacher.shape[1]), len(slots))
    way = min(ways, key=lambda way: sum(cost[s][t] for s, t in zip(slots, way, strict=True)))
    return {n: {t for s, t in zip(slots, way, strict=True) if s == n} for n in range(student.shape[1])}


@pytest.mark.parametrize("reducer", REDUCERS)
def test_the_term_equals_the_slow_loop(reducer: Reducer) -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 4, 4), (2, 2, 2, 2)), maps((2, 6, 4, 4), (2, 4, 2, 2))
    method, step = made(student, teacher, reducer=reducer)
    method.terms(step)  # solves the assignment
    method.eval()
    expected = 0.0
    for n, (name, weight) in enumerate({"stage1": 0.5, "stage2": 1.0}.items()):
        norm = method.norms[n]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.weight)
        s, t = student[name].tolist(), teacher[name].tolist()
        size = len(s[0][0])
        table, count = matchings(method)[n].table.tolist(), matchings(method)[n].count.tolist()
        margins = []
        for channel in range(len(t[0])):
            negative = [v for image in t for row in image[channel] for v in row if v < 0]
            margins.append(sum(negative) / len(negative))
        for b in range(2):
            for c in range(2):
                chosen = table[c][: count[c]] if reducer == "absolute_max" else table[c][:1]
                deviation = (norm.running_var[c].item() + norm.eps) ** 0.5
                for y in range(size):
                    for x in range(size):
                        target = max((max(t[b][k][y][x], margins[k]) for k in chosen), key=abs)
                        value = (s[b][c][y][x] - norm.running_mean[c].item()) / deviation
                        value = value * norm.weight[c].item() + norm.bias[c].item()
                        if not value <= target <= 0:
                            expected += weight * (target - value) ** 2 / 2
    assert method.terms(step)["channels"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("reducer", "each"), [("sparse", 1), ("random_drop", 3), ("absolute_max", 3)])
def test_the_assignment_is_the_cheapest(reducer: Reducer, each: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 2, 2), torch.randn(2, 6, 2, 2)
    matching = Matching(2, 6, reducer)
    matching.solve(student, teacher)
    assert assigned(matching) == cheapest(student, teacher, each)


def test_shuffled_channels_are_assigned_to_themselves() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(3, 8, 2, 2)
    order = torch.randperm(8)
    matching = Matching(8, 8, "absolute_max")
    matching.solve(teacher[:, order], teacher)
    student, reduced = matching(teacher[:, order], teacher)
    assert torch.equal(student, reduced)
    assert partial_distance(student, reduced).item() == 0


def test_the_value_furthest_from_0_keeps_its_sign() -> None:
    matching = Matching(1, 3, "absolute_max")
    teacher = torch.tensor([[0.5, -2.0, 1.0], [3.0, -2.0, 1.0]]).view(2, 3, 1, 1)
    assert matching.reduce(teacher).flatten().tolist() == [-2, 3]


def test_random_drop_draws_each_of_the_assigned_channels_and_no_other() -> None:
    torch.manual_seed(0)
    matching = Matching(2, 5, "random_drop")
    matching.assign([(0, 1), (0, 4), (0, 2), (1, 3)])
    teacher = torch.arange(5.0).view(1, 5, 1, 1)
    drawn = torch.cat([matching.reduce(teacher).flatten(1) for _ in range(300)])
    assert torch.bincount(drawn[:, 0].long(), minlength=5)[[1, 2, 4]].min() > 70
    assert set(drawn[:, 0].tolist()) == {1, 2, 4}
    assert set(drawn[:, 1].tolist()) == {3}
    assert matching.eval().reduce(teacher).flatten().tolist() == [1, 3]


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize(("narrow", "wide"), [(4, 3), (3, 4), (4, 9), (3, 3)])
def test_channels_without_a_match_have_no_part_in_the_loss(reducer: Reducer, narrow: int, wide: int) -> None:
    student, teacher = torch.randn(2, narrow, 2, 2, requires_grad=True), torch.rand(2, wide, 2, 2) + 1
    matching = Matching(narrow, wide, reducer)
    matching.solve(student.detach(), teacher)
    torch.autograd.backward(partial_distance(*matching(student, teacher)))
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum((0, 2, 3)) > 0, matching.count > 0)
    assert int(matching.count.sum()) == (min(narrow, wide) if reducer == "sparse" else wide)
    assert matching.complete <= bool((matching.count > 0).all())


def test_the_assignment_is_solved_at_its_interval_and_never_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved = []
    student, teacher = maps((2, 2, 2, 2)), maps((2, 4, 2, 2))
    method, _ = made(student, teacher, solve_every=2)
    for epoch in range(5):
        monkeypatch.setattr(Matching, "solve", lambda *_, epoch=epoch: solved.append(epoch))
        method.eval().terms(step_of_maps(student, teacher, epoch))
        assert epoch not in solved
        for n in range(3):
            method.train().terms(step_of_maps(student, teacher, epoch, starts_epoch=n == 0))
    assert solved == [0, 2, 4]


def test_the_assignment_is_saved() -> None:
    world = World.make(teacher="wrn_10_1")
    method = world.method("mgd")
    assert isinstance(method, MatchingGuided)
    initial = [assigned(matching) for matching in matchings(method)]
    world.fit(method)
    solved = [assigned(matching) for matching in matchings(method)]
    assert solved != initial
    other = world.method("mgd")
    other.load_state_dict(method.state_dict())
    assert isinstance(other, MatchingGuided)
    assert [assigned(matching) for matching in matchings(other)] == solved


def test_margins_come_from_the_batch_norm_that_feeds_the_activation_or_from_data() -> None:
    for teacher, from_data in (("wrn_10_1", False), ("resnet14", True)):
        method = World.make(teacher=teacher).method("mgd")
        assert isinstance(method, MatchingGuided)
        assert [margin.from_data for margin in method.margins] == [from_data] * 3


@pytest.mark.parametrize("reducer", REDUCERS)
def test_the_gradient_equals_finite_differences(reducer: Reducer) -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 3, 2, 2), (2, 2, 1, 1)), maps((2, 4, 2, 2), (2, 2, 2, 2))
    method, step = made(student, teacher, reducer=reducer)
    method.terms(step)
    method.eval()
    inputs = [x.requires_grad_() for x in student.values()]

    def channels(first: Tensor, second: Tensor, *_: Tensor) -> Tensor:
        return method.terms(step_of_maps({"stage1": first, "stage2": second}, teacher))["channels"]

    assert torch.autograd.gradcheck(channels, (*inputs, *method.norms.parameters()))


def test_one_image_of_one_channel_is_enough() -> None:
    method, step = made(maps((1, 1, 2, 2)), maps((1, 1, 3, 3)))
    assert method.terms(step)["channels"].isfinite()


def test_an_unknown_reducer_is_refused() -> None:
    with pytest.raises(ValueError, match="'sparse', 'random_drop' or 'absolute_max'"):
        World.make().method("mgd", reducer="mean")

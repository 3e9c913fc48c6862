"""What all methods that match logits have in common: classes, standardisation and warm-up."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from world import World, noise, step_of_logits, terms_of_logits

from pipeline import methods
from pipeline.functional import softened_kl, standardised
from pipeline.methods import LogitMethod, warm_up
from pipeline.params import load_params

ROOT = Path(__file__).parents[2]
NAMES = [name for name in methods.names() if issubclass(methods.load(name), LogitMethod)]
of_logits = pytest.mark.parametrize("name", NAMES)


def slow_standardised(rows: list[list[float]]) -> Tensor:
    found = []
    for row in rows:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / len(row))
        found.append([(z - mean) / deviation for z in row])
    return torch.tensor(found, dtype=torch.float64)


def terms(name: str, *args: Any, **settings: Any) -> dict[str, float]:
    return {
        term: value.item() for term, value in terms_of_logits(methods.load(name), *args, **settings).items()
    }


def test_these_are_the_methods_of_logits() -> None:
    assert NAMES == ["dist", "dkd", "mlkd", "ttm", "wttm"]


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    logits = 5 * noise(4, 7) + 3
    found = standardised(logits)
    torch.testing.assert_close(found, slow_standardised(logits.tolist()), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(standardised(found), found)
    torch.testing.assert_close(standardised(-2 * logits + 1), -found)


def test_equal_logits_are_standardised_to_0_with_a_finite_gradient() -> None:
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    found = standardised(logits)
    torch.autograd.backward(found[:, 0].sum())
    assert found.abs().max() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["kd", "at", "fitnet"])
def test_kd_of_any_method_can_be_standardised(name: str) -> None:
    world = World.make()
    step = world.step()
    student, teacher = (answer.logits.detach().double() for answer in (step.student, step.teacher))
    settings = {"kd_weight": 0.9, "temperature": 2.0}
    plain, ours = (
        world.method(name, **settings, standardise=given).phases(world.student)[-1].loss(step)
        for given in (False, True)
    )
    standard_s, standard_t = (slow_standardised(each.tolist()) for each in (student, teacher))
    expected = softened_kl(standard_s, standard_t, 2.0).item()
    assert ours["kd"].value.item() == pytest.approx(expected, rel=1e-4)
    assert plain["kd"].value.item() == pytest.approx(softened_kl(student, teacher, 2.0).item(), rel=1e-4)
    assert plain["kd"].value.item() != pytest.approx(expected, rel=0.01)
    for term in ours.keys() - {"kd"}:
        assert ours[term].value.item() == plain[term].value.item()


def test_a_student_whose_logits_are_the_teachers_on_another_scale_learns_nothing_from_standardised_kd() -> (
    None
):
    teacher = noise(4, 5)
    step = step_of_logits((3 * teacher + 2).requires_grad_(), teacher)
    loss = World.make().method("kd", ce_weight=0.0, standardise=True).loss(step)
    assert loss["kd"].value.item() == pytest.approx(0, abs=1e-12)
    plain = World.make().method("kd", ce_weight=0.0).loss(step)
    assert plain["kd"].value.item() > 0.01


@of_logits
def test_the_terms_of_a_method_of_logits_are_standardised_too(name: str) -> None:
    torch.manual_seed(0)
    student, teacher, labels = 3 * noise(6, 5), 3 * noise(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    plain = terms(name, student, teacher, labels)
    given = terms(name, student, teacher, labels, standardise=True)
    rows = (slow_standardised(each.tolist()) for each in (student, teacher))
    assert given == pytest.approx(terms(name, *rows, labels), rel=1e-6)
    assert all(given[term] != pytest.approx(plain[term], rel=0.01) for term in plain)


@pytest.mark.parametrize(
    "method",
    [{"name": "at"}, {"name": "ce"}, {"name": "mlkd", "term_weight": 0}, {"name": "kd", "kd_weight": 0}],
    ids=lambda method: method["name"],
)
def test_standardise_is_refused_where_no_logits_are_matched(method: dict[str, Any], tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["runs"]["kd"]["method"] = method | {"standardise": True}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"runs\.kd\.method: standardise is true, but kd_weight is 0.*Raise"):
        load_params(tmp_path / "params.yaml")
    params["runs"]["kd"]["method"] = method | {"standardise": True, "kd_weight": 0.5}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    load_params(tmp_path / "params.yaml")


@of_logits
def test_a_teacher_of_other_classes_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"method\.term_weight is \d+\.\d, but the teacher has 4 classes and the student 3.* Set .* 0",
    ):
        terms_of_logits(methods.load(name), noise(2, 3), noise(2, 4))
    cfg = methods.load(name).Config(name=name, term_weight=0.0)
    methods.load(name)(cfg, step_of_logits(noise(2, 3), noise(2, 4)), torch.zeros(2))


@of_logits
def test_logits_equal_to_the_teachers_have_nothing_to_learn(name: str) -> None:
    same = noise(4, 5).requires_grad_()
    unsoftened = {"temperature": 1.0} if name.endswith("ttm") else {}
    found = terms_of_logits(methods.load(name), same, same.detach(), **unsoftened)
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    assert all(value.item() == pytest.approx(0, abs=1e-12) for value in found.values())
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-10


@of_logits
def test_a_shift_of_all_logits_of_an_image_changes_nothing(name: str) -> None:
    student, teacher, shift = noise(4, 5), noise(4, 5), noise(4, 1)
    expected = terms(name, student, teacher)
    assert terms(name, student + shift, teacher - 3 * shift) == pytest.approx(expected, rel=1e-8)


@of_logits
def test_the_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = noise(4, 5).requires_grad_(), noise(4, 5).requires_grad_()
    found = terms_of_logits(methods.load(name), student, teacher)
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    assert teacher.grad is None
    assert student.grad is not None


@of_logits
@pytest.mark.parametrize("scale", [0.0, 1e-3, 300.0])
def test_logits_of_any_size_give_a_finite_gradient(name: str, scale: float) -> None:
    torch.manual_seed(0)
    student, teacher = (scale * torch.randn(6, 5)).requires_grad_(), scale * torch.randn(6, 5)
    found = terms_of_logits(methods.load(name), student, teacher)
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    assert all(value.isfinite() for value in found.values())
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e5


def test_the_warm_up_is_a_twentieth_at_first_and_1_after_its_share() -> None:
    epochs, total = 20, 240
    for epoch in range(total):
        expected = min((epoch + 1) / epochs, 1)
        assert warm_up(epoch / total, epochs / total) == pytest.approx(expected)
    assert warm_up(0.0, 0.0) == 1
    assert warm_up(0.5, 1.0) == pytest.approx(0.55)


@pytest.mark.parametrize("name", ["dkd", "reviewkd"])
def test_the_terms_are_warmed_up_with_the_progress_of_the_phase(name: str) -> None:
    world = World.make()

    def values(progress: float, share: float) -> list[float]:
        step = world.step()
        step.progress = progress
        found = world.method(name, warm_up=share).eval().terms(step)
        return [value.item() for value in found.values()]

    torch.manual_seed(0)
    full = values(0.0, 0.0)
    for progress, share, factor in ((0.0, 0.5, 0.05), (0.2, 0.5, 0.45), (0.6, 0.5, 1.0), (0.0, 0.083, 0.05)):
        torch.manual_seed(0)
        assert values(progress, share) == pytest.approx([factor * value for value in full], rel=1e-4)

"""Which maps a method matches, and which names of maps are refused."""

import pytest
import torch
from torch import Tensor
from world import noise

from pipeline.methods import map_pairs, preactivation_pairs
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step

TWO = ("stem", "stage1", "stage2")
THREE = (*TWO, "stage3")


def answer(maps: tuple[str, ...], preactivations: tuple[str, ...] = ()) -> Answer:
    shown: dict[str, Tensor] = {name: noise(2, 1, 4, 4) for name in maps}
    return Answer(torch.zeros(2, 3), shown, torch.zeros(2, 4), {name: shown[name] for name in preactivations})


def probe(student: Answer, teacher: Answer) -> Step:
    return Step.of(student=student, teacher=teacher, labels=torch.zeros(2).long(), index=torch.arange(2))


def step_of(student: tuple[str, ...], teacher: tuple[str, ...]) -> Step:
    return probe(answer(student), answer(teacher))


def test_all_maps_but_the_stem_are_matched() -> None:
    assert map_pairs(step_of(TWO, TWO), (), ()) == [("stage1", "stage1"), ("stage2", "stage2")]


def test_the_stem_is_matched_if_the_method_asks_for_it() -> None:
    pairs = map_pairs(step_of(TWO, TWO), (), (), with_stem=True)
    assert pairs == [("stem", "stem"), ("stage1", "stage1"), ("stage2", "stage2")]


def test_the_deepest_maps_of_a_network_that_has_more_are_matched() -> None:
    assert map_pairs(step_of(TWO, THREE), (), ()) == [("stage1", "stage2"), ("stage2", "stage3")]
    assert map_pairs(step_of(THREE, TWO), (), ()) == [("stage2", "stage1"), ("stage3", "stage2")]
    pairs = map_pairs(step_of(TWO, THREE), (), (), with_stem=True)
    assert pairs == [("stem", "stage1"), ("stage1", "stage2"), ("stage2", "stage3")]


def test_named_maps_are_matched_in_their_order() -> None:
    step = step_of(THREE, THREE)
    pairs = map_pairs(step, ("stem", "stage2"), ("stage3", "stage1"))
    assert pairs == [("stem", "stage3"), ("stage2", "stage1")]


def test_maps_named_for_one_network_are_matched_with_the_deepest_of_the_other() -> None:
    step = step_of(THREE, THREE)
    assert map_pairs(step, ("stage1",), ()) == [("stage1", "stage3")]
    assert map_pairs(step, (), ("stem", "stage1")) == [("stage2", "stem"), ("stage3", "stage1")]


def test_a_map_that_does_not_exist_is_refused() -> None:
    step = step_of(TWO, THREE)
    with pytest.raises(
        ValueError,
        match=r"method\.student_maps: there is no 'stage3'\. Did you mean 'stage2'\? Choose .*stem",
    ):
        map_pairs(step, ("stage3",), ())
    with pytest.raises(
        ValueError,
        match=r"method\.teacher_maps: there is no 'stage9'\. Did you mean 'stage3'\? Choose .*stem",
    ):
        map_pairs(step, (), ("stage2", "stage9"))


def test_more_names_than_the_other_network_has_maps_are_refused() -> None:
    step = step_of(THREE, TWO)
    with pytest.raises(
        ValueError,
        match=r"method\.student_maps names 3 maps, but the other network has only 2 .* Name 2 or fewer",
    ):
        map_pairs(step, ("stage1", "stage2", "stage3"), ())
    with pytest.raises(ValueError, match=r"method\.teacher_maps names 2 maps, but .* only 1 to match"):
        map_pairs(step, ("stage1",), ("stage1", "stage2"))


@pytest.mark.parametrize("maps", [("stem",), ()])
def test_a_network_without_a_map_but_the_stem_is_refused(maps: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"The student has no map to match\. Under `taps` of that network"):
        map_pairs(step_of(maps, TWO), (), ())
    with pytest.raises(ValueError, match=r"The teacher has no map to match\. Under `taps` of that network"):
        map_pairs(step_of(TWO, maps), ("stage1",), ())


def test_preactivation_pairs_are_the_same_pairs() -> None:
    step = probe(answer(THREE, ("stage2", "stage3")), answer(THREE, THREE))
    assert preactivation_pairs(step, ("stage2", "stage3"), ()) == [("stage2", "stage2"), ("stage3", "stage3")]


def test_a_map_without_an_activation_is_refused() -> None:
    with_activations, without = answer(TWO, TWO), answer(TWO, ("stage2",))
    with pytest.raises(
        ValueError,
        match=r"method\.teacher_maps: map 'stage1' of the teacher does not end in an activation module, .*"
        r"Choose among: stage2; or name the activation, such as layer1\.2\.relu",
    ):
        preactivation_pairs(probe(with_activations, without), (), ())
    with pytest.raises(
        ValueError, match=r"method\.student_maps: map 'stage1' of the student .*among: stage2;"
    ):
        preactivation_pairs(probe(without, with_activations), (), ())
    with pytest.raises(ValueError, match=r"method\.student_maps: .*Choose among: \(none\); or name"):
        preactivation_pairs(probe(answer(TWO), with_activations), (), ())

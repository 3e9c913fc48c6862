"""The script that measures what a training step of each method costs."""

from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from experiments import method_cost
from experiments.method_cost import Setup, World

TINY = ("--teacher", "resnet14", "--student", "resnet8", "--size", "8", "--batch-size", "4")


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_table_has_a_line_for_the_floor_and_for_each_method_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.md"
    method_cost.main(["ce", "kd", *TINY, "--rounds", "2", "--write", str(file)])
    text = capsys.readouterr().out
    assert file.read_text() == text
    heading, _, floor, *others = rows(text)
    assert heading == ["method", "phase", "median ratio", "quartiles", "n", "ms a step"]
    assert floor[:5] == ["floor", "", "1.00", "1.00-1.00", "4"]  # two rounds beside each method
    assert [row[:2] for row in others] == [["ce", "distill"], ["kd", "distill"]]
    assert {len(row) for row in others} == {len(heading)}


def test_earlier_phases_are_measured_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    method_cost.main(["fitnet", *TINY, "--rounds", "1", "--phases", "all"])
    lines = rows(capsys.readouterr().out)[3:]
    assert [line[:2] for line in lines] == [["fitnet", "hint"], ["fitnet", "distill"]]


def tiny_world() -> World:
    return World(Setup(teacher="resnet14", student="resnet8", size=8, batch_size=4, examples=10))


def test_only_the_floor_and_methods_that_read_it_run_the_teacher() -> None:
    world = tiny_world()
    modes: list[list[bool]] = []
    steps = (world.floor(), world.phases("ce")["distill"], world.phases("kd")["distill"])

    def note(net: nn.Module, *_: object) -> None:
        if type(net) is type(world.teacher):
            modes[-1].append(net.training)

    hook = register_module_forward_hook(note)
    for step in steps:
        modes.append([])
        step()
    hook.remove()
    assert [sorted(mode) for mode in modes] == [[False, True], [True], [False, True]]


def test_a_step_trains_the_student() -> None:
    step = tiny_world().phases("ce")["distill"]
    first, *_, last = (step() for _ in range(30))
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    assert last < first

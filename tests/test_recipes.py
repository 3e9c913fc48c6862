"""The recipes of the tables that compare methods: equal lengths, and one weight of a run in all of them."""

from pathlib import Path

import pytest
import torch
from world import World

from experiments.choose_weights import trials
from pipeline import methods
from pipeline.methods._combined import build_method
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[1]
FEW, HUNDRED = ("few_shot", "ten_shot", "five_shot", "tenth"), ("hundred_10", "hundred_50")
CROSS = ("hundred_cross_0", "hundred_cross_half", "hundred_cross_1")


def recipe(stem: str) -> Params:
    return load_params(ROOT / f"recipes/{stem}.yaml")


def epochs(params: Params, name: str, world: World) -> int:
    """Of all phases of a run; with those that its teacher has learned as knowledge."""
    run = params.run(name)
    known = params.knowledge_run(run.teacher) if run.teacher in params.knowledge else None
    method = build_method(run.method, run.partner, world.step(4), torch.as_tensor(world.labels))
    phases = method.phases(world.student)
    return sum((known if known and phase.of_teacher else run).training(phase.name).epochs for phase in phases)


@pytest.mark.parametrize("stem", [*FEW, *HUNDRED, "cross_task", *CROSS])
def test_all_runs_of_a_table_train_equally_long(stem: str) -> None:
    params, world = recipe(stem), World.make()
    lengths = {name: epochs(params, name, world) for name in params.runs}
    assert set(lengths.values()) == {params.train.epochs}, lengths


def test_the_tables_compare_every_method() -> None:
    for stem in (*FEW, *HUNDRED):
        used = {run.method["name"] for run in recipe(stem).runs.values()}
        assert used == set(methods.names()), stem


@pytest.mark.parametrize("stems", [FEW, HUNDRED, CROSS])
def test_what_was_chosen_once_is_in_all_tables(stems: tuple[str, ...]) -> None:
    first, *others = ({name: run.method for name, run in recipe(stem).runs.items()} for stem in stems)
    assert all(other == first for other in others)


@pytest.mark.parametrize("stem", [*FEW, *HUNDRED, "cross_task", *CROSS])
def test_the_weight_of_a_run_is_one_of_those_that_were_tried(stem: str) -> None:
    params = recipe(stem)
    tried = trials(params)
    assert {trial.run for trial in tried.values()} == set(params.runs) - {"alone", "emb"}
    for trial in tried.values():
        legal = {each.weight for each in tried.values() if each.run == trial.run}
        assert params.runs[trial.run].method[trial.setting] in legal, trial.run

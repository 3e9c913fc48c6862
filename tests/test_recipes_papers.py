"""The params files for the tables of the papers: each is legal, can be built and trains."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from world import CLASSES, MEAN, STD, World, moved, pictures, snapshot

from pipeline import nets
from pipeline.functional import normalise
from pipeline.methods._combined import build_method
from pipeline.nets import NetConfig
from pipeline.params import Params, load_params
from pipeline.runs.phase import check_phases
from pipeline.runs.run import Run
from pipeline.taps.tapped import Tapped

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes/papers").glob("*.yaml"))
BATCH = 4
QUICK = ("semckd_tables_2_3", "srm_cifar100")  # the others take minutes in all
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def last_of_the_methods(params: Params) -> str:
    """The first run with the last method that the file names: mostly that of the paper."""
    kinds = {name: (run.method["name"], "combine" in run.method) for name, run in params.runs.items()}
    last = list(dict.fromkeys(kinds.values()))[-1]
    return next(name for name, kind in kinds.items() if kind == last)


def tapped(cfg: NetConfig, images: torch.Tensor) -> Tapped:
    return Tapped(nets.build(cfg.net, CLASSES), images[:2], taps=cfg.taps)


def world_of(params: Params, run: Run) -> World:
    """The networks of a run, with random weights, and small pictures."""
    pixels, labels = pictures(2 * BATCH, size=16 if params.data.size <= 32 else 64)
    images = normalise(torch.as_tensor(pixels), MEAN, STD)
    torch.manual_seed(0)
    student, teacher = tapped(run.student, images), tapped(params.trained_teacher(run.teacher), images)
    teacher.net.requires_grad_(False).eval()
    return World(pixels, labels, student, teacher)


def train(params: Params, name: str) -> None:
    """Two steps of each phase, as the file says but for their number and the size of a batch."""
    run = params.run(name)
    world = world_of(params, run)
    method = build_method(run.method, run.partner, world.step(BATCH), torch.as_tensor(world.labels))
    check_phases(method.phases(world.student), run.phases, f"runs.{name}.phases")
    before = snapshot(world.student.net)
    for n, phase in enumerate(method.phases(world.student)):
        few = {"epochs": 0, "steps": 2, "batch_size": BATCH, "accumulate": 1, "precision": "fp32"}
        curves = world.fit(method, n, run.training(phase.name).model_copy(update=few))
        assert all(math.isfinite(value) for column in curves.values() for value in column), phase.name
    after = snapshot(world.student.net)
    assert moved(before, after)
    assert all(value.isfinite().all() for value in after.values())


def test_there_are_recipes_of_the_papers() -> None:
    assert {file.stem for file in FILES} >= {"semckd_tables_2_3", "srm_cifar100", "srm_transfer"}


@every_file
def test_a_recipe_says_what_it_costs_and_which_numbers_it_is_to_meet(file: Path) -> None:
    text = file.read_text()
    head = " ".join(line.lstrip("# ") for line in text.partition("\nlauncher:")[0].splitlines())
    assert "Cost:" in head
    assert "to meet" in head.lower() or "meets no number" in head
    assert f"recipes/papers/{file.name}" in head
    assert max(map(len, text.splitlines())) <= 110


@every_file
def test_a_recipe_is_legal_and_all_its_networks_can_be_built(file: Path) -> None:
    params = load_params(file)
    ours = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert yaml.safe_load(file.read_text()).keys() == ours.keys()
    with torch.device("meta"):
        for cfg in (*params.teachers.values(), *params.students.values()):
            net = nets.build(cfg.net, 100)
            assert isinstance(net, nn.Module)
            for path in cfg.taps.values():
                net.get_submodule(path.partition("#")[0])
    assert {run.teacher for run in params.runs.values()} >= set(params.knowledge)
    used = {params.runs[name].student for name in params.runs}
    assert used == set(params.students)


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, id=f.stem, marks=() if f.stem in QUICK else pytest.mark.slow) for f in FILES],
)
def test_a_run_of_a_recipe_trains(file: Path) -> None:
    params = load_params(file)
    train(params, last_of_the_methods(params))


@pytest.mark.slow
@every_file
def test_all_runs_of_a_recipe_train(file: Path) -> None:
    params = load_params(file)
    for name in params.runs:
        train(params, name)

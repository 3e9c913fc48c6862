"""What a person sees when a stage can't go on: a paragraph, an exit code, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, heeding_ctrl_c

from pipeline.inputs import InputError
from pipeline.record import Record

BIG = Record("teacher", "big", {})

QUIET = "--num_machines 1 --mixed_precision no --dynamo_backend no"  # what accelerate would warn of choosing by itself


def stage(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def with_params(tmp_path: Path, **data: object) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= data
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "folder", "root": "nowhere"}, "nowhere"),
        ({"source": "foldr"}, "data.source"),
        ({"sizes": 3}, "Did you mean 'size'?"),
    ],
)
def test_bad_input_is_a_paragraph_and_an_exit_code(data: dict, said: str, tmp_path: Path) -> None:
    cwd = with_params(tmp_path, **data)
    done = stage("prepare", "--data", "out", "--record", "r.json", cwd=cwd)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.strip().startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in cwd.iterdir()] == ["params.yaml"]


def test_a_missing_input_says_which_command_makes_it(tmp_path: Path) -> None:
    cwd = with_params(tmp_path)
    done = stage("teacher", "--name", "big", "--data", "d", "--out", "o", "--work", "w", "--record", "r", cwd=cwd)
    assert done.returncode == 2
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_what_was_trained(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"size": 8}
    params["teachers"]["big"] = {"net": "resnet8", "train": {"epochs": 500, "batch_size": 256}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert stage("prepare", "--data", "d", "--record", "r.json", cwd=tmp_path).returncode == 0
    arguments = ["--name", "big", "--data", "d", "--out", "o", "--work", "w", "--record", "t.json"]
    command = [
        sys.executable,
        "-c",
        "from pipeline import train; train.SAVE_EVERY = 0.0; import runpy, sys; runpy.run_module('stages.teacher', run_name='__main__')",
    ]
    running = subprocess.Popen(
        [*command, *arguments], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=heeding_ctrl_c,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("w/*/distill.state")) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "`dvc repro` goes on from there" in said
    assert list(tmp_path.glob("w/teacher-big-*/distill.state"))
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "t.json").exists()


@pytest.fixture
def desk() -> Callable[..., AbstractContextManager[Path]]:
    from types import SimpleNamespace

    from pipeline.data.augment import AugmentConfig
    from pipeline.runs import Lab

    lab: Any = SimpleNamespace(store=SimpleNamespace(content="x"), params=SimpleNamespace(augment=AugmentConfig()), main=True)
    return partial(Lab.desk, lab)


def test_two_trainings_of_the_same_thing_don_t_mix(tmp_path: Path, desk: Callable[..., AbstractContextManager[Path]]) -> None:
    twice = pytest.raises(ValueError, match="already being trained by another process")
    with desk(tmp_path, BIG, cfg=1), twice, desk(tmp_path, BIG, cfg=1):
        pass
    with desk(tmp_path, BIG, cfg=1), desk(tmp_path, BIG, cfg=2):
        assert len(list(tmp_path.glob("teacher-big-*"))) == 2
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(("reached", "left"), [((), 0), (("distill.state",), 1)])
def test_what_is_refused_leaves_only_what_was_trained(
    reached: tuple[str, ...], left: int, tmp_path: Path, desk: Callable[..., AbstractContextManager[Path]]
) -> None:
    with pytest.raises(InputError), desk(tmp_path, BIG) as folder:
        for name in reached:
            (folder / name).touch()
        raise InputError("no")
    assert len(list(tmp_path.glob("teacher-big-*"))) == left


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "python",
        "torchrun --nproc-per-node 2",
        "accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no",
    ],
)
def test_stages_run_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"epochs": 2}
    params["teachers"]["big"] = {"net": "resnet8", "train": {"epochs": 2}}
    params["runs"] = {"fitnet": params["runs"]["fitnet"] | {"seeds": [0], "phases": {"hint": {"epochs": 2}}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert stage("prepare", "--data", "d", "--record", "r.json", cwd=tmp_path).returncode == 0
    common = ["--data", "d", "--work", "w"]
    of_run = [*common, "--name", "fitnet", "--teacher", "t"]
    for arguments in (
        ["stages.teacher", *common, "--name", "big", "--out", "t", "--record", "t.json"],
        ["stages.pretrain", *of_run, "--out", "i", "--record", "p.json"],
        ["stages.distill", *of_run, "--initial", "i", "--out", "s", "--record", "s.json"],
    ):
        env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run([*launcher.split(), "-m", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("epochs on") == 1  # one of the processes speaks
    assert (tmp_path / "s/seed-0/weights.safetensors").is_file()
    assert not list(tmp_path.glob("w/*/*"))

"""What README.md shows must work: its settings are legal, its code is a method, its commands exist and are run somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from world import World

from pipeline import config
from pipeline.methods.base import Method, MethodConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = README.split("```")[1::2]
    return [block.removeprefix(f"{language}\n") for block in fenced if block.startswith(f"{language}\n")]


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.split("\n")[0])
def test_settings_are_legal(block: str, tmp_path: Path) -> None:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    shown = yaml.safe_load(block.replace("sha256: ...", f"sha256: {'ab' * 32}"))
    for section, content in shown.items():
        params[section] = (params[section] | content) if section in ("runs", "teachers", "knowledge", "students") else content
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    config.load(tmp_path / "params.yaml")


def test_the_new_method_is_one() -> None:
    (code,) = [block for block in blocks("python") if "(Method)" in block]
    names: dict[str, Any] = {}
    exec("from pipeline.methods.base import Method, Terms\nfrom pipeline.taps import Step\n" + code, names)
    (new,) = [v for v in names.values() if isinstance(v, type) and issubclass(v, Method) and v is not Method]
    world = World.make()
    curves = world.fit(new(MethodConfig(name="foo"), world.step(4), torch.as_tensor(world.labels)))
    assert curves["loss"][-1] != curves["loss"][0]


def test_every_command_is_run_by_a_test_or_by_ci() -> None:
    """`make` targets are there; commands of DVC are those that tests/test_repro.py runs."""
    makefile = (ROOT / "Makefile").read_text()
    run = (ROOT / "tests/test_repro.py").read_text() + (ROOT / ".ci/run").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert targets >= {"run", "test", "check", "ui"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    for command in re.findall(r"(?:^|`)dvc ((?:exp |metrics |plots )?[a-z]+)", README, re.M):
        called = ", ".join(f'"{word}"' for word in ("dvc", *command.split()))
        assert called in run or (command == "repro" and "repro" in run), f"nothing runs dvc {command}"


def test_the_tree_is_the_tree() -> None:
    (tree,) = [block for block in blocks("") if block.startswith("params.yaml  ")]
    for name in re.findall(r"[\w/]+(?:\.\w+|/)(?=\s|$)", tree):
        if name.split("/")[0] in ("models", "records", "plots", "reports", "metrics"):
            continue
        places = [ROOT / name, ROOT / "pipeline" / name, ROOT / "tests" / name, ROOT / "benchmarks" / name]
        assert any(place.exists() for place in places), name

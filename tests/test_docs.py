"""What README.md and docs/ show must work: settings, code, commands, links, and the tree of folders."""

import argparse
import ast
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deploy.conftest import CLASSES, draft
from PIL import Image
from test_layout import ALLOWED
from world import World

from pipeline.deploy.__main__ import _parser as deploy_parser
from pipeline.methods import Method, MethodConfig
from pipeline.params import load_params
from pipeline.project.__main__ import COMMANDS
from pipeline.project.command import _parsed as options_of

ROOT = Path(__file__).parents[1]
MACHINES = "tests/project/test_many_machines.py"
FILES = [*sorted(ROOT.glob("*.md")), ROOT / "models/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text() for file in FILES}
README, ARCHITECTURE = PAGES["README.md"], PAGES["docs/architecture.md"]
MAKEFILE = (ROOT / "Makefile").read_text()
TABLE = r"^\| (alone|short|light_live) \||^  alone |^\| run \| weight |^Not measured yet: `python -m "
NAMED = ("runs", "teachers", "knowledge", "students", "analysis")  # sections that hold entries by name


def code(language: str) -> list[tuple[str, str]]:
    """The code blocks of a language, each with its page."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    blocks = [(page, *found) for page, text in PAGES.items() for found in fence.findall(text)]
    return [(page, block) for page, kind, block in blocks if kind == language]


def commands(program: str) -> set[str]:
    """What follows the name of a program, in code blocks without a language and between backticks."""
    lines = [re.sub(r"\s+#.*", "", line) for _, block in code("") for line in block.splitlines()]
    lines += [found for text in PAGES.values() for found in re.findall(r"`([^`\n]+)`", text)]
    return {line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")}


@pytest.mark.parametrize(("page", "block"), code("yaml"))
def test_settings_are_legal(page: str, block: str, tmp_path: Path) -> None:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, content in yaml.safe_load(block.replace("sha256: ...", f"sha256: {'ab' * 32}")).items():
        params[section] = params[section] | content if section in NAMED else content
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    load_params(tmp_path / "params.yaml")


@pytest.mark.filterwarnings("ignore:.*Any type hint")  # of mlflow, when its pyfunc is imported
@pytest.mark.parametrize(("page", "block"), code("python"))
def test_code_is_valid_and_what_it_imports_exists(page: str, block: str) -> None:
    tree = ast.parse(block)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict[str, Any] = {}
    exec("\n".join(map(ast.unparse, imports)), names)
    del names["__builtins__"]

    def imported(node: ast.expr) -> Any:
        """What `a` or `a.b.c` is, if `a` is imported."""
        if isinstance(node, ast.Attribute) and (owner := imported(node.value)) is not None:
            return getattr(owner, node.attr)
        return names.get(node.id) if isinstance(node, ast.Name) else None

    assert imports
    found = [(call, imported(call.func)) for call in ast.walk(tree) if isinstance(call, ast.Call)]
    for call, function in found:
        if inspect.isfunction(function) or (inspect.isclass(function) and not issubclass(function, Method)):
            keywords = {str(keyword.arg): None for keyword in call.keywords}
            inspect.signature(function).bind(*call.args, **keywords)


def test_every_snippet_is_run() -> None:
    """By the tests below, and that of docs/tracking.md by tests/track/test_registry.py."""
    run = ["README.md", "README.md", "docs/deploy.md", "docs/tracking.md"]
    assert sorted(page for page, _ in code("python")) == run
    others = [
        block for page in PAGES for block in re.findall(r"```(?!python)\w*\n(.*?)```", PAGES[page], re.S)
    ]
    assert not [block for block in others if re.search("^(import|from|class|def) ", block, re.M)]


def test_the_method_of_the_readme_trains_a_student() -> None:
    (block,) = [block for page, block in code("python") if page == "README.md" and "(Method)" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    (new,) = [v for v in names.values() if isinstance(v, type) and issubclass(v, Method) and v is not Method]
    world = World.make()
    curves = world.fit(new(MethodConfig(name="foo"), world.step(4), torch.as_tensor(world.labels)))
    assert curves["loss"][-1] != curves["loss"][0]


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md"])
def test_the_predictor_of_a_page_answers(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for where, block in code("python") if where == page and "Predictor(" in block]
    draft(tmp_path).write(tmp_path / "models/export/fitnet")
    (tmp_path / "data/prepared").mkdir(parents=True)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "data/prepared/sheet.png")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert any(name in capsys.readouterr().out for name in CLASSES)


def test_make_has_every_target_and_the_readme_shows_the_main_ones() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, flags=re.MULTILINE))
    shown = {command.split()[0] for command in commands("make")}
    assert shown - targets == set()
    assert shown >= {"run", "test", "check", "ui", "docs", "balance"}


def test_every_command_of_dvc_is_run_by_a_test_or_by_ci() -> None:
    run = "".join(
        (ROOT / file).read_text()
        for file in ("tests/test_repro.py", "tests/test_sweeps.py", "tests/test_jobs.py", MACHINES, ".ci/run")
    )
    shown = set()
    for command in commands("dvc"):
        words = command.split()
        shown.add(" ".join(words[: 2 if words[0] in ("exp", "metrics", "plots") else 1]))
    assert shown >= {"repro", "exp run", "exp show", "metrics show", "plots show"}
    for command in shown - {"repro"}:  # Project.repro() runs this one
        called = ", ".join(f'"{word}"' for word in ("dvc", *command.split()))
        assert called in run or f"dvc {command} " in run, f"nothing runs dvc {command}"


def test_every_command_of_the_predictor_is_legal() -> None:
    shown = commands("python predictor.pyz") | commands("handdown deploy")
    assert {command.split()[0] for command in shown} == {"pack", "verify", "predict", "benchmark", "page"}
    for command in shown:
        deploy_parser().parse_args(shlex.split(command))  # exits if it is not
    for name in ("info", "doctor", "serve"):
        assert re.search(rf"`{name}( BUNDLE)?`", PAGES["docs/deploy.md"])
        deploy_parser().parse_args([name] if name == "doctor" else [name, "BUNDLE"])


def test_every_command_of_handdown_is_legal() -> None:
    """Its name, and its options. `stage` is what DVC calls."""
    shown = {re.split(r" (?:and|&&) ", command)[0] for command in commands("handdown")}
    assert {command.split()[0] for command in shown} >= {"new", "check", "plan", "run", "deploy", "ui", "dag"}
    for command in shown:
        name, *words = shlex.split(command)
        if name in ("stage", "--version", "--help", "COMMAND", "..."):
            continue
        assert name in COMMANDS, command
        deploys = name in ("deploy", "predict")  # these hand their words on
        if deploys or not words:
            continue
        function = getattr(importlib.import_module(f"pipeline.project.{COMMANDS[name]}"), name)
        options_of(function, None, words)  # exits if they are not legal


class ParsedError(Exception):
    """The words of a command are legal."""


@pytest.mark.parametrize("command", sorted(commands("python -m")))
def test_every_module_that_is_run_exists_and_takes_these_words(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *words = shlex.split(command)
    if module.startswith("benchmarks."):  # in the changelog
        return
    assert importlib.util.find_spec(module) is not None
    if not module.startswith("experiments.") or not any(word.startswith("--") for word in words):
        return
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def parse_and_stop(parser: Any, given: Any = None, namespace: Any = None, parse: Any = parse) -> None:
            parse(parser, given, namespace)
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, name, parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)  # runpy would warn
    with pytest.raises(ParsedError):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md"])
def test_the_shell_lines_for_a_bundle_run_as_pasted(page: str, tmp_path: Path) -> None:
    """Without what installs packages, and with real paths for BUNDLE and PICTURES."""
    (block,) = [each for where, each in code("") if where == page and "deploy pack" in each]
    bundle = tmp_path / "a bundle"
    draft(bundle.parent).write(bundle)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "picture.png")
    lines = [line for line in block.splitlines() if not line.startswith("pip ") and "benchmark" not in line]
    assert len(lines) >= 2
    script = (
        "\n".join(lines).replace("BUNDLE", shlex.quote(str(bundle))).replace("PICTURES...", "picture.png")
    )
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "This bundle is whole" in done.stdout
    assert page != "README.md" or "picture.png" in done.stdout


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            if not target.exists():
                broken.append(f"{page}: {link}")
            elif anchor and anchor not in anchors(target.read_text()):
                broken.append(f"{page}: {link}: no such heading")
    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown page has for its headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_that_a_page_names_exists() -> None:
    folders = "docs|experiments|pipeline|recipes|stages|tests"
    missing = [
        f"{page}: {name}"
        for page, text in PAGES.items()
        if page != "CHANGELOG.md"
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
        if not (ROOT / name).exists() and Path(name).name not in ("foo.py", "test_foo.py")
    ]
    assert missing == []


def test_the_tree_is_the_one_on_disk() -> None:
    (tree,) = [block for _, block in code("") if "\npipeline/  " in block]
    shown: dict[bool, set[str]] = {False: set(), True: set()}
    for line in tree.splitlines():
        names = [part for part in re.split(r"  +", line.strip()) if re.fullmatch(r"[\w.]+(/|\.\w+)", part)]
        shown[line.startswith("  ")] |= set(names)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [Path(name).parts for name in listed if (ROOT / name).exists()]
    folders = {f"{parts[0]}/" for parts in paths if len(parts) > 1 and not parts[0].startswith(".")}
    made = {"metrics/", "plots/", "records/", "reports/"}  # by the graph
    assert shown[False] == {*folders, *made, "dvc.yaml", "params.yaml"}
    library = [parts[1:] for parts in paths if parts[0] == "pipeline" and parts[1] != "__init__.py"]
    assert shown[True] == {f"{parts[0]}/" if len(parts) > 1 else parts[0] for parts in library}


def test_the_order_of_rooms_is_the_one_that_the_layout_test_checks() -> None:
    (order,) = [block for _, block in code("") if block.startswith("settings ")]
    line_of = {room: n for n, line in enumerate(order.splitlines()) for room in line.split()}
    assert line_of.keys() == {*ALLOWED, "stages"}
    wrong = [
        f"{own} may import {other}"
        for own in ALLOWED
        for other in ALLOWED[own]
        if line_of[other] >= line_of[own]
    ]
    assert wrong == []


def test_the_glossary_has_the_words_of_the_house() -> None:
    table = ARCHITECTURE.partition("## Words")[2]
    words = {word for row in re.findall(r"^\| ([\w, ]+) \|", table, flags=re.M) for word in row.split(", ")}
    assert words >= {
        "run",
        "teacher",
        "student",
        "baseline",
        "phase",
        "stage",
        "tap",
        "map",
        "view",
        "answer",
    }
    assert words >= {"record", "predictions", "result", "bundle", "work folder", "train subset"}


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", ["results"]),
        (
            "docs/results.md",
            [
                "few_shot_weights",
                "hundred_10_weights",
                "few_shot",
                "ten_shot",
                "five_shot",
                "tenth",
                "hundred_10",
                "hundred_50",
                "few_labels",
                "few_labels_cifar",
                "few_labels_birds",
                "views",
                "cross_task",
                "cross_task_weights",
                "hundred_cross_half_weights",
                "hundred_cross_0",
                "hundred_cross_half",
                "hundred_cross_1",
                "photographs",
                "patient",
                "unbalanced",
            ],
        ),
    ],
)
def test_a_page_has_its_tables_between_markers(page: str, names: list[str]) -> None:
    assert re.findall(r"^<!-- (\w+) -->$", PAGES[page], flags=re.MULTILINE) == names
    for name in names:
        _, start, rest = PAGES[page].partition(f"\n<!-- {name} -->\n")
        table, end, _ = rest.partition(f"\n<!-- /{name} -->\n")
        assert start, name
        assert end, name
        assert re.search(TABLE, table, flags=re.MULTILINE), name

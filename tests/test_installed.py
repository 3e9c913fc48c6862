"""One installation, many projects: the wheel in an environment of its own, two projects, an upgrade."""

import re
from pathlib import Path

import pytest
import yaml
from installed import Installed
from world import save_pictures

from pipeline.files import sha256
from pipeline.project.ahead import ALWAYS


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    tool = Installed(tmp_path_factory.mktemp("installed"))
    save_pictures(tool.bin.parent / "our pictures", 90, size=10)
    for name in ("one", "two"):
        tool.do("handdown", "new", name, "--images", "our pictures", cwd=tool.bin.parent)
        shorten(tool.bin.parent / name / "params.yaml")
    return tool


def shorten(params: Path) -> None:
    settings = yaml.safe_load(params.read_text())
    settings["train"] |= {"epochs": 2}
    settings["teachers"]["big"] = {
        "net": "resnet8",
        "min_accuracy": 0,
        "train": {"epochs": 2, "batch_size": 16},
    }
    settings["students"]["small"] = {"net": "wrn_10_1"}
    for run in settings["runs"].values():
        run["seeds"] = [0]
    settings |= {"export": {"parity_images": 20}, "benchmark": {"batches": [1], "seconds": 0.01}}
    params.write_text(yaml.safe_dump(settings, sort_keys=False))


def repro(tool: Installed, project: Path, *target: str) -> tuple[list[str], str]:
    printed = tool.do("dvc", "repro", *target, cwd=project)
    ran = re.findall(r"Running stage '([^']+)'", printed)
    assert ran[0] == ALWAYS[0]
    return ran[1:], printed


def test_it_says_what_it_is_and_where(tool: Installed, tmp_path: Path) -> None:
    printed = tool.do("handdown", "--version", cwd=tmp_path)
    assert printed == f"handdown 0.1.0 in {tool.bin.parent / 'tool'}\n"
    assert "there is no project in this folder" in tool.do("handdown", "run", cwd=tmp_path, fails=True)
    assert "handdown COMMAND" in tool.do("handdown", cwd=tmp_path)
    assert "usage: " in tool.do("handdown", "deploy", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_two_projects_share_it_and_an_upgrade_changes_no_file_of_theirs(tool: Installed) -> None:
    one, two = (tool.bin.parent / name for name in ("one", "two"))
    for project in (one, two):
        assert "params.yaml is sound." in tool.do("handdown", "check", cwd=project)
        assert "teacher@big" in repro(tool, project, "teacher")[0]
        assert repro(tool, project, "teacher")[0] == []
        code = (project / "records/code/teacher/big").read_text()
        assert "  pipeline/methods/ce.py\n" in code
        assert str(tool.bin.parent) not in (project / "dvc.lock").read_text().replace(
            str(tool.bin.parent / "our pictures"), ""
        )
    before = {project: sha256(project) for project in (one, two)}
    module = tool.packages / "pipeline/methods/ce.py"
    module.write_text(module.read_text() + "\n# an upgrade\n")
    assert {project: sha256(project) for project in (one, two)} == before
    words = (
        "Code has changed since these stages ran, so they will run again with handdown 0.1.0: teacher@big."
    )
    assert words in tool.do("handdown", "check", cwd=one)
    assert words in tool.do("handdown", "check", cwd=one)  # until they have run
    ran, printed = repro(tool, two, "teacher")
    assert ran == ["check", "teacher@big"]
    assert words in printed.partition("Running stage 'teacher@big'")[0]
    assert "Code has changed" not in tool.do("handdown", "check", cwd=two)


def test_bad_params_are_a_paragraph(tool: Installed) -> None:
    project = tool.bin.parent / "one"
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("epochs: 2", "epochz: 2", 1))
    printed = tool.do("handdown", "check", cwd=project, fails=True)
    (project / "params.yaml").write_text(text)
    assert "Did you mean 'epochs'?" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_from_images_to_a_verified_student(tool: Installed) -> None:
    project = tool.bin.parent / "one"
    assert "Begun now, it would end at about" in tool.do("handdown", "plan", cwd=project)
    table = tool.do("handdown", "run", cwd=project)
    assert "best on validation" in table
    assert "This bundle is whole" in tool.do("handdown", "deploy", "verify", "models/export/kd", cwd=project)
    picture = next((tool.bin.parent / "our pictures").rglob("*.png"))
    assert picture.name in tool.do("handdown", "predict", str(picture), "--top", "2", cwd=project)
    assert "reports/report.html" in tool.do("handdown", "report", cwd=project)
    assert "is now version 1 of" in tool.do("handdown", "promote", cwd=project)
    assert repro(tool, project)[0] == []
    assert "accuracy" in tool.do("dvc", "metrics", "show", cwd=project)
    module = tool.packages / "pipeline/methods/kd.py"
    module.write_text(module.read_text() + "\n# an upgrade\n")
    ran, printed = repro(tool, project)
    assert {"pretrain@kd", "distill@kd"} <= set(ran)
    assert not [
        stage for stage in ran if "alone" in stage or stage.partition("@")[0] in ("prepare", "teacher")
    ]
    assert "handdown 0.1.0: distill@kd, pretrain@kd." in printed

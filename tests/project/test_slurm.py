"""Files for Slurm, and a stand-in that runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from stub_project import StubProject

from pipeline.project import slurm
from pipeline.project.ahead import ALWAYS, Stage, states
from pipeline.project.parts import parts
from pipeline.settings import InputError

BEFORE: dict[str, list[str]] = {
    ALWAYS[0]: [],
    "check": [ALWAYS[0]],
    "prepare": ["check"],
    "teacher@big": ["check", "prepare"],
    "teacher@old": ["check", "prepare"],
    "knowledge@atoms": ["prepare", "teacher@big"],
    "distill@a": ["prepare", "teacher@big"],
    "distill@b": ["prepare", "knowledge@atoms"],
    "distill@c": ["prepare", "teacher@old"],
    "report": ["distill@a", "distill@b", "distill@c"],
}
# it runs every task of an array at once, as Slurm would
SBATCH = """#!{python} -IS
import os, re, subprocess, sys
open("sent", "a").write(" ".join(sys.argv[1:]) + "\\n")
file = sys.argv[-1]
last = int(re.search("--array=0-([0-9]+)", open(file).read())[1])
failed = False
for task in range(last + 1):
    env = os.environ | {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_ON_NODE": "3"}}
    with open(f"slurm-{{file}}-{{task}}.out", "w") as out:
        failed |= bool(subprocess.run(["bash", file], env=env, stdout=out, stderr=out).returncode)
print("4" + file[0] + ";a cluster")
sys.exit(failed and "a task failed")
"""


@pytest.fixture
def stages() -> list[Stage]:
    changed = {"teacher@big", "distill@c"}
    return states(list(BEFORE), BEFORE, changed=changed, cached=set())[1:]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "a place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(slurm, "printed_by_dvc", lambda *words: "/a cache\n")
    Path("dvc.lock").write_text("stages: {}\n")
    return place


def git_init(project: Path) -> None:
    """The project is a folder of a repository."""
    author = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "start"]):
        subprocess.run(["git", *words], cwd=project.parent, check=True)


def array_of(name: str, text: str) -> list[str]:
    """The words of an array in the script, as bash reads them."""
    lines = [line for line in text.splitlines() if re.match(r"[A-Z]+=\(", line)]
    command = "\n".join([*lines, f'printf "%s\\n" "${{{name}[@]}}"'])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_needs_another_part_comes_in_a_later_array(folder: Path, stages: list[Stage]) -> None:
    git_init(folder)
    files = slurm.write_files(parts(stages), stages, Path("x"), "--gres=gpu:1 --mem=8G", "c0ffee")
    texts = [file.read_text() for file in files]
    assert [array_of("NAMES", text) for text in texts] == [
        ["teacher@big", "c"],
        ["knowledge@atoms", "a"],
        ["b"],
    ]
    assert "\n#SBATCH --array=0-1\n#SBATCH --gres=gpu:1 --mem=8G\n" in texts[0]
    assert "\n#SBATCH --array=0-0\n" in texts[2]
    assert "checkout --quiet c0ffee\n" in texts[0]
    assert f"git clone --quiet --no-checkout {folder.parent} " in texts[0]
    assert "cd \"$COPY/\"'a place/'\n" in texts[0]
    assert array_of("THERE", texts[0]) == ["check prepare", "prepare teacher@old"]
    assert array_of("STAGES", texts[1]) == ["teacher@big knowledge@atoms", "teacher@big distill@a"]
    assert array_of("STAGES", texts[2]) == ["teacher@big knowledge@atoms distill@b"]
    assert Path("x/dvc.lock").read_text() == "stages: {}\n"
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.usefixtures("folder")
def test_options_of_several_lines_are_refused(stages: list[Stage]) -> None:
    with pytest.raises(InputError, match="--options: write all options of sbatch on one line"):
        slurm.write_files(parts(stages), stages, Path("x"), "--mem=8G\nrm -rf x", "c0ffee")


def test_what_is_not_committed_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"`git .* failed: .*not a git repository"):
        slurm._commit()
    git_init(folder)
    assert len(slurm._commit()) == 40
    (folder.parent / "other").touch()  # in the repository, but not in the project
    Path("dvc.lock").write_text("stages: {a: 1}\n")
    Path("metrics").mkdir()
    Path("metrics/gain.json").touch()
    assert len(slurm._commit()) == 40
    Path("params.yaml").touch()
    with pytest.raises(InputError, match=r"params\.yaml: not committed.*Commit first: git add -A"):
        slurm._commit()


def test_without_slurm_nothing_can_be_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="There is no program sbatch here"):
        slurm.slurm(send=True)


@pytest.mark.slow
def test_what_a_cluster_made_comes_home_without_training(tmp_path: Path) -> None:
    project = StubProject(tmp_path / "a place" / "the project", "a", "b")
    sbatch = project.bin / "sbatch"
    sbatch.write_text(SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    shown = project.handdown("slurm", "--options=--gres=gpu:1")
    assert "#SBATCH --gres=gpu:1\n" in shown
    assert "To send them, call this again with --send." in shown
    assert [each.stage for each in project.ran()] == ["check", "prepare", "trial"]
    files = shown[shown.index(".work/slurm/") : shown.index("To send them")].rstrip()
    assert files in project.handdown("slurm", "--send", "--options=--gres=gpu:1")
    ran = project.ran()
    stages = [f"{stage}@{run}" for run in "ab" for stage in ("pretrain", "distill", "evaluate", "export")]
    assert [each.stage for each in ran] == ["teacher@big", *stages]
    assert len({each.cwd for each in ran}) == 3
    assert {each.environment["OMP_NUM_THREADS"] for each in ran} == {"3"}
    (folder,) = (project.place / ".work/slurm").iterdir()
    assert (folder / "sent").read_text().splitlines() == [
        "--parsable 1.sbatch",
        "--parsable --dependency=afterok:41 2.sbatch",
    ]
    assert [each.name for each in folder.iterdir() if each.is_dir()] == []  # of copies
    project.handdown("run")
    alone = [f"benchmark@{run}" for run in "ab"]
    assert [each.stage for each in project.ran()] == ["views", *alone, "report", "track"]
    assert project.is_up_to_date()
    assert "Nothing is left to train" in project.handdown("slurm")


@pytest.mark.slow
def test_a_task_that_was_stopped_goes_on_in_its_copy(tmp_path: Path) -> None:
    project = StubProject(tmp_path / "a place" / "the project", "a")
    project.tell(fails=("distill@a",))
    sbatch = project.bin / "sbatch"
    sbatch.write_text(SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    assert "`sbatch --parsable --dependency=afterok:41 2.sbatch` failed" in " ".join(
        project.handdown("slurm", "--send", fails=True).split()
    )
    (copy,) = (project.place / ".work/slurm").glob("*/a")
    (copy / ".work").mkdir(exist_ok=True)
    (copy / ".work/state").touch()
    project.tell()
    project.ran()
    out = project.do(
        "env", "SLURM_ARRAY_TASK_ID=0", "bash", "-c", "cat .work/state; bash ../2.sbatch", cwd=copy
    )
    assert "Stage 'pretrain@a' didn't change" in out or "Stage 'pretrain@a' is cached" in out
    assert [each.stage for each in project.ran()] == ["distill@a", "evaluate@a", "export@a"]
    assert not copy.exists()

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from data.folders import tree

from pipeline.data.sources import DataConfig
from pipeline.params import AnalysisConfig, Params, load_params
from pipeline.project.check import (
    check_data_root,
    check_launcher,
    check_networks,
    check_transfer,
    write_names,
)
from pipeline.runs.run import StudentConfig, TeacherConfig
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]
KINDS = {"teachers": TeacherConfig, "students": StudentConfig}


def params(root: Path, **data: Any) -> Params:
    cfg = DataConfig(**{"source": "folder", "root": str(root), "size": 8} | data)
    return load_params(ROOT / "params.yaml").model_copy(update={"data": cfg})


@pytest.mark.parametrize("table", ["", "table.csv"])
def test_what_dvc_cannot_watch_is_refused_before_dvc_meets_it(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC hangs at a pipe, fails at a link to nothing, and hashes a linked folder as nothing."""
    root = tree(tmp_path / "raw", {"cat": 1, "dog": 1})
    given = params(root, source="manifest" if table else "folder", table=table)
    check_data_root(given)
    os.mkfifo(root / "cat/pipe.png")
    (root / "dog/gone.png").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"^data\.root .*: cat/pipe\.png \(.*dog/gone\.png \(a link to nothing\)"
    ):
        check_data_root(given)
    for path in ("cat/pipe.png", "dog/gone.png"):
        (root / path).unlink()
    (picture,) = (root / "cat").iterdir()
    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"cat/.* \(Permission denied\)"):
        patched.setattr(os, "access", lambda path, mode: path != picture)  # root may read all
        check_data_root(given)
    (root / "more").symlink_to(root / "cat")
    with pytest.raises(InputError, match=r"'more' \(to '.*/cat'\).*Move or copy"):
        check_data_root(given)


@pytest.mark.parametrize("root", ["nowhere", "a" * 5000, "a\0b"])
def test_a_folder_of_images_that_is_not_there_is_named(root: str) -> None:
    with pytest.raises(InputError, match=r"^data\.root: there is no folder 'a|^data\.root: .* 'nowhere'"):
        check_data_root(params(Path(root)))


@pytest.mark.parametrize("root", ["data", "data/prepared", "models/export", "records", ".work"])
def test_what_the_graph_makes_is_no_folder_of_images(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / root, {"cat": 1, "dog": 1})
    tree(tmp_path / "data/raw", {"cat": 1, "dog": 1})
    check_data_root(params(Path("data/raw")))
    with pytest.raises(InputError, match=rf"^data\.root: '{root}' and .*, which the graph makes, .*data/raw"):
        check_data_root(params(Path(root)))


def test_the_folder_of_a_torchvision_set_may_hold_links(tmp_path: Path) -> None:
    (tmp_path / "cifar").symlink_to(ROOT)
    check_data_root(params(tmp_path, source="torchvision:CIFAR10"))
    check_data_root(params(tmp_path, source="digits"))


@pytest.mark.parametrize(
    "launcher",
    [
        "",
        "pythn",
        "torchrunn --nproc-per-node 2",
        "A=1 python",
        "'python",
        "/usr/bin/nothing -u",
        "$(echo python)",
    ],
)
def test_a_launcher_that_is_no_program_is_refused(launcher: str) -> None:
    with pytest.raises(InputError, match=r"^launcher: .*Write python"):
        check_launcher(launcher)


@pytest.mark.parametrize("launcher", ["sh", "env A=1 sh -c", "/bin/sh -u"])
def test_other_launchers_are_taken(launcher: str) -> None:
    check_launcher(launcher)


MODULES = {
    "sound": "def make(num_classes): ...\n",
    "asks_more": "def make(num_classes, depth): ...\n",
    "broken": "import nothing_of_this_name\n",
    "half": "def make(\n",
}
HASH = "ab" * 32


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"net": "resnet8"}, None),
        ({"net": "torchvision:resnet18"}, None),
        ({"net": "checked.sound:make"}, None),
        ({"net": "checked.gone:make"}, r"big\.net: .*there is no 'checked\.gone'. Put it in the project's"),
        (
            {"net": "checked.sound:mak"},
            r"big\.net: in checked\.sound: there is no 'mak'. Did you mean 'make'",
        ),
        ({"net": "checked.broken:make"}, r"big\.net: .*its import fails with ModuleNotFoundError"),
        ({"net": "checked.half:make"}, r"big\.net: .*its import fails with SyntaxError"),
        ({"net": "checked.asks_more:make"}, r"big\.net: .*Give it a parameter `num_classes` and defaults"),
        ({"start": {"source": "file", "file": "gone.pt"}}, r"big\.start\.file: gone\.pt cannot be opened"),
        (
            {"start": {"source": "file", "file": "here.pt"}},
            r"start\.sha256 is missing.*\n    sha256: [\da-f]{64}$",
        ),
        (
            {"start": {"source": "file", "file": "here.pt", "sha256": HASH}},
            r"start\.sha256 belongs to another file.*\n    sha256: [\da-f]{64}$",
        ),
        ({"net": "onnx:gone.onnx", "start": {"source": "file"}}, r"big\.net: gone\.onnx cannot be opened"),
        ({"net": "onnx:here.pt", "start": {"source": "file"}}, r"big\.start\.sha256 is missing"),
    ],
)
@pytest.mark.parametrize("section", ["teachers", "students"])
def test_networks_and_their_files_are_there_before_a_teacher_is_trained(
    section: str,
    cfg: dict[str, Any],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "checked").mkdir()
    for name, code in MODULES.items():
        (tmp_path / "checked" / f"{name}.py").write_text(code)
    (tmp_path / "here.pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    given: dict[str, Any] = {"net": "resnet8", "input": {"mean": "data", "std": "data"}} | cfg
    if section == "students" and given["net"].startswith("onnx:"):
        return  # refused as such
    if section == "teachers" and given["net"].startswith("onnx:"):
        given |= {"train": {"epochs": 0}}
    sections: dict[str, Any] = {"teachers": {}, "students": {}} | {section: {"big": KINDS[section](**given)}}
    changed = load_params(ROOT / "params.yaml").model_copy(update=sections)
    if message is None:
        check_networks(changed)
    else:
        with pytest.raises(InputError, match=f"^{section}.*{message}"):
            check_networks(changed)
    for name in [name for name in sys.modules if name.partition(".")[0] == "checked"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": "folder", "root": "nowhere"}, r"root 'nowhere': .*does not exist"),
        ({"source": "folder", "root": "empty"}, r"root 'empty': .*no class folders"),
        ({"source": "folder", "root": "few"}, r"root 'few': .*'cat' has 1 usable image"),
        ({"source": "manifest", "root": "few", "table": "gone.csv"}, r".*gone\.csv"),
        ({"source": "folder", "root": "raw"}, None),
    ],
)
def test_other_images_of_an_analysis_are_looked_at_first(
    other: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "raw", {"cat": 9, "dog": 9})
    tree(tmp_path / "few", {"cat": 1, "dog": 9})
    (tmp_path / "empty").mkdir()
    given = load_params(ROOT / "params.yaml").model_copy(
        update={"analysis": {"fitnet": AnalysisConfig(transfer=other)}}
    )
    if message is None:
        check_transfer(given)
    else:
        with pytest.raises(InputError, match=f"^analysis\\.fitnet\\.transfer.*{message}"):
            check_transfer(given)


@pytest.mark.parametrize("names", [[], ["hints", "kd"]])
def test_a_list_of_names_is_never_an_empty_file(names: list[str], tmp_path: Path) -> None:
    """DVC would warn of it at every start."""
    write_names(dict.fromkeys(names), tmp_path / "names.txt")
    assert (tmp_path / "names.txt").read_text().splitlines() == ["# names in params.yaml", *names]


@pytest.mark.parametrize("root", [".", "..", "data/..", "/"])
def test_a_root_that_holds_the_project_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^data\.root: .* holds the project itself"):
        check_data_root(params(Path(root)))


@pytest.mark.parametrize("name", [b"cat/\xff.png", b"\xff/a.png", b"cat/\xff.txt"])
def test_a_name_that_is_not_utf8_is_refused(name: bytes, tmp_path: Path) -> None:
    root = tree(tmp_path / "raw", {"cat": 1, "dog": 1})
    path = os.path.join(os.fsencode(root), name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(InputError, match=r"not valid UTF-8: '[a-z/]*\\udcff.*Rename them") as caught:
        check_data_root(params(root))
    str(caught.value).encode()

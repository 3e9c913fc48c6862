import os
from pathlib import Path
from typing import Any

import pytest
from data.folders import tree

from pipeline.data.sources import DataConfig
from pipeline.params import Params, load_params
from pipeline.project.check import check_data_root, check_launcher, write_names
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]


def params(root: Path, **data: Any) -> Params:
    cfg = DataConfig(**{"source": "folder", "root": str(root), "size": 8} | data)
    return load_params(ROOT / "params.yaml").model_copy(update={"data": cfg})


@pytest.mark.parametrize("table", ["", "table.csv"])
def test_what_dvc_cannot_watch_is_refused_before_dvc_meets_it(tmp_path: Path, table: str) -> None:
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
    (root / "more").symlink_to(root / "cat")
    with pytest.raises(InputError, match=r"'more' \(to '.*/cat'\).*Move or copy"):
        check_data_root(given)


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

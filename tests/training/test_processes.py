"""Two processes that train together end as one does, stop and go on, and end together."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import methods
from pipeline.project.dependencies import ROOT

Found = dict[str, Any]
Case = tuple[str, Found, str, Found]  # see together.py
ROUNDING = 1e-4  # of weights of about 1, after three steps
UNEVEN = {"epochs": 0, "steps": 3, "batch_size": 7}  # shares of 4 and 3 images
SYNCED = UNEVEN | {"sync_bn": True}
QUICK_ONES = ("crd", "kdgan", "ofd", "rkd", "srm")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("aml", {"form": "triplet"}),
    ("at", {"combine": {"name": "crd"}}),
    ("eskd", {"of": "at"}),
    ("fitnet", {"joint": True}),
    ("kd", {"standardise": True}),
    ("knowledge_representing", {"alternate": True}),
    ("mgd", {"reducer": "random_drop"}),
    ("refilled", {"tuple_distances": "normalised"}),
    ("semckd", {"ablation": "no_projection"}),
]


def together(place: Path, asked: dict[str, Any]) -> Found:
    """What came of these tasks of together.py."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/together.py", place / "found"],
        cwd=ROOT,
        env=env,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Found = json.loads((place / "found").read_text())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All that the quick tests ask, from one process that imports torch."""
    synced: list[Case] = [
        ("kd", {}, "resnet8", SYNCED | options) for options in ({}, {"ema": 0.5}, {"accumulate": 2})
    ]
    shared: Case = ("kd", {}, "resnet8", UNEVEN | {"ema": 0.5})
    asked = {
        "equal": [(name, {}, "staged", SYNCED) for name in QUICK_ONES]
        + [(name, {}, "few labels", {"epochs": 0, "steps": 3}) for name in ("aml", "crd")],
        "equal synced": synced,
        "equal shared": [shared, ("fitnet", {}, "resnet8", UNEVEN)],
        "resumed": [(name, {}, "resnet8", {}) for name in ("crd", "kdgan", "ofd")]
        + [("kd", {}, "resnet8", {"ema": 0.5, "batch_size": 7}), ("kd", {}, "resnet8", {"sync_bn": True})],
        "disagreeing": [[0.5, 0.6, 0.4, 0.3, 0.2, 0.1], [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]],
        "refused of another": {"inputs": {"data": "other", "code": "c"}},
        "refused by a lock": {},
        "staged": 61,
        "failing first": 0,
        "failing second": 1,
    }
    return together(tmp_path_factory.mktemp("together"), asked)


def is_rounding(result: dict[str, float]) -> bool:
    assert result["apart"] == 0
    return max(result["weights"], result["curves"]) < ROUNDING


def test_two_processes_end_as_one_in_weights_and_curves(found: Found) -> None:
    assert all(is_rounding(each) for each in found["equal"]), found["equal"]


def test_with_sync_bn_they_do_with_batch_norm_too(found: Found) -> None:
    whole, averaged, parts = found["equal synced"]
    assert is_rounding(whole), whole
    assert is_rounding(averaged), averaged
    assert not is_rounding(parts)  # a part is one of the share of each process


def test_without_sync_bn_each_has_its_own_batch_norm_but_all_end_with_one(found: Found) -> None:
    for result in found["equal shared"]:
        assert not is_rounding(result)


def test_a_signal_to_one_stops_both_and_they_go_on_alike_without_a_shared_folder(found: Found) -> None:
    assert found["resumed"] == []


def test_processes_that_disagree_end_where_the_main_one_does(found: Found) -> None:
    assert [seen for seen, _ in found["disagreeing"]] == [[0.5, 0.6, 0.4, 0.3]] * 2


def test_processes_draw_different_noise(found: Found) -> None:
    """Such as that of dropout."""
    (_, first), (_, second) = found["disagreeing"]
    assert (first, second) == (0, 1)


def test_processes_with_other_files_are_refused(found: Found) -> None:
    for said in found["refused of another"]:
        assert re.match(r"distill kd: process 1 has other data than process 0\. Give all machines", said)


def test_the_lock_of_the_main_process_holds_for_all(found: Found) -> None:
    for said in found["refused by a lock"]:
        assert re.match(r"distill kd is already being trained by another process .*Wait for it", said)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_at_once(found: Found, rank: int) -> None:
    result = found[f"failing {('first', 'second')[rank]}"]
    assert result["codes"] == [2, 2]
    assert result["seconds"] < 20  # on a busy machine
    said = [" ".join(text.split()) for text in result["said"]]
    assert said[rank] == "Error: train.lr: that was too much. Lower it."
    assert said[1 - rank].startswith("Error: distill kd: another process of this training has ended")
    assert all("Traceback" not in text for text in said)


def test_a_run_of_two_processes_ends_as_that_of_one_and_they_share_validation(found: Found) -> None:
    """The teacher's answers are stored, and the work folders are not shared."""
    alone, first, second = found["staged"]
    assert first["metrics"] == second["metrics"]
    for result in (first, second):
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
        assert result["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert 0 < result["validated"] < 0.7 * alone["validated"]
        assert result["left"] == []
    assert first["validated"] + second["validated"] == alone["validated"]


def test_methods_leave_the_other_processes_to_their_helpers() -> None:
    files = (ROOT / "pipeline/methods").glob("*.py")
    assert [file.name for file in files if re.search(r"torch\.distributed|accelerat", file.read_text())] == []


def documented() -> dict[str, str]:
    """The table of docs/scaling.md: for each method, when two processes end as one."""
    text = (ROOT / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", text, re.M)
    return {name: when.strip() for names, when in rows for name in re.findall(r"\w+", names)}


@pytest.mark.slow
def test_each_method_ends_as_the_documentation_says(tmp_path: Path) -> None:
    names, table = methods.names(), documented()
    cases: list[tuple[str, Found]] = [(name, {}) for name in names]
    asked = {
        "equal plain": [(*case, "staged", UNEVEN) for case in cases],
        "equal synced": [(*case, "staged", SYNCED) for case in [*cases, *VARIANTS]],
        "equal srm": [("srm", {"reseed": 1, "sparsity": 0.2}, "staged", SYNCED | {"steps": 8})],
    }
    found = together(tmp_path, asked)
    plain, synced = (dict(zip(names, found[f"equal {kind}"], strict=False)) for kind in ("plain", "synced"))
    seen = {
        name: "always"
        if is_rounding(plain[name])
        else "with `sync_bn`"
        if is_rounding(synced[name])
        else "no"
        for name in names
    }
    assert seen == table
    variants = zip(VARIANTS, found["equal synced"][len(names) :], strict=True)
    assert [case for case, result in variants if not is_rounding(result)] == []
    assert is_rounding(found["equal srm"][0]), found["equal srm"]


@pytest.mark.slow
def test_each_method_goes_on_after_a_stop_as_if_there_had_been_none(tmp_path: Path) -> None:
    cases: list[Case] = [(name, {}, "resnet8", {"accumulate": 2}) for name in methods.names()]
    cases += [(name, settings, "resnet8", {}) for name, settings in VARIANTS]
    assert together(tmp_path, {"resumed": cases})["resumed"] == []

"""Which parts of the graph may run at the same time, and with which share of the machine."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.project.ahead import Stage, states
from pipeline.project.parts import (
    Part,
    cannot_begin,
    divided,
    needed_by,
    parts,
    ready,
    seconds_side_by_side,
    slots,
    slower,
)

BEFORE = {
    "check": [],
    "prepare": ["check"],
    "trial": ["prepare"],
    "views": ["prepare"],
    "teacher@big": ["trial"],
    "teacher@a": ["trial"],  # it has the name of a run
    "knowledge@atoms": ["teacher@big"],
    "pretrain@a": ["teacher@a"],
    "pretrain@b": ["knowledge@atoms"],
    "distill@a": ["pretrain@a", "teacher@a"],
    "distill@b": ["pretrain@b", "knowledge@atoms"],
    "analyse@b": ["distill@b"],
    "evaluate@a": ["distill@a"],
    "evaluate@b": ["distill@b"],
    "export@a": ["evaluate@a"],
    "export@b": ["evaluate@b"],
    "benchmark@a": ["export@a"],
    "benchmark@b": ["export@b"],
    "report": ["views", "benchmark@a", "benchmark@b", "analyse@b"],
}


def ahead(*changed: str) -> list[Stage]:
    return states(list(BEFORE), BEFORE, changed=set(changed), cached=set())


def test_all_stages_of_a_run_are_one_part_but_its_benchmark() -> None:
    found = {part.name: part for part in parts(ahead("prepare"))}
    assert list(found) == ["teacher@big", "teacher@a", "knowledge@atoms", "a", "b"]
    assert found["a"].stages == ("pretrain@a", "distill@a", "evaluate@a", "export@a")
    assert found["b"].stages == ("pretrain@b", "distill@b", "analyse@b", "evaluate@b", "export@b")
    after = {name: set(part.after) for name, part in found.items()}
    assert after == {
        "teacher@big": set(),
        "teacher@a": set(),
        "knowledge@atoms": {"teacher@big"},
        "a": {"teacher@a"},
        "b": {"knowledge@atoms"},
    }


def test_what_is_up_to_date_is_no_part_and_is_not_waited_for() -> None:
    assert parts(ahead()) == []
    assert parts(ahead("evaluate@a")) == [Part("a", ("evaluate@a", "export@a"))]
    assert parts(ahead("distill@b"))[0].after == frozenset()
    assert parts(ahead("benchmark@a", "views")) == []


def test_what_all_parts_need_comes_first_and_nothing_else() -> None:
    stages = ahead("prepare")
    assert needed_by(parts(stages), stages) == ["trial"]
    assert needed_by(parts(ahead("distill@a")), ahead("distill@a")) == []
    assert needed_by([], stages) == []


def test_a_part_begins_when_what_it_needs_has_ended_well() -> None:
    first, second, third = Part("t", ()), Part("k", (), frozenset("t")), Part("r", (), frozenset("kt"))
    assert ready([second, third], []) is None
    assert ready([first, second], []) is first
    assert ready([third, second], ["t"]) is second
    assert ready([third], ["t", "k"]) is third
    assert cannot_begin([second, third], ["t"]) == {"k": "t", "r": "t"}
    assert cannot_begin([third], ["k"]) == {"r": "k"}
    assert cannot_begin([second, third], []) == {}


@pytest.mark.parametrize(
    ("devices", "jobs", "shares"),
    [
        ("", 2, [[], []]),
        ("0", 2, [["0"], ["0"]]),
        ("01", 2, [["0"], ["1"]]),
        ("012", 2, [["0", "2"], ["1"]]),
        ("01", 3, [["0"], ["1"], ["0"]]),
    ],
)
def test_devices_are_divided(devices: str, jobs: int, shares: list[list[str]]) -> None:
    assert divided(list(devices), jobs) == shares


def test_a_slot_has_its_share_of_the_cores_and_its_own_devices() -> None:
    assert slots(2, [], cores=9) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert slots(8, [], cores=4)[7] == {"OMP_NUM_THREADS": "1"}
    assert slots(2, ["3", "MIG-a", "5"], cores=4) == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "3,5"},
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "MIG-a"},
    ]
    assert slots(2, [], cores=8, threads="3") == [{"OMP_NUM_THREADS": "3"}] * 2


def test_every_stage_of_the_graph_is_either_alone_or_side_by_side() -> None:
    import yaml

    from pipeline.records.place import SIDE_BY_SIDE

    graph = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    repeated = {name for name, body in graph.items() if "foreach" in body}
    assert repeated - set(SIDE_BY_SIDE) == {"benchmark"}  # it measures speeds
    assert set(SIDE_BY_SIDE) <= repeated


@pytest.mark.parametrize(
    ("jobs", "cores", "takes"),
    [
        (1, 4, 60.0),  # t, then a, b and c, one after the other
        (2, 4, 40.0),  # t (10), then a (30) beside b (10) and c (10)
        (3, 4, 40.0),
        (9, 4, 40.0),
        (3, 2, 45.0),  # t; 15 s until b and c have ended; then the other 20 s of a
        (3, 1, 60.0),  # all work on one core
    ],
)
def test_the_longest_way_through_the_parts_decides(jobs: int, cores: int, takes: float) -> None:
    todo = [Part("t", ("teacher@t",)), *(Part(name, (f"distill@{name}",), frozenset("t")) for name in "abc")]
    seconds = {"teacher@t": 10.0, "distill@a": 30.0, "distill@b": 10.0, "distill@c": 10.0}
    share = partial(slower, cores=cores, threads=1, devices=0)
    assert seconds_side_by_side(todo, seconds, jobs, share) == pytest.approx(takes)


def test_who_shares_cores_or_devices_takes_longer() -> None:
    assert slower(2, cores=4, threads=2, devices=0) == 1.0
    assert slower(2, cores=4, threads=4, devices=0) == 2.0
    assert slower(3, cores=8, threads=1, devices=2) == 1.5
    assert slower(1, cores=8, threads=1, devices=2) == 1.0
    assert seconds_side_by_side([], {}, 3, lambda n: 1.0) == 0.0

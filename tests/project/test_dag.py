"""The page that draws the graph."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.project import dag
from pipeline.project.ahead import Stage

STAGES = [
    Stage("check", "up to date"),
    Stage("teacher@big", "up to date", ("check",)),
    Stage("distill@a", "cached", ("check", "teacher@big")),
    Stage("distill@b", "runs", ("check", "teacher@big")),
    Stage("evaluate@b", "runs", ("check", "distill@b", "teacher@big")),
    Stage("report", "runs", ("distill@a", "evaluate@b", "teacher@big")),
]


def test_a_stage_is_right_of_all_that_it_needs_and_no_two_share_a_place() -> None:
    places = dag.places_of(STAGES)
    assert len(set(places.values())) == len(STAGES)
    for stage in STAGES:
        assert all(places[name][0] < places[stage.name][0] for name in stage.before)
    assert places["distill@b"][1] == places["evaluate@b"][1] == 1  # a run has a row
    assert places["distill@a"][1] == 0


def test_what_follows_from_other_needs_is_not_drawn() -> None:
    assert dag.direct_needs(STAGES) == [
        ("check", "teacher@big"),
        ("teacher@big", "distill@a"),
        ("teacher@big", "distill@b"),
        ("distill@b", "evaluate@b"),
        ("distill@a", "report"),
        ("evaluate@b", "report"),
    ]


def test_the_page_says_times_and_states_and_needs_no_other_file() -> None:
    page = dag.page(STAGES, {"check": 1.25, "distill@a": 61.0})
    assert not re.search(r"<script|<link|\bsrc=|\bhref=|@import|url\(", page)
    assert "6 stages: 2 up to date, 1 in DVC's cache, 3 would run. They took 62 s" in page.replace(
        "&#x27;", "'"
    )
    drawing = ElementTree.fromstring(re.findall(r"<svg.*</svg>", page, re.DOTALL)[0].replace("xmlns", "x"))
    boxes = {box[0].text: box for box in drawing.iter("g")}
    assert len(boxes) == len(STAGES)
    cached = boxes["distill@a: changed, but DVC's cache has what it would make"]
    assert [text.text for text in cached.iter("text")] == ["distill", "a · 61.0 s"]
    assert cached[1].get("fill") == dag.COLOURS["cached"]
    assert len(list(drawing.iter("path"))) == 6
    for box in drawing.iter("rect"):
        assert float(str(box.get("x"))) + dag.WIDTH <= float(str(drawing.get("width")))
        assert float(str(box.get("y"))) + dag.HEIGHT <= float(str(drawing.get("height")))


def test_names_cannot_become_markup() -> None:
    assert "<b>" not in dag.page([Stage("distill@<b>", "runs")], {})


def test_the_command_reads_the_records_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dag, "mend_locks", lambda: None)
    monkeypatch.setattr(dag, "stages_ahead", lambda: STAGES)
    Path("records/teacher").mkdir(parents=True)
    Path("records/teacher/big.json").write_text(json.dumps({"seconds": 12.0}))
    Path("records/report.json").write_text("damaged")
    dag.dag()
    assert "big · 12.0 s" in Path("reports/graph.html").read_text()
    assert "They took 12 s when they last ran.\nreports/graph.html draws it." in capsys.readouterr().out

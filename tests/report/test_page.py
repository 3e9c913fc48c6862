import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import NAMES, RIGHT, VALIDATION, crowd, edit, fabricate, keep_predictions, look_into, prepared
from PIL import Image

from pipeline import report
from pipeline.report.page import HERE, page

VOID = {"meta", "link", "img", "br", "hr", "input"}
CSS = (HERE / "page.css").read_text()
HOSTILE = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}&amp;\u202eevil"


class Read(HTMLParser):
    """Elements with their attributes and text, in order; fails where tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.all: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", "in": [outer["tag"] for outer in self.open], **{key: value or "" for key, value in attrs}}
        self.all.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, Any]]:
        return [one for one in self.all if one["tag"] == tag and all(one.get(key) == value for key, value in attributes.items())]

    def table(self, title: str) -> dict[str, dict[str, str]]:
        """Rows by name of the table of that caption, their cells by the head of their column."""
        start = next(i for i, one in enumerate(self.all) if one["tag"] == "caption" and one["text"] == title)
        head: list[str] = []
        rows: dict[str, dict[str, str]] = {}
        cells: list[str] = []
        for one in self.all[start + 1 :]:
            if one["tag"] == "table":
                break
            if "thead" in one["in"] and one["tag"] in ("th", "td"):
                head.append(one["text"])
            elif one["tag"] == "th":
                rows[one["text"].removesuffix(" best")] = {}
                cells = [one["text"]]
            elif one["tag"] == "td" and rows:
                rows[list(rows)[-1]][head[len(cells)]] = one["text"]
                cells.append(one["text"])
        return rows


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "records")


def html(records: Path, data: Path = Path("nowhere"), names: dict[str, Any] = NAMES) -> str:
    return page(report.load(records, **names), records=records, data=data, bundles=Path("models/export"))


def test_numbers_are_those_of_the_records(records: Path) -> None:
    keep_predictions(records)
    read = Read(html(records))
    rows = read.table("Every network in numbers")
    for name in RIGHT:
        tested, timed, trained = (
            json.loads((records / stage / f"{name}.json").read_text())["metrics"] for stage in ("evaluate", "benchmark", "distill")
        )
        row = rows[name]
        assert row["accuracy %"] == f"{100 * tested['accuracy']:.2f} ± {100 * tested['spread']:.2f}"
        assert row["agree %"] == f"{100 * tested['agreement']:.2f}"
        assert row["MB"] == f"{timed['size_mb']:.2f}"
        assert row["latency ms"] == f"{timed['latency_ms']:.2f}"
        assert row["params M"] == f"{timed['parameters_m']:.3f}"
        assert row["validation %"] == f"{100 * trained['val_accuracy']:.2f}"
        assert row["gain, points"] == {"alone": "", "kd": "+10.00 [+7.52, +12.48]", "fitnet": "+8.00 [+5.52, +10.48]"}[name]
    assert rows["big (teacher)"]["accuracy %"] == "96.00"
    dots = [title["text"] for title in read.find("title") if title["text"].startswith("seed ")]
    assert Counter(dots) == Counter(f"seed {seed}: {n:.2f} %" for scores in RIGHT.values() for seed, n in enumerate(scores))
    assert read.table("The most frequent errors")["cat"] == {"taken for": "dog", "images": "10", "% of the class": "40.00"}
    assert read.table("Exported files against the trained network")["fitnet"]["largest difference"] == "2.5e-07"
    assert read.table("Speed on this machine's CPU")["fitnet"]["images/s"] == "2000.00"
    assert read.table("Images by class and split")["all"] == {"train": "40", "val": "20", "test": "100"}
    bars = next(one["text"] for one in read.all if one["tag"] == "tr" and one["text"].startswith("cat+"))
    assert bars == "cat+12.0052.0064.0084.00"
    answer = next(one["text"] for one in read.find("section", **{"class": "answer"}))
    for told in (
        "fitnet",
        "83.00 %, ahead of kd with 79.00 %",
        "+8.00 [+5.52, +10.48] points",
        "more than chance",
        "80.00 %",
        "4.75 MB",
        "0.50 ms",
    ):
        assert told in answer


def test_the_matrix_is_the_record_s(records: Path) -> None:
    read = Read(html(records))
    start = next(i for i, one in enumerate(read.all) if one.get("class") == "matrix")
    cells = [one["text"] for one in read.all[start:] if one["tag"] == "td" and "tbody" in one["in"]][:16]
    confusion = json.loads((records / "evaluate" / "fitnet.json").read_text())["details"]["seeds"]["2"]["confusion"]
    assert [int(cell or 0) for cell in cells] == [n for row in confusion for n in row]


def test_best_stands_first_and_is_named_in_words(records: Path) -> None:
    read = Read(html(records))
    who = [one["text"] for one in read.find("span", role="rowheader")]
    assert [name.split()[0] for name in who] == ["bigteacher", "fitnet", "kdkd", "alonece"]
    assert "best" in who[1]


def test_needs_nothing_beside_itself(records: Path, tmp_path: Path) -> None:
    keep_predictions(records)
    text = html(records, prepared(tmp_path / "data"))
    read = Read(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {one["tag"] for one in read.all}
    for one in read.all:
        assert not [key for key in one if key.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            assert one.get(key, "#").startswith(("#", "data:image/")), one
    assert not re.findall(r"url\(|@import", text)
    policy = read.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    links = {one["href"][1:] for one in read.all if one.get("href", "").startswith("#")}
    ids = Counter(one["id"] for one in read.all if "id" in one)
    assert links <= set(ids)
    assert set(ids.values()) == {1}


def test_can_be_read_without_seeing_it(records: Path, tmp_path: Path) -> None:
    keep_predictions(records)
    read = Read(html(records, prepared(tmp_path / "data")))
    tags = Counter(one["tag"] for one in read.all)
    assert (tags["main"], tags["header"], tags["nav"], tags["footer"], tags["h1"]) == (1, 1, 1, 1, 1)
    assert read.find("html")[0]["lang"] == "en"
    assert all("alt" in one for one in read.find("img"))
    assert all(one.get("aria-hidden") == "true" or one.get("aria-label") for one in read.find("svg") if "svg" not in one["in"])
    assert all(one.get("scope") in ("col", "row") for one in read.find("th"))
    scrolled = [one for one in read.all if one.get("class") == "scroll"]
    assert scrolled
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in scrolled)
    levels = [int(one["tag"][1]) for one in read.all if re.fullmatch(r"h\d", one["tag"])]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    """WCAG AA, 4.5 to 1, for every colour that text has on every ground it stands on."""
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+);", re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[scheme == "dark"]))

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return float(np.dot([0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]))

    for ground in ("ground", "card", "tint"):
        for text in ("text", "muted", "best", "teacher", "less"):
            low, high = sorted((light(colours[ground]), light(colours[text])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}, {scheme}"


def test_names_of_strangers_are_text(records: Path, tmp_path: Path) -> None:
    keep_predictions(records)
    for file in (*(records / "evaluate").glob("*.json"), records / "prepare.json"):
        file.write_text(file.read_text().replace('"cat"', json.dumps(HOSTILE)))
    run = HOSTILE.replace("/", "∕")  # a file's name
    for stage in report.RUN_STAGES:
        edit(records / stage / "fitnet.json", name=run)
        (records / stage / "fitnet.json").rename(records / stage / f"{run}.json")
    (records / "evaluate" / "fitnet.npz").rename(records / "evaluate" / f"{run}.npz")
    record = records / "distill" / f"{run}.json"
    curve = {"epoch": [1.0], "loss": [1.0], "val_accuracy": [0.5], "seconds": [1.0], f"note/{HOSTILE}~b": [0.5], f"note/{HOSTILE}": [0.5]}
    edit(record, curves={"distill/seed-0": curve | {f"share of {HOSTILE}": [1.0]}})
    read = Read(html(records, prepared(tmp_path / "data"), {"runs": ["alone", "kd", run], "teachers": ["big"]}))
    tags = {one["tag"] for one in read.all}
    assert "script" not in tags
    assert "\\u202e" not in tags
    assert not [one for one in read.all if "onerror" in one or one.get("src") == "x"]
    named = [one["text"] for one in read.find("bdi")]
    assert HOSTILE in named
    assert run in named
    assert "49" not in named


def test_images_that_only_the_teacher_knows_are_shown(records: Path, tmp_path: Path) -> None:
    keep_predictions(records)
    read = Read(html(records, prepared(tmp_path / "data")))
    shown = next(one["text"] for one in read.find("ul", **{"class": "missed"}))
    # 15 such images; cats are taken for dogs with 0.90, foxes for cats with 0.93, and the surest come first
    assert shown.split("student")[0].strip() == "foxteacher 63% surecat"
    assert shown.count("student 9") == 15
    drawn = [(one["class"], one["style"]) for one in read.find("span") if one.get("class", "").startswith("part-")]
    assert drawn == [("part-0", "flex-grow:81"), ("part-1", "flex-grow:15"), ("part-3", "flex-grow:4")]
    parts = [one["text"] for one in read.find("li") if "right:" in one["text"]]
    assert parts == ["both right: 81 (81.00 %)", "only the teacher right: 15 (15.00 %)", "only the student right: 0 (0.00 %)"]


def test_pixels_are_those_of_the_right_rows(records: Path, tmp_path: Path) -> None:
    import base64
    import io

    keep_predictions(records)
    read = Read(html(records, prepared(tmp_path / "data")))
    images = [one for one in read.find("img") if one["alt"].startswith("A test image of class")]
    values = [int(np.array(Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2]))))[0, 0]) for one in images]
    labels = [report.load(records, **NAMES).best.records["evaluate"].details["classes"].index(one["alt"].split()[-1]) for one in images]
    # test images lie from row 60 on, 25 a class: every picture's class is that of its row
    assert [(value - 60) // 25 for value in values] == labels
    assert len(values) == 15


def test_pictures_of_methods_and_associations_are_shown_where_there_are_some(records: Path) -> None:
    assert "Inside the methods" not in html(records)
    (records / "evaluate" / "kd").mkdir()
    Image.new("RGB", (4, 4), "red").save(records / "evaluate" / "kd" / "grad_cam.png")
    record = json.loads((records / "distill" / "kd.json").read_text())
    for value, curve in zip((0.1, 0.2, 0.6), record["curves"].values(), strict=True):
        curve |= {"note/stage1~stage3": [0.5, 0.5, value], "note/dead": [9.0, 9.0, 4.0], "share of kd": [0.5, 0.5, value]}
    edit(records / "distill" / "kd.json", curves=record["curves"])
    read = Read(html(records))
    assert all(one.get("scope") in ("col", "row") for one in read.find("th"))
    assert read.find("img", alt="grad cam of run kd")[0]["src"].startswith("data:image/png")
    associated = read.all[next(i for i, one in enumerate(read.all) if one.get("class") == "matrix association") :]
    assert next(one["text"] for one in associated if one["tag"] == "td" and "tbody" in one["in"]) == "0.300"
    assert read.table("What methods noted at the end, the mean over seeds")["kd"] == {"stage": "distill", "what": "dead", "value": "4"}
    assert read.table("Share of the student's gradient by term at the end, %")["kd"] == {"kd": "30.00"}


def test_what_was_looked_into_is_shown(records: Path) -> None:
    look_into(records, "kd", sm_score=14.8, cka=0.82, transfer_before=0.5, transfer_after=0.6, transfer_teacher=0.7)
    read = Read(html(records, names=NAMES | {"analysed": ["kd"]}))
    assert read.table("Accuracy on validation, %")["kd"] == {
        "linear probe before distillation": "42.10 ± 1.00",
        "linear probe after": "50.60 ± 1.00",
        "whole network after": "50.90 ± 1.00",
    }
    assert read.table("The pairs of stages that the method associates")["kd"] == {"SM-score, logarithm": "14.80", "CKA": "0.82"}
    carried = read.table("Carried over to other images by a linear classifier: accuracy on their test split, %")["kd"]
    assert carried == {"other images": "others", "before distillation": "50.00", "after": "60.00", "teacher": "70.00"}
    assert [one["alt"] for one in read.find("img") if "of run kd" in one["alt"]] == [
        "How alike they are. of run kd",
        "Where they look. of run kd",
    ]
    (warned,) = (one["text"] for one in read.find("p", **{"class": "warning"}))
    assert warned == "Warning. kd: The dictionary of stage1 is dead in 3 of 3 seeds."
    assert [one["text"] for one in read.find("li")].count("kd: The dictionary of stage1 is dead in 3 of 3 seeds.") == 1
    assert "analyse kd" in read.table("Every stage that ran")


def test_what_nobody_asked_for_is_not_shown(records: Path) -> None:
    look_into(records, "kd", cka=0.82, sm_score=14.8)
    assert "Inside the methods" not in html(records)


def test_relative_improvement_over_those_that_gain(records: Path) -> None:
    table = Read(html(records)).table("How much more than theirs fitnet gains over the student alone")
    # alone 72 %, kd 82 %, fitnet 80 %: it lacks a fifth of what kd gains
    assert table["kd"] == {"its accuracy %": "80.00", "theirs %": "82.00", "relative improvement, %": "-20"}
    assert table["on average"]["relative improvement, %"] == "-20"
    spread = json.loads((records / "evaluate" / "alone.json").read_text())["metrics"] | {"spread": 0.2}
    edit(records / "evaluate" / "alone.json", metrics=spread)
    assert "relative improvement" not in html(records).lower()


def test_int8_is_told_with_its_gate(records: Path) -> None:
    quality = {
        "accuracy": 0.79,
        "accuracy_fp32": 0.8,
        "drop": 1.0,
        "low": 0.25,
        "high": 1.75,
        "agreement": 0.97,
        "snr_db": 28.04,
        "images": 100,
    }
    for name, refused in (("fitnet", []), ("kd", ["it is <worse>"])):
        formats = json.loads((records / "export" / f"{name}.json").read_text())["details"]["formats"]
        int8 = {"file": "student.int8.onnx", "accepted": not refused, "refused": refused, "quality": quality, "test": quality}
        edit(records / "export" / f"{name}.json", details={"formats": formats | {"int8": int8}})
    text = html(records)
    assert Read(text).table("The int8 file beside the float one, on test images")["fitnet"] == {
        "file": "student.int8.onnx",
        "is it good enough": "yes",
        "points lost": "1.00",
        "95 % interval": "0.25 to 1.75",
        "same top-1 %": "97.00",
        "logits over error, dB": "28.0",
        "images": "100",
    }
    assert "no: it is &lt;worse&gt;" in text


def test_the_line_joins_those_that_no_other_beats_in_both(records: Path) -> None:
    for name, size, milliseconds in (("alone", 3.0, 0.9), ("kd", 5.0, 0.4), ("fitnet", 4.0, 0.2)):
        metrics = json.loads((records / "benchmark" / f"{name}.json").read_text())["metrics"]
        edit(records / "benchmark" / f"{name}.json", metrics=metrics | {"size_mb": size, "latency_ms": milliseconds})
    params = json.loads((records / "distill" / "alone.json").read_text())["params"]
    edit(records / "distill" / "alone.json", params=params | {"student": {"net": "resnet20"}})
    size, latency = (one["aria-label"] for one in Read(html(records)).find("svg", role="img")[:2])
    assert "Not beaten in both: alone, fitnet, kd, big." in size  # 72 % in 3 MB, 80 in 4, 82 in 5, 96 in 29.5
    assert "Not beaten in both: kd." in latency  # kd and fitnet are one network: at the median of their times


def test_without_predictions_and_pixels_the_rest_is_there(records: Path) -> None:
    text = html(records)
    assert "dvc repro -f -s evaluate@fitnet" in text
    assert 'class="missed"' not in text
    assert "Calibration error of every network" in text
    assert Read(text).table("Expected calibration error of every network")["kd"] == {"ECE %, mean over seeds": "4.00"}


@pytest.mark.parametrize(
    ("right", "validation", "told"),
    [
        (RIGHT, VALIDATION | {"alone": 0.9}, "A student trained alone; no method earned its cost here."),
        ({name: scores[:1] for name, scores in RIGHT.items()}, VALIDATION, "one seed tells no interval"),
        (RIGHT | {"fitnet": (72, 71, 78)}, VALIDATION, "which chance alone could explain"),
        (RIGHT | {"fitnet": (100, 100, 100)}, VALIDATION, "It makes no error on the test set."),
        (dict.fromkeys(RIGHT, (40, 40, 40)), dict.fromkeys(VALIDATION, 0.0), "+0.00 [+0.00, +0.00]"),
    ],
)
def test_extreme_results_are_told(tmp_path: Path, right: Any, validation: Any, told: str) -> None:
    records = fabricate(tmp_path / "records", right=right, validation=validation)
    keep_predictions(records)
    assert told in Read(html(records)).find("main")[0]["text"]


def test_one_run_without_teacher_or_baseline(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records")
    text = html(records, names={"runs": ["kd"], "teachers": []})
    assert "its gain is not known" in text
    assert 'id="classes"' not in text


def test_forty_runs_of_a_hundred_classes_stay_small(records: Path, tmp_path: Path) -> None:
    names = crowd(records, runs=40, classes=100)
    keep_predictions(records)
    data = prepared(tmp_path / "data", classes=100, images=2700, train=500, size=32, channels=3)
    text = html(records, data, {"runs": names, "teachers": ["big"]})
    read = Read(text)
    assert len(text) < 3_000_000
    assert len(read.find("span", role="rowheader")) == 41
    assert len(read.find("img", **{"class": "heat"})) == 1
    assert not [one for one in read.all if one.get("class") == "matrix"]
    assert "All 100 classes" in text
    assert "28 more runs" in text

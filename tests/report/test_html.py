import base64
import io
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import (
    CLASSES,
    NAMES,
    RIGHT,
    VALIDATION,
    analyse,
    calibrate,
    crowd,
    edit,
    fabricate,
    learn,
    prepared,
    save_predictions,
    unbalance,
)
from PIL import Image

from pipeline.records.intervals import of_difference
from pipeline.records.results import RUN_STAGES, load_results
from pipeline.report.html import HERE, html_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
CSS = (HERE / "report.css").read_text()
HOSTILE = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}&amp;\u202eevil"


class Page(HTMLParser):
    """The elements of a page with their attributes and text, in order. It fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.all: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {
            "tag": tag,
            "text": "",
            "in": [outer["tag"] for outer in self.open],
            **{key: value or "" for key, value in attrs},
        }
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
        return [
            one
            for one in self.all
            if one["tag"] == tag and all(one.get(key) == value for key, value in attributes.items())
        ]

    def table(self, title: str) -> dict[str, dict[str, str]]:
        """The table with this caption: rows by name, their cells by the head of the column."""
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


def html(
    records: Path,
    data: Path = Path("nowhere"),
    names: dict[str, Any] = NAMES,
    views: Path = Path("nowhere.png"),
) -> str:
    results = load_results(records, **names)
    return html_report(results, records=records, data=data, bundles=Path("models/export"), views=views)


def test_what_was_left_out_of_the_data_is_said(records: Path) -> None:
    text = " ".join(html(records).split())
    assert (
        "30 images have no label. Files left out (left_out.csv): duplicate: 3, truncated: 1. Teachers" in text
    )
    manifest = json.loads((records / "prepare.json").read_text())["details"]["manifest"]
    edit(records / "prepare.json", details={"manifest": manifest | {"unlabelled": 0, "left_out": {}}})
    text = " ".join(html(records).split())
    assert "for the test. Files left out (left_out.csv): none. Teachers" in text


def test_the_first_lines_say_from_how_many_images_the_best_learned(records: Path) -> None:
    record = records / "distill" / "fitnet.json"
    assert "(training images: 20)." in html(records)
    details = json.loads(record.read_text())["details"]
    edit(record, details=details | {"subset": {"images": 20, "unlabelled": 1209, "sha256": "a" * 64}})
    assert "(training images: 20 labelled, 1,209 without labels)." in html(records)


def test_the_numbers_are_those_of_the_records(records: Path) -> None:
    save_predictions(records)
    page = Page(html(records))
    rows = page.table("Every network in numbers")
    for name in RIGHT:
        tested, timed, trained = (
            json.loads((records / stage / f"{name}.json").read_text())["metrics"]
            for stage in ("evaluate", "benchmark", "distill")
        )
        row = rows[name]
        assert row["mean %"] == f"{100 * tested['accuracy']:.2f} ± {100 * tested['spread']:.2f}"
        assert row["agree %"] == f"{100 * tested['agreement']:.2f}"
        assert row["MB"] == f"{timed['size_mb']:.2f}"
        assert row["ms"] == f"{timed['latency_ms']:.3f}"
        assert row["params M"] == f"{timed['parameters_m']:.3f}"
        assert row["validation %"] == f"{100 * trained['val_accuracy']:.2f}"
        assert (
            row["gain, points"]
            == {"alone": "", "kd": "+10.00 [+7.52, +12.48]", "fitnet": "+8.00 [+5.52, +10.48]"}[name]
        )
    assert rows["big (teacher)"]["mean %"] == "96.00"
    dots = [title["text"] for title in page.find("title") if title["text"].startswith("seed ")]
    assert Counter(dots) == Counter(
        f"seed {seed}: {n:.2f} %" for scores in RIGHT.values() for seed, n in enumerate(scores)
    )
    assert page.table("The most frequent errors")["cat"] == {
        "predicted as": "dog",
        "images": "10",
        "% of the class": "40.00",
    }
    exported = page.table("Exported files compared with the trained network")["fitnet"]
    assert exported["largest difference"] == "2.5e-07"
    assert (
        page.table("Speed side by side, in turns: compare within this table only")["fitnet"]["images/s"]
        == "2000"
    )
    assert page.table("Images by class and split")["all"] == {"train": "40", "val": "20", "test": "100"}
    assert cells_of_class(page, "cat") == ["+12.00", "52.00", "64.00", "84.00"]
    answer = next(one["text"] for one in page.find("section", **{"class": "answer"}))
    assert answer.index("81.00 %") < answer.index("80.00 %")
    for words in (
        "fitnet",
        "83.00 %, ahead of kd with 79.00 %",
        "+8.00 [+5.52, +10.48] points",
        "more than chance",
        "80.00 %",
        "4.75 MB",
        "0.500 ms",
        "81.00 %",  # of the file, before that of the method
        "95 % interval 72.22 to 87.49 on 100 test images",
        "seed 2, the best of 3 on validation",
        "its file gains +7.00 [",
    ):
        assert words in answer


def cells_of_class(page: Page, name: str) -> list[str]:
    """The numbers of a class in the table of gains: points, baseline, best, teacher."""
    start = next(i for i, one in enumerate(page.all) if one.get("class") == "bars")
    row = next(
        i for i, one in enumerate(page.all) if i > start and one["tag"] == "th" and one["text"] == name
    )
    numbers = [one["text"] for one in page.all[row:] if one["tag"] == "td" and one.get("class") == "n"]
    return numbers[:4]


def test_gains_have_an_interval_for_other_seeds_and_one_for_other_images(records: Path) -> None:
    title = "Gains over the baseline, with 95 % intervals"
    assert Page(html(records)).table(title)["kd"] == {
        "method, points": "+10.00",
        "method, other seeds": "+7.52 to +12.48",
        "method, other images": "",  # there are no predictions
        "file, points": "",
        "file, other images": "",
    }
    save_predictions(records)
    table = Page(html(records)).table(title)
    assert set(table) == {"kd", "fitnet"}
    # seed 2 of both: 85 and 74 images are right, and what alone gets right, kd gets right too
    low, high = of_difference(11, 0, 100)
    assert table["kd"]["file, points"] == "+11.00"
    assert table["kd"]["file, other images"] == f"{100 * low:+.2f} to {100 * high:+.2f}"
    assert table["kd"]["method, other seeds"] == "+7.52 to +12.48"
    low, high = map(float, table["kd"]["method, other images"].split(" to "))
    assert low < 10 < high
    assert (low + high) / 2 == pytest.approx(10, abs=0.01)


def test_runs_that_were_tested_on_other_images_are_not_paired(records: Path) -> None:
    save_predictions(records)
    file = records / "evaluate" / "kd.npz"
    stored = dict(np.load(file))
    np.savez_compressed(file, **stored | {"rows": stored["rows"] + 1})
    table = Page(html(records)).table("Gains over the baseline, with 95 % intervals")
    assert (table["kd"]["file, points"], table["fitnet"]["file, points"]) == ("", "+7.00")


def test_it_shows_what_training_sees(records: Path, tmp_path: Path) -> None:
    assert "augmented" not in html(records)
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "views.png")
    text = html(records, views=tmp_path / "views.png")
    assert "What training sees of some images (augmented)" in text
    (source,) = [one["src"] for one in Page(text).find("img") if "augmented" in one["alt"]]
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (1100, 550)


def test_a_teacher_that_was_measured_as_a_file_is_in_both_charts(records: Path) -> None:
    def charts() -> tuple[str, ...]:
        return tuple(one["aria-label"] for one in Page(html(records)).find("svg", role="img")[:2])

    assert "big" in charts()[0]
    assert "big" not in charts()[1]
    assert "Of big they are those of the plain PyTorch network" in html(records)
    assert "Not measured as exported files, and so left out: big." in html(records)
    for file in (records / "benchmark").glob("*.json"):
        details = json.loads(file.read_text())["details"]
        edit(file, details=details | {"teacher": details["teacher"] | {"file": "onnx"}})
    assert all("big" in chart for chart in charts())
    assert "PyTorch" not in html(records)


def test_the_confusion_matrix_is_that_of_the_record(records: Path) -> None:
    page = Page(html(records))
    start = next(i for i, one in enumerate(page.all) if one.get("class") == "matrix")
    cells = [one["text"] for one in page.all[start:] if one["tag"] == "td" and "tbody" in one["in"]][:16]
    confusion = json.loads((records / "evaluate" / "fitnet.json").read_text())["details"]["seeds"]["2"][
        "confusion"
    ]
    assert [int(cell or 0) for cell in cells] == [n for row in confusion for n in row]


def test_the_best_student_comes_first_and_is_called_so_in_words(records: Path) -> None:
    page = Page(html(records))
    names = [one["text"] for one in page.find("span", role="rowheader")]
    assert [name.split()[0] for name in names] == ["bigteacher", "fitnet", "kdkd", "alonece"]
    assert "best" in names[1]


def test_the_page_needs_nothing_else(records: Path, tmp_path: Path) -> None:
    save_predictions(records)
    text = html(records, prepared(tmp_path / "data"))
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {one["tag"] for one in page.all}
    for one in page.all:
        assert not [key for key in one if key.startswith("on")]
        for key in ("src", "href", "xlink:href"):
            assert one.get(key, "#").startswith(("#", "data:image/")), one
    assert not re.findall(r"url\(|@import", text)
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    links = {one["href"][1:] for one in page.all if one.get("href", "").startswith("#")}
    ids = Counter(one["id"] for one in page.all if "id" in one)
    assert links <= set(ids)
    assert set(ids.values()) == {1}


def test_a_screen_reader_can_read_the_page(records: Path, tmp_path: Path) -> None:
    save_predictions(records)
    page = Page(html(records, prepared(tmp_path / "data")))
    tags = Counter(one["tag"] for one in page.all)
    assert (tags["main"], tags["header"], tags["nav"], tags["footer"], tags["h1"]) == (1, 1, 1, 1, 1)
    assert page.find("html")[0]["lang"] == "en"
    assert all("alt" in one for one in page.find("img"))
    assert all(
        one.get("aria-hidden") == "true" or one.get("aria-label")
        for one in page.find("svg")
        if "svg" not in one["in"]
    )
    assert all(one.get("scope") in ("col", "row") for one in page.find("th"))
    regions = [one for one in page.all if one.get("class") == "scroll"]
    assert regions
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in regions)
    levels = [int(one["tag"][1]) for one in page.all if re.fullmatch(r"h\d", one["tag"])]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    """At least 4.5 to 1 (WCAG AA) for every colour of text on every ground."""
    colours = dict(
        re.findall(
            r"--(\w+): (#[0-9a-f]+);", re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[scheme == "dark"]
        )
    )

    def brightness(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return float(
            np.dot(
                [0.2126, 0.7152, 0.0722],
                [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts],
            )
        )

    for ground in ("ground", "card", "tint"):
        for text in ("text", "muted", "best", "teacher", "less"):
            low, high = sorted((brightness(colours[ground]), brightness(colours[text])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}, {scheme}"


def test_names_are_text_whatever_they_contain(records: Path, tmp_path: Path) -> None:
    save_predictions(records)
    for file in (*(records / "evaluate").glob("*.json"), records / "prepare.json"):
        file.write_text(file.read_text().replace('"cat"', json.dumps(HOSTILE)))
    run = HOSTILE.replace("/", "∕")  # since it is the name of a file
    for stage in RUN_STAGES:
        edit(records / stage / "fitnet.json", name=run)
        (records / stage / "fitnet.json").rename(records / stage / f"{run}.json")
    (records / "evaluate" / "fitnet.npz").rename(records / "evaluate" / f"{run}.npz")
    record = records / "distill" / f"{run}.json"
    curve = {
        "epoch": [1.0],
        "images": [20],
        "loss": [1.0],
        "val_accuracy": [0.5],
        "seconds": [1.0],
        f"note/{HOSTILE}~b": [0.5],
        f"note/{HOSTILE}": [0.5],
    }
    edit(record, curves={"distill/seed-0": curve | {f"share of {HOSTILE}": [1.0]}})
    page = Page(
        html(records, prepared(tmp_path / "data"), {"runs": ["alone", "kd", run], "teachers": ["big"]})
    )
    tags = {one["tag"] for one in page.all}
    assert "script" not in tags
    assert "\\u202e" not in tags
    assert not [one for one in page.all if "onerror" in one or one.get("src") == "x"]
    named = [one["text"] for one in page.find("bdi")]
    assert HOSTILE in named
    assert run in named
    assert "49" not in named


def test_images_that_only_the_teacher_gets_right_are_shown(records: Path, tmp_path: Path) -> None:
    save_predictions(records)
    page = Page(html(records, prepared(tmp_path / "data")))
    shown = next(one["text"] for one in page.find("ul", **{"class": "missed"}))
    # 15 such images; cats are predicted as dogs with 0.90, foxes as cats with 0.93, most confident first
    assert shown.split("student,")[0].split() == ["fox", "teacher,", "63%", "confident", "cat"]
    assert shown.count("student, 9") == 15
    widths = {
        one["class"]: float(one["style"].removeprefix("flex-grow:"))
        for one in page.find("span")
        if one.get("class", "").startswith("part-")
    }
    assert widths == {"part-0": 81, "part-1": 15, "part-3": 4}
    parts = [one["text"] for one in page.find("li") if "right:" in one["text"]]
    assert parts == [
        "both right: 81 (81.00 %)",
        "only the teacher right: 15 (15.00 %)",
        "only the student right: 0 (0.00 %)",
    ]


def test_pictures_are_those_of_the_right_rows(records: Path, tmp_path: Path) -> None:
    save_predictions(records)
    page = Page(html(records, prepared(tmp_path / "data")))
    images = [one for one in page.find("img") if one["alt"].startswith("A test image of class")]
    values = [
        int(np.array(Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2]))))[0, 0])
        for one in images
    ]
    labels = [CLASSES.index(one["alt"].split()[-1]) for one in images]
    # the test images start at row 60, with 25 of each class: the class of every picture is that of its row
    assert [(value - 60) // 25 for value in values] == labels
    assert len(values) == 15


def test_pictures_and_values_of_methods_are_shown_if_there_are_some(records: Path) -> None:
    assert "Inside the methods" not in html(records)
    (records / "evaluate" / "kd").mkdir()
    Image.new("RGB", (4, 4), "red").save(records / "evaluate" / "kd" / "grad_cam.png")
    record = json.loads((records / "distill" / "kd.json").read_text())
    for value, curve in zip((0.1, 0.2, 0.6), record["curves"].values(), strict=True):
        curve |= {
            "note/stage1~stage3": [0.5, 0.5, value],
            "note/dead": [9.0, 9.0, 4.0],
            "share of kd": [0.5, 0.5, value],
        }
    edit(records / "distill" / "kd.json", curves=record["curves"])
    page = Page(html(records))
    assert all(one.get("scope") in ("col", "row") for one in page.find("th"))
    assert page.find("img", alt="grad cam of run kd")[0]["src"].startswith("data:image/png")
    associated = page.all[
        next(i for i, one in enumerate(page.all) if one.get("class") == "matrix association") :
    ]
    assert next(one["text"] for one in associated if one["tag"] == "td" and "tbody" in one["in"]) == "0.300"
    assert page.table("What the methods log: last values, mean over seeds")["kd"] == {
        "stage": "distill",
        "what": "dead",
        "value": "4",
    }
    assert page.table("Share of the student's gradient by term at the end, %")["kd"] == {"kd": "30.00"}
    # associations are shown as a matrix only
    assert not [one for one in page.find("td") if "~" in one["text"]]


def test_an_analysis_is_shown(records: Path) -> None:
    analyse(
        records, "kd", sm_score=14.8, cka=0.82, transfer_before=0.5, transfer_after=0.6, transfer_teacher=0.7
    )
    page = Page(html(records, names=NAMES | {"analysed": ["kd"]}))
    assert page.table("Accuracy on validation, %")["kd"] == {
        "linear probe before distillation": "42.10 ± 1.00",
        "linear probe after": "50.60 ± 1.00",
        "60 epochs of a linear layer before": "38.90 ± 1.00",
        "60 epochs after": "49.70 ± 1.00",
        "whole network after": "50.90 ± 1.00",
    }
    assert page.table("The pairs of maps that the method matches")["kd"] == {
        "SM-score, logarithm": "14.80",
        "CKA": "0.82",
    }
    title = "Linear classifiers on other images: accuracy on their test images, %"
    assert page.table(title)["kd"] == {
        "other images": "others",
        "before distillation": "50.00",
        "after": "60.00",
        "teacher": "70.00",
    }
    assert [one["alt"] for one in page.find("img") if "of run kd" in one["alt"]] == [
        "How alike they are. of run kd",
        "Where they look. of run kd",
    ]
    (warning,) = (one["text"] for one in page.find("p", **{"class": "warning"}))
    assert warning == "Warning. kd: The dictionary of stage1 is dead in 3 of 3 seeds."
    assert [one["text"] for one in page.find("li")].count(
        "kd: The dictionary of stage1 is dead in 3 of 3 seeds."
    ) == 1
    assert "analyse kd" in page.table("Every stage that ran")


def test_what_was_planned_stands_beside_what_it_took(records: Path) -> None:
    title, file = "Every stage that ran", records / "distill/kd.json"
    assert "planned" not in Page(html(records)).table(title)["distill kd"]
    edit(file, details=json.loads(file.read_text())["details"] | {"planned_seconds": 77.0})
    table = Page(html(records)).table(title)
    assert (table["distill kd"]["planned"], table["evaluate kd"]["planned"]) == ("77.0", "")
    took = Page(html(records)).table("What the plan expected, and what it took")
    assert took["distill"] == took["all"] == {"planned, s": "77", "took, s": "90"}


def test_an_analysis_that_params_do_not_ask_for_is_not_shown(records: Path) -> None:
    analyse(records, "kd", cka=0.82, sm_score=14.8)
    assert "Inside the methods" not in html(records)


def test_relative_improvement_is_shown_over_runs_that_gain(records: Path) -> None:
    table = Page(html(records)).table("Relative improvement of fitnet over the other methods")
    # baseline 72 %, kd 82 %, fitnet 80 %: it lacks a fifth of what kd gains
    assert table["kd"] == {
        "accuracy of the best %": "80.00",
        "accuracy %": "82.00",
        "relative improvement, %": "-20",
    }
    assert table["mean"]["relative improvement, %"] == "-20"
    spread = json.loads((records / "evaluate" / "alone.json").read_text())["metrics"] | {"spread": 0.2}
    edit(records / "evaluate" / "alone.json", metrics=spread)
    assert "relative improvement" not in html(records).lower()


def test_int8_is_shown_with_the_reasons_why_it_was_refused(records: Path) -> None:
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
        int8 = {
            "file": "student.int8.onnx",
            "accepted": not refused,
            "refused": refused,
            "quality": quality,
            "test": quality,
        }
        edit(records / "export" / f"{name}.json", details={"formats": formats | {"int8": int8}})
    text = html(records)
    assert Page(text).table("The int8 file compared with the float file, on test images")["fitnet"] == {
        "file": "student.int8.onnx",
        "accepted": "yes",
        "points lost": "1.00",
        "95 % interval": "0.25 to 1.75",
        "same top-1 %": "97.00",
        "signal to noise, dB": "28.0",
        "images": "100",
    }
    assert "no: it is &lt;worse&gt;" in text


def test_the_line_joins_the_networks_that_no_other_beats_in_both_numbers(records: Path) -> None:
    for name, size, milliseconds in (("alone", 3.0, 0.9), ("kd", 5.0, 0.4), ("fitnet", 4.0, 0.2)):
        metrics = json.loads((records / "benchmark" / f"{name}.json").read_text())["metrics"]
        edit(
            records / "benchmark" / f"{name}.json",
            metrics=metrics | {"size_mb": size, "latency_ms": milliseconds},
        )
    params = json.loads((records / "distill" / "alone.json").read_text())["params"]
    edit(records / "distill" / "alone.json", params=params | {"student": {"net": "resnet20"}})
    size, latency = (one["aria-label"] for one in Page(html(records)).find("svg", role="img")[:2])
    assert "Not beaten in both: alone, fitnet, kd, big." in size  # 72 % in 3 MB, 80 in 4, 82 in 5, 96 in 29.5
    assert "Not beaten in both: kd." in latency  # kd and fitnet are one network: at the median of their times


def test_curves_of_knowledge_are_shown(records: Path) -> None:
    learn(records, "atoms", "kd")
    assert "atoms · dictionary" in [one["text"] for one in Page(html(records)).find("figcaption")]


def test_without_predictions_and_images_the_rest_is_there(records: Path) -> None:
    text = html(records)
    assert "dvc repro -f -s evaluate@fitnet" in text
    assert 'class="missed"' not in text
    assert "Calibration error of every network" in text
    assert Page(text).table("Expected calibration error of every network")["kd"] == {
        "ECE %, mean over seeds": "4.00"
    }


@pytest.mark.parametrize(
    ("right", "validation", "words"),
    [
        (
            RIGHT,
            VALIDATION | {"alone": 0.9},
            "It is the baseline, trained without a teacher, so no method was worth its cost here.",
        ),
        ({name: scores[:1] for name, scores in RIGHT.items()}, VALIDATION, "one seed gives no interval"),
        (RIGHT | {"fitnet": (72, 71, 78)}, VALIDATION, "which may be chance"),
        (RIGHT | {"fitnet": (100, 100, 100)}, VALIDATION, "It makes no errors on the test images."),
        (dict.fromkeys(RIGHT, (40, 40, 40)), dict.fromkeys(VALIDATION, 0.0), "+0.00 [+0.00, +0.00]"),
    ],
)
def test_extreme_results_have_the_right_words(
    tmp_path: Path, right: Any, validation: Any, words: str
) -> None:
    records = fabricate(tmp_path / "records", right=right, validation=validation)
    save_predictions(records)
    assert words in Page(html(records)).find("main")[0]["text"]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    several = html(fabricate(tmp_path / "several"))
    assert re.search("± is their standard", several)
    assert "by images shown, 3 seeds; at the end" in several
    records = fabricate(tmp_path / "one", right={name: scores[:1] for name, scores in RIGHT.items()})
    one = html(records)
    assert not re.search("± is their| seeds;", one)
    assert "by images shown, at the end" in one


def test_one_run_without_teacher_or_baseline_has_a_page(tmp_path: Path) -> None:
    records = fabricate(tmp_path / "records")
    text = html(records, names={"runs": ["kd"], "teachers": []})
    assert "Its gain is not known, because it has no baseline" in text
    assert 'id="classes"' not in text


def test_a_page_of_forty_runs_and_a_hundred_classes_stays_small(records: Path, tmp_path: Path) -> None:
    names = crowd(records, runs=40, classes=100)
    save_predictions(records)
    data = prepared(tmp_path / "data", classes=100, images=2700, train=500, size=32, channels=3)
    text = html(records, data, {"runs": names, "teachers": ["big"]})
    page = Page(text)
    assert len(text) < 3_000_000
    assert len(page.find("span", role="rowheader")) == 41
    assert len(page.find("img", **{"class": "heat"})) == 1
    assert not [one for one in page.all if one.get("class") == "matrix"]
    assert "All 100 classes" in text
    assert "28 more runs" in text


def test_means_over_classes_are_shown_where_the_classes_differ_in_size(records: Path) -> None:
    assert "macro-F1" not in html(records)
    unbalance(records, 70, 10, 10, 10)
    page, text = Page(html(records)), html(records)
    row = page.table("Every network in numbers")["kd"]
    assert (row["balanced %"], row["F1 %"], row["agree %"]) == ("72.00", "62.00", "87.50")
    assert "balanced accuracy: 70.00 % · macro-F1: 60.00 %" in text
    assert "0 for a class that is never predicted" in text


@pytest.mark.parametrize(("select", "words"), [("accuracy", "accuracy"), ("macro_f1", "macro-F1")])
def test_the_page_says_what_the_students_are_ordered_by(records: Path, select: str, words: str) -> None:
    for path in (records / "distill").glob("*.json"):
        record = json.loads(path.read_text())
        metrics = record["metrics"] | {"val_macro_f1": 0.5 if path.stem == "kd" else 0.4}
        edit(path, metrics=metrics, details=record["details"] | {"select": select})
    text = " ".join(html(records).split())
    assert f"Students are ordered by their {words} on the validation images" in text
    assert ("runs on validation: macro-F1 50.00 %, ahead of alone with macro-F1 40.00 %." in text) == (
        select == "macro_f1"
    )


def test_it_shows_what_saying_unknown_costs_and_saves(records: Path) -> None:
    title = "Answers of fitnet by least probability"
    assert title not in html(records)
    save_predictions(records)
    text = html(records)
    assert Page(text).table(title)["0.7"] == {"answered %": "19.00", "accuracy of these %": "0.00"}
    assert "probabilities are not calibrated" in text
    assert "Calibrated probabilities, on test images" not in text
    calibrate(records, "fitnet")
    text = html(records)
    assert Page(text).table(title)["0.8"] == {"answered %": "75.00", "accuracy of these %": "96.00"}
    assert Page(text).table(title)["0.99"] == {"answered %": "0.00", "accuracy of these %": ""}
    assert "probabilities are calibrated." in text
    assert "Calibrated probabilities, on test images" in text

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.deploy import predict
from pipeline.deploy.__main__ import main
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import BundleError, open_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in folders, one of them broken, and other files."""
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "deep/er/c.JPEG", "deep/d.webp"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("no picture either")
    (tmp_path / "in" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "in" / "deep" / "up").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    return tmp_path / "in"


def test_pictures_are_found_at_any_depth(folder: Path) -> None:
    found = [path.name for path in predict.find([folder, folder / "notes.txt"])]
    assert found == ["a.jpg", "b.png", "broken.jpg", "d.webp", "c.JPEG", "notes.txt"]
    with pytest.raises(BundleError, match="no such file"):
        list(predict.find([folder, folder / "none.jpg"]))


def test_the_pictures_of_a_folder_are_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b/z.png", "b.png", "b-1.png", "b/a/y.png", "10.png", "9.png", "a/x.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path) for path in predict.find([tmp_path])]
    assert len(found) == 8
    assert found == sorted(found)
    assert [path.name for path in predict.find([tmp_path / "c.png", tmp_path / "a"])] == ["c.png", "x.png"]


def test_json_gives_one_object_for_each_picture(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(folder), "--json", "--top", "2"]) == 1  # one is broken
    out = capsys.readouterr()
    lines = [json.loads(line) for line in out.out.splitlines()]
    assert len(lines) == 5
    by_name = {Path(line["path"]).name: line for line in lines}
    assert "known format" in by_name["broken.jpg"]["error"]
    answer = Predictor(bundle)([folder / "a.jpg"])[0]
    assert by_name["a.jpg"]["class"] == answer.label
    assert by_name["a.jpg"]["probability"] == pytest.approx(answer.probability, abs=1e-6)
    assert [each["class"] for each in by_name["a.jpg"]["top"]] == [name for name, _ in answer.top(2)]
    assert "5 pictures in" in out.err
    assert "1 could not be read" in out.err


def test_csv_gives_one_line_for_each_picture(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(folder), "--csv", "--top", "9", "--threads", "2"]) == 1
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert table[0][:4] == ["path", "class", "probability", "class_2"]
    assert {len(line) for line in table} == {12}
    broken = next(line for line in table if line[0].endswith("broken.jpg"))
    assert broken[1:-1] == [""] * 10
    assert "known format" in broken[-1]


def test_the_table_ends_in_the_path(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(bundle), str(folder / "a.jpg")]) == 0
    out, err = capsys.readouterr()
    assert "%  " in out
    assert out.endswith(f"{folder / 'a.jpg'}\n")
    assert "1 picture in " in err


def test_a_name_cannot_steer_the_terminal_or_break_a_line(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a\nb,\x1b[2J.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    command = [sys.executable, "-m", "pipeline.deploy", "predict", str(bundle), str(tmp_path)]
    for style in ([], ["--csv"], ["--json"]):
        done = subprocess.run([*command, *style], capture_output=True, cwd=ROOT, check=True)
        if style == ["--csv"]:
            read = list(csv.reader(io.StringIO(done.stdout.decode(errors="surrogateescape"))))
            assert {Path(line[0]).name for line in read[1:]} == {
                "a\nb,\x1b[2J.png",
                os.fsdecode(b"caf\xe9.png"),
            }
        else:
            assert done.stdout.count(b"\n") == 2
            assert b"\x1b" not in done.stdout


def test_one_batch_at_a_time(bundle: Path) -> None:
    """When the first answer comes, no more than a batch was asked for, however many there are."""
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield Path("none.jpg")

    predictor = Predictor(bundle)
    row = next(iter(predict.rows(predictor, endless())))
    assert row.answer is None
    assert asked <= predictor.batch


def test_progress_is_shown() -> None:
    out = io.StringIO()
    rows = [predict.Row("a", None, "why")] * 3
    assert list(predict.with_progress(rows, out, every=0)) == rows
    assert out.getvalue().splitlines()[1].startswith("2 pictures")


def test_an_empty_and_a_missing_folder_fail(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(tmp_path)]) == 1
    assert "No pictures were found" in capsys.readouterr().err
    assert main(["predict", str(bundle), str(tmp_path / "none")]) == 2
    assert main(["predict", str(tmp_path), str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error(bundle: Path, tmp_path: Path) -> None:
    for i in range(150):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{i}{'x' * 200}.bmp")
    command = (
        f"'{sys.executable}' -m pipeline.deploy predict '{bundle}' '{tmp_path}' --json --top 5 | head -1"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, cwd=ROOT, text=True)
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0
    assert done.stderr == ""


def test_answers_below_the_least_confidence_are_unknown(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    answers = Predictor(bundle)(files)
    level = sorted(answer.probability for answer in answers)[5]
    names, arguments = list(map(str, files)), ["--min-confidence", str(level)]
    assert main(["predict", str(bundle), *names, "--json", "--top", "2", *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for answer, line in zip(answers, lines, strict=True):
        is_known = answer.probability >= level
        assert line["class"] == (answer.label if is_known else "unknown")
        assert line.get("guess") == (None if is_known else answer.label)
        assert line["probability"] == round(answer.probability, 6)
        assert [each["class"] for each in line["top"]] == [name for name, _ in answer.top(2)]
    assert sum(line["class"] == "unknown" for line in lines) == 5
    assert main(["predict", str(bundle), *names, "--csv", *arguments]) == 0
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert [row[1] for row in table] == [line["class"] for line in lines]
    assert main(["predict", str(bundle), *names, *arguments]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [row[1] for row in table]
    labels = [answer.label for answer in Predictor(bundle, min_confidence=level)(files)]
    assert labels == [row[1] for row in table]


@pytest.mark.parametrize("bad", ["0", "1", "1.5", "-0.2", "nan", "inf"])
def test_a_least_confidence_that_is_no_probability_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    assert main(["predict", str(bundle), "none.jpg", f"--min-confidence={bad}"]) == 2
    assert "is not a probability between 0 and 1. Give a number such as 0.8" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_another_bundle_than_expected_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    pictures = ["none.jpg"] if command == "predict" else []
    assert main([command, str(bundle), *pictures, "--expect", "0" * 64]) == 2
    assert "this is another bundle" in capsys.readouterr().err
    fingerprint = open_bundle(bundle).fingerprint
    assert Predictor(bundle, expect=fingerprint.upper())
    for other in (fingerprint[:32], fingerprint[:-1] + ("0" if fingerprint[-1] != "0" else "1")):
        with pytest.raises(BundleError, match="this is another bundle"):
            Predictor(bundle, expect=other)

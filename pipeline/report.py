"""From the records of all stages to what people read: a table, a report, and the data of the plots."""

import csv
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint import atomic_file, atomic_folder
from pipeline.inputs import InputError
from pipeline.record import SCHEMA, Record

if TYPE_CHECKING:
    from pipeline.evaluate import Gain

WIDTH = 110
COSTS = "MB and latency (one image, CPU): students as exported ONNX files, teachers as plain PyTorch networks."
RUN_STAGES = ("pretrain", "distill", "evaluate", "export", "benchmark")


@dataclass(frozen=True)
class Run:
    """One student: its records by stage, and the run of the student alone that it is measured against."""

    name: str
    records: dict[str, Record]
    baseline: str | None

    @property
    def params(self) -> dict[str, Any]:
        return self.records["distill"].params

    @property
    def method(self) -> str:
        return self.params["run"]["method"]["name"]

    @property
    def teacher(self) -> str:
        return self.params["run"]["teacher"]

    @property
    def student(self) -> str:
        return self.params["student"]["net"]

    @property
    def validation(self) -> float:
        return self.records["distill"].metrics["val_accuracy"]

    @property
    def accuracy(self) -> dict[int, float]:
        """Test accuracy by seed."""
        return {int(seed): scores["accuracy"] for seed, scores in self.records["evaluate"].details["seeds"].items()}

    @property
    def exported_seed(self) -> int:
        return self.records["evaluate"].details["exported_seed"]


@dataclass(frozen=True)
class Results:
    """Everything that the names asked for left behind, in the order asked."""

    prepare: Record
    teachers: dict[str, Record]
    runs: dict[str, Run]

    @property
    def best(self) -> Run:
        """The student that is best on validation: the test set decides nothing."""
        return max(self.runs.values(), key=lambda run: run.validation)

    def taught_by(self, teacher: str) -> Run | None:
        """A run whose records also hold the measurements of this teacher."""
        return next((run for run in self.runs.values() if run.teacher == teacher), None)


def load(records: Path, runs: Sequence[str], teachers: Sequence[str]) -> Results:
    """The records of these runs and teachers; what else lies in the folder belongs to nobody any more."""
    found = {name: {stage: read(records, stage, name) for stage in RUN_STAGES} for name in runs}
    alone: dict[str, list[Run]] = {}
    for name, own in found.items():
        run = Run(name, own, None)
        if run.method == "ce":
            alone.setdefault(_setting(run), []).append(run)
    loaded = {}
    for name, own in found.items():
        run = Run(name, own, None)
        rivals = [] if run.method == "ce" else alone.get(_setting(run), [])
        # of several students alone the strongest on validation: a gain over a weak one would say nothing
        loaded[name] = Run(name, own, max(rivals, key=lambda rival: rival.validation).name if rivals else None)
    return Results(
        prepare=read(records, "prepare"),
        teachers={name: read(records, "teacher", name) for name in teachers},
        runs=loaded,
    )


def read(records: Path, stage: str, name: str | None = None) -> Record:
    """The record of a stage, or of one of its runs or teachers; the error says which stage writes it."""
    path = records / (f"{stage}/{name}.json" if name else f"{stage}.json")
    target = f"{stage}@{name}" if name else stage
    again = f"Run `dvc repro -f -s {target}` to write it again."
    try:
        record = Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no record of stage {target}. Run `dvc repro {target}` first.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path}: not a record of stage {target} ({error}). {again}") from error
    if (record.schema, record.stage, record.name) != (SCHEMA, stage, name or stage):
        raise InputError(f"{path}: this is schema {record.schema} of {record.stage} {record.name}, not {SCHEMA} of {target}. {again}")
    return record


def gains(results: Results) -> "dict[str, Gain]":
    """What each run gained over the student alone; runs with nothing to compare to are left out."""
    from pipeline.evaluate import gain

    return {run.name: gain(run.accuracy, results.runs[run.baseline].accuracy) for run in results.runs.values() if run.baseline is not None}


def table(results: Results, *, bundles: Path, report: Path) -> str:
    """What the terminal shows at the end: everybody's numbers, the best marked, and where things are."""
    lines = _columns(_rows(results), gap="  ")
    best = results.best
    return "\n".join(
        [
            *lines,
            "",
            f"* best on validation: {best.name} ({100 * best.validation:.2f} % there). Accuracy, gain and agreement are on the test set.",
            f"  ± is the spread over n seeds; the gain over the student alone has its 95 % interval{_fewest(results)}.",
            f"  {COSTS}",
            "",
            f"bundles   {bundles}/RUN   (best: {bundles / best.name})",
            f"report    {report}",
            "MLflow    make ui",
            "",
        ]
    )


def markdown(results: Results, *, sheet: str, bundles: str) -> str:
    """The report: question, data, results, what each run was, where the best one gains, exports, provenance, caveats."""
    best = results.best
    won = gains(results)
    sections = [
        "# Which small student should be deployed?",
        f"Students taught by {_words(results.teachers)}, compared with the same student trained alone. "
        f"**{best.name}** is the best on validation ({100 * best.validation:.2f} %); {_verdict(best, won)}",
        "## Data",
        _data(results.prepare, sheet),
        "## Results",
        _markdown_table(_rows(results)),
        "`*` best on validation. Accuracy, gain and agreement with the teacher are on the test set; "
        "± is the sample standard deviation over n seeds; the gain is over the student alone, with its 95 % interval. " + COSTS,
        "## Runs",
        _markdown_table(
            [
                ["run", "teacher", "student", "method", "images", "validation %", "settings"],
                *(_settings(run) for run in results.runs.values()),
            ]
        ),
        "## Classes: the best student against the student alone",
        _classes(results),
        "## Exports",
        _exports(results, bundles),
        "## Provenance",
        _provenance(results),
        "## How to read this",
        _notes(results),
    ]
    return "\n\n".join(sections) + "\n"


def plots(results: Results, out: Path) -> None:
    """`curves.csv` (a line per run, phase, seed and epoch) and `confusion/<run>.csv` (a line per pair of classes, of the exported seed)."""
    with atomic_folder(out) as folder:
        points = list(_points(results))
        columns = ["run", "phase", "seed", "epoch"]
        columns += sorted({column for point in points for column in point} - set(columns))
        _write_csv(folder / "curves.csv", columns, ([point.get(column, "") for column in columns] for point in points))
        (folder / "confusion").mkdir()
        for name, run in results.runs.items():
            _write_csv(folder / "confusion" / f"{name}.csv", ["actual", "predicted", "images", "share"], _confusion(run))


def write(
    records: Path,
    out_dir: Path,
    plots_dir: Path,
    metrics_file: Path,
    *,
    runs: Sequence[str],
    teachers: Sequence[str],
    bundles: Path,
    sheet: Path,
) -> Results:
    """All of it: `report.md` and `table.txt` in `out_dir`, the data of the plots, and the gains as DVC metrics."""
    results = load(records, runs, teachers)
    report = out_dir / "report.md"
    link = {"sheet": os.path.relpath(sheet, out_dir), "bundles": os.path.relpath(bundles, out_dir)}
    with atomic_file(report) as file:
        file.write_text(markdown(results, **link))
    with atomic_file(out_dir / "table.txt") as file:
        file.write_text(table(results, bundles=bundles, report=report))
    plots(results, plots_dir)
    with atomic_file(metrics_file) as file:
        file.write_text(json.dumps({"gain": {name: gain.mean for name, gain in gains(results).items()}}, indent=1) + "\n")
    return results


def _setting(run: Run) -> str:
    """Runs are comparable when they train the same student net on the same data."""
    return json.dumps([run.student, run.params["protocol"]], sort_keys=True)


def _rows(results: Results) -> list[list[str]]:
    """Header, teachers, then students: the one table that the terminal and the report share."""
    header = ["", "net", "accuracy %", "n", "gain, points", "agree %", "params M", "MB", "latency ms"]
    won = gains(results)
    rows = [_teacher_row(name, record, results.taught_by(name)) for name, record in results.teachers.items()]
    for run in results.runs.values():
        scores, speed = run.records["evaluate"].metrics, run.records["benchmark"].metrics
        rows.append(
            [
                f"{'*' if run is results.best else ' '} {run.name}",
                run.student,
                f"{100 * scores['accuracy']:.2f}" + (f" ± {100 * scores['spread']:.2f}" if scores["n"] > 1 else ""),
                f"{scores['n']:.0f}",
                _points_gained(won[run.name]) if run.name in won else "",
                _percent(scores.get("agreement")),
                *_cost(speed),
            ]
        )
    return [header, *rows]


def _teacher_row(name: str, record: Record, run: Run | None) -> list[str]:
    measured = run.records["evaluate"].details["teacher"] if run else {}
    speed = run.records["benchmark"].details["teacher"] if run else {}
    return [f"  {name} (teacher)", record.params["teacher"]["net"], _percent(measured.get("accuracy")), "1", "", "", *_cost(speed)]


def _cost(speed: Mapping[str, float]) -> list[str]:
    shown = (("parameters_m", ".3f"), ("size_mb", ".2f"), ("latency_ms", ".2f"))
    return [format(speed[key], form) if key in speed else "" for key, form in shown]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _points_gained(gain: "Gain") -> str:
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    return f"{100 * gain.mean:+.2f}{interval}"


def _columns(rows: list[list[str]], gap: str) -> list[str]:
    """Aligned text at most WIDTH wide; the two columns of names give way."""
    numbers = sum(max(len(row[i]) for row in rows) + len(gap) for i in range(2, len(rows[0])))
    room = WIDTH - numbers - len(gap)
    net = min(max(len(row[1]) for row in rows), room // 2)
    rows = [[_cut(row[0], room - net), _cut(row[1], net), *row[2:]] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        gap.join(
            cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _markdown_table(rows: list[list[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(rows[0]), line("---" for _ in rows[0]), *map(line, rows[1:])])


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"**{name}**" for name in names)


def _fewest(results: Results) -> str:
    n = min(len(run.accuracy) for run in results.runs.values())
    return "" if n > 1 else " (none from one seed)"


def _verdict(best: Run, won: "Mapping[str, Gain]") -> str:
    if best.method == "ce":
        return "that is a student trained alone: no method earned its cost here."
    if best.name not in won:
        return "no run trains this student alone on the same data, so its gain is not known (add one with method `ce`)."
    gain = won[best.name]
    told = f"on the test set it gains {_points_gained(gain)} points over the student alone (run `{best.baseline}`)"
    if gain.low is None:
        return f"{told}; one seed gives no interval, so this may be chance."
    return f"{told}, {'more than chance.' if gain.low > 0 else 'which chance alone could explain.'}"


def _data(prepare: Record, sheet: str) -> str:
    manifest = prepare.details["manifest"]
    splits = [split for split in ("train", "val", "test") if split in manifest["splits"]]
    classes = manifest["classes"]
    counts = [
        ["class", *splits],
        *([name, *(str(manifest["per_class"][split].get(name, 0)) for split in splits)] for name in classes),
        ["**all**", *(f"**{manifest['splits'][split]}**" for split in splits)],
    ]
    size, channels = manifest["size"], manifest["channels"]
    return (
        f"Source `{manifest['source']}`: {len(classes)} classes, images {size}x{size}x{channels}, "
        f"{manifest['duplicates_removed']} duplicates removed, content `{manifest['content'][:12]}`. "
        "Teachers learn from the whole training split; what a student learns from is said with its run.\n\n"
        f"![a few images of each class]({sheet})\n\n{_markdown_table(counts)}"
    )


def _settings(run: Run) -> list[str]:
    method = {key: value for key, value in run.params["run"]["method"].items() if key != "name"}
    told = {**method, "protocol": run.params["protocol"]}
    images = run.records["distill"].details["sample"]["images"]
    return [run.name, run.teacher, run.student, run.method, str(images), _percent(run.validation), f"`{json.dumps(told)}`"]


def _classes(results: Results) -> str:
    best = results.best
    if best.baseline is None:
        return "The best student has no student alone to be compared with."
    mine, alone = _per_class(best), _per_class(results.runs[best.baseline])
    names = sorted(mine.keys() & alone.keys(), key=lambda name: (alone[name] - mine[name], name))
    rows = [[name, _percent(alone[name]), _percent(mine[name]), f"{100 * (mine[name] - alone[name]):+.2f}"] for name in names]
    shown = rows if len(rows) <= 20 else [*rows[:10], ["…", "", "", ""], *rows[-10:]]
    return _markdown_table([["class", f"{best.baseline} %", f"{best.name} %", "points"], *shown])


def _per_class(run: Run) -> dict[str, float]:
    """Accuracy of each class that has test images, the mean over seeds."""
    tested = run.records["evaluate"].details
    columns = zip(*(scores["per_class"] for scores in tested["seeds"].values()), strict=True)
    return {name: statistics.fmean(seeds) for name, seeds in zip(tested["classes"], columns, strict=True) if None not in seeds}


def _exports(results: Results, bundles: str) -> str:
    parity = [["bundle", "seed", "format", "file", "largest difference", "of the largest logit", "same top-1", "images"]]
    speed = [["run", "variant", "format", "batch", "median ms", "p95 ms", "images/s", "MB"]]
    for name, run in results.runs.items():
        for form, written in run.records["export"].details["formats"].items():
            if same := written.get("parity"):
                numbers = [f"{same['max_abs']:.2g}", f"{same['rel']:.2g}", _percent(same["agreement"]) + " %", str(same["images"])]
                parity.append([f"[{name}]({bundles}/{name})", str(run.exported_seed), form, written["file"], *numbers])
        for row in run.records["benchmark"].details["rows"]:
            timed = [f"{row[key]:.2f}" for key in ("median_ms", "p95_ms", "images_per_s", "size_mb")]
            speed.append([name, row["variant"], row["format"], str(row["batch"]), *timed])
    return (
        "Each file was compared with the trained network on real test images; a file that differs is never shipped.\n\n"
        f"{_markdown_table(parity)}\n\n"
        f"Speed on this machine's CPU:\n\n{_markdown_table(speed)}"
    )


def _provenance(results: Results) -> str:
    everything = [
        results.prepare,
        *results.teachers.values(),
        *(record for run in results.runs.values() for record in run.records.values()),
    ]
    stages = [["stage", "record", "finished", "seconds", "outputs"]]
    for record in everything:
        outputs = ", ".join(f"{name} `{digest[:12]}`" for name, digest in record.outputs.items())
        stages.append([f"{record.stage} {record.name}", f"`{record.id[:8]}`", record.finished[:19], f"{record.seconds:.1f}", outputs])
    environments = {", ".join(f"{key} {value}" for key, value in record.environment.items()) for record in everything}
    told = "\n".join(f"- {environment}" for environment in sorted(environments))
    return f"Made with\n\n{told}\n\n{_markdown_table(stages)}"


def _notes(results: Results) -> str:
    kinds = {"paired by seed" if gain.paired else "unpaired" for gain in gains(results).values()}
    counts = sorted({len(run.accuracy) for run in results.runs.values()})
    return "\n".join(
        [
            "- The best run is chosen on the validation set; each trained network was read on the test set once, in `evaluate`.",
            f"- Seeds a run: {', '.join(map(str, counts))}. An interval from few seeds is wide and rests on an assumption of normality.",
            f"- Intervals of the gain are 95 %{', ' + ' and '.join(sorted(kinds)) if kinds else ''}; "
            "they cover seeds on this one split, not other data, and are not corrected for comparing many runs.",
            "- Latency is of the machine named above; compare it within this table only.",
        ]
    )


def _points(results: Results) -> Iterable[dict[str, Any]]:
    for name, teacher in results.teachers.items():
        for curve in teacher.curves.values():
            yield from _unrolled({"run": name, "phase": "teacher", "seed": ""}, curve)
    for name, run in results.runs.items():
        for stage in ("pretrain", "distill"):
            for key, curve in run.records[stage].curves.items():
                phase, _, seed = key.rpartition("/seed-")
                yield from _unrolled({"run": name, "phase": phase, "seed": seed}, curve)


def _unrolled(common: dict[str, Any], curve: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    for values in zip(*curve.values(), strict=True):
        yield common | {key: "" if value is None else value for key, value in zip(curve, values, strict=True)}


def _confusion(run: Run) -> Iterable[list[Any]]:
    """Every pair of classes, also those that never occur, so that each picture has all of them."""
    tested = run.records["evaluate"].details
    for actual, counts in zip(tested["classes"], tested["seeds"][str(run.exported_seed)]["confusion"], strict=True):
        for predicted, count in zip(tested["classes"], counts, strict=True):
            yield [actual, predicted, count, round(count / max(1, sum(counts)), 4)]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

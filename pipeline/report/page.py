"""The report as one HTML page that needs nothing beside itself: no network, no script."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline import predictions
from pipeline.analysis.improvement import average_relative_improvement, relative_improvement
from pipeline.predictions import Predictions
from pipeline.report import confusions, costs, exports, figures, pictures
from pipeline.report.results import Results, Run, gains, rivals
from pipeline.report.words import COSTS, HEADER, caveats, environments, percent, points, rows, verdict, warnings

HERE = Path(__file__).parent
CLASSES_DRAWN = 20  # as rows of pictures, and as a matrix of numbers
CLASSES_OPEN = 30  # of the bars of classes; the rest is folded
PANELS_OPEN = 12
MISSED_SHOWN = 24
HEAT = (64, 122, 216)


class Table(NamedTuple):
    """The first column names the row; `words` columns from the left are text, the others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    words: int = 1
    marked: str = ""  # the row of this name stands out


def page(results: Results, *, records: Path, data: Path, bundles: Path) -> str:
    """`records` is where further files of the stages lie (predictions, pictures), `data` the prepared images."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    said = _predictions(results, records)
    told, along, across = figures.students(results)
    bars = figures.classes(results)
    panels = figures.validation_curves(results)
    spent = costs.training(results)
    return environment.get_template(
        "page.html"
    ).render(
        css=Markup((HERE / "page.css").read_text()),  # noqa: S704  our own file
        results=results,
        manifest=results.prepare.details["manifest"],
        made=max(record.finished for record in results.records)[:16].replace("T", " "),
        answer=_answer(results),
        key_figures=_key_figures(results),
        students=told,
        beyond=any("→" in row.strip for row in told),
        accuracy_axis=along,
        gain_axis=across,
        results_table=_results(results),
        costs_note=COSTS,
        trade=figures.trade(results),
        bars=bars,
        bars_open=CLASSES_OPEN,
        outcomes=_outcomes(results.best, said),
        missed=_missed(results.best, said, data),
        confusion=_confusion(results.best),
        confused=_confused(results.best),
        calibration=figures.calibration(said, results),
        errors_of_calibration=_calibration(results),
        panels=panels,
        panels_open=PANELS_OPEN,
        losses=figures.loss_curves(results),
        shares=_shares(results),
        spent=_filled(Table("Cost of training", ["", *costs.HEADER], [[cost.name, *costs.words(cost)] for cost in spent])),
        spent_note=costs.note(spent),
        warnings=warnings(results),
        probed=_probed(results),
        likened=_likened(results),
        transferred=_transferred(results),
        relative=_relative(results),
        method_pictures=_method_pictures(results, records),
        associations=_associations(results),
        noted=_noted(results),
        exports=_exports(results, [results.best]),
        other_exports=_exports(results, results.ranked[1:]),
        bundle=bundles / results.best.name,
        sheet=_sheet(results, data),
        counts=_counts(results),
        settings=_settings(results),
        stages=_stages(results),
        environments=environments(results),
        caveats=caveats(results),
    )


def _filled(table: Table) -> Table:
    """Without the columns that nobody filled."""
    kept = [i for i in range(len(table.head)) if i == 0 or any(row[i] for row in table.rows)]
    return table._replace(head=[table.head[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows])


def _predictions(results: Results, records: Path) -> dict[str, Predictions]:
    """Of the best student and of the student alone, as far as they were kept."""
    best = results.best
    names = [best.name, *([best.baseline] if best.baseline is not None else [])]
    found = {name: predictions.load(records / "evaluate" / f"{name}.npz") for name in names}
    return {name: said for name, said in found.items() if said is not None}


def _answer(results: Results) -> dict[str, str]:
    best, others = results.best, results.ranked[1:]
    why = f"It is the best of {len(results.runs)} runs on validation: {percent(best.validation)} %"
    why += f", ahead of {others[0].name} with {percent(others[0].validation)} %." if others else "."
    return {
        "name": best.name,
        "what": f"a {best.student}" + ("" if best.method == "ce" else f" taught by {best.teacher} with method {best.method}"),
        "why": why,
        "verdict": verdict(results)[0].upper() + verdict(results)[1:],
    }


def _key_figures(results: Results) -> list[tuple[str, str, str]]:
    """What, how much, and beside what."""
    best, gain = results.best, gains(results).get(results.best.name)
    scores, speed = best.records["evaluate"].metrics, best.records["benchmark"].metrics
    measured = results.taught_by(best.teacher) or best  # as in the table
    big = measured.records["benchmark"].details["teacher"]
    beside = [f"spread {percent(scores['spread'])} over {scores['n']:.0f} seeds" if scores["n"] > 1 else "one seed"]
    if best.baseline is not None:
        beside.append(f"alone {percent(figures.mean(results.runs[best.baseline]))} %")
    beside.append(f"teacher {percent(best.records['evaluate'].details['teacher']['accuracy'])} %")
    told = [("Right on the test set", f"{percent(scores['accuracy'])} %", " · ".join(beside))]
    if gain is not None:
        pairs = "paired by seed" if gain.paired else "unpaired"
        interval = "one seed tells no interval" if gain.low is None or gain.high is None else (
            f"95 % interval {points(gain.low)} to {points(gain.high)}, {pairs}"
        )  # fmt: skip
        told.append(("Gained over the student alone", f"{points(gain.mean)} points", interval))
    told.append(("Size", f"{speed['size_mb']:.2f} MB", f"{speed['parameters_m']:.3f} M parameters · teacher {big['size_mb']:.2f} MB"))
    told.append(("One image on the CPU", f"{speed['latency_ms']:.2f} ms", f"exported ONNX · teacher {big['latency_ms']:.2f} ms in PyTorch"))
    return told


def _results(results: Results) -> Table:
    """Beside the shared columns what the student was chosen by; the best first, as in the chart."""
    lines = {line[0][2:]: line[1:] for line in rows(results)}
    told: list[list[str | Markup]] = [[f"{name} (teacher)", *lines[f"{name} (teacher)"], ""] for name in results.teachers]
    told += [[run.name, *lines[run.name], percent(run.validation)] for run in results.ranked]
    return Table("Every network in numbers", [*HEADER, "validation %"], told, words=2, marked=results.best.name)


def _outcomes(best: Run, said: Mapping[str, Predictions]) -> list[tuple[str, int, str]]:
    if best.name not in said:
        return []
    counts = predictions.outcomes(said[best.name], best.exported_seed)
    return [(what, n, f"{percent(n / sum(counts.values()))} %") for what, n in counts.items()]


def _missed(best: Run, said: Mapping[str, Predictions], data: Path) -> list[dict[str, str]]:
    """Test images that the teacher knows and the exported student gets wrong, those of which it is surest."""
    images = pictures.pixels(data)
    if best.name not in said or images is None:
        return []
    own, names = said[best.name], best.records["evaluate"].details["classes"]
    student, shown = own.students[best.exported_seed], []
    for i in predictions.missed(own, best.exported_seed)[:MISSED_SHOWN]:
        shown.append(
            {
                "picture": pictures.picture(images[own.rows[i]]),
                "actual": names[own.labels[i]],
                "student": names[student.label[i]],
                "sure": f"{student.confidence[i]:.0%}",
                "teacher_sure": f"{own.teacher.confidence[i]:.0%}",
            }
        )
    return shown


def _confusion(best: Run) -> dict[str, Any]:
    """As numbers where they can be read, as a picture where there are too many."""
    names = best.records["evaluate"].details["classes"]
    counts = np.array(best.confusion)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    if len(names) > CLASSES_DRAWN:
        return {"heat": pictures.heat(shares, HEAT), "names": names, "cells": []}
    cells = [[(int(n), float(share)) for n, share in zip(*both, strict=True)] for both in zip(counts, shares, strict=True)]
    return {"heat": "", "names": names, "cells": cells}


def _confused(best: Run) -> Table:
    found = [[pair.actual, pair.predicted, f"{pair.images}", percent(pair.share)] for pair in confusions.frequent(best, 10)]
    return Table("The most frequent errors", ["class", "taken for", "images", "% of the class"], found, words=2)


def _calibration(results: Results) -> Table:
    told: list[list[str]] = []
    for name in results.teachers:
        run = results.taught_by(name)
        told += [[f"{name} (teacher)", percent(run.records["evaluate"].details["teacher"]["ece"])]] if run else []
    told += [[run.name, percent(run.records["evaluate"].metrics["ece"])] for run in results.ranked]
    return Table("Expected calibration error of every network", ["", "ECE %, mean over seeds"], told, marked=results.best.name)


def _shares(results: Results) -> Table | None:
    """How much of the student's gradient each term of a loss makes up at the end."""
    found = {run.name: figures.last(run.records["distill"], "share of ") for run in results.ranked}
    terms = sorted({term for shares in found.values() for term in shares})
    if not terms:
        return None
    told = [[name, *(percent(shares.get(term)) for term in terms)] for name, shares in found.items() if shares]
    return Table("Share of the student's gradient by term at the end, %", ["", *terms], told)


def _method_pictures(results: Results, records: Path) -> list[tuple[str, str, str]]:
    """Run, caption and picture of every PNG file that a stage left in a folder of the run's name beside its records, in its order."""
    found = []
    for run in results.ranked:
        for stage, record in run.records.items():
            captions = record.details.get("pictures", {})
            order = list(captions)
            files = sorted((records / stage / run.name).glob("*.png"))
            for file in sorted(files, key=lambda file: order.index(file.name) if file.name in order else len(order)):
                caption = captions.get(file.name, file.stem.replace("_", " ").replace("-", " "))
                found.append((run.name, caption, pictures.whole(file)))
    return found


def _probed(results: Results) -> Table | None:
    """What can be read off a student by a linear classifier, beside what it is when all of it is trained (SRM, table 2)."""
    names = ("probe_before", "probe_after", "whole_network")
    told = _analysed(results, lambda metrics: [_measured(metrics, name) for name in names])
    head = ["", "linear probe before distillation", "linear probe after", "whole network after"]
    return Table("Accuracy on validation, %", head, told) if told else None


def _likened(results: Results) -> Table | None:
    told = _analysed(results, lambda metrics: [_measured(metrics, name, 1) for name in ("sm_score", "cka")] if "cka" in metrics else [])
    return Table("The pairs of stages that the method associates", ["", "SM-score, logarithm", "CKA"], told) if told else None


def _transferred(results: Results) -> Table | None:
    names = ("transfer_before", "transfer_after", "transfer_teacher")
    told: list[list[str]] = []
    for run in results.ranked:
        if run.analysis and "transfer" in run.analysis.details:
            other, metrics = run.analysis.details["transfer"], run.analysis.metrics
            source = other["source"] if other["source"] != "folder" else other["root"]
            told.append([run.name, source, *(_measured(metrics, name) for name in names)])
    head = ["", "other images", "before distillation", "after", "teacher"]
    return (
        Table("Carried over to other images by a linear classifier: accuracy on their test split, %", head, told, words=2) if told else None
    )


def _analysed(results: Results, cells: Callable[[Mapping[str, float]], list[str]]) -> list[list[str]]:
    found = [(run.name, cells(run.analysis.metrics)) for run in results.ranked if run.analysis]
    return [[name, *line] for name, line in found if line]


def _measured(metrics: Mapping[str, float], name: str, scale: float = 100) -> str:
    if name not in metrics:
        return ""
    spread = f" ± {scale * metrics[f'{name}_spread']:.2f}" if f"{name}_spread" in metrics else ""
    return f"{scale * metrics[name]:.2f}{spread}"


def _relative(results: Results) -> Table | None:
    """Of the best student over every other method, and on average (SemCKD, Eq. 17)."""
    found = rivals(results)
    if not found:
        return None
    told = [[run.name, percent(over[0]), percent(over[1]), f"{100 * relative_improvement(*over):+.0f}"] for run, over in found]
    told.append(["on average", "", "", f"{100 * average_relative_improvement([over for _, over in found]):+.0f}"])
    title = f"How much more than theirs {results.best.name} gains over the student alone"
    return Table(title, ["", "its accuracy %", "theirs %", "relative improvement, %"], told)


def _associations(results: Results) -> list[dict[str, Any]]:
    """Of methods that note how much each stage of the student learns from each of the teacher: a matrix a run, if there's no picture."""
    found = []
    for run in results.ranked:
        weights = {tuple(pair.split("~", 1)): value for pair, value in figures.last(run.records["distill"], "note/").items() if "~" in pair}
        if weights and not (run.analysis and "associations.png" in run.analysis.details["pictures"]):
            ours, theirs = (list(dict.fromkeys(pair[side] for pair in weights)) for side in (0, 1))
            most = max(max(weights.values()), 1e-9)
            cells = [[(weights.get((a, b)), max(0.0, weights.get((a, b), 0.0)) / most) for b in theirs] for a in ours]
            found.append({"run": run.name, "ours": ours, "theirs": theirs, "cells": cells})
    return found


def _noted(results: Results) -> Table | None:
    """All else that methods noted."""
    told = []
    for run in results.ranked:
        for stage in ("pretrain", "distill"):
            for what, value in figures.last(run.records[stage], "note/").items():
                told += [[run.name, stage, what, f"{value:.4g}"]] if "~" not in what else []
    return Table("What methods noted at the end, the mean over seeds", ["", "stage", "what", "value"], told, words=3) if told else None


def _exports(results: Results, runs: Sequence[Run]) -> list[Table]:
    """Parity, int8 where there is one, speed."""
    told = [
        Table(
            "Exported files against the trained network", exports.PARITY, _lines(runs, exports.parity), words=3, marked=results.best.name
        ),
        Table(
            "The int8 file beside the float one, on test images",
            exports.INT8,
            _lines(runs, exports.int8),
            words=3,
            marked=results.best.name,
        ),
        Table("Speed on this machine's CPU", exports.SPEED, _lines(runs, exports.speed), words=3, marked=results.best.name),
    ]
    return [table._replace(head=["", *table.head]) for table in told if table.rows]


def _lines(runs: Sequence[Run], of: Callable[[Run], list[list[str]]]) -> list[list[str]]:
    return [[run.name, *line] for run in runs for line in of(run)]


def _sheet(results: Results, data: Path) -> list[tuple[str, str, list[str]]]:
    """Class, its counts, and a few training images of it."""
    manifest = results.prepare.details["manifest"]
    images = pictures.pixels(data)
    if images is None:
        return []
    names = manifest["classes"][:CLASSES_DRAWN]
    chosen = pictures.first_of_each(data, manifest["splits"]["train"], len(names), 8)
    return [
        (name, f"{manifest['per_class']['train'].get(name, 0):,}", [pictures.picture(images[row]) for row in chosen[i]])
        for i, name in enumerate(names)
        if len(chosen[i])
    ]


def _counts(results: Results) -> Table:
    manifest = results.prepare.details["manifest"]
    splits = [split for split in ("train", "val", "test") if split in manifest["splits"]]
    told = [[name, *(f"{manifest['per_class'][split].get(name, 0)}" for split in splits)] for name in manifest["classes"]]
    return Table("Images by class and split", ["", *splits], [*told, ["all", *(f"{manifest['splits'][split]}" for split in splits)]])


def _settings(results: Results) -> Table:
    told: list[list[str | Markup]] = []
    for run in results.ranked:
        method = {key: value for key, value in run.params["run"]["method"].items() if key != "name"}
        seeds = ", ".join(map(str, run.accuracy))
        images = f"{run.records['distill'].details['sample']['images']}"
        chosen = json.dumps({**method, "protocol": run.params["protocol"]}, ensure_ascii=False)
        told.append([run.name, run.teacher, run.student, run.method, Markup("<code>{}</code>").format(chosen), seeds, images])
    return Table(
        "What each run was", ["", "teacher", "student", "method", "settings", "seeds", "images"], told, words=5, marked=results.best.name
    )


def _stages(results: Results) -> Table:
    told: list[list[str | Markup]] = []
    for record in results.records:
        outputs = Markup(", ").join(Markup("{} <code>{}</code>").format(name, digest[:12]) for name, digest in record.outputs.items())
        made = record.finished[:19].replace("T", " ")
        told.append(
            [f"{record.stage} {record.name}", Markup("<code>{}</code>").format(record.id[:8]), made, outputs, f"{record.seconds:.1f}"]
        )
    return Table("Every stage that ran", ["", "record", "finished", "outputs", "seconds"], told, words=4)

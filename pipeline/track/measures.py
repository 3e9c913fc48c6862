"""The numbers of a row, by the names that MLflow shows. First those of the file that ships."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.records.intervals import Share, of_scores
from pipeline.records.record import Record
from pipeline.records.results import Results, RunResults
from pipeline.report.costs import Cost, training_costs
from pipeline.report.words import BY_CLASS

if TYPE_CHECKING:
    from pipeline.evaluation.gains import Gain

MOST = 30  # of a row; the rest is in its artifacts
MEANINGS = {
    "accuracy_test": "accuracy of the exported float file on the test images",
    "accuracy_test_low": "low end of its 95 % interval",
    "accuracy_test_high": "high end of its 95 % interval",
    "accuracy_test_int8": "accuracy of the int8 file on the test images",
    "score_val": "accuracy on validation, or what train.select names, mean over seeds (the best run is "
    "chosen by it)",
    "score_val_file": "the same of the exported seed, which is chosen by it",
    "accuracy_val": "accuracy on validation",
    "balanced_accuracy_test": "balanced accuracy of the file (mean recall of the classes)",
    "macro_f1_test": "macro-F1 of the file (mean F1 of the classes)",
    "calibration_error_test": "expected calibration error of the file",
    "agreement_with_teacher": "share of the test images that the file and the teacher give the same class",
    "accuracy_test_mean": "accuracy of the method, mean over seeds",
    "accuracy_test_spread": "standard deviation of the accuracy over seeds",
    "seeds": "number of seeds",
    "gain_points": "gain over the baseline, percentage points, mean over seeds",
    "gain_points_low": "low end of the gain's 95 % interval for other seeds",
    "gain_points_high": "high end of the gain's 95 % interval for other seeds",
    "latency_ms": "milliseconds for one image, ONNX file, one thread of the CPU",
    "latency_ms_int8": "the same of the int8 file",
    "size_mb": "megabytes of the ONNX file",
    "size_mb_int8": "megabytes of the int8 file",
    "parameters_millions": "million parameters",
    "macs_millions": "million multiplications for one image",
    "images_per_s": "images per second in large batches",
    "speedup_over_torch": "CPU time of the same student in tuned PyTorch, divided by the ONNX file's",
    "speedup_over_torch_int8": "the same of the int8 file",
    "train_images": "labelled images that the student learned from",
    "train_images_unlabelled": "images without labels that it learned from",
    "training_minutes": "minutes of training, all seeds and phases together",
    "energy_wh": "watt-hours of training, as far as the machine counts them",
}
OF_BENCHMARK = {
    "latency_ms": "latency_ms",
    "latency_ms_int8": "int8_latency_ms",
    "size_mb": "size_mb",
    "size_mb_int8": "int8_size_mb",
    "parameters_millions": "parameters_m",
    "macs_millions": "macs_m",
    "images_per_s": "throughput",
    "speedup_over_torch": "speedup",
    "speedup_over_torch_int8": "int8_speedup",
}
OF_SCORES = {**{f"{key}_test": key for key in BY_CLASS}, "calibration_error_test": "ece"}


def of_run(results: Results, run: RunResults, gain: "Gain | None") -> dict[str, float]:
    subset = run.records["distill"].details["subset"]
    found = {
        **_of_share(run.file_accuracy),
        "accuracy_test_int8": run.int8_accuracy,
        "score_val": results.value(run),
        "score_val_file": results.file_value(run),
        **_of_scores(run.file_scores),
        "agreement_with_teacher": run.file_scores.get("agreement"),
        **_of_method(run, gain),
        **_of_benchmark(run.records["benchmark"].metrics),
        "train_images": subset["images"],
        "train_images_unlabelled": subset.get("unlabelled") or None,
        **_of_cost(results, run.name),
    }
    return _known(found)


def of_teacher(results: Results, name: str, record: Record) -> dict[str, float]:
    """Without `score_val`: MLflow's page sorts by that, and shows teachers last."""
    found: dict[str, float | None] = {}
    if run := results.run_of_teacher(name):
        scores, speed = (
            run.records["evaluate"].details["teacher"],
            run.records["benchmark"].details["teacher"],
        )
        found |= {**_of_share(of_scores(scores)), **_of_scores(scores), **_of_benchmark(speed)}
        if "file" not in speed:  # PyTorch's latency cannot be compared with that of ONNX files
            found.pop("latency_ms", None)
    found |= {"accuracy_val": record.metrics.get("val_accuracy"), **_of_cost(results, name)}
    return _known(found)


def of_seed(run: RunResults, seed: int) -> dict[str, float]:
    """What a seed's own run says beside its curves."""
    scores, trained = run.records["evaluate"].details["seeds"][str(seed)], run.records["distill"].metrics
    found = {
        **_of_share(of_scores(scores)),
        **_of_scores(scores),
        "agreement_with_teacher": scores.get("agreement"),
        **{
            f"{column}_val_kept": trained.get(f"val_{column}/seed-{seed}")
            for column in ("accuracy", *BY_CLASS, "loss")
        },
        **of_usage(run.records["distill"]),
    }
    return _known(found)


def of_usage(record: Record) -> dict[str, float]:
    """What the stage of a training took of the machine. MLflow shows `system/` on a page of its own."""
    used = record.details.get("usage")
    if used is None or not record.seconds:  # an older record
        return {}
    return {
        "system/cpu_cores": round(used["cpu_s"] / record.seconds, 2),
        "system/memory_mb": used["memory_mb"],
    }


def _of_share(found: Share) -> dict[str, float | None]:
    return {
        "accuracy_test": found.value,
        "accuracy_test_low": found.low,
        "accuracy_test_high": found.high,
    }


def _of_scores(scores: Mapping[str, Any]) -> dict[str, float | None]:
    return {ours: scores.get(theirs) for ours, theirs in OF_SCORES.items()}


def _of_method(run: RunResults, gain: "Gain | None") -> dict[str, float | None]:
    scores = run.records["evaluate"].metrics
    ends = {"low": gain.low, "high": gain.high} if gain else {}
    return {
        "accuracy_test_mean": scores["accuracy"],
        "accuracy_test_spread": scores["spread"] if scores["n"] > 1 else None,
        "seeds": scores["n"],
        "gain_points": 100 * gain.mean if gain else None,
        **{f"gain_points_{end}": None if value is None else 100 * value for end, value in ends.items()},
    }


def _of_benchmark(speed: Mapping[str, float]) -> dict[str, float | None]:
    return {ours: speed.get(theirs) for ours, theirs in OF_BENCHMARK.items()}


def _of_cost(results: Results, name: str) -> dict[str, float | None]:
    found: Cost | None = next((cost for cost in training_costs(results) if cost.name == name), None)
    return {"training_minutes": found.seconds / 60, "energy_wh": found.energy_wh} if found else {}


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    """With as many digits as a narrow column shows."""
    return {key: round(float(value), 5) for key, value in found.items() if value is not None}

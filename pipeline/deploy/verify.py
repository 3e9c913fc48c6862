"""Is this bundle what was exported, and does it answer here as it did there? One line for each check.

A person calls this; so do `export/build_bundle.py` before a bundle ships and `track/registry.py` before it is
registered. `predictor.py` itself refuses one that was changed (`read_bundle.py`) or that answers otherwise.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.deploy import onnx_graph
from pipeline.deploy.predict import printable
from pipeline.deploy.predictor import TOLERANCE, Predictor, are_probabilities
from pipeline.deploy.read_bundle import Bundle, BundleError, Format, Golden, open_bundle

# Share of the golden images that must get the same class from int8 and fp32. There are too few of them for
# int8's own gate (98.5 % of many images), but enough to notice a broken file.
AGREEMENT = 0.9


@dataclass(frozen=True)
class Check:
    """One check of a bundle. `passed` is None for a note, which is neither good nor bad."""

    what: str
    passed: bool | None
    says: str


def verify(folder: Path | str, *, expect: str = "") -> list[Check]:
    """The checks in their order, up to the first that fails.

    `expect` is the fingerprint that the bundle must have.
    """
    done: list[Check] = []
    try:
        for check in _checks(Path(folder), expect):
            done.append(check)
            if check.passed is False:
                break
    except BundleError as error:
        done.append(Check("bundle", False, str(error)))
    return done


def passed(checks: list[Check]) -> bool:
    return all(check.passed is not False for check in checks)


def command(folder: Path, *, expect: str) -> int:
    """What `verify` does. Returns 0, or 1 if a check failed."""
    checks = verify(folder, expect=expect)
    for check in checks:
        mark = {True: "ok", False: "FAILED", None: "note"}[check.passed]
        print(f"{mark:<7}{check.what}: {printable(check.says)}")
    if passed(checks):
        print("This bundle is whole and answers as it did where it was exported.")
        return 0
    print("Do not use this bundle.")
    return 1


def _checks(folder: Path, expect: str) -> Iterator[Check]:
    bundle = open_bundle(folder)
    yield _fingerprint(bundle, expect)
    yield from _files(bundle)
    golden = bundle.golden()
    predictors = {}
    for format in bundle.formats:
        yield _structure(bundle, format)
        predictors[format] = Predictor(bundle, format=format)
        yield _answers(predictors[format], golden)
        if bundle.is_calibrated:
            yield _probabilities(predictors[format], golden)
        yield _batches(predictors[format], golden)
    if "int8" in predictors:
        yield _agreement(predictors["onnx"], predictors["int8"], golden)
    if importlib.util.find_spec("onnx"):
        yield _second_opinion(bundle, golden)
    else:
        yield Check(
            "onnx", None, "this package is not installed, so its checker and its runtime were not used"
        )
    formats = bundle.facts["formats"].items()
    if others := [entry["file"] for format, entry in formats if format not in bundle.formats]:
        yield Check("formats", None, f"not loaded here, only their hashes were checked: {', '.join(others)}")


def _fingerprint(bundle: Bundle, expect: str) -> Check:
    if expect and not bundle.has_fingerprint(expect):
        says = f"it is {bundle.fingerprint}, not the expected {expect}: this is another bundle."
        return Check("fingerprint", False, says)
    says = f"its seal is whole; schema {bundle.facts['schema']}; fingerprint {bundle.fingerprint}"
    return Check("bundle.json", True, says)


def _files(bundle: Bundle) -> Iterator[Check]:
    listed = bundle.facts["files"]
    for name in listed:
        bundle.read(name)
    yield Check("files", True, f"all {len(listed)} are as they were exported")
    if extra := sorted({path.name for path in bundle.folder.iterdir()} - {"bundle.json", *listed}):
        some = ", ".join(extra[:10])
        yield Check("files", None, f"these do not belong to the bundle and were not checked: {some}")


def _structure(bundle: Bundle, format: Format) -> Check:
    name, content = bundle.facts["formats"][format]["file"], bundle.model(format)
    graph = onnx_graph.check(content, bundle, name=name)
    if importlib.util.find_spec("onnx"):
        import onnx

        try:
            onnx.checker.check_model(content, full_check=True)
        except Exception as error:  # its own types, protobuf's and more
            return Check(name, False, f"onnx's checker refuses it: {str(error)[:300]}")
    operators = f"its {len(graph.operators)} kinds of operators are all allowed"
    return Check(name, True, f"{operators}; its inputs and outputs are those of bundle.json")


def _answers(predictor: Predictor, golden: Golden) -> Check:
    difference, allowed = predictor.deviation(golden), TOLERANCE[predictor.format]
    says = (
        f"the answers to {len(golden.images)} golden images differ by at most {difference:.1e} "
        f"of the largest logit (allowed: {allowed:.0e})"
    )
    return Check(predictor.format, difference <= allowed, says)


def _probabilities(predictor: Predictor, golden: Golden) -> Check:
    """Are the golden probabilities those of the temperature? Loading compares the file's own with it."""
    want, temperature = golden.probabilities[predictor.format], predictor.bundle.temperature
    difference = float(np.abs(predictor.run(golden.images)[1] - want).max())
    is_same = are_probabilities(want, golden.logits[predictor.format], temperature)
    says = (
        f"the golden probabilities are {'' if is_same else 'not '}those of the temperature {temperature:g}; "
        f"the answers differ from them by at most {difference:.1e}"
    )
    return Check(predictor.format, is_same, says)


def _batches(predictor: Predictor, golden: Golden) -> Check:
    """The same images one by one, all together, and in a batch of the largest size."""
    count, batch = len(golden.images), predictor.batch
    single = np.concatenate([predictor.run(image[None])[1] for image in golden.images])
    together = predictor.run(golden.images)[1]
    repeated = np.concatenate([golden.images] * -(-batch // count))[:batch]
    largest = predictor.run(repeated)[1][:count]
    difference = max(
        float(np.abs(single - together).max()), float(np.abs(largest - single[: len(largest)]).max())
    )
    says = (
        f"batches of 1, {count} and {batch} images get the same answers "
        f"(probabilities differ by at most {difference:.1e})"
    )
    return Check(predictor.format, difference <= TOLERANCE[predictor.format], says)


def _agreement(fp32: Predictor, int8: Predictor, golden: Golden) -> Check:
    want, got = fp32.run(golden.images)[0], int8.run(golden.images)[0]
    scale = np.abs(want).max()
    chosen = np.take_along_axis(want, got.argmax(1)[:, None], 1)[:, 0]
    # classes that int8's rounding cannot tell apart count as the same
    share = float((chosen >= want.max(1) - 2 * TOLERANCE["int8"] * scale).mean())
    says = (
        f"{share:.0%} of the golden images get the same class as fp32 gives them; "
        f"logits differ by at most {np.abs(want - got).max() / scale:.1e} of the largest"
    )
    return Check("int8", share >= AGREEMENT, says)


def _second_opinion(bundle: Bundle, golden: Golden) -> Check:
    """onnx's reference runtime, which shares no code with onnxruntime."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    name = bundle.facts["formats"]["onnx"]["file"]
    try:
        runtime = ReferenceEvaluator(onnx.load(BytesIO(bundle.model("onnx"))))
        logits: Any = runtime.run(["logits"], {"image": golden.images[:1]})
    except Exception as error:  # its own limits, such as a missing operator, are not the file's fault
        return Check(name, None, f"onnx's reference runtime cannot run it ({type(error).__name__})")
    want = golden.logits["onnx"]
    difference = float(np.abs(logits[0] - want[:1]).max() / np.abs(want).max())
    says = f"onnx's reference runtime agrees (logits differ by at most {difference:.1e} of the largest)"
    return Check(name, difference <= TOLERANCE["onnx"], says)

"""Is this bundle what was exported, and does it answer here as it did there? One line for each thing that was looked at."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.deploy import graph
from pipeline.deploy.bundle import Bundle, BundleError, Format, Golden, open_bundle
from pipeline.deploy.predict import printable
from pipeline.deploy.predictor import TOLERANCE, Predictor

AGREEMENT = 0.9  # of int8 with fp32 on the golden images: too few for its gate (98.5 % of many), enough to see a broken file


@dataclass(frozen=True)
class Check:
    """What was looked at and what was seen; `passed` is None where something is only said."""

    what: str
    passed: bool | None
    says: str


def verify(folder: Path | str, *, expect: str = "") -> list[Check]:
    """All checks in their order; the last one is the first that failed. `expect` is the fingerprint the bundle must have."""
    done: list[Check] = []
    try:
        done.extend(_checks(Path(folder), expect, done))
    except BundleError as error:
        done.append(Check("bundle", False, str(error)))
    return done


def passed(checks: list[Check]) -> bool:
    return all(check.passed is not False for check in checks)


def command(folder: Path, *, expect: str) -> int:
    """What `verify` does; 0, or 1 where a check failed."""
    checks = verify(folder, expect=expect)
    for check in checks:
        print(f"{ {True: 'ok', False: 'FAILED', None: 'note'}[check.passed]:<7}{check.what}: {printable(check.says)}")
    good = passed(checks)
    print("This bundle is whole and answers as it did where it was exported." if good else "Don't use this bundle.")
    return 0 if good else 1


def _checks(folder: Path, expect: str, done: list[Check]) -> Iterator[Check]:
    bundle = open_bundle(folder)
    if expect and bundle.fingerprint != expect.lower():
        yield Check("fingerprint", False, f"it is {bundle.fingerprint}, not the expected {expect}: this is another bundle.")
        return
    yield Check("bundle.json", True, f"sealed, schema {bundle.facts['schema']}, fingerprint {bundle.fingerprint}")
    for name in bundle.facts["files"]:
        bundle.read(name)
    yield Check("files", True, f"{len(bundle.facts['files'])} of them, all as exported")
    if extra := sorted({path.name for path in folder.iterdir()} - {"bundle.json", *bundle.facts["files"]}):
        yield Check("files", None, f"not of the bundle and not looked at: {', '.join(extra[:10])}")
    golden = bundle.golden()
    predictors = {}
    for format in bundle.formats:
        yield _structure(bundle, format)
        predictors[format] = Predictor(bundle, format=format)
        yield _answers(predictors[format], golden)
        yield _batches(predictors[format], golden)
    if "int8" in predictors:
        yield _agreement(predictors["onnx"], predictors["int8"], golden)
    if importlib.util.find_spec("onnx"):
        yield _second_opinion(bundle, golden)
    else:
        yield Check("onnx", None, "not installed, so its checker and its own runtime weren't asked")
    if others := [entry["file"] for format, entry in bundle.facts["formats"].items() if format not in bundle.formats]:
        yield Check("formats", None, f"by their hashes only: {', '.join(others)} (loading TorchScript runs code that is in it)")


def _structure(bundle: Bundle, format: Format) -> Check:
    name, content = bundle.facts["formats"][format]["file"], bundle.model(format)
    read = graph.check(content, bundle, name=name)
    if importlib.util.find_spec("onnx"):
        import onnx

        try:
            onnx.checker.check_model(content, full_check=True)
        except Exception as error:  # its own types, protobuf's and more
            return Check(name, False, f"onnx's checker refuses it: {str(error)[:300]}")
    return Check(name, True, f"{len(read.operators)} kinds of operator, all on the list; takes and gives what bundle.json says")


def _answers(predictor: Predictor, golden: Golden) -> Check:
    difference, allowed = predictor.deviation(golden), TOLERANCE[predictor.format]
    says = f"{len(golden.images)} golden images, largest difference {difference:.1e} of the largest logit (allowed {allowed:.0e})"
    return Check(predictor.format, difference <= allowed, says)


def _batches(predictor: Predictor, golden: Golden) -> Check:
    together = predictor.run(golden.images)[1]
    repeated = np.concatenate([golden.images] * -(-predictor.batch // len(golden.images)))[: predictor.batch]
    alone = np.concatenate([predictor.run(image[None])[1] for image in golden.images])
    largest = predictor.run(repeated)[1][: len(alone)]
    difference = max(float(np.abs(alone - together).max()), float(np.abs(largest - alone[: len(largest)]).max()))
    says = f"batches of 1, {len(golden.images)} and {predictor.batch} answer alike (probabilities differ by {difference:.1e})"
    return Check(predictor.format, difference <= TOLERANCE[predictor.format], says)


def _agreement(one: Predictor, other: Predictor, golden: Golden) -> Check:
    left, right = one.run(golden.images)[0], other.run(golden.images)[0]
    scale = np.abs(left).max()
    chosen = np.take_along_axis(left, right.argmax(1)[:, None], 1)[:, 0]
    share = float((chosen >= left.max(1) - 2 * TOLERANCE["int8"] * scale).mean())  # classes that int8 can't tell apart agree
    says = f"the same class as fp32 for {share:.0%} of the golden images; logits differ by {np.abs(left - right).max() / scale:.1e}"
    return Check("int8", share >= AGREEMENT, says)


def _second_opinion(bundle: Bundle, golden: Golden) -> Check:
    """onnx's reference implementation, which shares no code with onnxruntime."""
    from io import BytesIO

    import onnx
    from onnx.reference import ReferenceEvaluator

    name = bundle.facts["formats"]["onnx"]["file"]
    try:
        answer: Any = ReferenceEvaluator(onnx.load(BytesIO(bundle.model("onnx")))).run(["logits"], {"image": golden.images[:1]})
    except Exception as error:  # its own limits, say an operator it lacks, are no fault of the file
        return Check(name, None, f"onnx's reference runtime can't run it ({type(error).__name__})")
    want = golden.logits["onnx"]
    difference = float(np.abs(answer[0] - want[:1]).max() / np.abs(want).max())
    return Check(name, difference <= TOLERANCE["onnx"], f"onnx's reference runtime agrees (differs by {difference:.1e})")

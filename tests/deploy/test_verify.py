import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.deploy.__main__ import main
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import BundleError, open_bundle
from pipeline.deploy.verify import passed, verify


def faults(folder: Path, expect: str = "") -> list[str]:
    return [f"{check.what}: {check.says}" for check in verify(folder, expect=expect) if check.passed is False]


def test_a_whole_bundle_passes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--expect", open_bundle(bundle).fingerprint.upper()]) == 0
    out = capsys.readouterr().out
    assert "8 golden images" in out
    assert "reference runtime agrees" in out
    assert "student.ts" in out
    assert "FAILED" not in out


def test_another_bundle_than_expected_fails(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--expect", "0" * 64]) == 1
    assert "another bundle" in capsys.readouterr().out


def test_it_notes_that_onnx_is_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    checks = verify(bundle)
    assert passed(checks)
    assert any(check.what == "onnx" and check.passed is None for check in checks)


def test_files_that_do_not_belong_to_the_bundle_are_named(own: Path) -> None:
    (own / "evil.py").write_text("")
    checks = verify(own)
    assert passed(checks)
    assert any("evil.py" in check.says for check in checks)


def test_golden_answers_of_another_student_fail(
    bent: Callable[..., Path], workshop: Any, template: Any
) -> None:
    images = workshop.pictures(8)
    sound = {
        "images": images,
        **{f"logits_{name}": workshop.answers(template.files[file], images) for name, file in FILES.items()},
    }
    assert not faults(bent(golden__npz=workshop.npz(**sound)))
    late = {**sound, "logits_fp32": sound["logits_fp32"].copy()}
    late["logits_fp32"][7] += 0.05  # of the last image alone
    folder = bent(golden__npz=workshop.npz(**late))
    with pytest.raises(BundleError, match=r"student\.onnx does not answer here"):
        Predictor(folder)
    assert any("does not answer here" in fault for fault in faults(folder))
    assert verify(folder)[-1].passed is False  # it stops at the first failure


def test_a_changed_weight_that_few_images_show_is_noticed(
    bent: Callable[..., Path], workshop: Any, template: Any
) -> None:
    """An int8 file whose answers to two golden images are as ever is no longer the one that was exported."""
    images = workshop.pictures(8)
    answers = workshop.answers(template.files["student.int8.onnx"], images)
    other = answers.copy()
    other[2:] *= 1.09
    golden = {"images": images, "logits_fp32": workshop.answers(template.files["student.onnx"], images)}
    assert Predictor(bent(golden__npz=workshop.npz(**golden, logits_int8=answers)), format="int8")
    with pytest.raises(BundleError, match="Use format 'onnx'"):
        Predictor(bent(golden__npz=workshop.npz(**golden, logits_int8=other)), format="int8")


FILES = {"fp32": "student.onnx", "int8": "student.int8.onnx"}


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(exp / exp.sum(1, keepdims=True))


def test_calibrated_probabilities_pass(warm: Any, workshop: Any, tmp_path: Path) -> None:
    folder = warm.write(tmp_path / "warm")
    checks = verify(folder)
    assert passed(checks)
    said = [check.what for check in checks if "those of the temperature 2.5" in check.says]
    assert said == ["onnx", "int8"]
    for format in ("onnx", "int8"):
        logits, found = Predictor(folder, format=format).run(workshop.pictures(40, seed=7))
        assert found == pytest.approx(probabilities(logits, 2.5), abs=1e-6)
        assert np.abs(found - probabilities(logits, 1)).max() > 0.1


def test_a_changed_temperature_is_refused_wherever_it_is_changed(
    warm: Any, workshop: Any, tmp_path: Path
) -> None:
    """In bundle.json; in the metadata too; in the graph too; and in none of them but the golden answers."""

    def written(name: str, facts: dict[str, Any], **files: bytes) -> Path:
        files = {key.replace("__", "."): content for key, content in files.items()}
        formats = {"onnx": warm.facts["formats"]["onnx"]}
        changed = {**warm.facts, "formats": formats, **facts}
        return Path(replace(warm, facts=changed, files={**warm.files, **files}).write(tmp_path / name))

    assert not faults(written("whole", {}))
    one = written("one", {"temperature": 2.6})
    assert any("'temperature' in its metadata is not what" in fault for fault in faults(one))
    two = written("two", {"temperature": 2.501}, student__onnx=workshop.graph(temperature=2.5, said=2.501))
    assert any("does not answer here" in fault for fault in faults(two))
    three = written("three", {"temperature": 2.501}, student__onnx=workshop.graph(temperature=2.501))
    assert any("not those of the temperature 2.501" in fault for fault in faults(three))
    images, logits = workshop.pictures(8), workshop.answers(warm.files["student.onnx"], workshop.pictures(8))
    golden = {"images": images, "logits_fp32": logits}
    old = probabilities(logits, 2.49).astype(np.float32)
    four = written("four", {}, golden__npz=workshop.npz(**golden, probabilities_fp32=old))
    assert any("not those of the temperature 2.5" in fault for fault in faults(four))
    for bad in ({}, {"probabilities_fp32": logits[:3]}, {"probabilities_fp32": logits + np.nan}):
        five = written("five", {}, golden__npz=workshop.npz(**golden, **bad))
        assert any("'probabilities_fp32'" in fault for fault in faults(five))
    plain = {key: value for key, value in warm.facts.items() if key != "temperature"}
    six = replace(warm, facts=plain).write(tmp_path / "six")
    assert any("does not answer here" in fault for fault in faults(six))


def test_int8_of_another_student_fails(bent: Callable[..., Path], workshop: Any, template: Any) -> None:
    images, other = workshop.pictures(8), workshop.graph(seed=1)
    golden = workshop.npz(
        images=images,
        logits_fp32=workshop.answers(template.files["student.onnx"], images),
        logits_int8=workshop.answers(other, images),
    )
    assert any(
        "same class as fp32" in fault for fault in faults(bent(student__int8__onnx=other, golden__npz=golden))
    )


def test_a_file_that_only_onnxs_checker_refuses_fails(bent: Callable[..., Path], workshop: Any) -> None:
    def unsorted(model: Any) -> None:
        nodes = [*model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(reversed(nodes))

    assert any("checker" in fault for fault in faults(bent(student__onnx=workshop.graph(bend=unsorted))))


def damage(folder: Path, random: np.random.Generator) -> str:
    """Damage one file as happens to files; returns its name."""
    files = sorted(folder.iterdir())
    path = files[random.integers(len(files))]
    content = bytearray(path.read_bytes())
    before = bytes(content)
    kind = random.integers(5)
    if kind == 0:  # a few flipped bits
        for position in random.integers(0, len(content), random.integers(1, 4)):
            content[position] ^= 1 << int(random.integers(8))
    elif kind == 1:  # a zeroed block
        start = int(random.integers(len(content)))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == 2:
        del content[int(random.integers(len(content))) :]
    elif kind == 3:  # another file in its place
        content[:] = files[
            (files.index(path) + 1 + random.integers(len(files) - 1)) % len(files)
        ].read_bytes()
    else:
        content += bytes(random.integers(0, 256, 10, dtype=np.uint8))
    if bytes(content) == before:
        content = bytearray(b"x") + content
    path.write_bytes(content)
    return path.name


def refuse_damaged(bundle: Path, scratch: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for number in range(count):
        folder = Path(shutil.copytree(bundle, scratch / str(number)))
        name = damage(folder, random)
        assert not passed(verify(folder)), f"{number}: {name}"
        if name in ("bundle.json", "student.onnx", "golden.npz"):
            with pytest.raises(BundleError):
                Predictor(folder)
        shutil.rmtree(folder)


def test_damaged_bundles_are_refused(bundle: Path, tmp_path: Path) -> None:
    refuse_damaged(bundle, tmp_path, 120, seed=0)


@pytest.mark.slow
def test_a_thousand_damaged_bundles_are_refused(bundle: Path, tmp_path: Path) -> None:
    refuse_damaged(bundle, tmp_path, 1000, seed=1)


def forged(bent: Callable[..., Path], template: Any, count: int, seed: int) -> int:
    """Damage the model but give the bundle the right hashes; returns how many models still load.

    Those that load must answer as before.
    """
    random = np.random.default_rng(seed)
    accepted = 0
    for _ in range(count):
        content = bytearray(template.files["student.onnx"])
        for position in random.integers(0, len(content), random.integers(1, 4)):
            content[position] ^= 1 << int(random.integers(8))
        try:
            predictor = Predictor(bent(student__onnx=bytes(content)))
        except BundleError:
            continue
        accepted += 1
        assert predictor.deviation(predictor.bundle.golden()) <= 3e-4
    return accepted


def test_the_golden_answers_stop_a_forger(bent: Callable[..., Path], template: Any) -> None:
    assert forged(bent, template, 60, seed=0) < 60


@pytest.mark.slow
def test_a_thousand_forgeries_crash_nothing(bent: Callable[..., Path], template: Any) -> None:
    assert forged(bent, template, 1000, seed=1) < 1000

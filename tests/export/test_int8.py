import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.export import build_bundle, deployable, int8, onnx_format
from pipeline.export.build_bundle import ExportConfig, Labelled
from pipeline.export.deployable import Predict
from pipeline.export.int8 import Int8Config, Quality, batch_faults, compare, faults
from pipeline.records.intervals import of_difference

Outputs = tuple[np.ndarray, np.ndarray]
GOOD = Quality(
    accuracy=0.9, accuracy_fp32=0.9, drop=0.0, low=-0.1, high=0.1, agreement=0.995, snr_db=38.0, images=5000
)


@pytest.fixture(scope="module")
def graph(exported: Any) -> Any:
    import onnx

    return onnx.load(exported.out / "student.int8.onnx", load_external_data=False).graph


def test_only_the_middle_of_the_network_is_quantized(graph: Any) -> None:
    makers = {output: node for node in graph.node for output in node.output}

    def quantized(node: Any) -> bool:
        return any(makers[name].op_type == "DequantizeLinear" for name in node.input if name in makers)

    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convs) == 3
    assert all(quantized(node) for node in convs)
    normalisation = [node for node in graph.node[:8] if node.op_type in ("Cast", "Sub", "Mul")]
    classifier = [node for node in graph.node if node.op_type in ("Gemm", "MatMul", "Softmax")]
    assert len(normalisation) == 3
    assert len(classifier) == 2
    weights = {tensor.name for tensor in graph.initializer}
    for node in (*normalisation, *classifier):
        assert not [
            name
            for name in node.input
            if name in makers
            and makers[name].op_type == "DequantizeLinear"
            and makers[name].input[0] in weights
        ]
    assert not [node for node in normalisation if quantized(node)]


def test_the_first_layer_stays_in_float_if_only_that_is_good_enough(world: Any, tmp_path: Path) -> None:
    import onnx

    def written(place: str, **gate: float) -> dict[str, Any]:
        cfg = ExportConfig(int8=world.int8.model_copy(update=gate), formats=("onnx", "int8"))
        entry: dict[str, Any] = world.write(world.make(), tmp_path / place, cfg=cfg)["formats"]["int8"]
        return entry

    fast = written("fast")
    exact = written("refused", min_snr=99.0)  # both were tried
    assert (fast["float_first"], exact["float_first"]) == (False, True)
    between = (fast["quality"]["snr_db"] + exact["quality"]["snr_db"]) / 2
    assert between > fast["quality"]["snr_db"]
    entry = written("between", min_snr=between)
    assert (entry["accepted"], entry["float_first"], entry["quality"]) == (True, True, exact["quality"])
    graph = onnx.load(tmp_path / "between" / entry["file"]).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert [makers[conv.input[1]] for conv in convs] == ["Cast", "DequantizeLinear", "DequantizeLinear"]
    assert "Its first layer stays in float" in (tmp_path / "between" / "README.md").read_text()
    assert "Its first layer" not in (tmp_path / "fast" / "README.md").read_text()


def test_the_normalisation_has_constants_for_a_row_of_pixels(graph: Any) -> None:
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rows = {node.op_type: constants[node.input[1]] for node in graph.node if node.op_type in ("Sub", "Mul")}
    assert {op: values.shape for op, values in rows.items()} == {
        "Sub": (1, 1, 4, 12),
        "Mul": (1, 1, 4, 12),
    }  # 16 pixels
    assert np.allclose(rows["Sub"].reshape(16, 3), 255 * np.array([0.5, 0.4, 0.3]))
    assert np.allclose(rows["Mul"].reshape(16, 3), 1 / (255 * np.array([0.2, 0.25, 0.3])))


def test_the_normalisation_has_them_too_if_the_first_layer_stays_in_float(
    exported: Any, images: np.ndarray, tmp_path: Path
) -> None:
    import onnx

    source, out = exported.out / "student.onnx", tmp_path / "int8.onnx"
    int8.write(source, out, images, portable=False, metadata={}, float_first=True)
    graph = onnx.load(out).graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert [constants[node.input[1]] for node in graph.node if node.op_type in ("Sub", "Mul")] == [
        (1, 3, 1, 16)
    ] * 2


def test_weights_are_signed_and_scaled_by_channel_and_activations_are_unsigned(graph: Any) -> None:
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        activation, weight = (makers[name] for name in conv.input[:2])
        if activation.op_type == "Transpose":  # in the first layer
            activation = makers[activation.input[0]]
        values = constants[weight.input[0]]
        assert values.dtype == np.int8
        assert constants[weight.input[1]].shape == (len(values),)
        assert constants[activation.input[2]].dtype == np.uint8


def test_the_file_holds_only_what_onnxruntime_needs(graph: Any, exported: Any, tmp_path: Path) -> None:
    """It holds equal constants once, biases in float and the classifier in 16 bits.

    After loading nothing of this costs time.
    """
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert len({(a.dtype.str, a.shape, a.tobytes()) for a in constants.values()}) == len(constants)
    used = {name for node in graph.node for name in node.input}
    assert set(constants) <= used
    assert not graph.value_info
    assert {a.dtype for a in constants.values()} == {
        np.dtype(t) for t in ("float32", "float16", "uint8", "int8", "int64")
    }
    classifier = next(a for a in constants.values() if a.dtype == np.float16)
    float_file = onnx.load(exported.out / "student.onnx").graph
    wanted = next(t for t in float_file.initializer if t.name == float_file.node[-2].input[1])
    assert np.array_equal(classifier, numpy_helper.to_array(wanted).astype(np.float16))

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "loaded.onnx"), 3
    onnxruntime.InferenceSession(
        exported.out / "student.int8.onnx", options, providers=["CPUExecutionProvider"]
    )
    loaded = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert loaded.count("QLinearConv") == 3
    assert "Conv" not in loaded
    assert loaded.count("Cast") == 1


def test_the_file_describes_itself(exported: Any) -> None:
    import onnx
    import onnxruntime

    path = exported.out / "student.int8.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 16, 16, 3])
    ]
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata == exported.metadata
    model = onnx.load(path, load_external_data=False)
    assert {e.domain: e.version for e in model.opset_import} == {"": 20}
    assert not any(t.external_data for t in model.graph.initializer)
    assert path.stat().st_size < (exported.out / "student.onnx").stat().st_size


def test_portable_weights_have_seven_bits(
    exported: Any, world: Any, images: np.ndarray, tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    source = Path(shutil.copy(exported.out / "student.onnx", tmp_path))
    some = Labelled(images, np.zeros(len(images), np.int64))
    largest = {}
    for portable in (False, True):
        cfg = world.int8.model_copy(update={"portable": portable})
        entry = build_bundle._int8(source, {}, images, some, some, cfg)  # the CPU decides if it is accepted
        assert entry["portable"] == portable
        tensors = onnx.load(tmp_path / entry["file"]).graph.initializer
        largest[portable] = max(
            int(np.abs(numpy_helper.to_array(t).astype(int)).max())
            for t in tensors
            if t.data_type == onnx.TensorProto.INT8
        )
    assert largest == {False: 127, True: 64}


def test_equal_input_gives_equal_bytes_and_prints_nothing(
    exported: Any, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = dict(reversed(exported.metadata.items()))  # in another order
    training = world.pictures(3, 240)[:80]
    source, again, portable = exported.out / "student.onnx", tmp_path / "again.onnx", world.int8.portable
    int8.write(source, again, training, portable=portable, metadata=metadata)
    assert capfd.readouterr() == ("", "")
    assert again.read_bytes() == (exported.out / "student.int8.onnx").read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.9, 1.01])
def test_a_full_disk_is_an_error_of_the_system(share: float, exported: Any, tmp_path: Path) -> None:
    """onnx writes a part of the file beside it, says nothing, and cannot read it."""
    source = tmp_path / "student.onnx"
    shutil.copy(exported.out / "student.onnx", source)
    code = f"""
import errno, numpy, pathlib, resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from pipeline.export import int8
images = numpy.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=numpy.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({int(share * source.stat().st_size)}, resource.RLIM_INFINITY))
try:
    int8.write(pathlib.Path("student.onnx"), pathlib.Path("x.onnx"), images, portable=False, metadata={{}})
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "EFBIG\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


def test_another_process_gives_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    code = f"""
import sys, numpy, pathlib
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from pipeline.export import int8
images = numpy.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=numpy.uint8)
source = pathlib.Path({str(exported.out / "student.onnx")!r})
int8.write(source, pathlib.Path("x.onnx"), images, portable=False, metadata={{}})
"""
    hashes = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / seed,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        hashes.add(hashlib.sha256((tmp_path / seed / "x.onnx").read_bytes()).hexdigest())
    assert len(hashes) == 1


# the gate
def test_a_good_file_passes() -> None:
    assert faults(GOOD, Int8Config()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drop": 0.6, "low": 0.2}, "0.60 points"),
        ({"agreement": 0.984}, "98.40 %"),
        ({"snr_db": 29.9}, "29.9 dB"),
    ],
)
def test_each_kind_of_loss_is_refused(change: dict[str, Any], reason: str) -> None:
    assert [fault for fault in faults(replace(GOOD, **change), Int8Config()) if reason in fault]


def test_a_drop_that_may_be_chance_passes() -> None:
    assert faults(replace(GOOD, drop=0.6, low=-0.3, images=180), Int8Config()) == []


def fixed(logits: np.ndarray) -> Predict:
    """Row i of `logits` is the answer to the image whose first pixel is i."""

    def run(images: np.ndarray) -> Outputs:
        rows = logits[images[:, 0, 0, 0]]
        return rows, rows

    return run


def test_it_measures_drop_agreement_and_noise() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    labels = np.zeros(100, np.int64)
    want = np.tile(np.array([3.0, -3.0], np.float32), (100, 1))
    got = want.copy()
    got[:4] = -got[:4]  # four images are lost
    want[99] *= -1  # and one is won
    quality = compare(fixed(want), fixed(got), images, labels)
    assert (quality.accuracy_fp32, quality.accuracy) == (0.99, 0.96)
    assert quality.drop == pytest.approx(3)
    assert quality.low < 0 < 3 < quality.high
    assert quality.agreement == 0.95
    assert quality.snr_db == pytest.approx(10 * np.log10(100 * 9 / (5 * 36)))
    assert quality.images == 100


def test_images_are_read_once_and_only_as_many_as_run_at_once(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployable, "PIXELS", 40)
    images = world.Lazy(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1).repeat(4, 1).repeat(4, 2), 2)
    logits = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    quality = compare(fixed(logits), fixed(logits), images, np.zeros(73, np.int64))
    assert images.reads == [10] * 7 + [3]
    assert (quality.images, quality.agreement) == (73, 1)


def test_what_all_classes_share_does_not_count_as_signal() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    want = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    got = want + np.float32(0.1) * np.random.default_rng(1).normal(size=(10, 5)).astype(np.float32)
    plain = compare(fixed(want), fixed(got), images, np.zeros(10, np.int64))
    lifted = compare(fixed(want + 100), fixed(got + 100), images, np.zeros(10, np.int64))
    assert lifted.snr_db == pytest.approx(plain.snr_db, abs=0.01)
    assert 15 < plain.snr_db < 25


def test_the_interval_holds_the_true_drop_often_enough() -> None:
    """For a known drop, at least 93 % of many intervals hold it."""
    rng = np.random.default_rng(0)
    for n, lose, win in ((180, 0.01, 0.005), (1000, 0.01, 0.002), (1000, 0.002, 0.002)):
        lost, won, _ = rng.multinomial(n, [lose, win, 1 - lose - win], size=2000).T
        held = [
            low <= lose - win <= high
            for low, high in (of_difference(int(a), int(b), n) for a, b in zip(lost, won, strict=True))
        ]
        assert sum(held) / len(held) > 0.93
    low, high = of_difference(0, 0, 180)
    assert low < -0.005
    assert high > 0.005  # few images prove little, even without a difference


@pytest.mark.parametrize("wrong", ["not normalised", "one image"])
def test_a_bad_calibration_is_refused(
    wrong: str, exported: Any, world: Any, images: np.ndarray, tmp_path: Path
) -> None:
    path = exported.out / "student.onnx"
    float_file, labels = onnx_format.load(path), np.zeros(80, np.int64)
    training = {"not normalised": images // 40, "one image": images[:1] // 2 + 64}[wrong]
    # portable, so that no sum saturates: on every CPU only the ranges are wrong
    int8.write(path, tmp_path / "bad.onnx", training, portable=True, metadata={})
    bad = compare(float_file, onnx_format.load(tmp_path / "bad.onnx"), images, labels)
    good = compare(float_file, onnx_format.load(exported.out / "student.int8.onnx"), images, labels)
    assert bad.snr_db < 30 < good.snr_db
    assert faults(bad, Int8Config())


def test_nan_is_refused() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    logits = np.ones((4, 2), np.float32)
    with pytest.raises(int8.Int8Error, match="NaN"):
        compare(fixed(logits), fixed(logits * np.float32(np.nan)), images, np.zeros(4, np.int64))


def test_answers_that_depend_on_the_batch_are_refused(exported: Any, images: np.ndarray) -> None:
    run = onnx_format.load(exported.out / "student.int8.onnx")
    assert batch_faults(run, images) == []

    def leaking(x: np.ndarray) -> Outputs:
        logits, probabilities = run(x)
        return logits + logits.mean(0), probabilities

    assert "images at a time" in batch_faults(leaking, images)[0]

    def cut(x: np.ndarray) -> Outputs:
        logits, probabilities = run(x)
        return logits[:2], probabilities[:2]

    assert batch_faults(cut, images)


@pytest.mark.parametrize("settings", [{"images": 3}, {"max_drop": -1}, {"min_agreement": 101}, {"drop": 1}])
def test_config_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Int8Config(**settings)

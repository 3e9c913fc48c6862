import getpass
import hashlib
import json
import shutil
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import load_file
from torch import Tensor, nn

from pipeline.data.decode import SQUARES, Square, fit, load, see
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import BundleError, sealed
from pipeline.deploy.verify import passed, verify
from pipeline.export import build_bundle, calibration, onnx_format, parity, pt2, torchscript
from pipeline.export.build_bundle import BudgetError, ExportConfig
from pipeline.export.deployable import Deployable
from pipeline.export.int8 import Int8Error


def test_the_folder_holds_the_files_it_lists(exported: Any) -> None:
    written = json.loads((exported.out / "bundle.json").read_text())
    assert written == json.loads(json.dumps(exported.bundle))
    assert {p.name for p in exported.out.iterdir()} == {*written["files"], "bundle.json"}
    shipped = ["student.onnx", "student.int8.onnx", "student.ts", "student.safetensors"]
    assert [entry["file"] for entry in written["formats"].values()] == shipped
    assert written["files"].keys() == {*shipped, "golden.npz", "student.html", "README.md"}
    for name, entry in written["files"].items():
        content = (exported.out / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert (exported.out / name).stat().st_mode & 0o044 == (
            exported.out / "bundle.json"
        ).stat().st_mode & 0o044


def test_bundle_json_describes_the_student(exported: Any, world: Any) -> None:
    facts = exported.bundle
    assert (facts["schema"], facts["name"], facts["classes"]) == (2, "a run", list(world.classes))
    assert facts["input"] == {"size": 16, "channels": 3, "dtype": "uint8", "layout": "NHWC"}
    assert facts["outputs"] == ["logits", "probabilities"]
    assert facts["max_batch"] == 80
    assert facts["metrics"]["exported"]["macro_f1"] == 0.75
    assert facts["provenance"]["teacher"] == "e" * 64
    assert (facts["latency"]["threads"], facts["latency"]["batch"]) == (1, 1)
    assert facts["latency"]["median_ms"].keys() == {"onnx", "int8"}
    assert (facts["latency"]["threads"], facts["latency"]["batch"]) == (1, 1)
    assert all(0 < took < 1000 for took in facts["latency"]["median_ms"].values())
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["cpu"]["model"]


def test_golden_answers_are_those_of_the_network_and_of_the_int8_file(exported: Any, world: Any) -> None:
    with np.load(exported.out / "golden.npz", allow_pickle=False) as golden:
        assert set(golden) == {"images", "logits_fp32", "logits_int8"}
        images, truth, rounded = (golden[key] for key in ("images", "logits_fp32", "logits_int8"))
    assert (images.dtype, images.shape) == (np.uint8, (12, 16, 16, 3))
    assert len(np.unique(images, axis=0)) == 12
    assert np.array_equal(truth, Deployable(exported.net, world.mean, world.std).predict(images))
    for name, want in (("student.onnx", truth), ("student.int8.onnx", rounded)):
        assert (
            np.abs(onnx_format.load(exported.out / name)(images)[0] - want).max()
            <= 1e-5 * np.abs(truth).max()
        )
    assert np.abs(truth - rounded).max() > 1e-3


def test_a_refused_int8_file_is_kept_under_another_name_and_the_float_file_ships(
    world: Any, tmp_path: Path
) -> None:
    strict = world.int8.model_copy(update={"min_snr": 99.0})
    written = world.write(world.make(), tmp_path, cfg=ExportConfig(int8=strict, formats=("onnx", "int8")))
    entry = written["formats"]["int8"]
    assert (entry["file"], entry["accepted"]) == ("student.int8.onnx.rejected", False)
    assert "at least 99 dB are needed" in entry["refused"][0]
    assert {p.name for p in tmp_path.iterdir()} == {*written["files"], "bundle.json"}
    assert "student.int8.onnx.rejected" in written["files"]
    assert "int8" not in written["latency"]["median_ms"]
    with np.load(tmp_path / "golden.npz") as golden:
        assert set(golden) == {"images", "logits_fp32"}
    card = (tmp_path / "README.md").read_text()
    assert "Use the float file. The int8 file is not close enough to it: on 80 validation images" in card
    assert "(at least 99 dB are needed). It is kept as student.int8.onnx.rejected" in card
    assert 'InferenceSession("student.onnx"' in card


def test_int8_that_is_required_fails_the_export(world: Any, tmp_path: Path) -> None:
    strict = world.int8.model_copy(update={"min_snr": 99.0, "required": True})
    with pytest.raises(Int8Error, match=r"at least 99 dB are needed.*export\.int8\.required"):
        world.write(world.make(), tmp_path, cfg=ExportConfig(int8=strict))
    assert not (tmp_path / "bundle.json").exists()


@pytest.mark.parametrize(
    ("budget", "match"),
    [("max_latency_ms", "export.max_latency_ms.* ms for one image"), ("max_size_mb", "has 0.0[0-9]+ MB")],
)
def test_a_budget_fails_the_export(budget: str, match: str, world: Any, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=match):
        world.write(world.make(), tmp_path, cfg=ExportConfig(formats=("onnx",), **{budget: 1e-3}))
    assert not (tmp_path / "bundle.json").exists()


def test_budgets_limit_the_fastest_onnx_file() -> None:
    milliseconds, sizes = (
        {"onnx": 2.0, "int8": 1.0, "torchscript": 0.5},
        {"onnx": 4_000_000, "int8": 1_000_000, "torchscript": 1},
    )
    build_bundle._check_budgets(ExportConfig(max_latency_ms=1.0, max_size_mb=1.0), milliseconds, sizes)
    build_bundle._check_budgets(ExportConfig(), milliseconds, sizes)
    with pytest.raises(BudgetError, match=r"\(int8\) takes 1 ms"):
        build_bundle._check_budgets(ExportConfig(max_latency_ms=0.9), milliseconds, sizes)
    with pytest.raises(BudgetError, match=r"\(int8\) has 1 MB"):
        build_bundle._check_budgets(ExportConfig(max_size_mb=0.9), milliseconds, sizes)


def test_bundle_json_says_how_far_each_format_differs(exported: Any) -> None:
    for name in ("onnx", "torchscript"):
        same = exported.bundle["formats"][name]["parity"]
        assert 0 < same["rel"] <= 1e-5
        assert (same["agreement"], same["images"]) == (1, 80)
        assert {"images, batch 1", "images, batch 2", "images, batch 7", "images, batch 80"} <= set(
            same["cases"]
        )


def test_the_weights_are_those_of_the_network(exported: Any) -> None:
    weights = load_file(exported.out / "student.safetensors")
    state = exported.net.state_dict()
    assert weights.keys() == state.keys()
    assert all(np.array_equal(weights[key], state[key].numpy()) for key in state)


def test_hooks_of_the_given_network_stay_and_do_not_run_in_an_exporter(exported: Any) -> None:
    assert len(exported.net.stem._forward_hooks) == 1
    assert {type(output) for output in exported.seen} == {Tensor}  # an exporter would leave a FakeTensor
    assert all(p.requires_grad for p in exported.net.parameters())


def test_no_file_says_where_or_by_whom_it_was_made(exported: Any, world: Any, tmp_path: Path) -> None:
    everything = tmp_path / "everything"
    world.write(
        world.make(),
        everything,
        cfg=ExportConfig(formats=("onnx", "int8", "torchscript", "pt2"), int8=world.int8),
    )
    contents = {path.name: path.read_bytes() for path in everything.iterdir()}
    for archive in ("student.ts", "student.pt2", "golden.npz"):
        with zipfile.ZipFile(everything / archive) as file:
            contents |= {f"{archive}/{name}": file.read(name) for name in file.namelist()}
    here = Path(__file__).resolve()
    private = [
        str(here.parents[2]),
        str(Path.home()) + "/",
        sys.prefix,
        str(tmp_path),
        str(exported.out.parent),
        "site-packages",
        ".py\x00",
        socket.gethostname(),
    ]
    if getpass.getuser() != "root":  # file formats use the word "root" too
        private.append(getpass.getuser())
    for name, content in contents.items():
        assert not [word for word in private if word.encode() in content], name
    # the test would notice: a trace that is not stripped holds the path
    assert str(here.parents[2]).encode() in unstripped_trace(exported.net)


def unstripped_trace(net: nn.Module) -> bytes:
    import io
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch: TorchScript is deprecated
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 16, 16)), buffer)  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(buffer) as file:
        return b"".join(file.read(name) for name in file.namelist())


def test_a_bundle_of_grey_images_with_onnx_only(world: Any, tmp_path: Path) -> None:
    written = world.write(
        world.make(1), tmp_path / "grey", 1, ExportConfig(formats=("onnx",), parity_images=9)
    )
    assert {p.name for p in (tmp_path / "grey").iterdir()} == {
        "student.onnx",
        "student.safetensors",
        "golden.npz",
        "README.md",
        "student.html",
        "bundle.json",
    }
    assert written["transform"]["mode"] == "L"
    assert written["formats"]["onnx"]["parity"]["images"] == 9


def test_a_deployed_picture_has_the_pixels_that_evaluation_saw(
    smaller: Any, world: Any, tmp_path: Path
) -> None:
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8))
    photograph.resize((130, 97), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=90)
    stored = fit(load(tmp_path / "a.jpg"), 48, 3)
    pixels = see(stored, 32)
    want = Deployable(smaller.net, world.mean, world.std).predict(pixels[None])
    predictor = Predictor(smaller.out)
    assert np.array_equal(predictor.decode(tmp_path / "a.jpg"), pixels)
    got, probabilities = predictor.run(predictor.decode(tmp_path / "a.jpg")[None])
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert np.array_equal(predictor([tmp_path / "a.jpg"])[0].probabilities, probabilities[0])


def test_images_that_are_made_when_they_are_read_give_the_bundle_of_an_array(
    smaller: Any, world: Any
) -> None:
    assert smaller.bundle["input"]["size"] == 32
    assert smaller.bundle["max_batch"] == 80
    assert smaller.bundle["formats"].keys() == {"onnx", "int8", "torchscript", "safetensors"}
    test = world.Lazy(world.pictures(3, 240, 48)[160:], 32)
    with np.load(smaller.out / "golden.npz") as golden:
        assert np.array_equal(golden["images"], test[parity.spread(80, 12)])
    assert smaller.bundle["formats"]["int8"]["quality"]["accuracy_fp32"] == 0.75


def test_the_bundle_says_how_a_picture_is_kept_and_seen(smaller: Any) -> None:
    transform = smaller.bundle["transform"]
    assert (transform["kept"], transform["size"]) == (48, 32)
    assert (
        "resize it to 48 x 48 and then to 32 x 32 with Pillow's bilinear filter "
        "(antialiased, rounding to 8 bits each time). The input is uint8 pixels, N x 32 x 32 x 3."
    ) in transform["words"]
    assert transform["words"] in (smaller.out / "README.md").read_text()
    grey = build_bundle.transform(32, 1, 48)["words"]
    assert "resize it to 48 x 48, reduce it to luma, and resize it to 32 x 32 with" in grey


@pytest.mark.parametrize(("channels", "then"), [(3, ""), (1, " Reduce it to luma.")])
def test_one_size_is_said_as_before_there_were_two(exported: Any, channels: int, then: str) -> None:
    transform = build_bundle.transform(16, channels, 16)
    assert "kept" not in transform
    assert (
        "crop the largest centred square, and resize it to 16 x 16 with Pillow's bilinear filter "
        f"(antialiased).{then} The input is uint8 pixels, N x 16 x 16 x {channels}. Scaling"
    ) in transform["words"]
    assert exported.bundle["transform"] == build_bundle.transform(16, 3, 16)


@pytest.mark.parametrize("kept", [32, 47])
def test_a_changed_size_of_what_is_kept_is_refused(smaller: Any, tmp_path: Path, kept: int) -> None:
    folder = Path(shutil.copytree(smaller.out, tmp_path / "bundle"))
    facts = json.loads((folder / "bundle.json").read_text())
    facts["transform"]["kept"] = kept
    (folder / "bundle.json").write_text(json.dumps(facts, indent=2) + "\n")
    with pytest.raises(BundleError, match="its seal is broken"):
        Predictor(folder)
    facts.pop("seal")
    (folder / "bundle.json").write_text(sealed(facts))
    with pytest.raises(BundleError, match="'transform'"):
        Predictor(folder)


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 6))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x + torch.randn_like(x))
        return logits


def test_a_network_that_uses_chance_fails_the_gate(world: Any, tmp_path: Path) -> None:
    with pytest.raises(parity.ParityError, match=r"The ONNX file does not answer.*on chance"):
        world.write(world.make(kind=Chance), tmp_path / "x")
    assert not (tmp_path / "x" / "bundle.json").exists()


def test_a_broken_file_fails_the_gate(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate compares the written file, not the network it was written from."""
    write = onnx_format.write

    def damaged(model: Any, path: Path, **others: Any) -> None:
        with torch.no_grad():
            model.net.norm.running_var.mul_(1.01)
        write(model, path, **others)

    monkeypatch.setattr(onnx_format, "write", damaged)
    with pytest.raises(parity.ParityError, match="The ONNX file does not answer"):
        world.write(world.make(), tmp_path / "x")


def test_a_network_in_training_mode_is_a_programming_error(world: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\.eval\(\)"):
        world.write(world.make().train(), tmp_path / "x")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"formats": ["torchscript"]}, "must hold 'onnx'"),
        ({"formats": ["onnx", "tflite"]}, "tflite"),
        ({"parity_images": 1}, "parity_images"),
    ],
)
def test_config_refuses(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ExportConfig(**settings)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(torch.tensor(logits / temperature).double().softmax(1))


def test_every_file_gives_calibrated_probabilities_and_the_same_logits(
    exported: Any, calibrated: Any, world: Any
) -> None:
    images = world.pictures(3, 240)[160:]
    temperature = calibrated.bundle["temperature"]
    assert 0.05 < temperature < 0.8
    for name, load_file_ in (
        ("student.onnx", onnx_format.load),
        ("student.int8.onnx", onnx_format.load),
        ("student.ts", torchscript.load),
    ):
        plain, _ = load_file_(exported.out / name)(images)
        logits, probabilities = load_file_(calibrated.out / name)(images)
        assert np.array_equal(logits, plain), name
        assert probabilities == pytest.approx(softmax(logits, temperature), abs=1e-6), name
    predictor = Predictor(calibrated.out)
    assert predictor.bundle.temperature == temperature
    assert np.array_equal(predictor.answers(images)[0].probabilities, predictor.run(images)[1][0])


def test_a_calibrated_pt2_file_does_too(world: Any, tmp_path: Path) -> None:
    cfg = ExportConfig(formats=("onnx", "pt2"), calibrate_probabilities=True)
    temperature = world.write(world.make(), tmp_path / "x", cfg=cfg)["temperature"]
    logits, probabilities = pt2.load(tmp_path / "x" / "student.pt2")(world.pictures(3, 9))
    assert probabilities == pytest.approx(softmax(logits, temperature), abs=1e-6)


def test_the_bundle_says_what_the_temperature_is_and_does(calibrated: Any, world: Any) -> None:
    facts, images = calibrated.bundle["calibration"], world.pictures(3, 240)
    model = Deployable(calibrated.net, world.mean, world.std)
    labels = model.predict(images[160:]).argmax(1)
    labels[::4] = (labels[::4] + 1) % 6
    logits = model.predict(images[160:])
    assert facts["temperature"] == calibrated.bundle["temperature"]
    assert (facts["found"], facts["images"]) == (True, 80)
    assert facts["float"] == calibration.measured(logits, labels, facts["temperature"])
    assert facts["float"]["ece_after"] < facts["float"]["ece_before"]
    assert 0 < facts["int8"]["ece_after"] < facts["int8"]["ece_before"]
    assert facts["int8"] != facts["float"]
    with np.load(calibrated.out / "golden.npz") as golden:
        for name in ("fp32", "int8"):
            want = softmax(golden[f"logits_{name}"], facts["temperature"])
            assert golden[f"probabilities_{name}"] == pytest.approx(want, abs=1e-6)
    assert passed(verify(calibrated.out))


def test_without_calibration_nothing_is_said_of_it(exported: Any) -> None:
    assert not {"temperature", "calibration"} & set(exported.bundle)
    with np.load(exported.out / "golden.npz") as golden:
        assert set(golden) == {"images", "logits_fp32", "logits_int8"}
    card = (exported.out / "README.md").read_text()
    assert "Its probabilities are not calibrated. " in card
    for told_of_one in ("are calibrated", "temperature", "fitted", "without it"):
        assert told_of_one not in card


def test_a_wrong_temperature_in_a_file_fails_the_gate(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_format.write

    def colder(model: Any, path: Path, **others: Any) -> None:
        model.temperature *= 0.99
        write(model, path, **others)

    monkeypatch.setattr(onnx_format, "write", colder)
    cfg = ExportConfig(formats=("onnx",), calibrate_probabilities=True)
    with pytest.raises(parity.ParityError, match="not the softmax of its logits, divided by the temperature"):
        world.write(world.make(), tmp_path / "x", cfg=cfg)


def test_a_temperature_that_is_not_found_leaves_the_probabilities(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: None)
    cfg = ExportConfig(formats=("onnx",), calibrate_probabilities=True)
    bundle = world.write(world.make(), tmp_path / "x", cfg=cfg)
    assert (bundle["temperature"], bundle["calibration"]["found"]) == (1.0, False)
    logits, probabilities = onnx_format.load(tmp_path / "x" / "student.onnx")(world.pictures(3, 9))
    assert probabilities == pytest.approx(softmax(logits, 1), abs=1e-6)
    assert "are not calibrated: no temperature" in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize("square", SQUARES)
def test_the_words_say_how_a_picture_becomes_a_square(square: Square) -> None:
    words = {
        "crop": "crop the largest centred square, and resize it to 16 x 16",
        "squash": "take the whole picture, whatever its shape, and resize it to 16 x 16",
        "pad": "(a grey border, (128, 128, 128), added after the resizing, makes it square), and resize it",
    }
    assert words[square] in build_bundle.transform(16, 3, 16, square)["words"]

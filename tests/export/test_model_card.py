import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data.decode import SQUARES, Square, decode
from pipeline.export import build_bundle, model_card, onnx_format
from pipeline.export.build_bundle import ExportConfig


def snippets(out: Path) -> dict[str, str]:
    """The card's code by the runtime that it imports."""
    found = {}
    for code in re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL):
        runtime = re.search(r"import (?:onnxruntime|openvino|torch)|from safetensors", code)
        assert runtime, code
        found[runtime[0].split()[-1]] = code
    return found


def printed_by(code: str, out: Path) -> str:
    wrapped = "import warnings; warnings.simplefilter('ignore')\n" + code  # torch: TorchScript is deprecated
    return subprocess.run(
        [sys.executable, "-c", wrapped], cwd=out, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def bundle(exported: Any, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle, with a picture in the shape of a photograph and with an orientation."""
    folder = Path(shutil.copytree(exported.out, tmp_path_factory.mktemp("card") / "bundle"))
    image = Image.fromarray(np.tile(world.pictures(3, 3)[2], (3, 5, 1)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / model_card.PICTURE, exif=exif, quality=95)
    return folder


def test_snippets_give_the_files_answers_to_the_pixels_of_evaluation(
    exported: Any, world: Any, bundle: Path
) -> None:
    codes = snippets(bundle)
    assert codes.keys() == {"onnxruntime", "openvino", "torch", "safetensors"}
    pixels = decode(bundle / model_card.PICTURE, 16, 3)[None]
    for runtime, file in (("onnxruntime", "student.int8.onnx"), ("torch", "student.onnx")):
        _, probabilities = onnx_format.load(bundle / file)(pixels)
        best = int(probabilities[0].argmax())
        printed = printed_by(codes[runtime], bundle)
        if runtime == "onnxruntime":
            name, share = printed.split()
            assert name == world.classes[best]
            assert float(share) == pytest.approx(probabilities[0].max(), abs=1e-6)
        else:
            assert printed == str(best)
    count = sum(p.numel() for p in exported.net.state_dict().values())
    assert printed_by(codes["safetensors"], bundle) == f"{count} numbers"


def test_the_openvino_snippet_runs_if_it_is_installed(bundle: Path) -> None:
    pytest.importorskip("openvino")
    pixels = decode(bundle / model_card.PICTURE, 16, 3)[None]
    _, probabilities = onnx_format.load(bundle / "student.onnx")(pixels)
    assert printed_by(snippets(bundle)["openvino"], bundle) == str(probabilities[0].argmax())


def test_the_snippets_for_grey_pictures_and_torch_export_run(world: Any, tmp_path: Path) -> None:
    world.write(world.make(1), tmp_path, 1, ExportConfig(formats=("onnx", "pt2")))
    Image.fromarray(np.tile(world.pictures(3, 1)[0], (2, 3, 1))).save(tmp_path / model_card.PICTURE)
    _, probabilities = onnx_format.load(tmp_path / "student.onnx")(
        decode(tmp_path / model_card.PICTURE, 16, 1)[None]
    )
    codes = snippets(tmp_path)
    assert printed_by(codes["onnxruntime"], tmp_path).split()[0] == world.classes[probabilities[0].argmax()]
    assert printed_by(codes["torch"], tmp_path) == str(probabilities[0].argmax())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_snippets_keep_pictures_at_one_size_and_see_them_at_another(
    world: Any, tmp_path: Path, channels: int
) -> None:
    world.write(world.make(channels), tmp_path, channels, ExportConfig(formats=("onnx",)), steps=(48, 32))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (97, 130, 3), dtype=np.uint8)).save(tmp_path / model_card.PICTURE)
    pixels = decode(tmp_path / model_card.PICTURE, 32, channels, kept=48)
    _, probabilities = onnx_format.load(tmp_path / "student.onnx")(pixels[None])
    name, share = printed_by(snippets(tmp_path)["onnxruntime"], tmp_path).split()
    assert name == world.classes[probabilities[0].argmax()]
    assert float(share) == pytest.approx(probabilities[0].max(), abs=1e-6)


def test_the_card_shows_what_was_measured(exported: Any) -> None:
    text = (exported.out / "README.md").read_text()
    quality = exported.bundle["formats"]["int8"]["quality"]
    tested = exported.bundle["formats"]["int8"]["test"]
    for words in (
        "`student.onnx` is right on **90.00 %** of 80 test images (95 % interval 81.50 to 94.80 %)",
        "balanced accuracy is 81.25 % (mean recall of the classes), and its macro-F1 75.00 %",
        f"`student.int8.onnx` is right on **{100 * tested['accuracy']:.2f} %** of them.",
        "the student of seed 1, the best of 3 on validation images. "
        "The method reaches 87.50 ± 1.25 % (mean ± standard deviation of 3 seeds)",
        "| cat | 12 | 50.00 |\n| bee | 12 | 75.00 |",  # the hardest class first
        "(15 bins) is 6.25 %",
        "The student learned from 50 labelled images and 30 without labels.",
        "Source: torchvision:CIFAR10 (80 train, 80 val, 80 test images).",
        "median of single images (batch 1) on one thread of the CPU",
        'cite the method: FitNets (Romero et al., "FitNets: Hints for Thin Deep Nets", 2015).',
        "No licence is chosen yet.",
        f"{quality['snr_db']:.1f} dB",
        "ant, bee, cat",
        "`" + "r" * 32 + "`",
    ):
        assert words in text
    for name in exported.bundle["files"]:
        assert name in text or name == "README.md"


def test_one_seed_has_no_spread(exported: Any) -> None:
    metrics = exported.bundle["metrics"] | {"n": 1, "spread": 0.0}
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    text = model_card.text(exported.bundle | {"metrics": metrics}, sizes)
    assert "the student of seed 1, the only one that was trained." in text
    assert "standard deviation" not in text


def front_matter(text: str) -> Any:
    return yaml.safe_load(text.partition("---\n")[2].partition("\n---\n")[0])


def test_hubs_can_read_the_card(exported: Any) -> None:
    text = (exported.out / "README.md").read_text()
    assert text.startswith("---\nlicense: other\n")
    facts = front_matter(text)
    assert facts["pipeline_tag"] == "image-classification"
    assert {"knowledge-distillation", "onnx", "int8"} <= set(facts["tags"])
    assert (facts["metrics"], facts["datasets"]) == (["accuracy"], ["cifar10"])
    (index,) = facts["model-index"]
    (result,) = index["results"]
    assert index["name"] == exported.bundle["name"]
    assert result["dataset"] == {"name": "torchvision:CIFAR10", "type": "cifar10", "split": "test"}
    int8 = round(exported.bundle["formats"]["int8"]["test"]["accuracy"], 4)
    assert [(each["name"], each["value"]) for each in result["metrics"]] == [
        ("accuracy of student.onnx", 0.9),
        ("accuracy of student.int8.onnx", int8),
    ]


def test_images_of_ones_own_are_no_data_set_of_a_hub(exported: Any) -> None:
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    made = exported.bundle["provenance"] | {"source": "folder"}
    assert "datasets" not in front_matter(model_card.text(exported.bundle | {"provenance": made}, sizes))


def test_names_of_classes_stay_in_their_cells(exported: Any) -> None:
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    hostile = ["a|b\nc", *exported.bundle["classes"][1:]]
    assert "| a\\|b c | 20 | 100.00 |" in model_card.text(exported.bundle | {"classes": hostile}, sizes)


def test_the_card_has_no_command_that_is_not_beside_a_bundle(exported: Any) -> None:
    text = (exported.out / "README.md").read_text()
    for command in ("pipeline.deploy", "predictor.pyz", "make ", "dvc ", "`predict"):
        assert command not in text


def test_only_the_first_of_many_classes_are_shown(exported: Any) -> None:
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    tested = {"images_per_class": [4] * 1000, "per_class": [1 - n / 1000 for n in range(1000)]}
    metrics = exported.bundle["metrics"]
    changes = {
        "classes": [f"class {n}" for n in range(1000)],
        "metrics": metrics | {"exported": metrics["exported"] | tested},
    }
    text = model_card.text(exported.bundle | changes, sizes)
    assert "class 19 and 980 more" in text
    assert "class 20" not in text
    assert "The 20 hardest of 1000." in text
    assert "| class 980 |" in text
    assert "| class 979 |" not in text


def test_the_card_shows_what_calibration_does(exported: Any, calibrated: Any) -> None:
    text, facts = (calibrated.out / "README.md").read_text(), calibrated.bundle["calibration"]
    for words in (
        f"the softmax of `logits / {facts['temperature']:g}`",
        "fitted on 80 validation images. On 80 test images the expected calibration error (15 bins) is "
        f"{100 * facts['float']['ece_before']:.2f} % without it and "
        f"{100 * facts['float']['ece_after']:.2f} % with it (int8: ",
        f"| 0.8 | {100 * facts['float']['thresholds']['0.8']['answered']:.2f} | ",
    ):
        assert words in text
    none = {**facts["float"]["thresholds"], "0.99": {"answered": 0.0, "accuracy": None}}
    changed = {**facts, "float": {**facts["float"], "thresholds": none}}
    sizes = {name: entry["bytes"] for name, entry in calibrated.bundle["files"].items()}
    assert "| 0.99 | 0.00 |  |" in model_card.text(calibrated.bundle | {"calibration": changed}, sizes)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize(("width", "height"), [(130, 97), (40, 3), (3, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_snippets_make_squares_as_evaluation_does(
    exported: Any, tmp_path: Path, square: Square, width: int, height: int, channels: int
) -> None:
    transform = build_bundle.transform(16, channels, 24, square)
    facts = exported.bundle | {"transform": transform, "input": {"size": 16, "channels": channels}}
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    (tmp_path / "README.md").write_text(model_card.text(facts, sizes))
    rng = np.random.default_rng(0)
    file = tmp_path / model_card.PICTURE
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    code = snippets(tmp_path)["torch"].partition("script =")[0].replace(model_card.PICTURE, str(file))
    names: dict[str, Any] = {}
    exec(code, names)
    assert np.array_equal(names["pixels"][0], decode(file, 16, channels, kept=24, square=square))

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import decode
from pipeline.export import card, onnx_format
from pipeline.export.bundle import ExportConfig


def snippets(out: Path) -> dict[str, str]:
    """Runtime to code: its name is the module that its first import from outside names."""
    found = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    return {re.search(r"import (onnxruntime|openvino|torch)|from (safetensors)", code)[0].split()[-1]: code for code in found}  # type: ignore[index]


def said_by(code: str, out: Path) -> str:
    wrapped = "import warnings; warnings.simplefilter('ignore')\n" + code  # torch: TorchScript is deprecated
    return subprocess.run([sys.executable, "-c", wrapped], cwd=out, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def picture(exported: Any, world: Any) -> Path:
    """An ordinary photograph's shape, with an orientation."""
    path = exported.out / card.PICTURE
    image = Image.fromarray(np.tile(world.pictures(3, 3)[2], (3, 5, 1)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)
    return path


def test_snippets_answer_as_the_files_do_on_the_projects_own_pixels(exported: Any, world: Any, picture: Path) -> None:
    codes = snippets(exported.out)
    assert codes.keys() == {"onnxruntime", "openvino", "torch", "safetensors"}
    pixels = decode(picture, 16, 3)[None]
    for runtime, file in (("onnxruntime", "student.int8.onnx"), ("torch", "student.onnx")):
        _, probabilities = onnx_format.load(exported.out / file)(pixels)
        best = int(probabilities[0].argmax())
        said = said_by(codes[runtime], exported.out)
        if runtime == "onnxruntime":
            name, share = said.split()
            assert (name, float(share)) == (world.classes[best], pytest.approx(probabilities[0].max(), abs=1e-6))
        else:
            assert said == str(best)
    count = sum(p.numel() for p in exported.net.state_dict().values())
    assert said_by(codes["safetensors"], exported.out) == f"{count} numbers"


def test_the_openvino_snippet_runs_where_it_is_installed(exported: Any, picture: Path) -> None:
    pytest.importorskip("openvino")
    _, probabilities = onnx_format.load(exported.out / "student.onnx")(decode(picture, 16, 3)[None])
    assert said_by(snippets(exported.out)["openvino"], exported.out) == str(probabilities[0].argmax())


def test_grey_pictures_and_torch_export(world: Any, tmp_path: Path) -> None:
    world.write(world.make(1), tmp_path, 1, ExportConfig(formats=("onnx", "pt2")))
    Image.fromarray(np.tile(world.pictures(3, 1)[0], (2, 3, 1))).save(tmp_path / card.PICTURE)
    _, probabilities = onnx_format.load(tmp_path / "student.onnx")(decode(tmp_path / card.PICTURE, 16, 1)[None])
    codes = snippets(tmp_path)
    assert said_by(codes["onnxruntime"], tmp_path).split()[0] == world.classes[probabilities[0].argmax()]
    assert said_by(codes["torch"], tmp_path) == str(probabilities[0].argmax())


def test_tells_what_was_measured(exported: Any) -> None:
    text = (exported.out / "README.md").read_text()
    quality = exported.bundle["formats"]["int8"]["quality"]
    for words in (
        "87.50 ± 1.25 % right over 3 training runs",
        "90.00 % right",
        f"{quality['snr_db']:.1f} dB",
        "ant, bee, cat",
        "`" + "r" * 32 + "`",
    ):
        assert words in text
    for name in exported.bundle["files"]:
        assert name in text or name == "README.md"


def test_one_run_has_no_spread(exported: Any) -> None:
    metrics = exported.bundle["metrics"] | {"n": 1, "spread": 0.0}
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    assert "87.50 % right in one training run" in card.text(exported.bundle | {"metrics": metrics}, sizes)


def test_many_classes_are_cut_short(exported: Any) -> None:
    sizes = {name: entry["bytes"] for name, entry in exported.bundle["files"].items()}
    text = card.text(exported.bundle | {"classes": [f"class {n}" for n in range(1000)]}, sizes)
    assert "class 19 and 980 more" in text
    assert "class 20" not in text

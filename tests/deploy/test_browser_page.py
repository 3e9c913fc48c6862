import base64
import json
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import decode
from pipeline.deploy import browser_page
from pipeline.deploy.__main__ import main
from pipeline.deploy.predictor import Predictor

# width and height of pictures that are shrunk to 16 x 16
SIZES = (
    *((16, 16), (17, 40), (333, 250), (64, 48), (5, 90), (1, 1), (15, 16)),
    *((16, 15), (16, 40), (40, 16), (100, 101), (31, 7), (8, 8), (3, 2)),
)
# drops pictures on the page and waits until all are answered
DRIVER = """
<script type="module">
const pictures = PICTURES
const wait = async isDone => { while (!isDone()) await new Promise(next => setTimeout(next, 20)) }
await wait(() => document.body.dataset.ready)
const transfer = new DataTransfer()
for (const { name, type, text } of pictures)
  transfer.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name, { type }))
const drop = new DragEvent("drop", { dataTransfer: transfer, cancelable: true, bubbles: true })
document.getElementById("drop").dispatchEvent(drop)
const newest = () => document.querySelector("article")?.textContent ?? ""
await wait(() => document.querySelectorAll("article").length === pictures.length && newest().includes("%"))
document.body.dataset.done = "yes"
</script>
"""


def noise(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [3, 1])
def test_the_page_shrinks_pictures_as_evaluation_does_bit_for_bit(channels: int, tmp_path: Path) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("there is no node to run the page's code")
    script = re.findall(
        r'<script id="pixels">(.*?)</script>',
        Path(browser_page.__file__).with_name("browser_page.html").read_text(),
        re.DOTALL,
    )[0]
    script += """
const lines = require("fs").readFileSync(0, "utf8").split("\\n").filter(Boolean).map(JSON.parse)
for (const { width, height, channels, rgba } of lines)
  console.log(JSON.stringify([...fit(Uint8Array.from(rgba), width, height, 16, channels)]))
"""
    (tmp_path / "fit.cjs").write_text(script)
    pictures = [noise(width, height, seed) for seed, (width, height) in enumerate(SIZES)]
    lines = []
    for (width, height), picture in zip(SIZES, pictures, strict=True):
        rgba = np.dstack([picture, np.full((height, width), 255, np.uint8)]).ravel().tolist()
        lines.append(json.dumps({"width": width, "height": height, "channels": channels, "rgba": rgba}))
    done = subprocess.run(
        [node, tmp_path / "fit.cjs"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for size, picture, line in zip(SIZES, pictures, done.stdout.splitlines(), strict=True):
        want = decode(Image.fromarray(picture), 16, channels)
        assert np.array_equal(np.array(json.loads(line)), want.ravel()), size


def test_a_class_name_cannot_become_a_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>{{inside}}{{facts}}"
    facts = {"name": evil, "classes": [evil, "b"], "input": {"size": 16, "channels": 3}}
    browser_page.write(facts, tmp_path / "student.html", inside={"student.onnx": b"model"})
    text = (tmp_path / "student.html").read_text()
    assert "<script>alert" not in text
    assert (
        json.loads(re.findall(r'<script id="facts" type="application/json">(.*?)</script>', text)[0]) == facts
    )


def test_the_page_names_no_other_address(bundle: Path, tmp_path: Path) -> None:
    browser_page.write(
        {"name": "a", "classes": ["b", "c"], "input": {"size": 16, "channels": 3}}, tmp_path / "student.html"
    )
    text = (tmp_path / "student.html").read_text()
    assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    assert "default-src 'none'" in text
    assert len(text) < 20_000


def test_without_a_runtime_the_command_says_how_to_get_one(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["page", str(bundle), "--runtime", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "npm install onnxruntime-web" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web from the npm registry, if that can be reached."""
    if not (npm := shutil.which("npm")):
        pytest.skip("there is no npm to fetch onnxruntime-web with")
    folder = tmp_path_factory.mktemp("npm")
    options = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    command = [npm, "install", *options, browser_page.PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    if done.returncode:
        pytest.skip(f"onnxruntime-web cannot be fetched: {done.stderr.strip()[:200]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "int8"])
def test_a_browser_answers_as_the_predictor_does(
    bundle: Path, runtime: Path, tmp_path: Path, format: Any
) -> None:
    contents = {}
    for seed, (kind, mode) in enumerate([("png", "RGB"), ("jpeg", "RGB"), ("webp", "RGB"), ("png", "RGBA")]):
        file = BytesIO()
        smooth = (
            Image.fromarray(noise(5, 4, seed))
            .resize((150 + seed, 97), Image.Resampling.BICUBIC)
            .convert(mode)
        )
        if mode == "RGBA":
            smooth.putalpha(Image.linear_gradient("L").resize(smooth.size))
        smooth.save(file, kind, **({"lossless": True} if kind == "webp" else {}))
        contents[f"{mode}.{kind}"] = file.getvalue()
    out = tmp_path / "a page.html"
    assert main(["page", str(bundle), "--runtime", str(runtime), "--out", str(out), "--format", format]) == 0
    found = dropped(out, contents, tmp_path)
    predictor = Predictor(bundle, format=format)
    for (name, content), got in zip(contents.items(), found, strict=True):
        answer = predictor([content])[0]
        assert int(np.argmax(got)) == predictor.bundle.classes.index(answer.label), name
        assert np.abs(np.array(got) - answer.probabilities).max() < (
            1e-5 if name == "RGB.png" and format == "onnx" else 0.05
        ), name


def dropped(out: Path, contents: dict[str, bytes], scratch: Path) -> list[list[float]]:
    """The probabilities that the page shows for pictures dropped on it."""
    pictures = [
        {"name": name, "type": f"image/{name.partition('.')[2]}", "text": base64.b64encode(content).decode()}
        for name, content in contents.items()
    ]
    driven = scratch / "driven.html"
    driven.write_text(
        out.read_text().replace("</html>", DRIVER.replace("PICTURES", json.dumps(pictures)) + "</html>")
    )
    dom = browser.dom(driven.as_uri(), scratch / "profile", browser.OFFLINE, "--timeout=120000", patience=600)
    assert 'data-done="yes"' in dom, re.findall(r'id="state"[^>]*>([^<]*)', dom) or dom[-2000:]
    probabilities = [json.loads(text) for text in re.findall(r'data-probabilities="([^"]*)"', dom)]
    return probabilities[::-1]  # the newest is the first on the page


def test_the_browser_test_fails_if_the_page_does(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "light.html"
    browser_page.write({"name": "a", "classes": ["b", "c"], "input": {"size": 16, "channels": 3}}, out)
    with pytest.raises(AssertionError, match="cannot be loaded"):
        dropped(out, {"RGB.png": b""}, tmp_path)

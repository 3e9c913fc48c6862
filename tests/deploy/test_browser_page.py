import base64
import gzip
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
from PIL import Image, features

from pipeline.data.decode import SQUARES, Square, decode
from pipeline.deploy import browser_page
from pipeline.deploy.__main__ import main
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import transform

# width and height of pictures that become 16 x 16
SIZES = (
    *((16, 16), (17, 40), (333, 250), (64, 48), (5, 90), (1, 1), (15, 16)),
    *((16, 15), (16, 40), (40, 16), (100, 101), (31, 7), (8, 8), (3, 2)),
)
ODD = ((1, 7), (7, 1), (300, 200), (1000, 3), (63, 2), (2, 63), (32, 31), (33, 32))
# older versions of Pillow resize such pictures in another order, which rounds differently
TALL = ((3, 1000), (1, 101), (2, 201), (1, 15)) if str(features.version("pil")) >= "12.3" else ()
# of a square that is kept, and of what is seen of it
STEPS = ((24, 16), (48, 32), (33, 17), (32, 16), (11, 16), (9, 31), (7, 1), (1, 5))
# answers each line of input with the pixels that the student sees
SEE = """
const lines = require("fs").readFileSync(0, "utf8").split("\\n").filter(Boolean).map(JSON.parse)
for (const { width, height, facts, rgba } of lines)
  console.log(JSON.stringify([...see(Uint8Array.from(rgba), width, height, facts)]))
"""
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


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_page_sees_pictures_as_evaluation_does_bit_for_bit(
    channels: int, square: Square, tmp_path: Path
) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("there is no node to run the page's code")
    cases = [(16, 16, *shape) for shape in SIZES]
    cases += [(16, 11, *shape) for shape in ODD + TALL]
    cases += [(kept, size, *shape) for kept, size in STEPS for shape in ((333, 250), (17, 40), (3, 2))]
    lines, wanted = [], []
    for seed, (kept, size, width, height) in enumerate(cases):
        picture = noise(width, height, seed)
        rgba = np.dstack([picture, np.full((height, width), 255, np.uint8)]).ravel().tolist()
        browser_page.write(page_facts(size, channels, kept, square=square), tmp_path / "page.html")
        shown = json.loads(script("facts", tmp_path / "page.html"))
        lines.append(json.dumps({"width": width, "height": height, "facts": shown, "rgba": rgba}))
        wanted.append(decode(Image.fromarray(picture), size, channels, kept=kept, square=square))
    (tmp_path / "see.cjs").write_text(script("pixels", tmp_path / "page.html") + SEE)
    done = subprocess.run(
        [node, tmp_path / "see.cjs"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for case, want, line in zip(cases, wanted, done.stdout.splitlines(), strict=True):
        assert np.array_equal(np.array(json.loads(line)), want.ravel()), case


def page_facts(
    size: int, channels: int, kept: int, name: str = "a", square: Square = "crop"
) -> dict[str, Any]:
    return {
        "name": name,
        "classes": [name, "b"],
        "input": {"size": size, "channels": channels},
        "transform": transform(size, channels, kept, square),
    }


def script(name: str, page: Path) -> str:
    found = re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return found[1]


def test_a_class_name_cannot_become_a_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>{{inside}}{{facts}}"
    facts = page_facts(16, 3, 24, evil)
    browser_page.write(facts, tmp_path / "student.html", inside={"student.onnx": b"model"})
    text = (tmp_path / "student.html").read_text()
    assert "<script>alert" not in text
    assert json.loads(script("facts", tmp_path / "student.html")) == facts


def test_the_page_names_no_other_address(bundle: Path, tmp_path: Path) -> None:
    browser_page.write(page_facts(16, 3, 24), tmp_path / "student.html")
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


def test_the_page_of_the_command_holds_all_that_it_loads(bundle: Path, tmp_path: Path) -> None:
    """So it opens by a double click: a page of a file may fetch no other file."""
    for name in browser_page.RUNTIME:
        (tmp_path / name).write_bytes(name.encode())
    out = tmp_path / "page.html"
    assert main(["page", str(bundle), "--runtime", str(tmp_path), "--out", str(out)]) == 0
    text = re.sub(r'<script id="[^"]*" type="text/plain">.*?</script>', "", out.read_text())
    constants = dict(re.findall(r'(\w+) = "([^"]+)"', text))
    loaded = {constants.get(name, name.strip('"')) for name in re.findall(r"asset\(([^)]*)\)", text)} - {
        "name"
    }
    assert loaded == {"student.onnx", *browser_page.RUNTIME}
    for name in browser_page.RUNTIME:
        assert gzip.decompress(base64.b64decode(script(name, out))) == name.encode()
    assert (
        gzip.decompress(base64.b64decode(script("student.onnx", out)))
        == (bundle / "student.onnx").read_bytes()
    )
    assert not re.search(r"<link|\bsrc=|\bhref=|@import|url\(|https?:", text)


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
    browser_page.write(page_facts(16, 3, 24), out)
    with pytest.raises(AssertionError, match="cannot be loaded"):
        dropped(out, {"RGB.png": b""}, tmp_path)

"""student.html: the student in a browser, without a server and without a network.

As the export stage writes it, the page is small and looks for the student and onnxruntime-web beside it. `python -m pipeline.deploy page`
puts both inside: one file that opens with a double click. The runtime's files come from its npm package; they are in no bundle.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.deploy.bundle import Bundle, BundleError, Format

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PACKAGE = "onnxruntime-web@1.30.0"  # what the page is tested with


def write(facts: Mapping[str, Any], out: Path, *, inside: Mapping[str, bytes] | None = None) -> None:
    """The page for the bundle that `facts` (bundle.json's name, classes and input) describe, with these files inside it."""
    page = files("pipeline.deploy").joinpath("page.html").read_text(encoding="utf-8")
    shown = json.dumps({key: facts[key] for key in ("name", "classes", "input")}).replace("<", "\\u003c")  # a name could end the script
    packed = [
        f'<script id="{name}" type="text/plain">{base64.b64encode(gzip.compress(content, mtime=0)).decode()}</script>'
        for name, content in (inside or {}).items()
    ]
    before, between = page.split("{{facts}}")[0], page.split("{{facts}}")[1].split("{{inside}}")
    out.write_text(before + shown + between[0] + "\n".join(packed) + between[1], encoding="utf-8", newline="\n")


def command(bundle: Bundle, *, runtime: Path, out: Path, format: Format) -> int:
    """What `page` does."""
    found = next((folder for folder in (runtime, runtime / "dist", runtime / "node_modules/onnxruntime-web/dist") if _whole(folder)), None)
    if found is None:
        raise BundleError(
            f"{runtime}: there is no onnxruntime-web in it ({', '.join(RUNTIME)}). Run `npm install {PACKAGE}` and name the folder "
            "where you ran it with --runtime."
        )
    inside = {"student.onnx": bundle.model(format)} | {name: (found / name).read_bytes() for name in RUNTIME}
    write(bundle.facts, out, inside=inside)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, with everything inside. Open it in any browser.")
    return 0


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in RUNTIME)

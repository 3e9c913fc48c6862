"""student.html: the student in a browser, without a server and without a network.

Stage `export` writes a small page, which looks for the student and onnxruntime-web beside it.
`handdown deploy page` puts both inside: one file that opens with a double click. The files of
onnxruntime-web come from its npm package; no bundle holds them.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.deploy.pages import filled
from pipeline.deploy.read_bundle import Bundle, BundleError, Format
from pipeline.deploy.trouble import write_whole

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PACKAGE = "onnxruntime-web@1.30.0"  # the version that the page is tested with
SHOWN = ("name", "classes", "input", "transform")
PLACES = (".", "dist", "node_modules/onnxruntime-web/dist")


def write(facts: Mapping[str, Any], out: Path, *, inside: Mapping[str, bytes] | None = None) -> None:
    """Write the page of a bundle.

    `facts` holds what SHOWN names of its bundle.json. The files of `inside` are put into the page.
    """
    shown = json.dumps({key: facts[key] for key in SHOWN})
    shown = shown.replace("<", "\\u003c")  # otherwise a name could end the script
    scripts = "\n".join(_script(name, content) for name, content in (inside or {}).items())
    write_whole(out, filled("browser_page.html", facts=shown, inside=scripts).encode())


def command(bundle: Bundle, *, runtime: Path, out: Path, format: Format) -> int:
    """What `page` does."""
    folder = next((runtime / place for place in PLACES if _is_complete(runtime / place)), None)
    if folder is None:
        raise BundleError(
            f"{runtime} does not hold onnxruntime-web ({', '.join(RUNTIME)}). Run `npm install {PACKAGE}`, "
            "and give the folder where you ran it: --runtime DIR."
        )
    inside = {"student.onnx": bundle.model(format)} | {name: (folder / name).read_bytes() for name in RUNTIME}
    write(bundle.facts, out, inside=inside)
    print(
        f"{out} is written ({out.stat().st_size / 1e6:.1f} MB). Everything is inside: open it in any browser."
    )
    return 0


def _script(name: str, content: bytes) -> str:
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return f'<script id="{name}" type="text/plain">{packed}</script>'


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in RUNTIME)

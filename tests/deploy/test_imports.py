"""pipeline.deploy needs three packages, and importing it loads nothing more."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "pipeline" / "deploy").glob("*.py"))
MODULES = [f"pipeline.deploy.{path.stem}" for path in FILES]
# what each file may import, besides the standard library and this room
EVERYWHERE = {"numpy", "PIL", "onnxruntime", "pipeline.data.decode"}
ALSO = {"verify.py": {"onnx"}, "serve.py": {"starlette", "uvicorn", "python_multipart"}}
# what importing all files but serve.py may load, and what serve.py may load too
LOADED = {
    *("numpy", "PIL", "onnxruntime", "pipeline"),
    *("flatbuffers", "google", "packaging", "defusedxml", "cython_runtime", "olefile"),
}
WEB = {
    *("starlette", "uvicorn", "anyio", "h11", "click", "typing_extensions"),
    *("python_multipart", "multipart", "sniffio", "idna"),
}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        node.module or ""
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        if node.module != "pipeline.deploy"
    }
    outside = {
        name
        for name in names
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("pipeline.deploy.")
    }
    return {name if name.startswith("pipeline") else name.partition(".")[0] for name in outside}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_imports_only_what_is_allowed(path: Path) -> None:
    assert imported(path) <= EVERYWHERE | ALSO.get(path.name, set())


@pytest.mark.parametrize("serving", [False, True])
def test_an_import_loads_nothing_more(serving: bool) -> None:
    if serving:
        pytest.importorskip("python_multipart")
    modules = ", ".join(module for module in MODULES if module.endswith(".serve") == serving)
    code = (
        f"import sys; before = set(sys.modules); import {modules}; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {
        name
        for name in done.stdout.split()
        if name not in sys.stdlib_module_names and not name.startswith("_")
    }
    assert done.returncode == 0, done.stderr
    assert "numpy" in loaded
    assert loaded <= LOADED | (WEB if serving else set())

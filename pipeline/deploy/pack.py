"""The predictor as one file, for machines with numpy, Pillow and onnxruntime but without this project.

It runs as `python predictor.pyz predict BUNDLE PICTURES...`.
"""

import io
import zipfile
from pathlib import Path

from pipeline.deploy.trouble import write_whole

THIS = Path(__file__)
ROOT = THIS.parents[2]
OTHER_FILES = ("pipeline/__init__.py", "pipeline/data/__init__.py", "pipeline/data/decode.py")
START = "import sys\n\nfrom pipeline.deploy.__main__ import main\n\nsys.exit(main())\n"


def pack(out: Path) -> None:
    """Write the file. Equal code gives equal bytes."""
    deploy = ROOT / "pipeline" / "deploy"
    own = sorted(
        path for path in deploy.iterdir() if path.suffix in (".py", ".css", ".html") and path != THIS
    )
    files = {name: (ROOT / name).read_bytes() for name in OTHER_FILES}
    files |= {str(path.relative_to(ROOT)): path.read_bytes() for path in own}
    file = io.BytesIO()
    file.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"__main__.py": START.encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    write_whole(out, file.getvalue())
    out.chmod(0o755)

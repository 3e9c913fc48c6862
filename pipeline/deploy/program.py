"""How a person calls these commands here, and what else they need: text for help and messages."""

import shlex
from pathlib import Path

PLACE = Path(__file__).parents[2]
IS_PACKED = PLACE.is_file()  # the one file that `pack` writes, instead of the project
PROGRAM = f"python {shlex.quote(str(PLACE))}" if IS_PACKED else "handdown deploy"
TO_ANSWER, TO_SERVE = "numpy 'pillow<13' onnxruntime", "starlette uvicorn python-multipart"
NEEDED = {
    **dict.fromkeys(("numpy", "PIL", "onnxruntime"), TO_ANSWER),
    **dict.fromkeys(("starlette", "uvicorn", "python_multipart"), TO_SERVE),
}


def missing(error: ModuleNotFoundError) -> str:
    """What to do if a module is missing."""
    packages = NEEDED.get((error.name or "").partition(".")[0])
    cure = f"Install what is needed: pip install {packages}" if packages else f"Run `{PROGRAM} doctor`."
    return f"{error}. {cure}"

"""Does the project work on this device, how fast is it, and where does it wait for the device?

    python -m experiments.gpu_check --device {cpu,cuda} [--budget SECONDS] [--out FILE]

Each step prints one line of JSON: its name, whether it is ok, its seconds, and its figures or the error. A
step is `absent` if this machine lacks what it needs, and `skipped` if too little time is left. The last line
sums up. The exit code is 1 if a step failed. A wait for the device is reported, but it is no failure. On a
CPU the same steps run with tiny sizes, which tests this script.
"""

import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from experiments._script import parser_of

try:
    import torch

    from experiments.gpu_steps import AbsentError, Figures, steps
    from experiments.on_device import OURS, Check, place
    from pipeline.device import fix_workspace
except ModuleNotFoundError as error:
    print(json.dumps({"name": "imports", "ok": False, "absent": error.name}))
    sys.exit(1)


class OutOfTimeError(BaseException):
    """The budget has ended. No `except Exception` on the way may catch it."""


def run(step: Callable[[], Figures], seconds: float) -> Figures:
    """The line of a step. Whatever goes wrong in a step ends that step alone."""
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figures = step()
        line: Figures = {"ok": "fault" not in figures, "figures": figures}
    except OutOfTimeError:
        line = {"skipped": "the time ended before the step did"}
    except AbsentError as error:
        line = {"absent": str(error)}
    except Exception as error:
        line = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        line["at"] = place(traceback.extract_tb(error.__traceback__))
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in OURS:
            line = {"absent": error.name}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return line | {"seconds": round(time.perf_counter() - start, 2)}


def summary(lines: Sequence[Figures]) -> Figures:
    failed = [line["name"] for line in lines if line.get("ok") is False]
    waits = [line["name"] for line in lines if line.get("figures", {}).get("waits")]
    groups = {key: [line["name"] for line in lines if key in line] for key in ("skipped", "absent")}
    return {"ok": not failed, "failed": failed, "waits": waits} | groups


def out_of_time(*_: object) -> None:
    raise OutOfTimeError


def main() -> None:
    parser = parser_of("gpu_check", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--budget", type=float, default=360, help="seconds")
    parser.add_argument("--out", type=Path, default=Path(os.devnull), help="a file for the same lines")
    given = parser.parse_args()
    start, lines = time.monotonic(), list[Figures]()
    fix_workspace(asked=True)
    signal.signal(signal.SIGALRM, out_of_time)
    check = Check(torch.device(given.device), least=0.5 if given.device == "cuda" else 0.0)
    with given.out.open("w") as out:

        def write(line: Figures) -> None:
            lines.append(line)
            for stream in (sys.stdout, out):
                print(json.dumps(line, default=str), file=stream, flush=True)

        for name, needed, step in steps(check):
            left = given.budget - (time.monotonic() - start)
            few = {"skipped": f"{max(left, 0):.0f} s are left; it needs about {needed:.0f}"}
            write({"name": name} | (run(step, left) if left > needed else few))
        write({"name": "summary"} | summary(lines) | {"seconds": round(time.monotonic() - start, 1)})
    sys.exit(0 if lines[-1]["ok"] else 1)


if __name__ == "__main__":
    main()

"""A short form of `make soak`: every kind of case, with the same seed each time.

With this seed a training with fixed views is stopped twice, one of two processes and `handdown run` once, and
another training has a disk with too little room: all take a moment.
"""

import os
import re
import subprocess
import sys

from pipeline.project.dependencies import ROOT


def test_no_generated_case_breaks_a_promise() -> None:
    done = subprocess.run(
        [sys.executable, "tests/soak.py", "--seed", "1598", "--rounds", "1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    counts = re.findall(r"\(`(\w+)`\) \| (\d+) \| (\d+) \| 0 \|", done.stdout)
    assert [name for name, _, _ in counts] == [
        "kill",
        "pair",
        "repro",
        "full",
        "bundle",
        "description",
        "state",
        "params",
        "picture",
        "request",
    ]
    assert all(tried == held != "0" for _, tried, held in counts)

import os
import signal
import sys
from types import FrameType

# Threads that wait for work soon give their core away. Without this, two trainings on one machine slow each
# other tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _end(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while a stage imports what it needs, which takes seconds. `command` has more to say later."""
    if os.environ.get("RANK", "0") == "0":  # of several processes under a launcher, one prints
        print("\nStopped before it began: `dvc repro` goes on from there.", file=sys.stderr, flush=True)
    os._exit(128 + number)


if sys.argv[0] == "-m":  # so it is while `python -m stages.NAME` looks for its module
    signal.signal(signal.SIGINT, _end)

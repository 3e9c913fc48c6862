"""Ctrl-C and SIGTERM while a training runs: they end it after a step, when its state can be saved."""

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 2.0  # seconds; a launcher sends its processes the signal once more, and sooner than a person would


class Stop:
    """Within this context a signal is noted. `asked` is its number, or 0 as long as none came.

    A second signal, some seconds later, ends the process at once.
    """

    def __init__(self, *, shown: bool = True) -> None:
        """Of several processes, only one has `shown`, which says what it waits for."""
        self.asked, self.since, self.shown = 0, 0.0, shown
        self.usual: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # no other thread can have a say
            self.usual = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)
        if self.asked and kind is None:
            raise KeyboardInterrupt(self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self.since = number, now
            if self.shown:
                print("\nStopping as soon as the state is saved ...", file=sys.stderr, flush=True)
        elif now - self.since > AGAIN:
            raise KeyboardInterrupt(number)

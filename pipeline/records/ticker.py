"""Work that is counted while it goes on: a bar on a terminal, and now and then a line in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pipeline.records.place import about, here

EVERY = 10.0  # seconds between two lines, at least
SILENT = 60.0  # seconds after which there is a line even if there was no point
BAR = "{l_bar}{bar}| {remaining}{postfix}"  # short, so that 80 columns show what is known
_BEGUN = time.monotonic()  # when this process began, nearly


class Ticker:
    """Call `advance` for what is done, and `tell` at each point that a person may want to know about."""

    def __init__(self, label: str, total: int, *, done: int = 0, shown: bool = True) -> None:
        """`done` of `total` steps were done before. Of several processes, only one has `shown`."""
        self.label, self.total, self.done, self.first, self.images = label, total, done, done, 0
        self.facts = ""
        self.begun = self.last_line = time.monotonic()
        self.place = here()
        self.has_lines = shown and not (sys.stdout.isatty() and sys.stderr.isatty())
        # disable=None: tqdm shows the bar on a terminal only
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            disable=None if shown else True,
            leave=False,
            bar_format=BAR,
        )

    def advance(self, steps: int = 1, *, images: int) -> None:
        self.done += steps
        self.images += images
        self.bar.update(steps)
        self._line_after(SILENT)

    def tell(self, facts: str) -> None:
        """What is known at this point, such as the accuracy."""
        self.facts = facts
        self.bar.set_postfix_str(self._words() + self._in_the_graph())
        self._line_after(EVERY)

    def close(self) -> None:
        self.bar.close()

    def _line_after(self, seconds: float) -> None:
        now = time.monotonic()
        if self.has_lines and now - self.last_line >= seconds:
            self.last_line = now
            left = about(self._left())
            print(f"{self.label}: {self._words()}, {left} left{self._in_the_graph()}", flush=True)

    def _left(self) -> float:
        """Seconds, at the speed until now."""
        return (self.total - self.done) * (time.monotonic() - self.begun) / max(1, self.done - self.first)

    def _words(self) -> str:
        rate = self.images / max(1e-9, time.monotonic() - self.begun)
        return ", ".join(filter(None, (self.facts, f"{rate:,.0f} images/s")))

    def _in_the_graph(self) -> str:
        return f" ({self.place.at(time.monotonic() - _BEGUN, self._left())})" if self.place else ""


@contextmanager
def counting(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with how many of how many images are done."""
    tickers: list[Ticker] = []

    def count(done: int, total: int) -> None:
        if not tickers:
            tickers.append(Ticker(label, total, shown=shown))
        (ticker,) = tickers
        new = done - ticker.done
        ticker.advance(new, images=new)
        ticker.tell(f"{done:,} of {total:,} images")

    yield count
    for ticker in tickers:
        ticker.close()

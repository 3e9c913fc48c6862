"""What a person sees of work that goes on."""

import io
import sys
from collections.abc import Callable
from functools import partial

import pytest
from tqdm import tqdm

from pipeline.records import ticker
from pipeline.records.place import Place
from pipeline.records.ticker import Ticker, counting


class Clock:
    """The time, which passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(ticker, "time", made)
    monkeypatch.setattr(ticker, "_BEGUN", 990.0)
    monkeypatch.setattr(ticker, "here", lambda: None)
    return made


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    def lines() -> list[str]:
        read = capsys.readouterr()
        assert read.err == ""
        return read.out.splitlines()

    return lines


def test_a_log_has_a_line_at_a_point_but_none_within_ten_seconds(
    clock: Clock, printed: Callable[[], list[str]]
) -> None:
    counted = Ticker("kd seed 0 distill", 100)
    found = []
    for step in range(1, 41):
        clock.now += 1
        counted.advance(images=50)
        if step % 4 == 0:
            counted.tell(f"epoch {step}")
        found += [(step, line) for line in printed()]
    assert [step for step, _ in found] == [12, 24, 36]
    assert found[0][1] == "kd seed 0 distill: epoch 12, 50 images/s, about 88 s left"


def test_a_line_comes_without_a_point_after_a_minute(clock: Clock, printed: Callable[[], list[str]]) -> None:
    counted = Ticker("teacher big", 1000)
    clock.now += 5
    counted.tell("epoch 1 of 9")
    clock.now += 54
    counted.advance(images=10)
    assert printed() == []
    clock.now += 1
    counted.advance(images=10)
    (line,) = printed()
    assert line.startswith("teacher big: epoch 1 of 9, ")


def test_what_was_done_before_a_stop_took_no_time(clock: Clock, printed: Callable[[], list[str]]) -> None:
    counted = Ticker("a", 100, done=80)
    clock.now += 10
    counted.advance(10, images=100)
    counted.tell("")
    assert printed() == ["a: 10 images/s, about 10 s left"]


def test_of_several_processes_one_prints(clock: Clock, printed: Callable[[], list[str]]) -> None:
    counted = Ticker("a", 100, shown=False)
    clock.now += 100
    counted.advance(images=1)
    counted.tell("b")
    counted.close()
    assert printed() == []


@pytest.mark.parametrize(
    ("whole", "after", "left"),
    [(100.0, 2320.0, "about 40 min left"), (15.0, 50.0, "about 80 s left")],
    ids=["as planned", "later than planned"],
)
def test_a_line_says_where_in_the_graph(
    whole: float,
    after: float,
    left: str,
    clock: Clock,
    printed: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ticker, "here", lambda: Place("stage 9 of 27, run 3 of 8", 100.0, whole, after))
    counted = Ticker("a", 4)
    clock.now += 10
    counted.advance(images=10)
    counted.tell("b")
    assert printed() == [f"a: b, 1 images/s, about 30 s left (stage 9 of 27, run 3 of 8, {left})"]


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_has_a_bar_with_the_same_facts_and_no_lines(
    columns: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of them as there is room for."""
    monkeypatch.setattr(ticker, "tqdm", partial(tqdm, ncols=columns))
    monkeypatch.setattr(ticker, "here", lambda: Place("stage 9 of 27", 100.0, 100.0, 2320.0))
    shown, lines = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", lines)
    counted = Ticker("kd seed 0", 4)
    clock.now += 10
    counted.advance(images=10)
    counted.tell("epoch 1 of 4, validation accuracy 50.0%")
    counted.close()
    assert lines.getvalue() == ""
    assert "kd seed 0" in shown.getvalue()
    facts = ("epoch 1 of 4, validation accuracy 50.0%", ", 1 images/s (stage 9 of 27, about 40 min left)")
    assert [fact in shown.getvalue() for fact in facts] == [True, columns == 160]


def test_a_log_behind_a_terminal_has_lines_too(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", lines)
    counted = Ticker("kd seed 0", 4)
    clock.now += 10
    counted.tell("b")
    counted.close()
    assert lines.getvalue().startswith("kd seed 0: b")


def test_counting_knows_the_total_when_it_begins(clock: Clock, printed: Callable[[], list[str]]) -> None:
    with counting("decode") as count:
        count(64, 3000)
        clock.now += 16
        count(1024, 3000)
    assert printed() == ["decode: 1,024 of 3,000 images, 64 images/s, about 31 s left"]
    with counting("nothing"):
        pass

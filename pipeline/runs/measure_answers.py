"""What a teacher's stored answers will cost: it answers to a few images, and they are written and read."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.device import computing, synchronise
from pipeline.methods import Phase
from pipeline.runs.answer_file import BeyondPrecision, bytes_of, views_there
from pipeline.runs.answer_key import depends_on, key_of
from pipeline.runs.answers import Making, Stored, open_files, why_live
from pipeline.runs.context import Context
from pipeline.runs.parts_read import PartsRead, parts_read
from pipeline.runs.phase import Trainee
from pipeline.runs.work_folder import ANSWERS
from pipeline.taps.answer import Answer
from pipeline.taps.step import Live
from pipeline.training.recipe import TrainConfig

FEW = 16  # images that the teacher answers to first
SECONDS = 0.5  # to measure its answers for, at most, once it is warm


@dataclass(frozen=True)
class Known:
    """What is known of a teacher before its answers are."""

    name: str
    is_trained: bool  # then its weights are the real ones
    learned: str  # who learns what frozen functions compute with: a run, or an entry of `knowledge`
    times: int = 1  # how often that is learned: once for each seed of a run


@dataclass(frozen=True)
class Part:
    """A part of the answers that a phase reads."""

    bytes: int  # of one answer
    there: np.ndarray  # by row of the store: to how many views the answer is on the disk already
    times: int = 1  # how often it is made


@dataclass(frozen=True)
class Needed:
    """The answers that a phase reads. Each is made once, for all phases that read it."""

    parts: Mapping[str, Part]  # by all that the answers depend on
    views: int
    rows: np.ndarray  # of the store
    seconds: float  # in which the teacher gives one and it is written


class Made:
    """The stored answers that there will be. The first phase that reads some makes them."""

    def __init__(self) -> None:
        self.there: dict[str, np.ndarray] = {}  # by part: for each row, to how many views

    def add(self, needed: Needed) -> tuple[int, float]:
        """How many answers the teacher still has to give, and how many MB all their parts take."""
        once = again = np.zeros(len(needed.rows), int)
        megabytes = 0.0
        for name, part in needed.parts.items():
            there = self.there.setdefault(name, part.there.copy())
            lacking = (needed.views - there[needed.rows]).clip(min=0)
            there[needed.rows] += lacking
            megabytes += 1e-6 * part.times * part.bytes * int(lacking.sum())
            once = np.maximum(once, lacking)
            again = np.maximum(again, (part.times - 1) * lacking)
        return int(once.sum() + again.sum()), megabytes


class _FirstView(Stored):
    """Gives the answers to the first view of a few images, whatever is asked for."""

    def __call__(self, view: int, places: Tensor, live: Live) -> Answer:
        return super().__call__(0, places % len(self.rows), live)


@contextmanager
def answers_as_stored(
    context: Context,
    phase: Phase,
    batches: Batches,
    cfg: TrainConfig,
    trainee: Trainee,
    known: Known | None,
    work: Path,
) -> Iterator[tuple[Needed | None, str]]:
    """Let `batches` have answers from files during the block, as in a training.

    Yielded is what the training needs of them, and why the teacher runs live, if it does.
    """
    if trainee.teacher is None or known is None or not batches.fixed_views:
        yield None, ""
        return
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as place:
        with computing([], cfg.precision, deterministic=cfg.deterministic):
            found = _measured(context, phase, batches, cfg, trainee, known, Path(place))
        yield found


def _measured(
    context: Context,
    phase: Phase,
    batches: Batches,
    cfg: TrainConfig,
    trainee: Trainee,
    known: Known,
    place: Path,
) -> tuple[Needed | None, str]:
    teacher = trainee.teacher
    assert teacher is not None
    autocast = partial(cfg.autocast, context.device.type)
    batch = next(batches.epoch(0)).split(cfg.accumulate)[0]
    networks: dict[str, Any] = {"student": trainee.student, "teacher": teacher, "method": trainee.method}
    read = parts_read(phase, batch, cfg, **networks, autocast=autocast)
    views, rows = batches.numbers(cfg.total_steps(len(batches))), batches.views.rows
    why = why_live(read, views * len(rows), context.augment.views_gb)
    if why or not read.shapes:
        return None, why
    depends = depends_on(context, teacher, batches, cfg.precision)
    files = open_files(place, read, images=len(context.store.images), views=1)
    making = Making(files, read.frozen, batches, teacher, autocast, place)
    try:
        seconds, count = _seconds_of_an_answer(making, len(rows))
    except BeyondPrecision as error:
        return None, str(error)
    batches.answers = _FirstView(files, read, rows[:count], context.device)
    parts = _parts(read, known, depends, place.parent / ANSWERS, len(context.store.images), views)
    return Needed(parts, views, rows.numpy(), seconds), ""


def _seconds_of_an_answer(making: Making, images: int) -> tuple[float, int]:
    """And how many are there then."""
    places = torch.arange(min(images, FEW + making.at_once))
    first, others = places[:FEW], places[FEW:]
    making.answer(0, first)
    seconds = _seconds(making, first)
    if not len(others):
        return seconds / len(first), len(first)
    others = others[: max(FEW, round(FEW * SECONDS / seconds))]
    return _seconds(making, others) / len(others), len(first) + len(others)


def _seconds(making: Making, places: Tensor) -> float:
    synchronise()
    begun = time.perf_counter()
    making.answer(0, places)
    return time.perf_counter() - begun


def _parts(
    read: PartsRead, known: Known, depends: dict[str, Any], answers: Path, images: int, views: int
) -> dict[str, Part]:
    """Of a teacher that isn't trained yet, the name stands for its weights."""
    key, found = key_of(depends if known.is_trained else depends | {"weights": known.name}), {}
    for name, shape in read.shapes.items():
        size, there = bytes_of(shape), views_there(answers / key, name, rows=images, views=views)
        if name in read.frozen:
            found[f"{key} {name} of {known.learned}"] = Part(size, there, known.times)
        else:
            found[f"{key} {name}"] = Part(size, there)
    return found

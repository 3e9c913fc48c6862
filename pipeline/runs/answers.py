"""A teacher's answers to fixed views: stored once, and read by all runs, seeds and phases.

They are a cache in the work folder, `answers/<key>`, not an output of a stage. A stage would have to know all
runs before it starts, and every new run would make it stale. The key is a hash of all that the answers depend
on (see answer_key.py), so the folder can be deleted whenever nothing trains. Before a phase adds to it, what
was used longest ago is swept (see answer_file.py).
"""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batches
from pipeline.data.seen import images_at_once
from pipeline.files import atomic_file, locked
from pipeline.methods import Method, Phase
from pipeline.records.ticker import Ticker
from pipeline.runs.answer_file import LOCK, AnswerFile, BeyondPrecision, bytes_of, sweep
from pipeline.runs.answer_key import depends_on, key_of, key_of_function
from pipeline.runs.context import Context
from pipeline.runs.parts_read import Autocast, PartsRead, parts_read
from pipeline.taps.answer import Answer, Frozen, InParts
from pipeline.taps.step import Live
from pipeline.taps.tapped import Tapped
from pipeline.training.recipe import TrainConfig

AT_ONCE = 256  # images that the teacher answers to, at most


@dataclass(frozen=True)
class Stored:
    """What a teacher answers to views of a train subset. It gives parts that are not stored by asking it."""

    files: Mapping[str, AnswerFile]
    read: PartsRead
    rows: Tensor  # of the store, by place in the subset
    device: torch.device

    def __call__(self, view: int, places: Tensor, live: Live) -> Answer:
        rows, live = self.rows[places].numpy(), cache(live)

        def give(part: str) -> Tensor:
            if part in self.files:
                return self.files[part].read(view, rows).to(self.device)
            if part == "logits" and self.read.classify is not None:
                return self.read.classify(give("pooled"))
            return live().part(part)

        def make(frozen: Frozen) -> Tensor:
            return give(frozen.name) if frozen.name in self.files else live().made_by(frozen)

        return InParts(give, self.read.maps, self.read.preactivations, make)


def stored_answers(
    context: Context,
    phase: Phase,
    batches: Batches,
    cfg: TrainConfig,
    *,
    student: Tapped,
    teacher: Tapped,
    method: Method[Any],
    folder: Path,
    label: str,
) -> tuple[Stored | None, dict[str, Any]]:
    """The answers that the phase reads, made if they aren't there yet; None if the teacher runs live.

    Also returned is what to put on record: what is read, and why the teacher runs live.
    """
    autocast = partial(cfg.autocast, context.device.type)
    batch = next(batches.epoch(0)).split(cfg.accumulate)[0]
    read = parts_read(phase, batch, cfg, student=student, teacher=teacher, method=method, autocast=autocast)
    views, rows = batches.numbers(cfg.total_steps(len(batches))), batches.views.rows
    facts: dict[str, Any] = {"views": context.augment.views, "read": sorted(read.shapes)}
    if why := why_live(read, views * len(rows), context.augment.views_gb):
        return None, facts | _live(why, label, shown=context.is_main)
    if not read.shapes:
        return None, facts
    own = folder / key_of(depends := depends_on(context, teacher, batches, cfg.precision))
    with locked(folder.with_suffix(LOCK)):
        _write_down(depends, own)
        files = open_files(own, read, images=len(context.store.images), views=views)
        swept = sweep(folder, context.augment.views_gb) if context.is_main else 0.0
    if swept:
        print(f"{label}: {swept:.3g} GB of answers that were used longest ago were removed", flush=True)
    begun, making = time.perf_counter(), Making(files, read.frozen, batches, teacher, autocast, own)
    try:
        made = making.make(views, label, shown=context.is_main)
    except BeyondPrecision as error:
        return None, facts | _live(str(error), label, shown=context.is_main)
    seconds = round(time.perf_counter() - begun, 3)
    if context.is_main:
        print(f"{label}: {_told(list(files), len(rows), views, made, seconds)}", flush=True)
    facts |= {"folder": own.name, "made": made, "seconds": seconds}
    return Stored(files, read, rows, context.device), facts


def open_files(folder: Path, read: PartsRead, *, images: int, views: int) -> dict[str, AnswerFile]:
    """For all parts that are read, to so many views of all images of a store."""
    return {
        part: AnswerFile(folder, _name(part, read), shape, rows=images, views=views)
        for part, shape in sorted(read.shapes.items())
    }


def _name(part: str, read: PartsRead) -> str:
    """Of its files: what a function makes depends on its weights, too."""
    return f"{part} {key_of_function(read.frozen[part])}" if part in read.frozen else part


def _told(parts: list[str], images: int, views: int, made: int, seconds: float) -> str:
    of = f"{images} images in {views} view{'s' * (views > 1)} ({', '.join(parts)})"
    how = f"{made} of them made in {seconds:.1f} s" if made else "all of them found"
    return f"the teacher's answers to {of} are stored, {how}"


def _live(why: str, label: str, *, shown: bool) -> dict[str, str]:
    if shown:
        print(f"{label}: the teacher runs live: {why}", flush=True)
    return {"live": why}


def why_live(read: PartsRead, answers: int, limit_gb: float) -> str:
    """Why so many answers cannot be stored; "" if they can."""
    sizes = {part: answers * bytes_of(shape) / 1e9 for part, shape in read.shapes.items()}
    if read.why_live or sum(sizes.values()) <= limit_gb:
        return read.why_live
    listed = ", ".join(f"{part} {size:.3g} GB" for part, size in sorted(sizes.items()))
    return f"its answers would take more than augment.views_gb ({limit_gb:g}): {listed}"


def _write_down(depends: dict[str, Any], folder: Path) -> None:
    with atomic_file(folder / "depends_on.json") as file:
        file.write_text(json.dumps(depends, indent=1) + "\n")


@dataclass(frozen=True)
class Making:
    """Asks the teacher for the answers that aren't there.

    A view is made by one process at a time. Others, of this run or of another, take other views meanwhile.
    """

    files: Mapping[str, AnswerFile]
    frozen: Mapping[str, Frozen]
    batches: Batches
    teacher: Tapped
    autocast: Autocast
    folder: Path

    def make(self, views: int, label: str, *, shown: bool) -> int:
        """All answers to so many views; returned is how many this process has made."""
        rank, world = self.batches.shard
        first = rank * views // world
        total = sum(len(self._lacking(view)) for view in range(views))
        if not total:
            return 0
        busy = []
        with closing(Ticker(f"{label}, the teacher's answers", total, shown=shown)) as ticker:
            for view in (*range(first, views), *range(first)):
                try:
                    with locked(self.folder / f"view-{view}.lock", wait=False):
                        self._fill(view, ticker)
                except BlockingIOError:
                    busy.append(view)
            for view in busy:
                with locked(self.folder / f"view-{view}.lock"):
                    self._fill(view, ticker)
            return ticker.done

    def _fill(self, view: int, ticker: Ticker) -> None:
        lacking = self._lacking(view)
        for places in torch.split(lacking, self.at_once) if len(lacking) else ():
            self.answer(view, places)
            ticker.advance(len(places), images=len(places))

    @property
    def at_once(self) -> int:
        """To how many images the teacher answers at once."""
        return images_at_once(self.batches.teacher_input.size, most=AT_ONCE)

    def answer(self, view: int, places: Tensor) -> None:
        """Ask the teacher about a view of the images at these places, and write what isn't there."""
        with torch.no_grad(), self.autocast():
            answer = self.teacher(self.batches.teacher_images(places, view))
        rows = self.batches.views.rows[places].numpy()
        for part, file in self.files.items():
            if (lacks := file.lacks(view, rows)).any():
                file.write(view, rows[lacks], self._part(answer, part)[torch.from_numpy(lacks)])

    @torch.no_grad()
    def _part(self, answer: Answer, part: str) -> Tensor:
        return answer.made_by(self.frozen[part]) if part in self.frozen else answer.part(part)

    def _lacking(self, view: int) -> Tensor:
        """Places in the train subset where a part of the answer isn't there."""
        rows = self.batches.views.rows.numpy()
        lacks = np.stack([file.lacks(view, rows) for file in self.files.values()])
        return torch.from_numpy(np.flatnonzero(lacks.any(0)))

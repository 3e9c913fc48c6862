"""Batches of a store that is too large to be kept: read while the one before is used, and the same bits."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import resident
from pipeline.data import views as views_module
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batches
from pipeline.data.protocol import Subset
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.resident import RESIDENT_BYTES, resident_bytes
from pipeline.functional import Input

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


class Watched:
    """Images that know which rows were read, and whether in the thread that asked for batches."""

    def __init__(self) -> None:
        self.shape, self.read = IMAGES.shape, list[tuple[tuple[int, ...], bool]]()

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.read.append((tuple(rows.tolist()), threading.current_thread() is threading.main_thread()))
        found: np.ndarray = IMAGES[rows]
        return found


def batches(images: Any, cfg: AugmentConfig, **options: Any) -> Batches:
    rows = np.arange(len(IMAGES))
    common: dict[str, Any] = {"batch_size": 12, "seed": 3, "mean": MEAN, "device": "cpu"}
    own = Input(8, MEAN, STD)
    return Batches(images, Subset(rows, rows % 4, (0, 1, 2, 3)), augment=cfg, input=own, **common | options)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "resident_bytes", lambda device: 0)


CASES: list[tuple[AugmentConfig, dict[str, Any]]] = [
    (AugmentConfig(), {}),
    (AugmentConfig(preset="strong", mixup=0.4, cutmix=0.5), {}),
    (AugmentConfig(views=2), {"shard": (1, 2)}),
    (AugmentConfig(), {"teacher_input": Input(5, STD, MEAN)}),
]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(("cfg", "options"), CASES)
def test_each_batch_is_read_once_and_ahead_and_is_the_same(
    cfg: AugmentConfig, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    data = batches(watched, cfg, **options)
    found = []
    for batch in data.epoch(1, first=1):
        found.append(batch.images)
        if batch.for_teacher:
            found.append(batch.for_teacher(batch.images, batch.index))
    read = [rows for rows, _ in watched.read]
    assert len(read) == len(set(read)) == (6 if cfg.is_mixed else 3)
    assert not any(in_main for _, in_main in watched.read)
    monkeypatch.setattr(views_module, "resident_bytes", lambda device: IMAGES.nbytes)
    kept = batches(IMAGES, cfg, **options)
    assert kept.views.resident is not None
    wanted = []
    for batch in kept.epoch(1, first=1):
        wanted.append(batch.images)
        if batch.for_teacher:
            wanted.append(batch.for_teacher(batch.images, batch.index))
    assert all(map(torch.equal, found, wanted))
    assert len(found) == len(wanted)


@pytest.mark.usefixtures("on_disk")
def test_the_next_batch_is_read_while_this_one_is_used() -> None:
    watched = Watched()
    data = batches(watched, AugmentConfig())
    epoch = data.epoch(0)
    next(epoch)
    data.views.on_disk.thread.submit(lambda: None).result()  # the thread has done all that it was given
    assert len(watched.read) == 2
    assert watched.read[1][0] == tuple(next(epoch).index.tolist())


def test_what_nobody_expected_is_read_when_it_is_asked_for() -> None:
    watched = Watched()
    ahead = ReadAhead(watched, CPU)
    ahead.expect([np.array([1, 2])])
    assert torch.equal(ahead.read(np.array([5])), torch.from_numpy(IMAGES[[5]]))
    assert torch.equal(ahead.read(np.array([1, 2])), torch.from_numpy(IMAGES[[1, 2]]))
    ahead.expect([])
    assert not ahead.expected
    ahead.read(np.array([1, 2]))
    assert [in_main for rows, in_main in watched.read if rows == (1, 2)] == [False, True]


def test_an_error_of_the_thread_is_raised() -> None:
    ahead = ReadAhead(IMAGES, CPU)
    ahead.expect([np.array([99])])
    with pytest.raises(IndexError):
        ahead.read(np.array([99]))


def test_a_quarter_of_a_small_host_and_no_more_than_two_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "MEMORY", tmp_path / "meminfo")
    assert resident_bytes(CPU) == RESIDENT_BYTES  # a system that does not say it
    for free, expected in ((4 << 30, 1 << 30), (64 << 30, RESIDENT_BYTES)):
        lines = ["MemTotal:  1 kB", f"MemAvailable:   {free // 1024} kB", "HugePages_Total:       0"]
        (tmp_path / "meminfo").write_text("\n".join(lines) + "\n")
        assert resident_bytes(CPU) == expected


def test_a_quarter_of_a_free_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0] - (1 << 30), 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 << 30)
    for free[0], expected in ((80 << 30, 20 << 30), (6 << 30, 2 << 30), (3 << 30, 3 << 29)):
        assert resident_bytes(torch.device("cuda")) == expected

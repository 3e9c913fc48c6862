"""Logits for test images: a teacher's are computed once, and never those of something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from world import MEAN, STD, pictures

from pipeline import nets
from pipeline.checkpoint import save_network
from pipeline.data.store import Manifest, Store
from pipeline.evaluation import logits
from pipeline.evaluation.logits import EVALUATED, kept_logits, logits_for

ROWS = np.arange(3, 9)


class Kept:
    """A store and a teacher, and how often logits were computed."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images, labels = pictures(12)
        manifest: Any = {"content": "a", "size": 8, "channels": 3, "classes": ["0", "1", "2"]}
        self.store = Store(place, images, labels, cast(Manifest, manifest))
        self.folder, self.work, self.count = place / "teacher", place / "work", 0
        self.save(0)
        compute = logits._compute

        def counted(*args: Any) -> np.ndarray:
            self.count += 1
            return compute(*args)

        monkeypatch.setattr(logits, "_compute", counted)

    def save(self, seed: int, mean: tuple[float, ...] = MEAN) -> None:
        torch.manual_seed(seed)
        facts = {"net": "resnet8", "classes": ["0", "1", "2"], "channels": 3}
        facts["input"] = {"size": 8, "mean": mean, "std": STD}
        save_network(self.folder, nets.build("resnet8", 3).state_dict(), facts)

    def get(self, rows: np.ndarray = ROWS) -> np.ndarray:
        return kept_logits(self.store, self.folder, rows, work=self.work)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path, monkeypatch)


def test_logits_are_computed_once_and_are_the_network_s_own(kept: Kept) -> None:
    wanted = logits_for(kept.store, kept.folder, ROWS)
    assert wanted.shape == (6, 3)
    kept.count = 0
    assert np.array_equal(kept.get(), wanted)
    assert np.array_equal(kept.get(), wanted)
    assert kept.count == 1
    for file in (kept.work / EVALUATED).iterdir():
        file.unlink()
    assert np.array_equal(kept.get(), wanted)
    assert kept.count == 2


def other_data(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.store.manifest["content"] = "b"


def other_device(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "name_of", lambda device: "another card")


def other_code(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = kept.store.path / "changed.py"
    changed.write_text("")
    monkeypatch.setattr(logits, "CODE", (*logits.CODE, str(changed)))


def other_torch(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.99.0"))


CHANGES: list[Callable[[Kept, pytest.MonkeyPatch], None]] = [
    lambda kept, _: kept.save(1),
    lambda kept, _: kept.save(0, mean=(0.4, 0.5, 0.5)),
    other_data,
    other_device,
    other_code,
    other_torch,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_computed_again(
    change: Callable[[Kept, pytest.MonkeyPatch], None], kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.get()
    change(kept, monkeypatch)
    kept.get()
    assert kept.count == 2


def test_other_images_are_computed_too(kept: Kept) -> None:
    whole = kept.get()
    assert np.allclose(kept.get(ROWS[::-1].copy())[::-1], whole, atol=1e-5)
    assert kept.get(ROWS[:2]).shape == (2, 3)
    assert kept.count == 3


@pytest.mark.parametrize("cut", [lambda content: content[:-40], lambda content: b"", None])
def test_a_damaged_file_is_computed_again(cut: Callable[[bytes], bytes] | None, kept: Kept) -> None:
    wanted = kept.get()
    (file,) = (kept.work / EVALUATED).glob("*.npz")
    content = file.read_bytes()
    place = content.index(wanted.tobytes()) + 5
    flip = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    file.write_bytes(cut(content) if cut else flip)
    assert np.array_equal(kept.get(), wanted)
    assert kept.count == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_answers_as_the_cpu_but_for_rounding(kept: Kept) -> None:
    on_cpu, on_gpu = (
        logits_for(kept.store, kept.folder, ROWS, device=torch.device(name)) for name in ("cpu", "cuda")
    )
    assert np.abs(on_cpu - on_gpu).max() <= 1e-4 * np.abs(on_cpu).max()

"""The script that compares our views with torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import data_speed
from experiments._photographs import made_up
from experiments.data_speed import cases, files_of, ours, table, theirs


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_speed, "BATCH", 4)
    monkeypatch.setattr(data_speed, "COUNT", 8)


def test_the_table_has_a_line_for_each_case(tmp_path: Path) -> None:
    lines = table(files_of(None, tmp_path), rounds=2).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == [
        *(case.name for case in cases()),
        "standard, theirs from JPEG files",
    ]
    assert all(line.count("|") == 7 for line in lines[2:])


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_both_give_normalised_batches_of_the_same_kind(case: data_speed.Case) -> None:
    """The same shape, and pixels that are about as bright and vary about as much."""
    images = np.stack([np.asarray(picture.resize((case.kept, case.kept))) for picture in made_up(8)])
    own, other = (
        torch.cat([next(loader) for _ in range(16)])
        for loader in (ours(images, case), theirs(data_speed.Stored(images, case.transforms)))
    )
    assert own.shape == other.shape == (64, 3, case.size, case.size)
    assert own.dtype == other.dtype == torch.float32
    # TrivialAugment fills with the mean colour here and with black there
    tolerance = 0.5 if case.name in ("TrivialAugment", "shift and mirror") else 0.25
    assert own.mean().item() == pytest.approx(other.mean().item(), abs=tolerance)
    assert own.std().item() == pytest.approx(other.std().item(), rel=0.3)


def test_a_folder_without_jpegs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \.jpg files"):
        files_of(str(tmp_path), tmp_path)

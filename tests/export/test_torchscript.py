import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.export import torchscript
from pipeline.export.deployable import Deployable
from pipeline.export.parity import ParityError, check


def test_it_answers_as_the_network_at_any_batch_size(exported: Any, world: Any, images: np.ndarray) -> None:
    run, trained = (
        torchscript.load(exported.out / "student.ts"),
        Deployable(exported.net, world.mean, world.std),
    )
    for n in (1, 2, 5, 80):
        for got, want in zip(run(images[:n]), trained.outputs(images[:n]), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-6)


def test_it_is_frozen_and_describes_itself(exported: Any) -> None:
    extra = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated")
        script = torch.jit.load(str(exported.out / "student.ts"), _extra_files=extra)  # type: ignore[no-untyped-call]
    assert not list(script.parameters())  # they are constants of the graph
    assert "batch_norm" not in str(script.graph)
    assert json.loads(extra["metadata.json"])["classes"] == exported.bundle["classes"]


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).view(2, -1)


def test_the_gate_catches_a_fixed_batch(images: np.ndarray, tmp_path: Path) -> None:
    model = Deployable(FixedBatch().eval(), (0.5,) * 3, (0.5,) * 3)
    sound = Deployable(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), (0.5,) * 3, (0.5,) * 3)
    torchscript.write(model, tmp_path / "x.ts", size=16, channels=3, metadata={})
    with pytest.raises(ParityError, match="batch 1: fails with RuntimeError"):
        check(sound.outputs, torchscript.load(tmp_path / "x.ts"), images, name="A file")


def test_it_holds_no_source_lines(exported: Any) -> None:
    with zipfile.ZipFile(exported.out / "student.ts") as file:
        assert file.testzip() is None
        assert not [name for name in file.namelist() if name.endswith(".debug_pkl")]

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.export.export_trial import try_export
from pipeline.settings import InputError
from stages.trial import stage

ROOT = Path(__file__).parents[2]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) if x.mean() > 0 else self.net(-x)
        return logits


class DependsOnTheBatch(Branch):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x - x.mean(0))
        return logits


class FixedBatch(Branch):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.reshape(2, -1))
        return logits


def test_a_network_that_can_be_exported_passes_unchanged(world: Any) -> None:
    net = world.make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    try_export(net, name="students.small.net", size=16, channels=3, classes=6)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (
            Branch,
            r"students\.small\.net: The network cannot be exported.*"
            r"test_export_trial\.py, line [0-9]+: `logits: Tensor = self\.net\(x\) if x\.mean",
        ),
        (FixedBatch, r"students\.small\.net cannot take images of 16 x 16 x 3: RuntimeError"),
        (DependsOnTheBatch, "for 3 images its ONNX file gives another answer.*depend on the batch"),
    ],
)
def test_it_says_what_cannot_be_exported(net: type[nn.Module], match: str) -> None:
    with pytest.raises(InputError, match=match):
        try_export(net(), name="students.small.net", size=16, channels=3, classes=6)


def test_it_says_that_the_number_of_classes_is_wrong() -> None:
    with pytest.raises(InputError, match=r"gives \[3, 6\] for 3 images where \[3, 9\] is needed"):
        try_export(DependsOnTheBatch(), name="a net", size=16, channels=3, classes=9)


FOREIGN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

    def forward(self, x):
        return self.net(x)

class Branch(Net):
    def forward(self, x):
        return self.net(x) if x.mean() > 0 else self.net(-x)
"""


def test_the_stage_says_which_student_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tries only students from elsewhere. What it writes is the same, whichever they are."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    data, out = tmp_path / "data", tmp_path / "out.txt"
    data.mkdir()
    prepare(DataConfig(**params["data"]), data)
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(**students: str) -> bytes:
        given = params | {
            "students": {name: {"net": net} for name, net in ({"small": "resnet8"} | students).items()}
        }
        Path("params.yaml").write_text(yaml.safe_dump(given))
        stage(data, out)
        return out.read_bytes()

    written = run()
    assert capsys.readouterr().out == ""
    assert run(mine="foreign:Net") == written
    assert capsys.readouterr().out == "mine: foreign:Net can be exported\n"
    out.unlink()
    message = (
        r"students\.mine\.net: The network cannot be exported to ONNX\. "
        r"At .*foreign\.py, line 14: `return self\.net\(x\) if x\.mean"
    )
    with pytest.raises(InputError, match=message):
        run(mine="foreign:Branch")
    assert not out.exists()

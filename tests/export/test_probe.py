from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.export.probe import probe
from pipeline.inputs import InputError
from stages.probe import stage

ROOT = Path(__file__).parents[2]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.mean() > 0 else self.net(-x)


class OfTheBatch(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class Fixed(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(2, -1))


def test_passes_what_can_be_deployed(world: Any) -> None:
    net = world.make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    probe(net, name="students.small.net", size=16, channels=3, classes=6)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Branch, r"students\.small\.net: The network can't be exported.*test_probe\.py, line [0-9]+: `return self\.net\(x\) if x\.mean"),
        (Fixed, r"students\.small\.net can't take images of 16 x 16 x 3: RuntimeError"),
        (OfTheBatch, "answers differently for 3 images.*depend on the batch"),
    ],
)
def test_names_what_cannot(net: type[nn.Module], match: str) -> None:
    with pytest.raises(InputError, match=match):
        probe(net(), name="students.small.net", size=16, channels=3, classes=6)


def test_says_when_the_classes_are_others() -> None:
    with pytest.raises(InputError, match=r"gives \[3, 6\] for 3 images where \[3, 9\] is needed"):
        probe(OfTheBatch(), name="a net", size=16, channels=3, classes=9)


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


def test_the_stage_names_a_student_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only students from elsewhere are asked; what it writes is the same whichever they are."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    data, out = tmp_path / "data", tmp_path / "out.txt"
    data.mkdir()
    prepare(DataConfig(**params["data"]), data)
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(**students: str) -> bytes:
        given = params | {"students": {name: {"net": net} for name, net in ({"small": "resnet8"} | students).items()}}
        Path("params.yaml").write_text(yaml.safe_dump(given))
        stage(data, out)
        return out.read_bytes()

    written = run()
    assert capsys.readouterr().out == ""
    assert run(mine="foreign:Net") == written
    assert capsys.readouterr().out == "mine: foreign:Net can be exported\n"
    out.unlink()
    said = r"students\.mine\.net: The network can't be exported to ONNX\. At .*foreign\.py, line 14: `return self\.net\(x\) if x\.mean"
    with pytest.raises(InputError, match=said):
        run(mine="foreign:Branch")
    assert not out.exists()

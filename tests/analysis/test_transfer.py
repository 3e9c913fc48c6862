from pathlib import Path

import pytest
import torch
from world import save_pictures

from pipeline import nets
from pipeline.analysis.transfer import transfer
from pipeline.data.prepare import prepare
from pipeline.data.sources import DataConfig
from pipeline.data.store import Store
from pipeline.taps import Tapped


def test_a_network_is_carried_over_to_images_it_never_saw(tmp_path: Path) -> None:
    save_pictures(tmp_path / "own", 30)
    save_pictures(tmp_path / "other", 60, size=12, classes=2)
    own = DataConfig(source="folder", root=str(tmp_path / "own"), size=8)
    prepare(own, tmp_path / "store")
    torch.manual_seed(0)
    looking = Tapped(nets.build("resnet8", 3), torch.zeros(2, 3, 8, 8))
    blind = Tapped(nets.build("resnet8", 3), torch.zeros(2, 3, 8, 8))
    for parameter in blind.net.parameters():
        torch.nn.init.zeros_(parameter)
    other = DataConfig(source="folder", root=str(tmp_path / "other"), size=8)
    scores, facts = transfer(other, {"looking": looking, "blind": blind}, Store.open(tmp_path / "store"))
    assert scores["looking"].accuracy > 0.8
    assert scores["blind"].accuracy == pytest.approx(0.5, abs=0.1)
    assert scores["looking"].n == facts["splits"]["test"] == 12
    assert facts["root"] == str(tmp_path / "other")
    assert len(facts["content"]) == 64

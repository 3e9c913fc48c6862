from pathlib import Path

import pytest
import torch
from world import save_pictures

from pipeline import nets
from pipeline.analysis.transfer import transfer_scores
from pipeline.data.sources import DataConfig
from pipeline.functional import Input
from pipeline.taps.tapped import Tapped


def test_the_embedding_of_a_network_is_tested_on_other_images(tmp_path: Path) -> None:
    save_pictures(tmp_path / "other", 60, size=12, classes=2)
    own = Input(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    torch.manual_seed(0)
    random, zero = (Tapped(nets.build("resnet8", 3), torch.zeros(2, 3, 8, 8), input=own) for _ in range(2))
    for parameter in zero.net.parameters():
        torch.nn.init.zeros_(parameter)
    other = DataConfig(source="folder", root=str(tmp_path / "other"), size=8)
    scores, facts = transfer_scores(other, {"random": random, "zero": zero})
    assert scores["random"].accuracy > 0.8
    assert scores["zero"].accuracy == pytest.approx(0.5, abs=0.1)
    assert scores["random"].n == facts["splits"]["test"] == 12
    assert facts["root"] == str(tmp_path / "other")
    assert len(facts["content"]) == 64

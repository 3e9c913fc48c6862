"""Of many logits, pooled embeddings are stored, and the teacher's last layer makes the logits."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from answered import IMAGES, MAPS, VIEWS, assert_close, content, train
from small_runs import SmallRuns
from torch import Tensor, nn

from pipeline.functional import softened_kl
from pipeline.runs import answers, parts_read
from pipeline.runs.answer_file import AnswerFile
from pipeline.taps.tapped import Tapped

MANY = 5000


@dataclass
class Wide:
    """A teacher of many classes, and what it answers."""

    teacher: Tapped
    images: Tensor

    @classmethod
    def of(cls, last: Callable[[Tensor], Tensor] = lambda logits: logits) -> "Wide":
        class Net(nn.Module):
            taps: ClassVar = {"stem": "stem"}
            classifier = "fc"

            def __init__(self) -> None:
                super().__init__()
                self.stem, self.fc = nn.Conv2d(3, 32, 3, 2), nn.Linear(32, MANY)

            def forward(self, images: Tensor) -> Tensor:
                return last(self.fc(self.stem(images).relu().mean((2, 3))))

        torch.manual_seed(0)
        net, images = Net().eval().requires_grad_(False), torch.randn(16, 3, 8, 8)
        net.fc.weight *= 40  # logits as far apart as those of trained networks
        return cls(Tapped(net, images), images)

    def classifier(self) -> Callable[[Tensor], Tensor] | None:
        return parts_read._classifier(self.teacher, self.teacher(self.images), nullcontext)


def test_many_logits_are_made_of_pooled_embeddings_as_the_teacher_makes_them(tmp_path: Path) -> None:
    wide = Wide.of()
    classify, answer = wide.classifier(), wide.teacher(wide.images)
    assert classify is not None
    assert torch.equal(classify(answer.pooled), answer.logits)
    file = AnswerFile(tmp_path, "pooled", (32,), rows=16, views=1)
    file.write(0, np.arange(16), answer.pooled)
    read = parts_read.PartsRead({"pooled": (32,)}, classify=classify)
    stored = answers.Stored({"pooled": file}, read, torch.arange(16), torch.device("cpu"))
    given = stored(0, torch.arange(16), lambda: pytest.fail("the teacher was asked"))
    student = torch.randn(16, MANY)
    flat = top_of(answer.logits, 500)
    for temperature, least in ((1.0, 0.0), (4.0, 0.5)):
        exact, ours, theirs = (
            softened_kl(student, each, temperature) for each in (answer.logits, given.logits, flat)
        )
        assert abs(ours / exact - 1) < 1e-4
        assert abs(theirs / exact - 1) >= least  # why the largest logits alone are not what is stored


def top_of(logits: Tensor, k: int) -> Tensor:
    """The largest logits, and one value for all others, with their mass at temperature 1."""
    top = logits.topk(k)
    rest = logits.scatter(1, top.indices, -torch.inf).logsumexp(1, keepdim=True)
    return (rest - math.log(logits.shape[1] - k)).expand_as(logits).scatter(1, top.indices, top.values)


def test_few_logits_and_those_that_are_not_linear_are_stored_whole() -> None:
    assert Wide.of(lambda logits: logits.relu()).classifier() is None
    assert Wide.of(lambda logits: logits[:, :1000]).classifier() is None
    assert Wide.of(lambda logits: logits[:, :1001]).classifier() is None


def test_the_parts_read_have_pooled_embeddings_in_place_of_many_logits(
    small: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.001}  # the steps of adamw are large however small a gradient is
    usual = train(small, "kd", tmp_path / "whole", training=sgd)
    monkeypatch.setattr(parts_read, "_is_smaller", lambda answer: True)
    done = train(small, "kd", tmp_path, training=sgd)
    assert done.facts["distill"]["read"] == ["pooled"]
    assert set(content(tmp_path / "answers")) == {"pooled.answers", "pooled.there"}
    assert done.asked == VIEWS * IMAGES + 9
    assert_close(usual, done, 2e-3)
    assert train(small, "irg", tmp_path).facts["distill"]["read"] == [*MAPS, "pooled"]

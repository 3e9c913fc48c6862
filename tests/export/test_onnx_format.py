import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.export import onnx_format
from pipeline.export.deployable import Deployable
from pipeline.settings import InputError


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))


class Branch(Core):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if x.mean() > 0:
            return logits
        return -logits


class Loop(Core):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(image[None]) for image in x])


class FixedBatch(Core):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.view(2, -1)


class NoSuchOperator(Core):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.cummax(1)[0]


class Two(Core):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits[:, :2]


def write(net: nn.Module, path: Path) -> None:
    model = Deployable(net.eval(), (0.5,) * 3, (0.5,) * 3).eval()
    onnx_format.write(model, path, size=16, channels=3, classes=6, metadata={"schema": 1})


def test_the_graph_describes_itself(exported: Any, world: Any) -> None:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.out / "student.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 16, 16, 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 6]),
        ("probabilities", "tensor(float)", ["batch", 6]),
    ]
    described = session.get_modelmeta()
    assert described.version == 1
    metadata = {key: json.loads(value) for key, value in described.custom_metadata_map.items()}
    assert metadata == exported.metadata
    assert metadata["classes"] == list(world.classes)
    model = onnx.load(exported.out / "student.onnx", load_external_data=False)
    assert {e.domain: e.version for e in model.opset_import} == {"": 20}
    assert not any(t.external_data for t in model.graph.initializer)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "Dropout"}  # folded into convolutions, and removed


def test_it_answers_as_the_network_at_any_batch_size(exported: Any, world: Any, images: np.ndarray) -> None:
    run, trained = (
        onnx_format.load(exported.out / "student.onnx"),
        Deployable(exported.net, world.mean, world.std),
    )
    for n in (0, 1, 2, 5, 80):
        for got, want in zip(run(images[:n]), trained.outputs(images[:n]), strict=True):
            assert got.shape == (n, 6)
            np.testing.assert_allclose(got, want, atol=2e-6)


def test_onnxs_reference_runtime_agrees(exported: Any, images: np.ndarray) -> None:
    from onnx.reference import ReferenceEvaluator

    got = ReferenceEvaluator(str(exported.out / "student.onnx")).run(None, {"image": images[:4]})
    for ours, theirs in zip(onnx_format.load(exported.out / "student.onnx")(images[:4]), got, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.astype(np.float32),
        lambda x: x[:, :8],
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: x[..., :1],
        lambda x: x[0],
    ],
)
def test_other_pixels_are_refused(
    wrong: Callable[[np.ndarray], np.ndarray], exported: Any, images: np.ndarray
) -> None:
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|Invalid"):
        onnx_format.load(exported.out / "student.onnx")(wrong(images[:2]))


def test_equal_weights_give_equal_bytes_and_print_nothing(
    exported: Any, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = dict(reversed(exported.metadata.items()))  # in another order
    again = Deployable(world.make(), world.mean, world.std)
    onnx_format.write(again, tmp_path / "again.onnx", size=16, channels=3, classes=6, metadata=metadata)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "again.onnx").read_bytes() == (exported.out / "student.onnx").read_bytes()


@pytest.mark.slow
def test_another_process_in_another_folder_gives_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    here = Path(__file__).parent
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(here.parents[1])!r}, {str(here)!r}]
from conftest import make, write
write(make(), pathlib.Path("bundle"))
"""
    (tmp_path / "run.py").write_text(code)
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert result.stdout == ""
    for name in ("student.onnx", "student.int8.onnx", "student.safetensors"):
        assert (
            hashlib.sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest()
            == exported.bundle["files"][name]["sha256"]
        )


def test_a_branch_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"test_onnx_format\.py, line [0-9]+: `if x\.mean") as caught:
        write(Branch(), tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Loop, r"cannot be exported to ONNX.*static shape of 2 for dimension inputs"),
        (NoSuchOperator, r"cannot be exported to ONNX.*cummax"),
        (FixedBatch, r"declares 'logits' as \[2, .*fixed batch size"),
        (Two, r"declares 'logits' as \['batch', 2\] where \['batch', 6\] is needed"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused(net: type[Core], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        write(net(), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []

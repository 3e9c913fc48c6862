import getpass
import hashlib
import json
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from torch import Tensor, nn

from pipeline.export import bundle, parity
from pipeline.export.bundle import ExportConfig


def test_holds_what_it_lists(exported: Any) -> None:
    written = json.loads((exported.out / "bundle.json").read_text())
    assert written == json.loads(json.dumps(exported.bundle))
    assert {p.name for p in exported.out.iterdir()} == {*written["files"], "bundle.json"}
    assert [entry["file"] for entry in written["formats"].values()] == ["student.onnx", "student.ts", "student.safetensors"]
    for name, facts in written["files"].items():
        content = (exported.out / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        assert (exported.out / name).stat().st_mode & 0o044 == (exported.out / "bundle.json").stat().st_mode & 0o044
    assert written["facts"] == {"accuracy": 0.9}


def test_says_how_well_each_format_agrees(exported: Any) -> None:
    for name in ("onnx", "torchscript"):
        same = exported.bundle["formats"][name]["parity"]
        assert 0 < same["rel"] <= 1e-5
        assert (same["agreement"], same["images"]) == (1, 80)
        assert {"images, batch 1", "images, batch 2", "images, batch 7", "images, batch 80"} <= set(same["cases"])


def test_weights_are_the_networks(exported: Any) -> None:
    weights = load_file(exported.out / "student.safetensors")
    state = exported.net.state_dict()
    assert weights.keys() == state.keys()
    assert all(np.array_equal(weights[key], state[key].numpy()) for key in state)


def test_hooks_of_the_given_network_stay_and_never_run_in_an_exporter(exported: Any) -> None:
    assert len(exported.net.stem._forward_hooks) == 1
    assert {type(output) for output in exported.seen} == {Tensor}  # a FakeTensor is what an exporter leaves
    assert all(p.requires_grad for p in exported.net.parameters())


def test_no_file_tells_where_or_by_whom_it_was_made(exported: Any) -> None:
    contents = {path.name: path.read_bytes() for path in exported.out.iterdir()}
    with zipfile.ZipFile(exported.out / "student.ts") as script:
        contents |= {name: script.read(name) for name in script.namelist()}
    here = Path(__file__).resolve()
    telling = [
        str(here.parents[2]),
        str(Path.home()) + "/",
        sys.prefix,
        str(exported.out.parent),
        "site-packages",
        ".py\x00",
        socket.gethostname(),
    ]
    if getpass.getuser() != "root":  # "root" is a word of file formats too
        telling.append(getpass.getuser())
    for name, content in contents.items():
        assert not [word for word in telling if word.encode() in content], name
    # the words are the right ones: an unstripped trace does hold them
    assert str(here.parents[2]).encode() in unstripped_trace(exported.net)


def unstripped_trace(net: nn.Module) -> bytes:
    import io
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch: TorchScript is deprecated
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 16, 16)), buffer)
    with zipfile.ZipFile(buffer) as file:
        return b"".join(file.read(name) for name in file.namelist())


def test_grey_images_and_onnx_only(world: Any, tmp_path: Path) -> None:
    written = world.write(world.make(1), tmp_path / "grey", 1, ExportConfig(formats=("onnx",), parity_images=9))
    assert {p.name for p in (tmp_path / "grey").iterdir()} == {"student.onnx", "student.safetensors", "bundle.json"}
    assert written["transform"]["mode"] == "L"
    assert written["formats"]["onnx"]["parity"]["images"] == 9


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.randn_like(x))


def test_a_network_of_chance_fails_the_gate(world: Any, tmp_path: Path) -> None:
    with pytest.raises(parity.ParityError, match=r"The ONNX file doesn't answer.*on chance"):
        world.write(world.make(kind=Chance), tmp_path / "x")
    assert not (tmp_path / "x" / "bundle.json").exists()


def test_a_broken_file_fails_the_gate(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are what is compared, not what was meant to be in them."""
    write = bundle.onnx_format.write

    def damaged(model: Any, path: Path, **others: Any) -> None:
        with torch.no_grad():
            model.net.norm.running_var.mul_(1.01)
        write(model, path, **others)

    monkeypatch.setattr(bundle.onnx_format, "write", damaged)
    with pytest.raises(parity.ParityError, match="The ONNX file doesn't answer"):
        world.write(world.make(), tmp_path / "x")


def test_a_network_in_training_mode_is_our_own_mistake(world: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\.eval\(\)"):
        world.write(world.make().train(), tmp_path / "x")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"formats": ["torchscript"]}, "must hold 'onnx'"),
        ({"formats": ["onnx", "tflite"]}, "tflite"),
        ({"parity_images": 1}, "parity_images"),
    ],
)
def test_config_refuses(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ExportConfig(**settings)

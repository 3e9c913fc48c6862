from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with pytest.raises(KeyError), checkpoint.atomic_file(target) as file:
        file.write_text("half")
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with checkpoint.atomic_file(target) as file:
        file.write_text("whole")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_a_folder_keeps_its_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with checkpoint.atomic_folder(target) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError), checkpoint.atomic_folder(target) as folder:
        (folder / "half").touch()
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["f", "old"]
    with checkpoint.atomic_folder(target) as folder:
        (folder / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_network_s_weights_and_facts_come_back(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    checkpoint.save_net(tmp_path, net.state_dict(), {"net": "x"})
    weights, facts = checkpoint.load_net(tmp_path)
    assert facts == {"net": "x"}
    assert {name: t.tolist() for name, t in weights.items()} == {name: t.tolist() for name, t in net.state_dict().items()}
    once = (tmp_path / "weights.safetensors").read_bytes()
    checkpoint.save_net(tmp_path, net.state_dict(), {"net": "x"})
    assert (tmp_path / "weights.safetensors").read_bytes() == once


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    tensor = torch.arange(3.0)
    checkpoint.save_weights(tmp_path / "w.safetensors", {"a": tensor, "b": tensor[1:]})
    assert checkpoint.load_weights(tmp_path / "w.safetensors")["b"].tolist() == [1, 2]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    checkpoint.save_net(tmp_path, {"a": torch.zeros(50)}, {})
    file = tmp_path / "weights.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"weights\.safetensors: no usable weights there.*dvc repro"):
        checkpoint.load_net(tmp_path)


def test_a_missing_network_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: no usable network there.*dvc repro"):
        checkpoint.load_net(tmp_path / "nothing")


def test_a_state_file_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"epoch": Evil()}, tmp_path / "s")
    assert checkpoint.load_state(tmp_path / "s") is None
    assert not (tmp_path / "ran").exists()

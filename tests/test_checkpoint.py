from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint, nets
from pipeline.settings import InputError

FACTS: dict[str, Any] = {"net": "resnet8", "classes": ["cat", "dog"], "channels": 3}


def damage(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def test_weights_and_facts_of_a_network_come_back(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    checkpoint.save_network(tmp_path, net.state_dict(), {"net": "x"})
    weights, facts = checkpoint.load_network_weights(tmp_path), checkpoint.load_facts(tmp_path)
    assert facts == {"net": "x"}
    assert {name: t.tolist() for name, t in weights.items()} == {
        name: t.tolist() for name, t in net.state_dict().items()
    }
    once = (tmp_path / "weights.safetensors").read_bytes()
    checkpoint.save_network(tmp_path, net.state_dict(), {"net": "x"})
    assert (tmp_path / "weights.safetensors").read_bytes() == once


def test_a_network_is_built_again_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    net = nets.build("resnet8", 2, 3)
    checkpoint.save_network(tmp_path, net.state_dict(), FACTS)
    loaded, facts = checkpoint.load_network(tmp_path)
    assert facts == FACTS
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), net.eval()(images))


def test_weights_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    checkpoint.save_network(tmp_path, nets.build("resnet14", 2, 3).state_dict(), FACTS)
    with pytest.raises(InputError, match=r"the weights do not fit a resnet8 .*dvc repro"):
        checkpoint.load_network(tmp_path)


def test_tensors_that_share_memory_are_saved_separately(tmp_path: Path) -> None:
    tensor = torch.arange(3.0)
    checkpoint.save_weights(tmp_path / "w.safetensors", {"a": tensor, "b": tensor[1:]})
    assert checkpoint.load_weights(tmp_path / "w.safetensors")["b"].tolist() == [1, 2]


@pytest.mark.parametrize("change", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights_are_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    checkpoint.save_network(tmp_path, {"a": torch.zeros(50)}, {})
    damage(tmp_path / "weights.safetensors", change)
    with pytest.raises(InputError, match=r"weights\.safetensors: there are no usable weights .*dvc repro"):
        checkpoint.load_network_weights(tmp_path)


def test_a_missing_or_damaged_network_is_refused_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing: there is no usable network .*dvc repro"):
        checkpoint.load_facts(tmp_path / "nothing")
    checkpoint.save_network(tmp_path / "damaged", {"a": torch.zeros(50)}, FACTS)
    damage(tmp_path / "damaged" / "net.json", lambda content: content[:10])
    with pytest.raises(InputError, match=r"damaged: there is no usable network .*dvc repro"):
        checkpoint.load_network(tmp_path / "damaged")


def test_students_are_listed_by_seed(tmp_path: Path) -> None:
    for seed in (10, 2, 1):
        (tmp_path / f"seed-{seed}").mkdir()
    (tmp_path / "other").mkdir()
    assert list(checkpoint.student_folders(tmp_path).items()) == [
        (seed, tmp_path / f"seed-{seed}") for seed in (1, 2, 10)
    ]
    with pytest.raises(InputError, match=r"other: there is no trained student\. Run `dvc repro`"):
        checkpoint.student_folders(tmp_path / "other")


def test_the_best_seed_has_the_highest_accuracy_then_the_lowest_loss(tmp_path: Path) -> None:
    for seed, accuracy, loss in ((0, 0.6, 0.1), (1, 0.7, 0.9), (2, 0.7, 0.8), (3, 0.5, 0.0)):
        checkpoint.save_network(
            tmp_path / f"seed-{seed}", {}, {"val_accuracy": accuracy, "val_loss": loss, "seed": seed}
        )
    assert checkpoint.best_seed(tmp_path) == 2


@pytest.mark.parametrize(
    ("select", "best"), [("accuracy", 0), ("balanced_accuracy", 1), ("macro_f1", 3), ("loss", 2)]
)
def test_the_best_seed_is_best_by_what_its_training_was_selected_by(
    select: str, best: int, tmp_path: Path
) -> None:
    names = ("val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss")
    of_seeds = [(0.9, 0.5, 0.4, 0.8), (0.7, 0.7, 0.5, 0.7), (0.7, 0.6, 0.6, 0.1), (0.7, 0.6, 0.6, 0.05)]
    if select == "loss":
        of_seeds[3] = (0.7, 0.6, 0.6, 0.2)
    for seed, scores in enumerate(of_seeds):
        facts = dict(zip(names, scores, strict=True)) | {"select": select}
        checkpoint.save_network(tmp_path / f"seed-{seed}", {}, facts)
    assert checkpoint.best_seed(tmp_path) == best


def test_a_state_comes_back(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path / "s", {"epoch": 3, "tensors": [torch.arange(3)], "name": "kd"})
    state = checkpoint.load_state(tmp_path / "s")
    assert state is not None
    assert (state["epoch"], state["name"], state["tensors"][0].tolist()) == (3, "kd", [0, 1, 2])


def test_a_missing_or_damaged_state_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.load_state(tmp_path / "nothing") is None
    assert capsys.readouterr().out == ""
    checkpoint.save_state(tmp_path / "s", {"epoch": 3})
    damage(tmp_path / "s", lambda content: content[: len(content) // 2])
    assert checkpoint.load_state(tmp_path / "s") is None
    assert "this phase starts again" in capsys.readouterr().out


def test_a_state_file_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    checkpoint.save_state(tmp_path / "s", {"epoch": Evil()})
    assert checkpoint.load_state(tmp_path / "s") is None
    assert not (tmp_path / "ran").exists()

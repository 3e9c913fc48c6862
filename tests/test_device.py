"""Precision, layout and repeatable algorithms: what holds within a block, and that it ends with the block."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from world import QUICK, World, snapshot

from pipeline import device
from pipeline.device import autocast, computing, fix_workspace, is_fused, laid_out, name_of, products
from pipeline.settings import InputError

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def flags() -> tuple[Any, ...]:
    return (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


class Boom(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_a_block_sets_ends_with_it(precision: str, deterministic: bool) -> None:
    before = flags()
    with pytest.raises(Boom), computing([], precision, deterministic=deterministic):
        benchmark, *_, is_deterministic = flags()
        assert benchmark == (precision != "fp32" and not deterministic)
        assert is_deterministic == deterministic
        raise Boom
    assert flags() == before


def test_the_default_leaves_torch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with computing([], "fp32"):
        assert flags() == before


def test_weights_lie_channels_last_within_the_block_alone() -> None:
    net = nn.Conv2d(3, 4, 3)
    before, parameters = snapshot(net), list(net.parameters())
    with computing([net], "fp32", channels_last=True):
        assert net.weight.is_contiguous(memory_format=torch.channels_last)
        assert not net.weight.is_contiguous()
        assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    assert net.weight.is_contiguous()
    assert all(torch.equal(value, snapshot(net)[name]) for name, value in before.items())
    with computing([net], "fp32"):
        assert net.weight.is_contiguous()


def test_images_are_laid_out_as_asked() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert laid_out(images, channels_last=False) is images
    last = laid_out(images, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, images)


def test_an_operation_that_does_not_repeat_is_refused_in_words() -> None:
    with (
        pytest.raises(
            InputError, match=r"^train\.deterministic is true, but this training needs put_, .* Set"
        ),
        computing([], "fp32", deterministic=True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size"), computing([], "fp32", deterministic=True):
        torch.zeros(3) + torch.zeros(2)


def test_the_workspace_of_products_is_fixed_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.WORKSPACE, raising=False)
    fix_workspace(asked=False)
    assert device.WORKSPACE not in os.environ
    fix_workspace(asked=True)
    assert os.environ[device.WORKSPACE] == ":4096:8"
    monkeypatch.setenv(device.WORKSPACE, ":16:8")
    fix_workspace(asked=True)
    assert os.environ[device.WORKSPACE] == ":16:8"


def test_only_optimizers_on_a_gpu_are_fused() -> None:
    parameters = list(nn.Linear(2, 2).parameters())
    assert is_fused(parameters, "bf16") is None
    assert is_fused(parameters, "fp32") is None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_compute_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast("cpu", precision):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_auto_is_no_precision_to_compute_in() -> None:
    with pytest.raises(AssertionError, match="auto"):
        autocast("cpu", "auto")


def test_a_device_is_named_by_what_its_speed_depends_on() -> None:
    assert name_of(torch.device("cpu")).startswith("cpu ")
    assert str(torch.get_num_threads()) in name_of(torch.device("cpu"))


@pytest.mark.gpu
@on_gpu
def test_tf32_rounds_products_on_a_gpu_and_no_longer() -> None:
    a, b = torch.rand(2, 512, 512, device="cuda")
    exact = (a.double() @ b.double()).float()
    with products(tf32=False):
        near = (a @ b - exact).abs().max()
    with computing([], "tf32"):
        rounded = (a @ b - exact).abs().max()
    with products(tf32=False):
        again = (a @ b - exact).abs().max()
    assert rounded > 5 * near
    assert again == near


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_fused_optimizer_steps_as_the_plain_one(optimizer: str) -> None:
    torch.manual_seed(0)
    start, found = nn.Linear(20, 20, device="cuda"), []
    gradient = torch.randn(20, 20, device="cuda")
    for precision in ("fp32", "tf32"):
        net = nn.Linear(20, 20, device="cuda")
        net.load_state_dict(start.state_dict())
        cfg = QUICK.model_copy(update={"optimizer": optimizer, "precision": precision})
        built = cfg.build_optimizer([parameter for parameter in net.parameters() if parameter.ndim > 1])
        assert built.param_groups[0]["fused"] == (precision == "tf32" or None)
        for _ in range(3):
            net.weight.grad = gradient.clone()
            built.step()
        found.append(net.weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """On the GPU: other tests of this process may have chosen the CPU, for all."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_deterministic_training_on_a_gpu_repeats_its_bits(
    precision: str, channels_last: bool, accelerator: Accelerator
) -> None:
    fix_workspace(asked=True)
    settings = {"precision": precision, "channels_last": channels_last, "deterministic": True}
    cfg, found = QUICK.model_copy(update=settings), []
    for _ in range(2):
        world = World.make()
        method = world.method("kd").to(accelerator.device)
        for each in (world.student, world.teacher):
            each.net.to(accelerator.device)
        batches = world.batches(8, device=accelerator.device)
        curves = world.fit(method, cfg=cfg, batches=batches, accelerator=accelerator)
        found.append((curves["loss"], snapshot(world.student.net)))
    (losses, weights), (same_losses, same_weights) = found
    assert losses == same_losses
    assert all(torch.equal(value, same_weights[name]) for name, value in weights.items())

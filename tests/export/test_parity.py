"""The gate catches every way we know in which an export goes wrong, and lets every sound export pass."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.export.deployable import Deployable, Predict
from pipeline.export.parity import ParityError, assert_still, check
from pipeline.functional import normalise

Outputs = tuple[np.ndarray, np.ndarray]
Change = Callable[[Predict, np.ndarray], np.ndarray]


@pytest.fixture
def trained(world: Any) -> Deployable:
    return Deployable(world.make(), world.mean, world.std)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(torch.tensor(x).softmax(1))


# faults of the network; each changes a copy of it
def eps(net: Any) -> None:
    net.norm.eps = 1e-4


def mean_ignored(net: Any) -> None:
    net.norm.running_mean.zero_()


def stale_variance(net: Any) -> None:
    net.norm.running_var.mul_(1.02)


def one_weight_zeroed(net: Any) -> None:
    net.down.weight.view(-1)[100] = 0


def half_weights(net: Any) -> None:
    for p in net.parameters():
        p.copy_(p.half().float())


def brain_float_weights(net: Any) -> None:
    for p in net.parameters():
        p.copy_(p.bfloat16().float())


def int8_head(net: Any) -> None:
    step = net.head.weight.abs().max() / 127
    net.head.weight.copy_((net.head.weight / step).round() * step)


def classes_swapped(net: Any) -> None:
    net.head.weight[[0, 1]] = net.head.weight[[1, 0]]
    net.head.bias[[0, 1]] = net.head.bias[[1, 0]]


def bias_dropped(net: Any) -> None:
    net.down.bias.zero_()


def leaky(net: Any) -> None:
    net.act = nn.LeakyReLU(1e-3)


def capped(net: Any) -> None:
    net.act = nn.Hardtanh(0, 2.8)  # no real picture reaches it, just as few reach the 6 of a ReLU6


def max_pool(net: Any) -> None:
    net.pool = nn.AdaptiveMaxPool2d(2)


def padding_repeats(net: Any) -> None:
    net.conv = nn.Sequential(nn.ReplicationPad2d(1), copy.copy(net.conv))
    net.conv[1].padding = (0, 0)


NETWORK_FAULTS = (
    *(
        eps,
        mean_ignored,
        stale_variance,
        one_weight_zeroed,
        half_weights,
        brain_float_weights,
        int8_head,
        classes_swapped,
    ),
    *(bias_dropped, leaky, capped, max_pool, padding_repeats),
)


@pytest.mark.parametrize("fault", NETWORK_FAULTS, ids=lambda f: f.__name__)
def test_a_changed_network_is_caught(
    fault: Callable[[Any], None], world: Any, trained: Deployable, images: np.ndarray
) -> None:
    net = copy.deepcopy(trained.net)
    with torch.no_grad():
        fault(net)
    with pytest.raises(ParityError, match="differs by"):
        check(
            trained.outputs,
            Deployable(net.eval(), world.mean, world.std).outputs,
            images,
            name="A file",
            exact=trained.exact,
        )


@pytest.mark.parametrize("what", ["mean", "std", "both swapped"])
def test_another_normalisation_is_caught(
    what: str, world: Any, trained: Deployable, images: np.ndarray
) -> None:
    mean, std = world.mean, world.std
    wrong = {
        "mean": ((0.5, 0.4, 0.301), std),
        "std": (mean, (0.2, 0.25, 0.301)),
        "both swapped": (mean[::-1], std[::-1]),
    }[what]
    with pytest.raises(ParityError):
        check(
            trained.outputs,
            Deployable(trained.net, *wrong).outputs,
            images,
            name="A file",
            exact=trained.exact,
        )


# faults of a file or runtime; each wraps the sound callable
def with_logits(change: Change) -> Callable[[Predict], Predict]:
    def fault(f: Predict) -> Predict:
        def run(x: np.ndarray) -> Outputs:
            logits = change(f, x).astype(np.float32)
            return logits, softmax(logits)

        return run

    return fault


def only_first_row(f: Predict, x: np.ndarray) -> np.ndarray:
    logits = f(x)[0].copy()
    logits[1:] = logits[0]
    return logits


def batch_leak(f: Predict, x: np.ndarray) -> np.ndarray:
    logits, _ = f(x)
    return np.asarray(logits + 1e-3 * logits.mean(0))


def clamped(f: Predict, x: np.ndarray) -> np.ndarray:
    return np.clip(f(x)[0], -2, 2)  # no real picture reaches it


def nan_for_one_image(f: Predict, x: np.ndarray) -> np.ndarray:
    logits = f(x)[0].copy()
    logits[x.reshape(len(x), -1).mean(1).argmax()] = np.nan
    return logits


def shifted(f: Predict, x: np.ndarray) -> np.ndarray:
    return f(x)[0] + 1e-2  # probabilities and classes stay as they are


LOGIT_FAULTS: dict[str, Change] = {
    "only the first row": only_first_row,
    "batch leak": batch_leak,
    "rows shuffled": lambda f, x: f(x)[0][::-1],
    "channels swapped": lambda f, x: f(np.ascontiguousarray(x[..., ::-1]))[0],
    "mirrored": lambda f, x: f(np.ascontiguousarray(x[:, :, ::-1]))[0],
    "turned": lambda f, x: f(np.ascontiguousarray(x.transpose(0, 2, 1, 3)))[0],
    "clamped": clamped,
    "softmax in the logits": lambda f, x: f(x)[1],
    "NaN": nan_for_one_image,
    "constant": lambda f, x: 0 * f(x)[0],
    "shifted": shifted,
    "chance": lambda f, x: f(x)[0] + np.random.default_rng().normal(0, 1e-2, (len(x), 1)),
    "signed pixels": lambda f, x: f(np.where(x > 127, x - 128, x).astype(np.uint8))[0],
    "white breaks": lambda f, x: f(np.minimum(x, 250))[0],
}


@pytest.mark.parametrize("kind", LOGIT_FAULTS)
def test_a_broken_file_is_caught(kind: str, trained: Deployable, images: np.ndarray) -> None:
    with pytest.raises(ParityError, match="A file does not answer"):
        check(
            trained.outputs,
            with_logits(LOGIT_FAULTS[kind])(trained.outputs),
            images,
            name="A file",
            exact=trained.exact,
        )


def test_only_odd_images_reach_the_clamp(trained: Deployable, images: np.ndarray) -> None:
    assert np.abs(trained.predict(images)).max() < 2
    with pytest.raises(ParityError) as caught:
        check(trained.outputs, with_logits(clamped)(trained.outputs), images, name="A file")
    assert ". images, batch" not in str(caught.value)
    assert "; images, batch" not in str(caught.value)


def test_wrong_probabilities_are_caught(trained: Deployable, images: np.ndarray) -> None:
    def twice(x: np.ndarray) -> Outputs:
        logits, probabilities = trained.outputs(x)
        return logits, softmax(probabilities)

    with pytest.raises(ParityError, match="are not the softmax"):
        check(trained.outputs, twice, images, name="A file")
    with pytest.raises(ParityError, match="are not the softmax"):
        check(trained.outputs, lambda x: trained.outputs(x)[:1] * 2, images, name="A file")


def test_training_mode_is_caught(world: Any, trained: Deployable, images: np.ndarray) -> None:
    net = copy.deepcopy(trained.net).train()

    def run(x: np.ndarray) -> Outputs:
        with torch.no_grad():
            logits = net(normalise(torch.tensor(x), world.mean, world.std)).numpy()
        return logits, softmax(logits)

    with pytest.raises(ParityError):
        check(trained.outputs, run, images, name="A file")


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_a_fixed_batch_is_caught(batch: int, trained: Deployable, images: np.ndarray) -> None:
    def run(x: np.ndarray) -> Outputs:
        if len(x) != batch:
            raise RuntimeError(f"shape '[{batch}, -1]' is invalid")
        return trained.outputs(x)

    with pytest.raises(ParityError, match="fails with RuntimeError: shape"):
        check(trained.outputs, run, images, name="A file")


@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.float64), lambda a: a[:1], lambda a: a.reshape(-1)],
    ids=["double", "one row", "flat"],
)
def test_other_shapes_and_types_are_caught(
    change: Callable[[np.ndarray], np.ndarray], trained: Deployable, images: np.ndarray
) -> None:
    def run(x: np.ndarray) -> Outputs:
        logits, probabilities = trained.outputs(x)
        return change(logits), change(probabilities)

    with pytest.raises(ParityError, match="its logits are"):
        check(trained.outputs, run, images, name="A file")


# no false alarms
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [2, 5, 80])
def test_another_order_of_summation_passes(seed: int, n: int, world: Any, images: np.ndarray) -> None:
    net = world.make()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1 + 0.5 * torch.rand_like(p))
    trained = Deployable(net, world.mean, world.std)
    exact = copy.deepcopy(net).double()

    def run(x: np.ndarray) -> Outputs:
        with torch.no_grad():
            logits = exact(normalise(torch.tensor(x), world.mean, world.std).double()).float().numpy()
        return logits, softmax(logits)

    same = check(trained.outputs, run, images[:n], name="A file")
    assert 0 < same.rel < 5e-6
    assert same.max_abs <= same.rel * same.scale * (1 + 1e-12)
    assert (same.agreement, same.images) == (1, n)
    assert {
        "images, batch 1",
        "images, batch 7",
        "images, batch 64",
        f"images, batch {n}",
        "noise, batch 7",
        "black and white, batch 7",
    } <= set(same.cases)


def test_a_tie_counts_as_agreement(images: np.ndarray) -> None:
    # two classes have equal logits, and the candidate's rounding prefers the other one
    def network(second: float, third: float) -> Predict:
        def run(x: np.ndarray) -> Outputs:
            level = x.reshape(len(x), -1).astype(np.float32).sum(1, keepdims=True) / 1e4
            logits = np.concatenate([level, level + np.float32(second), level + np.float32(third)], 1)
            return logits, softmax(logits)

        return run

    assert check(network(0, -1), network(1e-5, -1), images, name="A file").agreement == 1
    with pytest.raises(ParityError, match=r"agreement is 0\.0%"):
        check(network(0, -1), network(0, 1), images, name="A file")


def exact(x: np.ndarray) -> np.ndarray:
    level = x.reshape(len(x), -1).mean(1, dtype=np.float64)
    return np.stack([level, 100 - level], 1)


def inexact(error: float, *, above: float = -1) -> Predict:
    """`exact` with this relative error, on images whose pixels deviate by more than `above` alone."""

    def run(x: np.ndarray) -> Outputs:
        wrong = np.where(x.reshape(len(x), -1).std(1, keepdims=True) > above, error, 0.0)
        logits = (exact(x) * (1 + wrong * np.array([1, -1]))).astype(np.float32)
        return logits, softmax(logits)

    return run


def test_a_file_may_differ_as_much_as_the_network_rounds(images: np.ndarray) -> None:
    with pytest.raises(ParityError, match="differs by 4"):
        check(inexact(2e-5), inexact(-2e-5), images, name="A file")
    same = check(inexact(2e-5), inexact(-2e-5), images, name="A file", exact=exact)
    assert same.allowed == pytest.approx(8e-5, rel=0.1)
    # an exact network allows nothing, and a very inexact one at most a ten-thousandth
    for rounding, error in ((0, 4e-5), (1e-3, 1e-3 + 3e-4)):
        with pytest.raises(ParityError, match="differs by"):
            check(inexact(rounding), inexact(error), images, name="A file", exact=exact)


def test_rounding_on_noise_may_be_larger(images: np.ndarray) -> None:
    on_noise = partial(inexact, above=100)  # no real picture deviates so much
    assert check(on_noise(3e-4), on_noise(-3e-4), images, name="A file", exact=exact).allowed == 1e-5
    # nine times as far from the network as the network is from the truth
    check(on_noise(3e-4), on_noise(-2.4e-3), images, name="A file", exact=exact)
    for rounding, error in ((0, 3e-4), (3e-4, -3.3e-3)):
        with pytest.raises(ParityError, match=r"extreme noise, batch 7: differs"):
            check(on_noise(rounding), on_noise(error), images, name="A file", exact=exact)


# comparisons that would prove nothing
def test_a_constant_network_is_refused(trained: Deployable, images: np.ndarray) -> None:
    head: Any = trained.net.head
    with torch.no_grad():
        head.weight.zero_()
    with pytest.raises(ParityError, match="nearly the same answer to every image"):
        check(trained.outputs, trained.outputs, images, name="A file")
    with torch.no_grad():
        head.bias.zero_()
    with pytest.raises(ParityError, match="nearly the same answer to every image"):
        check(trained.outputs, trained.outputs, images, name="A file")


def test_a_diverged_network_is_refused(trained: Deployable, images: np.ndarray) -> None:
    head: Any = trained.net.head
    with torch.no_grad():
        head.bias[0] = np.nan
    with pytest.raises(ParityError, match="NaN"):
        check(trained.outputs, trained.outputs, images, name="A file")


def test_images_that_prove_nothing_are_refused(trained: Deployable, images: np.ndarray) -> None:
    with pytest.raises(ParityError, match="all images are the same"):
        check(trained.outputs, trained.outputs, np.repeat(images[:1], 9, 0), name="A file")
    for wrong in (images[:1], images.astype(np.float32), images[0]):
        with pytest.raises(ParityError, match="at least two uint8"):
            check(trained.outputs, trained.outputs, wrong, name="A file")


def test_training_mode_and_hooks_are_refused(world: Any) -> None:
    net = world.make()
    assert_still(net)
    net.norm.train()
    with pytest.raises(ParityError, match=r"'norm'.*training mode"):
        assert_still(net)
    net.eval().conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ParityError, match=r"'conv'.*hook"):
        assert_still(net)
    net = world.make()
    net.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ParityError, match="hook"):
        assert_still(net)

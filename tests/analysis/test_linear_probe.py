from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import nets
from pipeline.analysis.linear_probe import STRENGTHS, cross_probe, embeddings, layer_probe, linear_probe
from pipeline.functional import Input, normalise
from pipeline.taps.tapped import Tapped

Split = tuple[np.ndarray, np.ndarray]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)


def blobs(n: int, *, noise: float, width: int = 6, seed: int = 0) -> Split:
    """Rows around the centres of three classes."""
    centres = np.random.default_rng(9).normal(size=(3, width))
    labels = np.arange(n) % 3
    return centres[labels] + np.random.default_rng(seed).normal(0, noise, (n, width)), labels


def test_separable_classes_are_all_predicted_right() -> None:
    scores = linear_probe(
        *blobs(60, noise=0.05), *blobs(30, noise=0.05, seed=1), *blobs(45, noise=0.05, seed=2)
    )
    assert (scores.accuracy, scores.val_accuracy, scores.n) == (1, 1, 45)
    assert scores.per_class == {0: 1, 1: 1, 2: 1}


def test_random_labels_give_the_accuracy_of_chance() -> None:
    (train, y), (val, v), (test, t) = (blobs(300, noise=0.1, seed=n) for n in range(3))
    random = np.random.default_rng(0)
    scores = linear_probe(
        train, random.permutation(y), val, random.permutation(v), test, random.permutation(t)
    )
    assert scores.accuracy == pytest.approx(1 / 3, abs=0.1)
    assert scores.accuracy == pytest.approx(
        np.mean(list(scores.per_class.values()))
    )  # the classes are equally large


def test_scale_and_shift_of_a_feature_do_not_matter() -> None:
    splits = [blobs(90, noise=1.0, seed=n) for n in range(3)]
    factor, shift = np.array([1e-3, 1, 50, 1, 1, 1]), np.array([0, 1e3, 0, 0, -5, 0])
    plain = linear_probe(*[part for x, y in splits for part in (x, y)])
    moved = linear_probe(*[part for x, y in splits for part in (x * factor + shift, y)])
    assert moved == plain
    assert linear_probe(*[part for x, y in splits for part in (x, y)]) == plain
    assert 1 / 3 < plain.accuracy < 1


def test_a_constant_feature_does_no_harm() -> None:
    splits = [blobs(60, noise=0.5, seed=n) for n in range(3)]
    dead = [part for x, y in splits for part in (np.hstack([x, np.full((60, 1), 7.0)]), y)]
    assert linear_probe(*dead) == linear_probe(*[part for x, y in splits for part in (x, y)])


def test_the_regularisation_is_chosen_on_validation_only() -> None:
    train, val, other = (blobs(60, noise=2.5, seed=seed) for seed in (0, 10, 20))
    first, second = linear_probe(*train, *val, *other), linear_probe(*train, *other, *val)
    assert first.strength != second.strength
    assert first.accuracy < second.val_accuracy  # on the same rows, where another strength is better
    assert linear_probe(*train, *val, *val) == replace(first, accuracy=first.val_accuracy, per_class=ANY)


def test_no_row_is_scored_with_a_strength_that_it_helped_to_choose() -> None:
    """Each half of the validation rows is the test of a probe that chooses on the other half."""
    train, (x, y) = blobs(60, noise=1.5), blobs(60, noise=1.5, seed=2)
    by_class = np.argsort(y, kind="stable")
    first, second = by_class[::2], by_class[1::2]
    right = sum(
        len(tested) * linear_probe(*train, x[chosen], y[chosen], x[tested], y[tested]).accuracy
        for tested, chosen in ((first, second), (second, first))
    )
    assert cross_probe(*train, x, y) == pytest.approx(right / 60)
    assert cross_probe(*train, x, y) < linear_probe(*train, x, y, x, y).accuracy
    with pytest.raises(ValueError, match=r"two rows or more\. Raise data\.val"):
        cross_probe(*train, x[:1], y[:1])


def test_a_linear_layer_learns_for_60_epochs_as_in_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[float, float]] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam) -> None:
        rates.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    layer_probe(*blobs(70, noise=0.5), *blobs(30, noise=0.5, seed=1))  # two batches an epoch
    assert [decay for _, decay in rates] == [1e-4] * 2 * 60
    assert [rate for rate, _ in rates] == pytest.approx([1e-3] * 2 * 31 + [1e-4] * 2 * 29)


def test_a_linear_layer_tells_classes_apart_and_leaves_random_numbers_alone() -> None:
    train, val = blobs(300, noise=0.05), blobs(60, noise=0.05, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert layer_probe(*train, *val) == 1
    assert torch.equal(torch.rand(3), expected)
    shuffled = np.random.default_rng(0).permutation(train[1])
    assert layer_probe(train[0], shuffled, *val) < 0.7
    noisy = blobs(90, noise=2.0), blobs(90, noise=2.0, seed=1)
    assert layer_probe(*noisy[0], *noisy[1]) == layer_probe(*noisy[0], *noisy[1])
    with pytest.raises(ValueError, match=r"val: .*at least one row"):
        layer_probe(*train, val[0][:0], val[1][:0])


def test_of_equal_strengths_the_strongest_regularisation_is_chosen() -> None:
    assert (
        linear_probe(*blobs(60, noise=0.0), *blobs(30, noise=0.0), *blobs(30, noise=0.0)).strength
        == STRENGTHS[0]
    )


def test_images_of_a_class_without_training_rows_count_as_wrong() -> None:
    train, test = blobs(60, noise=0.05), blobs(60, noise=0.05, seed=1)
    known = train[1] < 2
    scores = linear_probe(train[0][known], train[1][known], train[0][known], train[1][known], *test)
    assert scores.per_class == {0: 1, 1: 1, 2: 0}


def test_unusable_embeddings_are_refused() -> None:
    x, y = blobs(12, noise=0.1)
    with pytest.raises(ValueError, match=r"train: .*at least two classes"):
        linear_probe(x, np.zeros(12, dtype=int), x, y, x, y)
    with pytest.raises(ValueError, match=r"val: the embeddings have shape \(12, 5\) .* must have \(n, 6\)"):
        linear_probe(x, y, x[:, :5], y, x, y)
    with pytest.raises(ValueError, match=r"test: the embeddings have shape \(12, 6\) and the labels \(11,\)"):
        linear_probe(x, y, x, y, x, y[:-1])
    with pytest.raises(ValueError, match=r"test: .*at least one row"):
        linear_probe(x, y, x, y, x[:0], y[:0])
    with pytest.raises(ValueError, match=r"val: some embeddings are NaN or infinite"):
        linear_probe(x, y, x * np.nan, y, x, y)


def net(channels: int = 3) -> Tapped:
    torch.manual_seed(0)
    own = Input(8, MEAN[:channels], STD[:channels])
    return Tapped(nets.build("resnet8", 4, channels=channels), torch.zeros(2, channels, 8, 8), input=own)


def pictures(n: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)


def test_embeddings_are_what_the_classifier_reads_in_the_order_of_the_rows() -> None:
    tapped, images, rows = net(), pictures(7), [5, 0, 6, 2, 2]
    classifier = tapped.net.get_submodule(tapped.classifier)
    found = embeddings(tapped, images, rows, batch_size=2)
    with torch.no_grad():
        logits = tapped.net.eval()(normalise(torch.as_tensor(images[rows]), MEAN, STD))
        assert torch.allclose(classifier(torch.as_tensor(found)), logits, atol=1e-5)
    assert found.shape == (5, 64)
    assert np.allclose(found[3], found[4], atol=1e-5)


def test_embedding_does_not_change_the_network() -> None:
    tapped = net()
    tapped.net.train()
    before = {name: tensor.clone() for name, tensor in tapped.net.state_dict().items()}
    found = embeddings(tapped, pictures(3), range(3))
    assert np.allclose(found, embeddings(tapped, pictures(3), range(3), batch_size=1), atol=1e-5)
    assert all(module.training for module in tapped.net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in tapped.net.state_dict().items())


def test_one_channel_and_a_plain_network_can_be_embedded() -> None:
    assert embeddings(net(channels=1), pictures(2, channels=1), [1]).shape == (1, 64)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2))
    tapped = Tapped(plain, torch.zeros(2, 3, 8, 8), input=Input(8, MEAN, STD))
    assert embeddings(tapped, pictures(2), [0, 1]).shape == (2, 5)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no images to embed"):
        embeddings(net(), pictures(2), [])

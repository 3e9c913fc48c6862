import pytest
import torch
import torch.nn.functional as F

from pipeline.functional import class_means, class_weights, pool_to


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 12), (4, 6), (8, 3), (1, 1), (2, 12), (3, 5)])
def test_pooling_is_torchs_adaptive_pooling(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    maps = torch.randn(2, 3, 8, 12, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64)
    values, gradients = zip(
        *(
            (pooled, *torch.autograd.grad((pooled * weights).sum(), maps))
            for pooled in (pool_to(maps, *size), F.adaptive_avg_pool2d(maps, size))
        ),
        strict=True,
    )
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_class_weights_are_inverse_frequencies_with_mean_1_over_the_images() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3, 3, 3, 3])  # there is no class 2, and no class 4
    weights = class_weights(labels, 5)
    assert weights.tolist() == pytest.approx([12 / 18, 12 / 6, 0, 12 / 12, 0])
    assert weights[labels].mean().item() == pytest.approx(1)
    assert torch.equal(class_weights(torch.arange(8) % 4, 4), torch.ones(4))


def slow_means(predicted: list[int], labels: list[int]) -> tuple[float, float]:
    recalls, scores = [], []
    for label in sorted(set(labels)):
        pairs = [(guess == label, actual == label) for guess, actual in zip(predicted, labels, strict=True)]
        right = sum(guess and actual for guess, actual in pairs)
        recall = right / sum(actual for _, actual in pairs)
        precision = right / guesses if (guesses := sum(guess for guess, _ in pairs)) else 0.0
        recalls.append(recall)
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(recalls) / len(recalls), sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(6))
def test_means_over_classes_equal_the_slow_loop_and_sklearn(seed: int) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (40,), generator=random) ** 2 // 5  # unequal classes
    predicted = torch.where(torch.rand(40, generator=random) < 0.6, labels, labels.flip(0))
    found = class_means(predicted, labels, 6)
    assert found == pytest.approx(slow_means(predicted.tolist(), labels.tolist()), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_a_class_never_predicted_has_f1_0_and_one_without_images_is_left_out() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert class_means(torch.tensor([0, 0, 0, 0, 0]), labels, 3) == pytest.approx((0.5, (6 / 8 + 0) / 2))
    # class 2 has no image: what is taken for it lacks elsewhere, but it is no class of the means
    assert class_means(torch.tensor([0, 0, 2, 1, 1]), labels, 3) == pytest.approx((5 / 6, (0.8 + 1) / 2))
    assert class_means(labels, labels, 9) == (1, 1)

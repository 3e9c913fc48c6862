"""Pure maths on tensors: no state, no networks."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_VARIANCE = 1e-10  # of the logits of an image; a smaller one counts as none


def normalise(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """uint8 images B x H x W x C to float B x C x H x W: `(x / 255 - mean) / std` for each channel."""
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    return (images.permute(0, 3, 1, 2).float() - 255 * mean) * (1 / (255 * std))


@dataclass(frozen=True)
class Input:
    """How a network takes its images.

    They are squares of `size` pixels, and become `(pixel / 255 - mean) / std` for each channel.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Input":
        """What `as_facts` returned, after JSON."""
        return cls(facts["size"], tuple(facts["mean"]), tuple(facts["std"]))

    def as_facts(self) -> dict[str, Any]:
        """To be saved with a network."""
        return asdict(self)

    def normalise_(self, pictures: Tensor) -> Tensor:
        """Pictures B x C x H x W, floats from 0 to 255, as the network takes them; changed in place.

        Another tensor would cost more than the arithmetic.
        """
        mean, std = self._columns(pictures)
        return pictures.sub_(255 * mean).mul_(1 / (255 * std))

    def renormalise(self, images: Tensor, other: "Input") -> Tensor:
        """Images as `other` takes them, as this network takes them. Differentiable."""
        mean, std = self._columns(images)
        other_mean, other_std = other._columns(images)
        return images * (other_std / std) + (other_mean - mean) / std

    def _columns(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(each, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
            for each in (self.mean, self.std)
        )
        return mean, std


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))`, mean over the batch (Hinton et al., 2015)."""
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def standardised(logits: Tensor) -> Tensor:
    """Each row of B x classes with mean 0 and standard deviation 1 (Sun et al., 2024).

    A row of equal numbers becomes 0.
    """
    return F.layer_norm(logits, logits.shape[1:], eps=SMALLEST_VARIANCE)


def transformed_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`KL(softmax(z_t / tau) || softmax(z_s))` of each image: only the teacher is softened."""
    log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """For each class the inverse of its frequency, scaled so that the mean over `labels` is 1.

    A class without a label has weight 0.
    """
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, len(labels) / (counts.count_nonzero() * counts.clamp(min=1)), 0.0)


def weighted_cross_entropy(logits: Tensor, shares: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Mean over the batch of each image's cross-entropy times its weight.

    `shares`, B x classes, are the labels; that of a mixed image has several classes. Each share counts with
    the weight of its class. What smoothing takes from a share is spread evenly over all classes, with the
    same weight.
    """
    weighted = shares * weights
    return F.cross_entropy(logits, weighted.lerp(weighted.mean(1, keepdim=True), smoothing))


def lowest_rate(rate: float, count: int) -> float:
    """Lower end of the 95 % interval (Wilson's) of a rate that was found in `count` tries."""
    z = 1.959964
    centre = rate + z**2 / (2 * count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return (centre - half) / (1 + z**2 / count)


class ClassMeans(NamedTuple):
    """Means over the classes, each class counting as much as any other."""

    balanced_accuracy: float  # of the recall
    macro_f1: float  # of F1 = 2 * right / (images of the class + predictions of the class)


def class_means(predicted: Tensor, labels: Tensor, classes: int) -> ClassMeans:
    """Classes without an image are left out of both means. A class that is never predicted has F1 0."""
    right, images, predictions = (
        torch.bincount(each, minlength=classes).cpu().double()
        for each in (labels[predicted == labels], labels, predicted)
    )
    there = images > 0
    recall, f1 = right / images, 2 * right / (images + predictions)
    return ClassMeans(recall[there].mean().item(), f1[there].mean().item())


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, both pooled to the smaller height and the smaller width by adaptive average pooling."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pool_to(a, height, width), pool_to(b, height, width)


def pool_to(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of B x C x H x W to B x C x height x width.

    If the new size divides the old one, the `rows` rows that make one new row are laid end to end and
    multiplied by a constant matrix: (rows * W) x width. This is faster on a CPU.
    """
    if x.shape[2:] == (height, width):
        return x
    if x.shape[2] % height or x.shape[3] % width:
        return F.adaptive_avg_pool2d(x, (height, width))
    rows, columns = x.shape[2] // height, x.shape[3] // width
    mean = torch.eye(width, dtype=x.dtype, device=x.device).repeat_interleave(columns, 0).repeat(rows, 1) / (
        rows * columns
    )
    return x.reshape(*x.shape[:2], height, rows * x.shape[3]) @ mean


def squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances between the rows of x, B x D to B x B, by the Gram matrix.

    A distance within the rounding error of the Gram matrix is 0, without a gradient.
    """
    x = x - x.mean(0)  # otherwise small distances far from the origin are lost
    gram = x @ x.T
    squares = gram.diagonal()
    sums = squares[:, None] + squares
    distances = sums - 2 * gram
    return torch.where(distances > 8 * torch.finfo(x.dtype).eps * sums, distances, 0)


def centre_scores(embeddings: Tensor, centres: Tensor) -> Tensor:
    """`-||embedding - centre||^2`, B x classes: the logits of the nearest-centre classifier."""
    return -exact_distances(embeddings, centres).pow(2)


def centre_products(embeddings: Tensor, centres: Tensor) -> Tensor:
    """`embedding . centre / ||centre||`, B x classes. Milder than `centre_scores`."""
    return embeddings @ F.normalize(centres).T


def auc(seen: Tensor, unseen: Tensor) -> float:
    """The share of pairs in which the seen value is the larger one; of equal ones, half: the area under the
    ROC curve."""
    ordered = unseen.sort().values
    below, not_above = (torch.searchsorted(ordered, seen, right=right) for right in (False, True))
    return (below + not_above).double().mean().item() / (2 * len(ordered))


def exact_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between the rows of a and b, without matrix products, so equal rows have 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def attention(features: Tensor) -> Tensor:
    """Where a map is active (Zagoruyko and Komodakis, 2017).

    B x C x H x W to B x HW: the mean of the squares over the channels, each row scaled to length one.
    """
    return F.normalize(features.pow(2).mean(1).flatten(1))


def attention_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of two maps, which are pooled to one size first."""
    student, teacher = match_size(student, teacher)
    return F.mse_loss(attention(student), attention(teacher))

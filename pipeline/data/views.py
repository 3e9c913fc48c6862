"""The views of images: what a network is shown of them. A view depends on seed, row and number alone."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.boxes import inside
from pipeline.data.colour import blur, erase, recolour
from pipeline.data.crop import cropped, resized, shifted
from pipeline.data.draws import Draws
from pipeline.data.images import Images
from pipeline.data.policy import trivially_augmented
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.resident import resident_bytes


@dataclass(frozen=True)
class Rows:
    """Places in the train subset, on the host (to read by) and on the device (to compute with)."""

    on_host: Tensor
    on_device: Tensor


class Views:
    """Makes views of the images of a train subset: rows `rows` of `images`, uint8 N x H x W x C.

    With the same seed an image has the same views in every subset, batch, process and order. Only what is
    mixed into it comes from the subset: into the first `labelled` images others of them, and into the rest
    others of the rest. `mean` is the colour of what lies outside of an image.
    """

    def __init__(
        self,
        images: Images,
        rows: np.ndarray,
        cfg: AugmentConfig | None,
        *,
        seed: int,
        mean: Tensor,
        device: torch.device,
        labelled: int | None = None,
    ) -> None:
        self.cfg, self.seed, self.device = cfg, seed, device
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.rows_on_device = self.rows.to(device)
        self.labelled = len(rows) if labelled is None else labelled
        self.fill = 255 * mean.view(1, -1, 1, 1)
        is_small = len(rows) * math.prod(images.shape[1:]) <= resident_bytes(device)
        self.resident = torch.from_numpy(images[rows]).to(device) if is_small else None
        self.on_disk = ReadAhead(images, device)

    def pictures(self, places: Rows, number: int, size: int) -> Tensor:
        """View `number` of the images at `places`: B x C x size x size, floats from 0 to 255."""
        views = self._single(places, number, size)
        if self.cfg is None or not self.cfg.is_mixed:
            return views
        mix = self._mix(places, number)
        others = self._single(mix.partners, number, size)
        share = (1 - mix.share).view(-1, 1, 1, 1)  # of the others, at each pixel
        if self.cfg.cutmix:
            share = torch.where(mix.is_pasted.view(-1, 1, 1, 1), inside(mix.box, views).float(), share)
        return views.lerp_(others, share)

    def expect(self, *views: tuple[Rows, int]) -> None:
        """Views, as places and number, that will be asked for soon. What is on disk is read meanwhile."""
        if self.resident is None:
            self.on_disk.expect(self._rows(each) for view in views for each in self._read_for(*view))

    def _read_for(self, places: Rows, number: int) -> list[Rows]:
        is_mixed = self.cfg is not None and self.cfg.is_mixed
        return [places, self._mix(places, number).partners] if is_mixed else [places]

    def targets(self, places: Rows, number: int, labels: Tensor, classes: int) -> Tensor | None:
        """The share of each class in the views, B x classes, by the labels of the subset; None if unmixed."""
        if self.cfg is None or not self.cfg.is_mixed:
            return None
        mix = self._mix(places, number)
        share = mix.share[:, None]
        known = labels.clamp_min(0)  # the targets of images without labels are not read
        own, other = (F.one_hot(known[each.on_device], classes).float() for each in (places, mix.partners))
        return share * own + (1 - share) * other

    def _single(self, places: Rows, number: int, size: int) -> Tensor:
        """The views before mixing."""
        pixels, cfg = self._pixels(places), self.cfg
        if cfg is None:
            return resized(pixels.permute(0, 3, 1, 2), size).float()
        rows = self.rows_on_device[places.on_device]
        on_host = Draws(self.rows[places.on_host], number, self.seed)
        if cfg.is_cropped:
            views = cropped(pixels, size, cfg, on_host)
        else:
            moved = resized(shifted(pixels, rows, number, self.seed, cfg, self.fill), size)
            views = [moved] if cfg.policy == "none" else list(torch.split(moved.round().to(torch.uint8), 1))
        if cfg.policy == "trivial":
            views = trivially_augmented(views, on_host, self.fill)
        pictures = recolour(torch.cat(views).float(), cfg, Draws(rows, number, self.seed))
        blur(pictures, cfg, on_host)
        erase(pictures, cfg, on_host, self.fill)
        return pictures

    def _mix(self, places: Rows, number: int) -> "Mix":
        assert self.cfg is not None
        is_labelled = places.on_host < self.labelled
        first = torch.where(is_labelled, 0, self.labelled)
        count = torch.where(is_labelled, self.labelled, len(self.rows) - self.labelled)
        draws = Draws(self.rows[places.on_host], number, self.seed)
        return mix_of(self.cfg, draws, first, count, self.device)

    def _pixels(self, places: Rows) -> Tensor:
        if self.resident is not None:
            return self.resident.index_select(0, places.on_device)
        return self.on_disk.read(self._rows(places))

    def _rows(self, places: Rows) -> np.ndarray:
        rows: np.ndarray = self.rows[places.on_host].numpy()
        return rows


@dataclass(frozen=True)
class Mix:
    """What is mixed into each image."""

    partners: Rows  # the other image's place in the subset
    share: Tensor  # of the image itself, half or more
    is_pasted: Tensor  # cutmix; else mixup
    box: Tensor  # B x 4, where cutmix pastes


def mix_of(cfg: AugmentConfig, draws: Draws, first: Tensor, count: Tensor, device: torch.device) -> Mix:
    """What is mixed into each image: one of the `count` images from place `first` on.

    The larger share is the image's own, so that its label stays the main one.
    As partners are uniform, this gives the same mixed images as a share of either image would.
    """
    who, amount, which = draws.uniform("mix")
    is_pasted = which < (0.5 if cfg.mixup else 1.0) * bool(cfg.cutmix)
    alpha = torch.where(is_pasted, cfg.cutmix, cfg.mixup)
    share = _beta(amount, alpha)
    share = torch.maximum(share, 1 - share)
    partners = first + (who * count).long()
    side = (1 - share).sqrt()
    top, left, _ = draws.uniform("mix place")
    box = torch.stack([top * (1 - side), left * (1 - side), side, side], 1)
    return Mix(Rows(partners, partners.to(device)), share.to(device), is_pasted.to(device), box.to(device))


def _beta(uniform: Tensor, alpha: Tensor) -> Tensor:
    """The number below which a draw from Beta(alpha, alpha) is with this probability."""
    from scipy.special import betaincinv

    a = alpha.double().numpy()
    return torch.from_numpy(betaincinv(a, a, uniform.double().numpy())).float()

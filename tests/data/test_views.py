import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from PIL import Image
from scipy import stats
from torch import Tensor

from pipeline.data.augment import AugmentConfig
from pipeline.data.boxes import boxes, inside
from pipeline.data.crop import resized
from pipeline.data.draws import Draws, below, draws
from pipeline.data.policy import OPERATIONS
from pipeline.data.views import Rows, Views

MEAN = torch.tensor([0.5, 0.4, 0.3])
COLOUR = (torch.tensor([0.299, 0.587, 0.114]) * torch.ones(3, 3)).double()
EVERYTHING: list[AugmentConfig] = [
    AugmentConfig(),
    AugmentConfig(preset="standard"),
    AugmentConfig(preset="strong", blur=0.5, erase=0.5, grey=0.3),
    AugmentConfig(policy="trivial"),
    AugmentConfig(crop=(0.3, 1.0), policy="trivial"),
    AugmentConfig(mixup=0.4),
    AugmentConfig(crop=(0.3, 1.0), mixup=0.4, cutmix=1.0),
]


def only(**settings: Any) -> AugmentConfig:
    """These settings alone: neither shift nor mirror."""
    return AugmentConfig(**{"pad": 0, "flip": 0.0, **settings})


@cache
def photographs(count: int = 24, side: int = 40, channels: int = 3) -> np.ndarray:
    """Smooth shapes in colours of the middle of the range, with some noise."""
    random = np.random.default_rng(0)
    grid = np.linspace(0, 3, side)
    waves = random.uniform(0.5, 2, (count, 1, 1, channels)) * grid[:, None, None] + random.uniform(
        0, 6, (count, 1, 1, channels)
    )
    other = random.uniform(0.5, 2, (count, 1, 1, channels)) * grid[None, :, None]
    images = 128 + 40 * np.sin(waves + other) + random.normal(0, 2, (count, side, side, channels))
    return images.round().clip(0, 255).astype(np.uint8)


def views_of(
    cfg: AugmentConfig | None, images: np.ndarray | None = None, rows: list[int] | None = None, seed: int = 5
) -> Views:
    images = photographs() if images is None else images
    chosen = np.arange(len(images)) if rows is None else np.array(rows)
    mean = MEAN if images.shape[3] == 3 else MEAN[:1]
    return Views(images, chosen, cfg, seed=seed, mean=mean, device=torch.device("cpu"))


def at(*places: int) -> Rows:
    return Rows(torch.tensor(places), torch.tensor(places))


def every(views: Views, number: int = 2, size: int = 24) -> Tensor:
    return views.pictures(at(*range(len(views.rows))), number, size)


# a view is a function of (seed, row, number)


@pytest.mark.parametrize("cfg", EVERYTHING)
def test_a_view_does_not_depend_on_the_batch(cfg: AugmentConfig) -> None:
    views, order = views_of(cfg), torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    whole = every(views)
    torch.manual_seed(9)
    torch.testing.assert_close(views.pictures(at(*order), 2, 24), whole[order], rtol=0, atol=1e-3)
    one_by_one = torch.cat([views.pictures(at(n), 2, 24) for n in range(24)])
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cfg", EVERYTHING)
def test_another_seed_row_or_number_gives_another_view(cfg: AugmentConfig) -> None:
    same = np.repeat(photographs()[:1], 24, 0)
    views = views_of(cfg, same)
    whole = every(views)
    assert len({tuple(view.flatten().tolist()) for view in whole}) > 8  # rows
    assert not torch.equal(every(views, number=3), whole)
    assert not torch.equal(every(views_of(cfg, same, seed=6)), whole)


@pytest.mark.parametrize("cfg", [cfg for cfg in EVERYTHING if not cfg.is_mixed])
def test_an_image_has_the_same_views_in_every_subset(cfg: AugmentConfig) -> None:
    part = views_of(cfg, rows=[20, 3, 11])
    torch.testing.assert_close(every(part), every(views_of(cfg))[[20, 3, 11]], rtol=0, atol=1e-3)


@pytest.mark.parametrize("cfg", EVERYTHING)
def test_two_sizes_show_the_same_view(cfg: AugmentConfig) -> None:
    smooth = np.stack(
        [np.asarray(Image.fromarray(each).resize((5, 5)).resize((64, 64))) for each in photographs()]
    )
    views = views_of(cfg, smooth)
    if cfg.policy == "trivial":  # posterize and its kin jump where a pixel differs by 1
        large, small = (every(views, size=size) for size in (48, 24))
        assert ((resized(large, 24) - small).abs().mean((1, 2, 3)) < 6).float().mean() > 0.8
        return
    large, small = every(views, size=48), every(views, size=24)
    difference = (resized(large, 24) - small).abs()
    assert difference.mean() < 2.5
    assert difference.mean((1, 2, 3)).max() < 12


def test_a_large_subset_is_read_from_disk_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = AugmentConfig(preset="strong", mixup=1.0)
    resident = every(views_of(cfg))
    monkeypatch.setattr("pipeline.data.views.resident_bytes", lambda device: 0)
    views = views_of(cfg)
    assert views.resident is None
    assert torch.equal(every(views), resident)


def test_without_settings_an_image_is_shown_whole() -> None:
    assert torch.equal(
        every(views_of(None), size=40), torch.tensor(photographs()).permute(0, 3, 1, 2).float()
    )
    assert torch.equal(every(views_of(only()), size=40), every(views_of(None), size=40))
    assert every(views_of(None), size=20).shape == (24, 3, 20, 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("cfg", EVERYTHING)
def test_a_gpu_makes_the_same_views(cfg: AugmentConfig) -> None:
    whole, places = every(views_of(cfg)), torch.arange(24)
    views = Views(photographs(), np.arange(24), cfg, seed=5, mean=MEAN.cuda(), device=torch.device("cuda"))
    found = views.pictures(Rows(places, places.cuda()), 2, 24).cpu()
    assert ((found - whole).abs() > 2).float().mean() < 0.01


# shift and mirror


def slowly_shifted(image: Tensor, drawn: list[int], cfg: AugmentConfig) -> Tensor:
    down, right, mirror = drawn
    y, x = below(torch.tensor([down, right]), 2 * cfg.pad + 1).tolist()
    fill = 255 * MEAN.view(3, 1, 1)
    cut = F.pad(image - fill, (cfg.pad,) * 4)[:, y : y + image.shape[1], x : x + image.shape[2]] + fill
    return cut.flip(2) if mirror / 2**21 < cfg.flip else cut


@pytest.mark.parametrize(
    "cfg",
    [AugmentConfig(pad=3), AugmentConfig(pad=0), AugmentConfig(pad=4, flip=0), AugmentConfig(pad=1, flip=1)],
)
def test_shifts_are_those_of_a_slow_crop_and_flip(cfg: AugmentConfig) -> None:
    found = every(views_of(cfg), number=5, size=40)
    drawn = torch.stack(draws(torch.arange(24), 5, 5), 1).tolist()
    for image, view, numbers in zip(photographs(), found, drawn, strict=True):
        truth = slowly_shifted(torch.tensor(image).permute(2, 0, 1).float(), numbers, cfg)
        torch.testing.assert_close(view, truth, rtol=0, atol=1e-4)


def test_all_shifts_occur_and_mirrors_in_proportion() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), (4000, 8, 8, 1))
    views = Views(
        ramp,
        np.arange(4000),
        AugmentConfig(pad=2, flip=0.25),
        seed=0,
        mean=torch.zeros(1),
        device=torch.device("cpu"),
    )
    found = every(views, 0, 8)
    assert len({tuple(each.flatten().tolist()) for each in found}) == 5 * 5 * 2
    assert (found[:, 0, 4, 3] > found[:, 0, 4, 4]).float().mean().item() == pytest.approx(0.25, abs=0.03)


# crops


@pytest.mark.parametrize("size", [16, 24, 56])
def test_crops_are_those_of_pillow(size: int) -> None:
    cfg = AugmentConfig(crop=(0.2, 0.9), flip=0.5)
    found = every(views_of(cfg), size=size)
    drawn = Draws(torch.arange(24), 2, 5)
    box = (boxes(drawn, "crop", area=cfg.crop, ratio=cfg.ratio) * 40).round().int().tolist()
    mirrored = drawn.happens("mirror", 0.5).tolist()
    assert 0 < sum(mirrored) < 24
    for image, view, (top, left, tall, wide), is_mirrored in zip(
        photographs(), found, box, mirrored, strict=True
    ):
        part = Image.fromarray(image).crop((left, top, left + wide, top + tall))
        truth = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR)).astype(float)
        truth = truth[:, ::-1] if is_mirrored else truth
        assert np.abs(view.permute(1, 2, 0).numpy() - truth).max() <= 2


def test_boxes_lie_inside_and_have_the_areas_and_ratios_asked_for() -> None:
    box = boxes(Draws(torch.arange(20_000), 0, 0), "x", area=(0.1, 0.8), ratio=(0.5, 2.0))
    top, left, tall, wide = box.unbind(1)
    assert box.min() >= 0
    assert max((top + tall).max(), (left + wide).max()) <= 1 + 1e-6
    area, ratio = tall * wide, wide / tall
    assert 0.1 - 1e-6 < area.min() < 0.11
    assert 0.79 < area.max() < 0.8 + 1e-6
    assert 0.5 - 1e-5 < ratio.min() < 0.51
    assert 1.95 < ratio.max() < 2 + 1e-5
    # uniform, also where few ratios fit
    assert stats.kstest((area.double().numpy() - 0.1) / 0.7, "uniform").pvalue > 1e-4
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.02)


def test_a_fine_checkerboard_turns_grey() -> None:
    board = np.indices((64, 64)).sum(0)[None, :, :, None] % 2 * np.uint8(255)
    images = np.repeat(np.repeat(board.astype(np.uint8), 8, 0), 3, 3)
    found = every(views_of(AugmentConfig(crop=(0.95, 1.0), ratio=(1.0, 1.0)), images), size=16)
    assert (found - 127.5).abs().max() < 20


def test_a_small_crop_shows_detail_that_the_whole_image_lacks() -> None:
    """Crops are cut from what the store keeps, not from what the network sees."""
    board = (np.indices((64, 64)).sum(0)[None, :, :, None] // 2 % 2 * np.uint8(255)).astype(np.uint8)
    images = np.repeat(np.repeat(board, 8, 0), 3, 3)
    near = every(views_of(AugmentConfig(crop=(0.06, 0.07), ratio=(1.0, 1.0)), images), size=16)
    far = every(views_of(None, images), size=16)
    assert near.std((1, 2, 3)).min() > 80 > 20 > far.std((1, 2, 3)).max()


# colours


def drawn_factors(what: str, place: int, width: float) -> Tensor:
    return 1 + (2 * Draws(torch.arange(24), 2, 5).uniform(what)[place] - 1) * width


@pytest.mark.parametrize(
    ("setting", "place", "adjust"),
    [
        ("brightness", 0, tv.adjust_brightness),
        ("contrast", 1, tv.adjust_contrast),
        ("saturation", 2, tv.adjust_saturation),
    ],
)
def test_colours_are_those_of_torchvision(
    setting: str, place: int, adjust: Callable[[Tensor, float], Tensor]
) -> None:
    found = every(views_of(only(**{setting: 0.3})), size=40)
    factors, plain = drawn_factors("colour", place, 0.3).tolist(), every(views_of(None), size=40)
    truth = torch.stack(
        [adjust(image / 255, factor) * 255 for image, factor in zip(plain, factors, strict=True)]
    )
    torch.testing.assert_close(found, truth, rtol=0, atol=0.1)
    assert (found - plain).abs().mean() > 2


def test_brightness_comes_before_contrast_before_saturation() -> None:
    cfg = only(brightness=0.2, contrast=0.3, saturation=0.3)
    found, truth = every(views_of(cfg), size=40), every(views_of(None), size=40) / 255
    steps = ((tv.adjust_brightness, 0, 0.2), (tv.adjust_contrast, 1, 0.3), (tv.adjust_saturation, 2, 0.3))
    for adjust, place, width in steps:
        factors = drawn_factors("colour", place, width).tolist()
        truth = torch.stack([adjust(image, factor) for image, factor in zip(truth, factors, strict=True)])
    torch.testing.assert_close(found, 255 * truth, rtol=0, atol=0.2)


def test_a_third_of_a_turn_moves_the_channels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.colour.between", lambda uniform, low, high: uniform * 0 + high)
    cfg = only(hue=1 / 3)
    plain = every(views_of(None), size=40)
    # saturation, brightness and contrast have width 0, so `between` gives 1 for them
    torch.testing.assert_close(every(views_of(cfg), size=40), plain[:, [2, 0, 1]], rtol=0, atol=0.05)


def test_hue_leaves_grey_as_it_is_and_turns_both_ways() -> None:
    grey = np.repeat(photographs(channels=1), 3, 3)
    cfg = only(hue=0.3)
    torch.testing.assert_close(
        every(views_of(cfg, grey), size=40), every(views_of(None, grey), size=40), rtol=0, atol=0.05
    )
    red = np.zeros((24, 8, 8, 3), np.uint8) + np.array([200, 100, 100], np.uint8)
    found = every(views_of(cfg, red), size=8)[:, :, 0, 0]
    assert (found[:, 1] > found[:, 2] + 5).any()
    assert (found[:, 2] > found[:, 1] + 5).any()


def test_grey_has_the_luma_in_all_channels() -> None:
    found, plain = every(views_of(only(grey=1.0)), size=40), every(views_of(None), size=40)
    torch.testing.assert_close(
        found.double(), torch.einsum("ij,bjhw->bihw", COLOUR, plain.double()), rtol=0, atol=1e-3
    )
    some = every(views_of(only(grey=0.5)), size=40)
    assert 4 < sum(torch.allclose(a, b, atol=0.1) for a, b in zip(some, plain, strict=True)) < 20


def test_pixels_stay_from_0_to_255() -> None:
    found = every(views_of(AugmentConfig(preset="strong", brightness=1.0, contrast=1.0)))
    assert found.min() >= 0
    assert found.max() <= 255


@pytest.mark.parametrize("cfg", [AugmentConfig(preset="strong"), AugmentConfig(policy="trivial", grey=1.0)])
def test_images_of_one_channel_keep_it(cfg: AugmentConfig) -> None:
    found = every(views_of(cfg, photographs(channels=1)))
    assert found.shape == (24, 1, 24, 24)
    assert not torch.equal(found, every(views_of(None, photographs(channels=1))))


# blur and erasing


def test_blur_is_a_gaussian() -> None:
    point = np.zeros((24, 41, 41, 3), np.uint8)
    point[:, 20, 20] = 255
    found = every(views_of(only(blur=1.0), point), size=41)[:, 0]
    sigma = 41 / 224 * (0.1 + 1.9 * Draws(torch.arange(24), 2, 5).uniform("blur")[0])
    place = torch.arange(41) - 20
    for view, s in zip(found, sigma, strict=True):
        bell = torch.exp(-(place**2) / (2 * s**2))
        torch.testing.assert_close(view, 255 * torch.outer(bell, bell) / bell.sum() ** 2, rtol=0, atol=1e-2)


def test_blur_keeps_an_even_image_and_chooses_in_proportion() -> None:
    even = np.full((400, 16, 16, 3), 77, np.uint8)
    assert (every(views_of(only(blur=1.0), even), size=16) - 77).abs().max() < 1e-3
    noise = np.random.default_rng(0).integers(0, 256, (400, 48, 48, 3), dtype=np.uint8)
    found = every(views_of(only(blur=0.3), noise), size=48)
    changed = (found - every(views_of(None, noise), size=48)).abs().amax((1, 2, 3)) > 1e-3
    drawn = Draws(torch.arange(400), 2, 5)
    chosen, strong = drawn.happens("blur", 0.3), drawn.uniform("blur")[0] > 0.6
    assert not changed[~chosen].any()
    assert changed[chosen & strong].all()
    assert (chosen & strong).sum() > 30


def test_a_rectangle_is_erased_with_the_mean() -> None:
    white = np.full((600, 20, 20, 3), 255, np.uint8)
    found = every(views_of(only(erase=0.6), white), size=20)
    gone = (found - 255 * MEAN.view(1, 3, 1, 1)).abs().amax(1) < 1e-3
    assert (found[~gone.unsqueeze(1).expand_as(found)] == 255).all()
    share = gone.float().mean((1, 2))
    assert (share > 0).float().mean().item() == pytest.approx(0.6, abs=0.06)
    assert 0.3 < share.max() < 0.39
    boxes_found = gone[share > 0]
    assert all(each.any(1).sum() * each.any(0).sum() == each.sum() for each in boxes_found)


def test_inside_is_what_the_box_covers() -> None:
    box = torch.tensor([[0.25, 0.5, 0.5, 0.25]])
    found = inside(box, torch.empty(1, 3, 8, 8))[0, 0]
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:6, 4:6] = True
    assert torch.equal(found, truth)


# TrivialAugment


def test_every_operation_occurs_and_is_torchvisions() -> None:
    images = np.repeat(photographs()[:1], 700, 0)
    found = every(views_of(only(policy="trivial"), images), size=40)
    which, strength, _ = Draws(torch.arange(700), 2, 5).uniform("policy")
    counts = torch.bincount((which * len(OPERATIONS)).int(), minlength=len(OPERATIONS))
    assert len(OPERATIONS) == 14
    assert counts.min() > 25
    image = torch.tensor(images[0]).permute(2, 0, 1)
    truths: dict[int, Callable[[float], Tensor]] = {
        0: lambda s: image,
        6: lambda s: tv.adjust_brightness(image, 1 + 0.99 * (2 * s - 1)),
        7: lambda s: tv.adjust_contrast(image, 1 + 0.99 * (2 * s - 1)),
        8: lambda s: tv.adjust_saturation(image, 1 + 0.99 * (2 * s - 1)),
        9: lambda s: tv.adjust_sharpness(image, 1 + 0.99 * (2 * s - 1)),
        10: lambda s: tv.posterize(image, 8 - round(6 * s)),
        11: lambda s: tv.solarize(image, 255 * (1 - s)),
        12: lambda s: tv.autocontrast(image),
        13: lambda s: tv.equalize(image),
    }
    for operation, truth in truths.items():
        for row in (which * 14).int().eq(operation).nonzero().flatten()[:4].tolist():
            torch.testing.assert_close(found[row], truth(strength[row].item()).float(), rtol=0, atol=1.01)


def test_turns_and_shears_are_torchvisions_but_at_the_border() -> None:
    images = np.repeat(photographs()[:1], 700, 0)
    found = every(views_of(only(policy="trivial"), images), size=40)
    which, strength, _ = Draws(torch.arange(700), 2, 5).uniform("policy")
    image = torch.tensor(images[0]).permute(2, 0, 1)
    white, fill = torch.full_like(image, 255), (255 * MEAN).tolist()

    def sheared(picture: Tensor, s: float, colour: list[float], axis: int) -> Tensor:
        angle = math.degrees(math.atan(0.99 * (2 * s - 1)))
        shear = [angle * (axis == 0), angle * (axis == 1)]
        mode = tv.InterpolationMode.BILINEAR
        found: Tensor = tv.affine(picture, 0.0, [0, 0], 1.0, shear, interpolation=mode, fill=colour)
        return found

    def turned(picture: Tensor, s: float, colour: list[float]) -> Tensor:
        found: Tensor = tv.rotate(picture, 135 * (2 * s - 1), tv.InterpolationMode.BILINEAR, fill=colour)
        return found

    truths: dict[int, Callable[[Tensor, float, list[float]], Tensor]]
    truths = {1: partial(sheared, axis=0), 2: partial(sheared, axis=1), 5: turned}
    for operation, truth in truths.items():
        for row in (which * 14).int().eq(operation).nonzero().flatten()[:4].tolist():
            strong = strength[row].item()
            cover = truth(white, strong, [0.0] * 3)
            beside = F.max_pool2d(cover.float(), 3, 1, 1)
            whole = (cover == 255) | (beside == 0)  # torchvision lays the border over the fill twice
            assert whole.float().mean() > 0.85
            difference = (found[row] - truth(image, strong, fill).float()).abs()
            assert difference[whole].max() <= 1.01


def test_an_image_moves_by_a_share_of_its_side() -> None:
    dot = np.zeros((700, 56, 56, 3), np.uint8)
    dot[:, 26:30, 26:30] = 255
    found = every(views_of(only(policy="trivial"), dot), size=56)[:, 0]
    which, strength, _ = Draws(torch.arange(700), 2, 5).uniform("policy")
    for operation, axis in ((3, 1), (4, 0)):
        for row in (which * 14).int().eq(operation).nonzero().flatten()[:5].tolist():
            bright = (found[row] > 150).nonzero().float()
            by = 56 * 32 / 224 * (2 * strength[row].item() - 1)
            assert bright[:, axis].mean().item() == pytest.approx(27.5 + by, abs=1)
            assert bright[:, 1 - axis].mean().item() == pytest.approx(27.5, abs=0.6)


# mixing


@pytest.mark.parametrize("setting", ["mixup", "cutmix"])
def test_mixed_images_are_two_views_and_their_labels_in_the_same_shares(setting: str) -> None:
    cfg = only(crop=(0.5, 1.0), **{setting: 0.7})
    views, labels = views_of(cfg, rows=list(range(4, 20))), torch.arange(16) % 5
    mix = views._mix(at(*range(16)), 2)
    plain = every(views_of(cfg.model_copy(update={setting: 0.0}), rows=list(range(4, 20))))
    found, partners = every(views), plain[mix.partners.on_host]
    assert mix.share.min() >= 0.5
    targets = views.targets(at(*range(16)), 2, labels, 5)
    assert targets is not None
    for n in range(16):
        own, other = plain[n], partners[n]
        share = mix.share[n].item()
        if setting == "mixup":
            truth = share * own + (1 - share) * other
        else:
            cover = inside(mix.box[n : n + 1], own[None])[0]
            assert cover.float().mean().item() == pytest.approx(1 - share, abs=0.06)
            truth = torch.where(cover, other, own)
        torch.testing.assert_close(found[n], truth, rtol=0, atol=1e-3)
        expected = torch.zeros(5)
        expected[labels[n]] += share
        expected[labels[mix.partners.on_host[n]]] += 1 - share
        torch.testing.assert_close(targets[n], expected)


def test_shares_are_those_of_the_beta_distribution() -> None:
    for alpha in (0.3, 1.0, 4.0):
        many = Views(
            photographs(), np.arange(20).repeat(200), AugmentConfig(mixup=alpha), seed=1, mean=MEAN,
            device=torch.device("cpu"),
        )  # fmt: skip
        many.rows = torch.arange(4000)
        share = many._mix(Rows(torch.arange(4000), torch.arange(4000)), 0).share.double().numpy()
        truth = stats.beta(alpha, alpha)
        assert stats.kstest(share, lambda x, b=truth: (b.cdf(x) - b.cdf(1 - x)).clip(0)).pvalue > 1e-4


def test_with_both_half_of_the_images_are_pasted() -> None:
    many = views_of(AugmentConfig(mixup=1.0, cutmix=1.0), np.repeat(photographs()[:1, :8, :8], 2000, 0))
    pasted = many._mix(Rows(torch.arange(2000), torch.arange(2000)), 0).is_pasted.float().mean().item()
    assert pasted == pytest.approx(0.5, abs=0.05)


def test_partners_come_from_all_of_the_subset_and_from_nowhere_else() -> None:
    views = views_of(AugmentConfig(mixup=1.0), rows=[7, 9, 11, 13])
    partners = {
        p for number in range(60) for p in views._mix(at(0, 1, 2, 3), number).partners.on_host.tolist()
    }
    assert partners == {0, 1, 2, 3}


def test_unmixed_views_have_no_targets() -> None:
    assert views_of(AugmentConfig(preset="strong")).targets(at(0, 1), 0, torch.arange(24), 24) is None

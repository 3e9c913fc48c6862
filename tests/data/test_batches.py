import numpy as np
import pytest
import torch

from pipeline.data import views as views_module
from pipeline.data.augment import AugmentConfig
from pipeline.data.batches import Batch, Batches
from pipeline.data.crop import shifted
from pipeline.data.order import ClassBalance, epoch_order
from pipeline.data.protocol import Subset
from pipeline.data.views import Rows
from pipeline.functional import Input, normalise
from pipeline.settings import InputError
from pipeline.taps.answer import Answer
from pipeline.taps.step import Live

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
INPUT = Input(8, MEAN, STD)


def batches(
    count: int,
    batch_size: int,
    *,
    seed: int = 0,
    augmented: AugmentConfig | None = None,
    class_balance: ClassBalance = "none",
    shard: tuple[int, int] = (0, 1),
    input: Input = INPUT,
    teacher_input: Input | None = None,
    unlabelled: int = 0,
    unlabelled_share: float = 0.0,
    parts: int = 1,
) -> Batches:
    rows = np.arange(count) * 2 % 49
    others = np.setdiff1d(np.arange(50), rows)[:unlabelled]
    return Batches(
        IMAGES,
        Subset(rows, rows % 5, tuple(range(5)), others),
        unlabelled_share=unlabelled_share,
        parts=parts,
        batch_size=batch_size,
        seed=seed,
        mean=MEAN,
        augment=augmented,
        class_balance=class_balance,
        input=input,
        teacher_input=teacher_input,
        device="cpu",
        shard=shard,
    )


@pytest.mark.parametrize(
    ("count", "batch_size"),
    [(20, 5), (20, 6), (21, 5), (21, 4), (3, 8), (1, 8), (9, 8), (10, 8), (7, 1), (2, 2), (8, 7)],
)
def test_an_epoch_has_every_image_once(count: int, batch_size: int) -> None:
    data = batches(count, batch_size)
    found = list(data.epoch(0))
    assert sorted(torch.cat([batch.index for batch in found]).tolist()) == list(range(count))
    assert len(found) == len(data)
    sizes = [len(batch.index) for batch in found]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    if batch_size > 1 and count > 1:
        assert 2 <= sizes[-1] <= batch_size + 1
    assert all(batch.share == 1 for batch in found)


@pytest.mark.parametrize(
    ("class_balance", "unlabelled", "mixup"),
    [("none", 0, 0.0), ("none", 0, 0.4), ("sampler", 0, 0.0), ("none", 20, 0.4), ("sampler", 20, 0.0)],
)
def test_an_epoch_can_go_on_at_any_batch(
    class_balance: ClassBalance, unlabelled: int, mixup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batches(
        20,
        6,
        augmented=AugmentConfig(pad=1, flip=0.5, mixup=mixup),
        class_balance=class_balance,
        unlabelled=unlabelled,
        unlabelled_share=0.5 if unlabelled else 0.0,
    )
    whole = list(data.epoch(3))
    assert len(whole) > 2
    for first in range(len(whole) + 1):
        rest = list(data.epoch(3, first))
        assert len(rest) == len(whole) - first
        for one, other in zip(whole[first:], rest, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert (one.targets is None) == (other.targets is None) == (not mixup)
            if one.targets is not None and other.targets is not None:
                assert torch.equal(one.targets, other.targets)
    monkeypatch.setattr(data.views, "pictures", lambda *_: pytest.fail("a skipped batch was made"))
    assert not list(data.epoch(3, len(whole)))


def test_images_and_labels_belong_to_the_index() -> None:
    data = batches(20, 6)
    for batch in data.epoch(3):
        assert torch.equal(batch.labels, data.labels[batch.index])
        assert torch.equal(
            batch.images, normalise(torch.from_numpy(IMAGES[data.views.rows[batch.index].numpy()]), MEAN, STD)
        )
        assert (batch.images.dtype, batch.labels.dtype, batch.index.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )


def order(data: Batches, epoch: int) -> list[int]:
    return torch.cat([batch.index for batch in data.epoch(epoch)]).tolist()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    before = order(batches(20, 6), 1)
    torch.manual_seed(99)
    np.random.seed(99)
    data = batches(20, 5)
    list(data.epoch(0))
    assert order(data, 1) == before
    assert order(data, 2) != before
    assert order(batches(20, 6, seed=1), 1) != before


def test_a_view_depends_on_the_epoch_and_the_row_of_the_store() -> None:
    cfg = AugmentConfig(pad=2)
    data = batches(20, 6, seed=4, augmented=cfg)
    for batch in data.epoch(7):
        rows = data.views.rows[batch.index]
        pixels = torch.from_numpy(IMAGES[rows.numpy()])
        view = shifted(pixels, rows, 7, 4, cfg, 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
        assert torch.equal(batch.images, INPUT.normalise_(view))
        assert not torch.equal(batch.images, normalise(pixels, MEAN, STD))


def test_images_that_stay_on_disk_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = list(batches(20, 6, augmented=AugmentConfig()).epoch(2))
    monkeypatch.setattr(views_module, "resident_bytes", lambda device: 0)
    data = batches(20, 6, augmented=AugmentConfig())
    assert data.views.resident is None
    for one, other in zip(resident, data.epoch(2), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(24, 6), (25, 6), (28, 6), (7, 20), (23, 7)])
def test_processes_share_every_batch_evenly(count: int, batch_size: int, world: int) -> None:
    shards = [list(batches(count, batch_size, shard=(rank, world)).epoch(1)) for rank in range(world)]
    whole = order(batches(count, batch_size), 1)
    together = [torch.cat([part.index for part in parts]).tolist() for parts in zip(*shards, strict=True)]
    assert [index for batch in together for index in batch] == whole
    for parts, batch in zip(zip(*shards, strict=True), together, strict=True):
        sizes = [len(part.index) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        # the mean over processes of weighted means is the mean over the batch
        weighted = sum(part.share * part.index.float().mean().item() for part in parts) / world
        assert weighted == pytest.approx(np.mean(batch))


def test_shares_of_fewer_than_two_images_are_refused() -> None:
    for count, batch_size in ((2, 8), (5, 8), (20, 2), (20, 5)):
        wanted = (
            rf"train\.batch_size is {batch_size}, .* {count} images .* 3 processes share .* Make both 6 or"
        )
        with pytest.raises(InputError, match=wanted):
            batches(count, batch_size, shard=(0, 3))
    batches(6, 6, shard=(0, 3))


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [(12, 3, [4, 4, 4]), (7, 3, [3, 2, 2]), (5, 4, [3, 2]), (1, 4, [1]), (6, 1, [6])],
)
def test_the_parts_of_a_batch_weigh_as_much_as_the_batch(count: int, parts: int, sizes: list[int]) -> None:
    batch = Batch(torch.randn(count, 3, 2, 2), torch.arange(count), torch.arange(count) * 2, share=1.25)
    split = batch.split(parts)
    assert [len(part.index) for part in split] == sizes
    assert torch.equal(torch.cat([part.images for part in split]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in split]), batch.labels)
    assert torch.equal(torch.cat([part.index for part in split]), batch.index)
    weighted = sum(part.share * part.images.mean().item() for part in split)
    assert weighted == pytest.approx(1.25 * batch.images.mean().item(), abs=1e-6)


def test_a_teacher_with_the_same_input_sees_the_same_images() -> None:
    assert all(batch.for_teacher is None for batch in batches(20, 6, teacher_input=INPUT).epoch(0))


@pytest.mark.parametrize("size", [8, 6, 20])
def test_a_teacher_sees_the_same_view_at_its_size_and_in_its_normalisation(size: int) -> None:
    """As if the teacher's own batches were drawn with the same seed."""
    cfg = AugmentConfig(crop=(0.4, 1.0), brightness=0.3, mixup=1.0)
    other = Input(size, (0.1, 0.2, 0.3), (0.5, 0.4, 0.6))
    own = batches(20, 6, seed=4, augmented=cfg, teacher_input=other).epoch(3)
    of_teacher = batches(20, 6, seed=4, augmented=cfg, input=other).epoch(3)
    for batch, expected in zip(own, of_teacher, strict=True):
        assert batch.for_teacher is not None
        found = batch.for_teacher(batch.images, batch.index)
        torch.testing.assert_close(found, expected.images, rtol=0, atol=1e-5)
        part = batch.split(2)[-1]
        assert part.for_teacher is not None
        torch.testing.assert_close(
            part.for_teacher(part.images, part.index),
            found[len(found) - len(part.index) :],
            rtol=0,
            atol=1e-5,
        )


def test_a_teacher_of_the_same_size_gets_the_students_gradients() -> None:
    other = Input(8, (0.1, 0.2, 0.3), (0.5, 0.4, 0.6))
    batch = next(batches(20, 6, teacher_input=other).epoch(0))
    assert batch.for_teacher is not None
    images = batch.images.requires_grad_()
    torch.autograd.backward(batch.for_teacher(images, batch.index).sum())
    assert images.grad is not None
    assert torch.allclose(images.grad[:, 0], torch.tensor(0.2 / 0.5))


def test_the_targets_of_mixed_images_follow_the_parts_of_a_batch() -> None:
    mixed = batches(20, 6, augmented=AugmentConfig(mixup=1.0))
    for batch in mixed.epoch(0):
        assert batch.targets is not None
        assert batch.targets.shape == (len(batch.index), 5)
        torch.testing.assert_close(batch.targets.sum(1), torch.ones(len(batch.index)))
        assert (batch.targets.gather(1, batch.labels[:, None]) >= 0.5 - 1e-6).all()
        parts = [part.targets for part in batch.split(2)]
        assert torch.equal(torch.cat([each for each in parts if each is not None]), batch.targets)
    plain = next(batches(20, 6, augmented=AugmentConfig()).epoch(0))
    assert plain.targets is None
    assert plain.split(2)[0].targets is None


def test_without_a_share_unlabelled_images_are_not_seen() -> None:
    for one, other in zip(batches(12, 4).epoch(1), batches(12, 4, unlabelled=9).epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)
        assert one.labelled is other.labelled is None


def test_unlabelled_images_have_their_share_of_each_batch_and_no_label() -> None:
    data = batches(12, 8, unlabelled=20, unlabelled_share=0.75)
    found = list(data.epoch(0))
    assert len(found) == len(data) == 6  # 12 labelled images, two at a time
    assert set(torch.cat([batch.index for batch in found]).tolist()) == set(range(32))
    for batch in found:
        assert len(batch.index) == 8
        assert batch.labelled is not None
        assert batch.labelled.share == 0.25
        is_labelled = batch.index < 12
        assert batch.labelled.places.tolist() == is_labelled.nonzero()[:, 0].tolist()
        assert torch.equal(batch.labels[is_labelled], data.views.rows[batch.index[is_labelled]] % 5)
        assert (batch.labels[~is_labelled] == -1).all()
        assert torch.equal(
            batch.images, normalise(torch.from_numpy(IMAGES[data.views.rows[batch.index].numpy()]), MEAN, STD)
        )


def test_parts_and_processes_of_a_mixed_batch_are_the_batch() -> None:
    whole = next(batches(12, 16, unlabelled=20, unlabelled_share=0.75).epoch(0))
    shards = [
        next(batches(12, 16, unlabelled=20, unlabelled_share=0.75, shard=(rank, 2), parts=2).epoch(0)).split(
            2
        )
        for rank in range(2)
    ]
    parts = [part for shard in shards for part in shard]
    assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
    for part in parts:
        assert part.labelled is not None
        assert part.labelled.places.tolist() == (part.labels >= 0).nonzero()[:, 0].tolist()
        assert len(part.labelled.places) == 1
        assert part.labelled.share == 0.25


def test_a_batch_with_too_few_labelled_images_for_its_parts_is_refused() -> None:
    with pytest.raises(InputError, match="leaves 4 labelled"):
        batches(12, 16, unlabelled=20, unlabelled_share=0.75, shard=(0, 2), parts=3)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labelled_images_are_mixed_with_labelled_ones(kind: str) -> None:
    """So a target never needs a label that is not there."""
    augment = AugmentConfig(pad=0, flip=0.0, **{kind: 1.0})
    data = batches(12, 16, augmented=augment, unlabelled=20, unlabelled_share=0.5)
    seen = set()
    for batch in data.epoch(0):
        assert batch.targets is not None
        assert batch.labelled is not None
        places = Rows(batch.index, batch.index)
        partners = data.views._mix(places, 0).partners.on_host
        assert torch.equal(partners < 12, batch.index < 12)
        seen |= set(partners.tolist())
    assert min(seen) < 12 <= max(seen)
    assert len(seen) > 20


def test_mixed_labelled_images_are_those_of_a_subset_without_others() -> None:
    augment = AugmentConfig(pad=0, flip=0.0, mixup=1.0)
    alone = batches(12, 8, augmented=augment)
    mixed = batches(12, 8, augmented=augment, unlabelled=20, unlabelled_share=0.5)
    places = Rows(torch.arange(12), torch.arange(12))
    assert torch.equal(alone.views.pictures(places, 3, 8), mixed.views.pictures(places, 3, 8))


@pytest.mark.parametrize("world", [1, 2])
def test_the_sampler_decides_the_order_of_all_processes(world: int) -> None:
    shards = [
        batches(21, 6, seed=5, class_balance="sampler", shard=(rank, world)).epoch(2) for rank in range(world)
    ]
    together = [torch.cat([part.index for part in parts]) for parts in zip(*shards, strict=True)]
    expected = epoch_order(np.arange(21) * 2 % 49 % 5, seed=5, epoch=2, class_balance="sampler")
    assert torch.cat(together).tolist() == expected.tolist()


def test_an_image_that_comes_again_in_an_epoch_looks_different() -> None:
    """The sampler numbers views by batch; within a batch an image has one view."""
    cfg = AugmentConfig(crop=(0.3, 1.0), brightness=0.4)
    rows = np.arange(30)
    data = Batches(
        IMAGES,
        Subset(rows, (rows > 27).astype(np.int64), (0, 1)),
        batch_size=5,
        seed=0,
        mean=MEAN,
        augment=cfg,
        class_balance="sampler",
        input=INPUT,
        device="cpu",
    )
    shown = [
        batch.images[batch.index == 29][0] for n in (0, 1) for batch in data.epoch(n) if 29 in batch.index
    ]
    assert len(shown) >= 8
    assert all(not torch.equal(a, b) for i, a in enumerate(shown) for b in shown[:i])


def test_weights_of_classes_go_with_the_batch_and_its_parts() -> None:
    plain, weighted = batches(23, 6), batches(23, 6, class_balance="weights")
    for one, other in zip(plain.epoch(1), weighted.epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert one.class_weights is None
        assert one.split(2)[-1].class_weights is None
        for each in (other, *other.split(2)):
            assert each.class_weights is not None
            assert len(each.class_weights) == 5
    assert weighted.class_weights is not None
    assert weighted.class_weights[weighted.labels].mean().item() == pytest.approx(1)
    assert len(set(weighted.class_weights.tolist())) > 1


SHIFTED = AugmentConfig(pad=2, flip=0.5, brightness=0.4)


def by_row(data: Batches, epoch: int) -> dict[int, torch.Tensor]:
    """What an epoch shows, by the row of the store."""
    return {
        int(data.views.rows[place]): image
        for batch in data.epoch(epoch)
        for place, image in zip(batch.index, batch.images, strict=True)
    }


def test_fixed_views_come_again_and_are_the_same_for_every_seed_and_subset() -> None:
    fixed = SHIFTED.model_copy(update={"views": 3})
    one, other = batches(20, 6, augmented=fixed), batches(12, 5, seed=9, augmented=fixed)
    first = [by_row(one, n) for n in range(4)]
    assert all(torch.equal(first[0][row], image) for row, image in first[3].items())
    for n, seen in ((1, by_row(other, 1)), (2, by_row(other, 5))):
        assert all(torch.equal(first[n][row], image) for row, image in seen.items())
    assert not any(torch.equal(first[0][row], first[1][row]) for row in first[0])
    orders = [[batch.index.tolist() for batch in one.epoch(n)] for n in (0, 3)]
    assert orders[0] != orders[1]


def test_the_seed_of_fixed_views_changes_them_alone() -> None:
    one, other = (
        batches(20, 6, augmented=SHIFTED.model_copy(update={"views": 3, "seed": seed})) for seed in (0, 1)
    )
    for a, b in zip(one.epoch(0), other.epoch(0), strict=True):
        assert torch.equal(a.index, b.index)
        assert not torch.equal(a.images, b.images)


def test_without_fixed_views_the_runs_seed_and_the_epoch_make_them() -> None:
    """As it was before there were fixed views."""
    data = batches(20, 6, seed=4, augmented=SHIFTED.model_copy(update={"seed": 7}))
    plain = batches(20, 6, seed=4, augmented=SHIFTED)
    for batch, same in zip(data.epoch(5), plain.epoch(5), strict=True):
        pictures = plain.views.pictures(Rows(batch.index, batch.index), 5, 8)
        assert torch.equal(batch.images, INPUT.normalise_(pictures))
        assert torch.equal(batch.images, same.images)
    assert plain.views.seed == 4


def test_a_mixed_fixed_view_has_one_partner() -> None:
    fixed = AugmentConfig(pad=0, flip=0.0, mixup=1.0, views=1)
    one, other = batches(20, 6, augmented=fixed), batches(20, 7, seed=3, augmented=fixed)
    first, again = by_row(one, 0), by_row(other, 8)
    assert all(torch.equal(first[row], image) for row, image in again.items())


@pytest.mark.parametrize(("steps", "plain", "repeated"), [(1, 1, 1), (4, 1, 4), (5, 2, 5), (400, 6, 6)])
def test_so_many_fixed_views_are_shown(steps: int, plain: int, repeated: int) -> None:
    fixed = SHIFTED.model_copy(update={"views": 6})
    assert batches(20, 5, augmented=fixed).numbers(steps) == plain
    sampled = batches(20, 5, augmented=fixed, class_balance="sampler")
    assert sampled.numbers(steps) == repeated
    assert len(sampled) == 4


def test_the_teachers_images_of_a_view_are_those_of_a_batch() -> None:
    fixed = SHIFTED.model_copy(update={"views": 3})
    data = batches(20, 6, augmented=fixed, teacher_input=Input(12, STD, MEAN))
    for batch in data.epoch(4):
        assert batch.for_teacher is not None
        pictures = data.views.pictures(Rows(batch.index, batch.index), 1, 12)
        expected = Input(12, STD, MEAN).normalise_(pictures)
        assert torch.equal(data.teacher_images(batch.index, 1), expected)
        assert torch.equal(batch.for_teacher(batch.images, batch.index), expected)


def test_stored_answers_are_asked_for_the_places_and_the_view() -> None:
    asked: list[tuple[int, list[int]]] = []
    answer = Answer(torch.zeros(1), {}, torch.zeros(1), {})

    def answers(number: int, places: torch.Tensor, live: Live) -> Answer:
        asked.append((number, places.tolist()))
        return answer

    data = batches(20, 6, augmented=SHIFTED.model_copy(update={"views": 3}))
    assert next(data.epoch(0)).stored is None
    data.answers = answers
    batch = next(data.epoch(7))
    for part in (batch, *batch.split(2)):
        assert part.stored is not None
        assert part.stored(lambda: answer) is answer
    index = batch.index.tolist()
    assert asked == [(1, index), (1, index[:3]), (1, index[3:])]

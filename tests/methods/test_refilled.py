import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline import nets
from pipeline.functional import centre_scores
from pipeline.methods.refilled import Centres, Config, Refilled, mine
from pipeline.taps.answer import Answer
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped
from pipeline.training import state

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])


def answer(pooled: Tensor, logits: Tensor | None = None) -> Answer:
    return Answer(pooled.new_zeros(len(pooled), 3) if logits is None else logits, {}, pooled, {})


def step_of(student: Tensor, teacher: Tensor, labels: Tensor = LABELS, logits: Tensor | None = None) -> Step:
    """The teacher's logits are NaN and of two classes, because the method must not read them."""
    wrong = torch.full((len(teacher), 2), math.nan, dtype=teacher.dtype)
    return Step.of(
        student=answer(student, logits),
        teacher=answer(teacher, wrong),
        labels=labels,
        index=torch.arange(len(labels)),
    )


def made(step: Step, **settings: Any) -> Refilled:
    return Refilled(Config(name="refilled", **settings), step, step.labels).double()


def embeddings(n: int = 8, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def slow_tuples(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    margin: float,
    tau: float,
    most: int,
    *,
    normalised: bool = False,
) -> list[float]:
    s, t, y = student.tolist(), teacher.tolist(), labels.tolist()
    unit = [[x / math.hypot(*row) for x in row] for row in s]
    if normalised:
        s, t = unit, [[x / math.hypot(*row) for x in row] for row in t]
    images = range(len(y))
    values = []
    for a in images:
        for p in images:
            if p == a or y[p] != y[a]:
                continue
            least = distance(unit[a], unit[p])
            others = {n: distance(unit[a], unit[n]) for n in images if y[n] != y[a]}
            impostors = [n for n, far in others.items() if least < far < least + margin]
            impostors = sorted(impostors, key=others.__getitem__)[: most or None]
            if impostors:
                chances = [softmax([-distance(e[a], e[i]) / tau for i in (p, *impostors)]) for e in (t, s)]
                values.append(divergence(*chances))
    return values


@pytest.mark.parametrize("negatives", [0, 1, 2, 50])
@pytest.mark.parametrize(("margin", "tau"), [(0.2, 4.0), (0.6, 0.5)])
def test_the_term_of_tuples_equals_the_slow_loop(negatives: int, margin: float, tau: float) -> None:
    step = step_of(embeddings(seed=1), embeddings(width=7, seed=2))
    method = made(step, negatives=negatives, margin=margin, tuple_temperature=tau)
    values = slow_tuples(step.student.pooled, step.teacher.pooled, LABELS, margin, tau, negatives)
    assert len(values) > 3
    assert method.tuples(step).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def slow_scores(points: Tensor, centres: Tensor, score: str) -> list[list[float]]:
    """Of each image for each centre."""
    rows, c = points.tolist(), centres.tolist()
    if score == "squared":
        return [[-(distance(row, centre) ** 2) for centre in c] for row in rows]
    return [
        [sum(x * y for x, y in zip(row, centre, strict=True)) / math.hypot(*centre) for centre in c]
        for row in rows
    ]


SCORES = pytest.mark.parametrize("score", ["squared", "dot"])


@SCORES
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_local_term_equals_the_slow_loop(score: str, adaptive: bool, tau: float) -> None:
    labels = torch.tensor([0, 3, 3, 0, 4])
    teacher, logits, centres = embeddings(5, 4, 1), embeddings(5, 6, 2), embeddings(6, 4, 3)
    step = step_of(embeddings(5), teacher, labels, logits)
    method = made(step, score=score, adaptive=adaptive, temperature=tau)
    method.centres.means.copy_(centres)
    z, present = logits.tolist(), [0, 3, 4]
    values = []
    for i, scores in enumerate(slow_scores(teacher, centres, score)):
        weight = max(softmax([score / tau for score in scores])) if adaptive else 1.0
        p, q = softmax([scores[k] / tau for k in present]), softmax([z[i][k] / tau for k in present])
        values.append(weight * divergence(p, q))
    assert method.terms(step)["local"].item() == pytest.approx(sum(values) / 5, rel=1e-9)


def test_centres_do_not_change_in_eval_mode() -> None:
    step = step_of(embeddings(), embeddings())
    method, student = made(step).eval(), World.make().student
    method.embed_loss(step)
    method.after_backward(step, student)
    assert not method.centres.counts.any()
    method.train().embed_loss(step)
    method.after_backward(step, student)
    assert method.centres.counts.flatten().tolist() == torch.bincount(LABELS, minlength=3).tolist()


def test_distances_in_a_tuple_may_be_those_of_embeddings_of_length_one() -> None:
    step = step_of(embeddings(seed=1), embeddings(width=7, seed=2))
    method = made(step, tuple_distances="normalised", margin=0.6)
    values = slow_tuples(step.student.pooled, step.teacher.pooled, LABELS, 0.6, 4.0, 0, normalised=True)
    assert method.tuples(step).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_the_term_of_tuples_has_its_own_weight() -> None:
    step = step_of(embeddings(), embeddings())
    assert made(step).embed_loss(step)["tuples"].weight == 1
    assert made(step, embed_weight=1000.0).embed_loss(step)["tuples"].weight == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "cosine"}, "'dot' or 'squared'"),
        ({"embed_weight": 0.0}, "greater than 0"),
        ({"tuple_distances": "unit"}, "'raw' or 'normalised'"),
        ({"choose_embedding": "often"}, "valid boolean"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"name": "refilled", **settings})


def test_defaults_are_the_papers_values() -> None:
    """tau1, the margin, tau2 and lambda (figure 2 of the supplement), and all impostors (table 4)."""
    cfg = Config(name="refilled")
    assert cfg.score == "dot"
    paper = {"tuple_temperature": 4, "margin": 0.2, "temperature": 2, "term_weight": 2, "negatives": 0}
    assert {name: getattr(cfg, name) for name in paper} == paper


def test_phase_distill_has_the_cross_entropy_and_the_local_term_with_weight_lambda() -> None:
    step = step_of(embeddings(), embeddings(), logits=embeddings(8, 3, 4))
    loss = made(step).loss(step)
    assert {name: term.weight for name, term in loss.items()} == {"ce": 1.0, "local": 2.0}
    assert set(made(step, embedding_only=True).loss(step)) == {"ce"}


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    same = embeddings(seed=3)
    assert made(step_of(same, same)).tuples(step_of(same, same)).item() == pytest.approx(0, abs=1e-15)
    centres = embeddings(3, 5, 4)
    step = step_of(same, same, logits=centre_scores(same, centres) + 7)
    method = made(step, score="squared")
    method.centres.means.copy_(centres)
    assert method.terms(step)["local"].item() == pytest.approx(0, abs=1e-15)


def test_tuples_depend_only_on_distances() -> None:
    student, teacher = embeddings(seed=1), embeddings(width=7, seed=2)
    turn = torch.linalg.qr(embeddings(7, 7, 3)).Q
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    method = made(step_of(student, teacher))
    plain = method.tuples(step_of(student, teacher)).item()
    assert method.tuples(step_of(student, teacher @ turn + 3)).item() == pytest.approx(plain)
    assert method.tuples(step_of(student[order], teacher[order], LABELS[order])).item() == pytest.approx(
        plain
    )


def test_impostors_are_further_than_the_positive_by_less_than_the_margin() -> None:
    # anchor, positive, too near, semi-hard, too far
    angles = torch.tensor([0.0, 0.3, 0.2, 0.45, 0.6], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [0.1], [3.0]])
    anchor, positive, impostors = mine(points, torch.tensor([0, 0, 1, 2, 1]), 0.2)
    first = (anchor == 0) & (positive == 1)
    assert impostors[first].tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize("negatives", [1, 2])
def test_the_nearest_of_too_many_impostors_are_used(negatives: int) -> None:
    points = embeddings(20, 3)
    labels = torch.arange(20) % 4
    _, _, everyone = mine(points, labels, 0.5)
    anchor, positive, few = mine(points, labels, 0.5, negatives)
    unit = nn.functional.normalize(points)
    assert everyone.sum(1).max() > negatives
    assert torch.equal(few.sum(1), everyone.sum(1).clamp(max=negatives))
    for a, before, used in zip(anchor.tolist(), everyone, few, strict=True):
        left_out = (unit[before & ~used] - unit[a]).norm(dim=1)
        assert not left_out.numel() or (unit[used] - unit[a]).norm(dim=1).max() < left_out.min()
    assert (anchor != positive).all()


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0]],
    ids=["one class: no impostors", "no two of a class: no positives", "one image"],
)
def test_a_batch_without_tuples_has_nothing_to_learn(labels: list[int]) -> None:
    student = embeddings(len(labels)).requires_grad_()
    step = step_of(student, embeddings(len(labels)), torch.tensor(labels), embeddings(len(labels), 4))
    value = made(step).tuples(step)
    torch.autograd.backward(value)
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_equal_embeddings_have_a_finite_gradient() -> None:
    student = torch.cat([embeddings(4), embeddings(4)]).requires_grad_()
    step = step_of(student, embeddings(), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]))
    torch.autograd.backward(made(step, margin=2.0).tuples(step))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_the_gradient_equals_finite_differences() -> None:
    teacher, logits = embeddings(width=7, seed=2), embeddings(8, 3, 5).requires_grad_()
    student = embeddings(seed=1).requires_grad_()
    method = made(step_of(student.detach(), teacher))
    method.centres.means.copy_(embeddings(3, 7, 3))
    assert torch.autograd.gradcheck(lambda s: method.tuples(step_of(s, teacher)), (student,))
    assert torch.autograd.gradcheck(
        lambda z: method.terms(step_of(student.detach(), teacher, logits=z))["local"], (logits,)
    )


@SCORES
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_mean_confidence_is_noted(score: str, tau: float) -> None:
    teacher, centres = embeddings(8, 4, 1), embeddings(6, 4, 2)
    step = step_of(embeddings(), teacher, logits=embeddings(8, 6, 3))
    method = made(step, score=score, temperature=tau)
    method.centres.means.copy_(centres)
    method.terms(step)
    scores = [[each / tau for each in row] for row in slow_scores(teacher, centres, score)]
    confidences = [max(softmax(row)) for row in scores]
    assert 1 / 6 < sum(confidences) / 8 < 1
    assert method.take_notes()["confidence"].item() == pytest.approx(sum(confidences) / 8, rel=1e-9)
    weights = method.image_weights(step)
    assert weights is not None
    assert weights.tolist() == pytest.approx(confidences, rel=1e-9)


@pytest.mark.parametrize("settings", [{"adaptive": False}, {"embedding_only": True}], ids=str)
def test_without_adaptive_weights_all_images_count_the_same(settings: dict[str, Any]) -> None:
    step = step_of(embeddings(), embeddings(8, 4, 1))
    assert made(step, **settings).image_weights(step) is None


def test_an_image_at_its_centre_and_far_from_all_others_has_confidence_1() -> None:
    centres = 100 * embeddings(3, 4, 1)
    step = step_of(embeddings(), centres[LABELS], logits=embeddings(8, 3, 3))
    method = made(step, score="squared")
    method.centres.means.copy_(centres)
    method.terms(step)
    assert method.take_notes()["confidence"].item() == 1


def test_centres_are_the_means_over_all_embeddings_of_a_class() -> None:
    centres = Centres(5, 3).double()
    batches = [(embeddings(6, 3, n), torch.tensor([0, 4, 4, 1, 0, 4]) // (n + 1)) for n in range(4)]
    for points, labels in batches:
        centres.add(points, labels)
    points, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert centres.counts.flatten().tolist() == torch.bincount(labels, minlength=5).tolist()
    for label in range(5):
        expected = points[labels == label].mean(0) if (labels == label).any() else torch.zeros(3)
        assert centres.means[label].tolist() == pytest.approx(expected.tolist())


def test_phase_embed_computes_the_centres_of_the_teacher_and_distill_does_not_change_them() -> None:
    world = World.make()
    method = world.method("refilled")
    assert isinstance(method, Refilled)
    world.fit(method, 0, batches=world.batches(augment=None))
    step = world.step(len(world.labels))
    for label in range(3):
        expected = step.teacher.pooled[step.labels == label].mean(0)
        assert method.centres.means[label].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert method.centres.counts.sum() == QUICK.epochs * len(world.labels)
    before = snapshot(method)
    world.fit(method, 1)
    assert not moved(before, snapshot(method))


def test_an_accumulated_batch_gives_the_same_centres() -> None:
    centres = []
    for parts in (1, 3):
        world = World.make()
        method = world.method("refilled")
        assert isinstance(method, Refilled)
        world.fit(method, 0, QUICK.model_copy(update={"accumulate": parts}))
        centres.append(method.centres)
    whole, accumulated = centres
    assert whole.counts.tolist() == accumulated.counts.tolist()
    assert whole.means.flatten().tolist() == pytest.approx(accumulated.means.flatten().tolist(), abs=1e-5)


def test_a_stopped_phase_embed_continues_to_the_same_student_and_centres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", -1.0)
    cfg, file = QUICK.model_copy(update={"epochs": 4}), tmp_path / "state"
    whole, stopped, continued = World.make(), World.make(), World.make()
    method = whole.method("refilled")
    whole.fit(method, 0, cfg)

    class StoppedError(Exception):
        pass

    first = stopped.method("refilled")
    after_backward = first.after_backward

    def stop(step: Step, student: Tapped) -> None:
        after_backward(step, student)
        if step.epoch == 2:
            raise StoppedError

    monkeypatch.setattr(first, "after_backward", stop)
    with pytest.raises(StoppedError):
        stopped.fit(first, 0, cfg, state_file=file)
    assert file.exists()
    second = continued.method("refilled")
    continued.fit(second, 0, cfg, state_file=file)
    assert not moved(snapshot(whole.student.net, method), snapshot(continued.student.net, second))


@pytest.mark.slow
def test_processes_share_their_centres(tmp_path: Path) -> None:
    """Two processes with half of the images each, and one process with all of them, get the same centres."""
    points, labels = embeddings(6, 3), torch.tensor([0, 1, 2, 0, 2, 2])
    expected = Centres(3, 3).double()
    expected.add(points, labels)
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_one_of_two, args=(rank, tmp_path, points, labels)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    for rank in range(2):
        means, counts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert counts.tolist() == expected.counts.tolist()
        assert means.flatten().tolist() == pytest.approx(expected.means.flatten().tolist())


def _one_of_two(rank: int, folder: Path, points: Tensor, labels: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    centres = Centres(3, 3).double()
    centres.add(points[rank::2], labels[rank::2])
    torch.save((centres.means, centres.counts), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_phase_embed_trains_all_but_the_classifier() -> None:
    world = World.make()
    embed, distill = world.method("refilled").phases(world.student)
    trained = {id(p) for module in embed.trains for p in module.parameters()}
    others = {name for name, p in world.student.net.named_parameters() if id(p) not in trained}
    assert {name.rpartition(".")[0] for name in others} == {world.student.classifier}
    assert distill.trains == (world.student.net,)


@pytest.mark.parametrize(("choose", "embedding"), [(False, "measured"), (True, "chosen")])
def test_the_embedding_is_measured_and_may_choose_the_weights(choose: bool, embedding: str) -> None:
    world = World.make()
    phases = world.method("refilled", choose_embedding=choose).phases(world.student)
    assert [phase.embedding for phase in phases] == [embedding, ""]


def test_teacher_and_student_may_have_different_classes() -> None:
    world = World.make()
    torch.manual_seed(1)
    other = nets.build("resnet14", 7).eval().requires_grad_(False)
    # if the method reads the logits, the loss becomes NaN
    other.get_submodule("fc").register_forward_hook(lambda module, args, output: output * math.nan)
    world.teacher = Tapped(other, world.step(2).images)
    method = world.method("refilled")
    for n in range(2):
        curves = world.fit(method, n)
        assert np.isfinite(curves["loss"]).all()


def test_training_reduces_the_term_of_tuples() -> None:
    world = World.make()
    method = world.method("refilled")
    cfg = QUICK.model_copy(update={"epochs": 12, "optimizer": "adam", "lr": 0.003, "batch_size": 22})
    losses = world.fit(method, 0, cfg, batches=world.batches(22, augment=None))["tuples"]
    assert losses[-1] < 0.5 * losses[0]

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from world import QUICK, World, moved, snapshot

from pipeline import evaluate
from pipeline.methods.refilled import Centres, Refilled, centre_scores, confidence, mine
from pipeline.taps import Step, Tapped, View

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])


def view(pooled: Tensor, logits: Tensor | None = None) -> View:
    return View(pooled.new_zeros(len(pooled), 3) if logits is None else logits, {}, pooled, {})


def step_of(student: Tensor, teacher: Tensor, labels: Tensor = LABELS, logits: Tensor | None = None) -> Step:
    """The teacher's logits are of two classes: nobody may read them."""
    wrong = torch.full((len(teacher), 2), math.nan, dtype=teacher.dtype)
    return Step.of(student=view(student, logits), teacher=view(teacher, wrong), labels=labels, index=torch.arange(len(labels)))


def made(step: Step, **settings: Any) -> Refilled:
    return Refilled(Refilled.Config(name="refilled", **settings), step, step.labels).double()


def embeddings(n: int = 8, width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def apart(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def slow_tuples(student: Tensor, teacher: Tensor, labels: Tensor, margin: float, tau: float, most: int) -> list[float]:
    s, t, y = student.tolist(), teacher.tolist(), labels.tolist()
    unit = [[x / math.hypot(*row) for x in row] for row in s]
    every = range(len(y))
    values = []
    for a in every:
        for p in every:
            if p == a or y[p] != y[a]:
                continue
            near = apart(unit[a], unit[p])
            impostors = [n for n in every if y[n] != y[a] and near < apart(unit[a], unit[n]) < near + margin]
            impostors = sorted(impostors, key=lambda n: apart(unit[a], unit[n]))[: most or None]
            if impostors:
                shares = [softmax([-apart(e[a], e[i]) / tau for i in (p, *impostors)]) for e in (t, s)]
                values.append(divergence(*shares))
    return values


@pytest.mark.parametrize("negatives", [0, 1, 2, 50])
@pytest.mark.parametrize(("margin", "tau"), [(0.2, 4.0), (0.6, 0.5)])
def test_tuples_equal_the_slow_loop(negatives: int, margin: float, tau: float) -> None:
    step = step_of(embeddings(seed=1), embeddings(width=7, seed=2))
    method = made(step, negatives=negatives, margin=margin, tuple_temperature=tau)
    values = slow_tuples(step.student.pooled, step.teacher.pooled, LABELS, margin, tau, negatives)
    assert len(values) > 3
    assert method.tuples(step).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_local_term_equals_the_slow_loop(adaptive: bool, tau: float) -> None:
    labels = torch.tensor([0, 3, 3, 0, 4])
    teacher, logits, centres = embeddings(5, 4, 1), embeddings(5, 6, 2), embeddings(6, 4, 3)
    step = step_of(embeddings(5), teacher, labels, logits)
    method = made(step, adaptive=adaptive, temperature=tau)
    method.centres.means.copy_(centres)
    t, z, c, present = teacher.tolist(), logits.tolist(), centres.tolist(), [0, 3, 4]
    values = []
    for i in range(5):
        scores = [-(apart(t[i], centre) ** 2) for centre in c]
        weight = max(softmax([score / tau for score in scores])) if adaptive else 1.0
        values.append(weight * divergence(softmax([scores[k] / tau for k in present]), softmax([z[i][k] / tau for k in present])))
    assert method.terms(step)["local"].item() == pytest.approx(sum(values) / 5, rel=1e-9)


def test_a_method_at_rest_takes_no_centres() -> None:
    step = step_of(embeddings(), embeddings())
    method = made(step).eval()
    method.embed_loss(step)
    method.after_backward(step, None)  # type: ignore[arg-type]
    assert not method.centres.counts.any()
    method.train().embed_loss(step)
    method.after_backward(step, None)  # type: ignore[arg-type]
    assert method.centres.counts.flatten().tolist() == torch.bincount(LABELS, minlength=3).tolist()


def test_lambda_weighs_the_local_term_and_ce_stands_beside_it() -> None:
    step = step_of(embeddings(), embeddings(), logits=embeddings(8, 3, 4))
    loss = made(step).loss(step)
    assert {name: term.weight for name, term in loss.items()} == {"ce": 1.0, "local": 2.0}
    assert set(made(step, embedding_only=True).loss(step)) == {"ce"}


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    same = embeddings(seed=3)
    assert made(step_of(same, same)).tuples(step_of(same, same)).item() == pytest.approx(0, abs=1e-15)
    centres = embeddings(3, 5, 4)
    step = step_of(same, same, logits=centre_scores(same, centres) + 7)
    method = made(step)
    method.centres.means.copy_(centres)
    assert method.terms(step)["local"].item() == pytest.approx(0, abs=1e-15)


def test_tuples_care_for_distances_alone() -> None:
    student, teacher = embeddings(seed=1), embeddings(width=7, seed=2)
    turn = torch.linalg.qr(embeddings(7, 7, 3)).Q
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    method = made(step_of(student, teacher))
    plain = method.tuples(step_of(student, teacher)).item()
    assert method.tuples(step_of(student, teacher @ turn + 3)).item() == pytest.approx(plain)
    assert method.tuples(step_of(student[order], teacher[order], LABELS[order])).item() == pytest.approx(plain)


def test_semi_hard_is_further_than_the_positive_by_less_than_the_margin() -> None:
    angles = torch.tensor([0.0, 0.3, 0.2, 0.45, 0.6], dtype=torch.float64)  # anchor, positive, nearer, semi-hard, too far
    points = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [0.1], [3.0]])
    anchor, positive, impostors = mine(points, torch.tensor([0, 0, 1, 2, 1]), 0.2)
    first = (anchor == 0) & (positive == 1)
    assert impostors[first].tolist() == [[False, False, False, True, False]]


@pytest.mark.parametrize("negatives", [1, 2])
def test_of_too_many_impostors_the_nearest_stay(negatives: int) -> None:
    points = embeddings(20, 3)
    labels = torch.arange(20) % 4
    _, _, everyone = mine(points, labels, 0.5)
    anchor, positive, few = mine(points, labels, 0.5, negatives)
    unit = nn.functional.normalize(points)
    assert everyone.sum(1).max() > negatives
    assert torch.equal(few.sum(1), everyone.sum(1).clamp(max=negatives))
    for a, all_, kept in zip(anchor.tolist(), everyone, few, strict=True):
        left_out = (unit[all_ & ~kept] - unit[a]).norm(dim=1)
        assert not left_out.numel() or (unit[kept] - unit[a]).norm(dim=1).max() < left_out.min()
    assert (anchor != positive).all()


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class: no impostors", "no two of a class: no positives", "one image"]
)
def test_where_there_are_no_tuples_there_is_nothing_to_learn(labels: list[int]) -> None:
    student = embeddings(len(labels)).requires_grad_()
    step = step_of(student, embeddings(len(labels)), torch.tensor(labels), embeddings(len(labels), 4))
    value = made(step).tuples(step)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_equal_embeddings_have_a_finite_gradient() -> None:
    student = torch.cat([embeddings(4), embeddings(4)]).requires_grad_()
    step = step_of(student, embeddings(), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]))
    made(step, margin=2.0).tuples(step).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_gradcheck() -> None:
    teacher, logits = embeddings(width=7, seed=2), embeddings(8, 3, 5).requires_grad_()
    student = embeddings(seed=1).requires_grad_()
    method = made(step_of(student.detach(), teacher))
    method.centres.means.copy_(embeddings(3, 7, 3))
    assert torch.autograd.gradcheck(lambda s: method.tuples(step_of(s, teacher)), (student,))
    assert torch.autograd.gradcheck(lambda z: method.terms(step_of(student.detach(), teacher, logits=z))["local"], (logits,))


def test_confidence_is_what_evaluation_measures() -> None:
    points, centres = embeddings(50, 4), embeddings(6, 4, 1)
    scores = centre_scores(points, centres)
    assert scores.numpy() == pytest.approx(evaluate.centre_scores(points.numpy(), centres.numpy()))
    weights = confidence(scores).numpy()
    assert weights == pytest.approx(evaluate.confidence(scores.numpy()))
    assert weights.min() > 1 / 6
    assert weights.max() <= 1
    assert confidence(centre_scores(centres * 100, centres * 100)).tolist() == [1.0] * 6


def test_centres_are_the_means_over_all_that_was_shown() -> None:
    centres, batches = Centres(5, 3).double(), [(embeddings(6, 3, n), torch.tensor([0, 4, 4, 1, 0, 4]) // (n + 1)) for n in range(4)]
    for points, labels in batches:
        centres.add(points, labels)
    points, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert centres.counts.flatten().tolist() == torch.bincount(labels, minlength=5).tolist()
    for label in range(5):
        expected = points[labels == label].mean(0) if (labels == label).any() else torch.zeros(3)
        assert centres.means[label].tolist() == pytest.approx(expected.tolist())


def test_phase_embed_finds_the_teachers_centres_and_distill_leaves_them() -> None:
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


def test_parts_of_a_batch_make_the_same_centres() -> None:
    found = []
    for parts in (1, 3):
        world = World.make()
        method = world.method("refilled")
        assert isinstance(method, Refilled)
        world.fit(method, 0, QUICK.model_copy(update={"accumulate": parts}))
        found.append(method.centres)
    assert found[0].counts.tolist() == found[1].counts.tolist()
    assert found[0].means.flatten().tolist() == pytest.approx(found[1].means.flatten().tolist(), abs=1e-5)


def test_a_stopped_embedding_phase_goes_on_to_the_same_student_and_centres(tmp_path: Path) -> None:
    straight, stopped = World.make(), World.make()
    whole = straight.method("refilled")
    long = QUICK.model_copy(update={"epochs": 4})
    straight.fit(whole, 0, long)

    class Stop(Exception):
        pass

    first = stopped.method("refilled")
    plain, shown = first.after_backward, []

    def counted(step: Step, student: Tapped) -> None:
        plain(step, student)
        shown.append(step.epoch)
        if step.epoch == 2:
            raise Stop

    first.after_backward = counted  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("pipeline.train.SAVE_EVERY", -1.0)
        stopped.fit(first, 0, long, state_file=tmp_path / "state")
    again = World.make()
    second = again.method("refilled")
    again.fit(second, 0, long, state_file=tmp_path / "state")
    assert not moved(snapshot(straight.student.net, whole), snapshot(again.student.net, second))


@pytest.mark.slow
def test_processes_share_their_centres(tmp_path: Path) -> None:
    """Two processes of one image each and one of both end with the same centres."""
    points, labels = embeddings(6, 3), torch.tensor([0, 1, 2, 0, 2, 2])
    alone = Centres(3, 3).double()
    alone.add(points, labels)
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_one_of_two, args=(rank, tmp_path, points, labels)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    for rank in range(2):
        means, counts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert counts.tolist() == alone.counts.tolist()
        assert means.flatten().tolist() == pytest.approx(alone.means.flatten().tolist())


def _one_of_two(rank: int, folder: Path, points: Tensor, labels: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    centres = Centres(3, 3).double()
    centres.add(points[rank::2], labels[rank::2])
    torch.save((centres.means, centres.counts), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_embedding_trains_all_but_the_classifier() -> None:
    world = World.make()
    embed, distill = world.method("refilled").phases(world.student)
    trained = {id(p) for module in embed.trains for p in module.parameters()}
    still = {name for name, p in world.student.net.named_parameters() if id(p) not in trained}
    assert {name.rpartition(".")[0] for name in still} == {world.student.classifier}
    assert distill.trains == (world.student.net,)


def test_teacher_and_student_may_know_different_classes() -> None:
    from pipeline import nets

    world = World.make()
    torch.manual_seed(1)
    other = nets.build("resnet14", 7).eval().requires_grad_(False)
    other.get_submodule("fc").register_forward_hook(lambda module, args, output: output * math.nan)  # whoever reads its logits shows it
    world.teacher = Tapped(other, world.step(2).images)
    method = world.method("refilled")
    for n in range(2):
        curves = world.fit(method, n)
        assert np.isfinite(curves["loss"]).all()


def test_the_tuples_of_a_fixed_batch_are_learned() -> None:
    world = World.make()
    method = world.method("refilled")
    cfg = QUICK.model_copy(update={"epochs": 12, "optimizer": "adam", "lr": 0.003, "batch_size": 22})
    losses = world.fit(method, 0, cfg, batches=world.batches(22, augment=None))["tuples"]
    assert losses[-1] < 0.5 * losses[0]

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from world import QUICK, World, moved, snapshot

from pipeline import checkpoint
from pipeline.methods.srm import Dictionary, Kernel, SparseRepresentationMatching, at
from pipeline.taps import Step, View

PAPER: dict[str, Any] = {"centre": False}


def step_of(student: dict[str, Tensor], teacher: dict[str, Tensor], epoch: int = 0, progress: float = 0.0) -> Step:
    size = len(next(iter(student.values())))
    views = [View(torch.zeros(size, 2).double(), stages, torch.zeros(size, 1), {}) for stages in (student, teacher)]
    step = Step.of(student=views[0], teacher=views[1], labels=torch.zeros(size).long(), index=torch.arange(size))
    step.epoch, step.progress = epoch, progress
    return step


def made(student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any) -> tuple[SparseRepresentationMatching, Step]:
    step = step_of(student, teacher)
    method = SparseRepresentationMatching(SparseRepresentationMatching.Config(name="srm", **settings), step, torch.zeros(2))
    for dictionary in (*method.dictionary.values(), *method.student_dictionary.values()):
        assert isinstance(dictionary, Dictionary)
        torch.nn.init.normal_(dictionary.bias)
    return method.double().eval(), step


def maps(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"stage{n}": torch.randn(shape, dtype=torch.float64) for n, shape in enumerate(shapes, start=1)}


def similarity(kernel: str, bias: float, x: list[float], y: list[float]) -> tuple[float, float]:
    """The score and what the kernel makes of it."""
    if kernel == "rbf":
        score = -math.exp(bias) * sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x)
        return score, math.exp(score)
    score = sum(a * b for a, b in zip(x, y, strict=True)) + bias
    return score, score if kernel == "linear" else 1 / (1 + math.exp(-score))


def slow_code(dictionary: Dictionary, x: list[float], kept: int) -> list[float]:
    x = [(a - m) / dictionary.scale.item() for a, m in zip(x, dictionary.mean.tolist(), strict=True)]
    alike = [similarity(dictionary.kernel, dictionary.bias.item(), x, atom)[1] for atom in dictionary.atoms.tolist()]
    best = sorted(range(len(alike)), key=lambda m: -alike[m])[:kept]
    return [k if m in best else 0.0 for m, k in enumerate(alike)]


KERNELS: list[Kernel] = ["sigmoid", "rbf", "linear"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_reconstruction_equals_the_slow_loop(kernel: Kernel) -> None:
    torch.manual_seed(0)
    teacher = maps((2, 3, 2, 2), (2, 4, 1, 2))
    method, step = made(maps((2, 2, 2, 2), (2, 3, 1, 2)), teacher, kernel=kernel, image=False, mu=2.0, sparsity=0.25)
    for dictionary in (at(method.dictionary, stage) for stage in teacher):
        dictionary.mean, dictionary.scale = torch.randn_like(dictionary.mean), torch.tensor(1.7).double()
    loss = method.dictionary_loss(step)
    for stage, found in teacher.items():
        dictionary, errors = at(method.dictionary, stage), []
        kept = {"stage1": 2, "stage2": 2}[stage]  # a quarter of 6 and of 8
        for image in found.permute(0, 2, 3, 1).tolist():
            for x in (x for row in image for x in row):
                code = slow_code(dictionary, x, kept)
                assert sum(k != 0 for k in code) == kept
                for c in range(len(x)):
                    centred = (x[c] - dictionary.mean[c].item()) / dictionary.scale.item()
                    errors.append((centred - sum(k * atom[c] for k, atom in zip(code, dictionary.atoms.tolist(), strict=True))) ** 2)
        assert loss[stage].value.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


@pytest.mark.parametrize("labels_on", ["similarities", "scores"])
@pytest.mark.parametrize(("kernel", "image"), [("sigmoid", True), ("rbf", True), ("linear", False)])
def test_matching_equals_the_slow_loop(kernel: Kernel, image: bool, labels_on: str) -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 2, 2), (2, 3, 1, 2)), maps((2, 3, 2, 2), (2, 4, 1, 2))
    method, step = made(student, teacher, kernel=kernel, image=image, labels_on=labels_on, sparsity=0.25)
    pixel = whole = 0.0
    for stage in student:
        own, other = at(method.student_dictionary, stage), at(method.dictionary, stage)
        losses, crossed = [], []
        for s_image, t_image in zip(student[stage].permute(0, 2, 3, 1).tolist(), teacher[stage].permute(0, 2, 3, 1).tolist(), strict=True):
            codes, alike = [], []
            for s_row, t_row in zip(s_image, t_image, strict=True):
                for s, t in zip(s_row, t_row, strict=True):
                    codes.append(slow_code(other, t, 2))
                    both = [similarity(kernel, own.bias.item(), s, atom) for atom in own.atoms.tolist()]
                    alike.append([k for _, k in both])
                    answers = [score for score, _ in both] if labels_on == "scores" else alike[-1]
                    winner = max((m for m in range(len(answers)) if codes[-1][m]), key=lambda m: codes[-1][m])
                    losses.append(math.log(sum(math.exp(a) for a in answers)) - answers[winner])
            for m in range(len(own.atoms)):
                y, p = (sum(v[m] for v in values) / len(values) for values in (codes, alike))
                crossed.append(-y * math.log(p) - (1 - y) * math.log(1 - p) if image else 0.0)
        pixel += sum(losses) / len(losses)
        whole += sum(crossed) / len(crossed)
    loss = method.match_loss(step)
    assert loss["pixel"].value.item() == pytest.approx(pixel, rel=1e-9)
    assert ("image" in loss) == image
    if image:
        assert loss["image"].value.item() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.005, 1), (0.02, 1), (0.03, 2), (0.5, 32), (1.0, 64)])
def test_a_code_keeps_its_share_of_the_atoms_and_at_least_one(sparsity: float, kept: int) -> None:
    method, step = made(maps((2, 3, 2, 2)), maps((2, 32, 2, 2)), sparsity=sparsity)
    codes, labels, _ = method.targets(step, "stage1", "stage1")
    assert codes.shape == (2, 4, 64)
    assert ((codes > 0).sum(2) == kept).all()
    assert torch.equal(codes.argmax(2), labels)


def test_a_perfect_dictionary_leaves_no_error() -> None:
    teacher = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    teacher[0, :, 0] = 40 * torch.eye(3)
    teacher[1, :, 0] = 40 * torch.eye(3)
    method, step = made(maps((2, 3, 1, 3)), {"stage1": teacher}, mu=1.0)
    with torch.no_grad():
        at(method.dictionary, "stage1").atoms.copy_(40 * torch.eye(3))
        at(method.dictionary, "stage1").bias.zero_()
    assert method.dictionary_loss(step)["stage1"].value.item() == pytest.approx(0, abs=1e-12)
    assert method.health([step.teacher])["stage1"] == (3, 3, pytest.approx(3), pytest.approx(0, abs=1e-12))


def test_a_student_that_is_the_teacher_names_the_same_atoms() -> None:
    torch.manual_seed(0)
    teacher = maps((3, 8, 4, 4))
    method, step = made(teacher, teacher, labels_on="scores")
    before = method.match_loss(step)
    assert method.take_notes()["agreement stage1"] < 0.5
    with torch.no_grad():
        at(method.student_dictionary, "stage1").load_state_dict(at(method.dictionary, "stage1").state_dict())
        at(method.student_dictionary, "stage1").atoms.mul_(50)
    after = method.match_loss(step)
    assert method.take_notes()["agreement stage1"] == 1
    assert after["pixel"].value < before["pixel"].value / 10


def test_switches_leave_terms_out() -> None:
    student, teacher = maps((2, 2, 2, 2)), maps((2, 3, 2, 2))
    for pixel, image, terms in ((True, False, {"pixel"}), (False, True, {"image"}), (True, True, {"pixel", "image"})):
        method, step = made(student, teacher, pixel=pixel, image=image)
        assert set(method.match_loss(step)) == terms


@pytest.mark.parametrize("settings", [PAPER, {"labels_on": "scores"}, {"kernel": "rbf"}])
def test_gradcheck(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    teacher = maps((2, 2, 2, 2), (2, 3, 1, 1))
    method, step = made(maps((2, 2, 1, 2), (2, 2, 2, 2)), teacher, sparsity=0.4, **settings)
    stages = [x.requires_grad_() for x in step.student.stages.values()]

    def match(first: Tensor, second: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(term.value for term in method.match_loss(step_of({"stage1": first, "stage2": second}, teacher)).values())

    def reconstruct(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(term.value for term in method.dictionary_loss(step).values())

    assert torch.autograd.gradcheck(match, (*stages, *method.student_dictionary.parameters()))
    assert torch.autograd.gradcheck(reconstruct, tuple(method.dictionary.parameters()))


def test_where_sizes_differ_codes_and_student_pixels_are_averaged() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 2, 2), (2, 3, 4, 4)), maps((2, 3, 4, 4), (2, 4, 2, 2))
    method, step = made(student, teacher, sparsity=0.3)
    codes, labels, pixels = method.targets(step, "stage1", "stage1")
    for b in range(2):
        block = teacher["stage1"][b, :, 2:, :2].flatten(1).T.tolist()  # what the lower left pixel of the student stands for
        mean = [sum(values) / 4 for values in zip(*(slow_code(at(method.dictionary, "stage1"), x, 2) for x in block), strict=True)]
        assert codes[b, 2].tolist() == pytest.approx(mean)
        assert labels[b, 2].item() == mean.index(max(mean))
    assert torch.equal(pixels[:, 2], student["stage1"][:, :, 1, 0])
    _, _, pixels = method.targets(step, "stage2", "stage2")
    assert torch.allclose(pixels[:, 3], student["stage2"][:, :, 2:, 2:].mean((2, 3)))


@pytest.mark.parametrize("paper", [PAPER, {}])
def test_one_image_of_one_channel_will_do(paper: dict[str, Any]) -> None:
    method, step = made(maps((1, 1, 1, 1)), maps((1, 1, 1, 1)), **paper)
    method.dictionary.train()
    assert method.dictionary_loss(step)["stage1"].value.isfinite()
    assert all(term.value.isfinite() for term in method.match_loss(step).values())


def test_an_rbf_kernel_codes_by_the_nearest_atom() -> None:
    torch.manual_seed(0)
    method, step = made(maps((2, 3, 3, 3)), maps((2, 3, 3, 3)), kernel="rbf", sparsity=0.01)
    _, labels, _ = method.targets(step, "stage1", "stage1")
    pixels = step.teacher.stages["stage1"].permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(labels.flatten(), torch.cdist(pixels, at(method.dictionary, "stage1").atoms).argmin(1))


def test_pixels_are_centred_by_the_first_batch_alone() -> None:
    torch.manual_seed(0)
    teacher = {"stage1": 5 + 3 * torch.randn(8, 4, 6, 6, dtype=torch.float64)}
    method, first = made(maps((8, 2, 6, 6)), teacher)
    dictionary = at(method.dictionary, "stage1")
    method.dictionary_loss(first)
    assert not dictionary.mean.any()  # at rest
    method.dictionary.train()
    method.dictionary_loss(first)
    prepared = dictionary.prepared(teacher["stage1"].permute(0, 2, 3, 1))
    assert torch.allclose(prepared.mean((0, 1, 2)), torch.zeros(4).double(), atol=1e-6)
    assert prepared.square().mean().item() == pytest.approx(1)
    mean = dictionary.mean.clone()
    for epoch in (0, 1):
        method.dictionary_loss(step_of(first.student.stages, {"stage1": teacher["stage1"] + 9}, epoch))
    assert torch.equal(dictionary.mean, mean)


def test_the_papers_form_takes_pixels_as_they_are() -> None:
    method, step = made(maps((2, 2, 2, 2)), {"stage1": 5 + torch.randn(2, 3, 2, 2).double()}, **PAPER)
    method.dictionary.train()
    before = snapshot(method.dictionary)
    method.dictionary_loss(step)
    assert moved(before, snapshot(method.dictionary)) == {"0.stage1.wins"}


def test_dead_atoms_are_put_on_pixels_in_time() -> None:
    torch.manual_seed(0)
    student, teacher = maps((4, 2, 4, 4)), maps((4, 4, 4, 4))
    method, step = made(student, teacher, reseed=2, mu=2.0, sparsity=0.01)
    method.dictionary.train()
    dictionary = at(method.dictionary, "stage1")
    with torch.no_grad():
        dictionary.atoms[3:] = 0  # can't win beside three that point apart
        dictionary.atoms[:3] = torch.tensor([[9.0, 0, 0, 0], [-9, 9, 9, 9], [0, -9, -9, -9]])
    method.dictionary_loss(step)
    dead = dictionary.wins == 0
    assert 0 < int(dead.sum()) < 8
    for epoch, progress, expected in ((1, 0.1, False), (2, 0.6, False), (2, 0.2, True)):
        dictionary.followed = -1
        dictionary.wins.copy_((~dead).long())
        before = dictionary.atoms.clone()
        method.dictionary_loss(step_of(student, teacher, epoch, progress))
        assert torch.equal((dictionary.atoms != before).any(1), dead & expected)
    assert dictionary.wins.sum() == 4 * 16  # of this epoch's one batch
    pixels = dictionary.prepared(teacher["stage1"].permute(0, 2, 3, 1)).flatten(0, 2)
    assert (torch.cdist(dictionary.atoms[dead].detach(), pixels).min(1).values < 1e-6).all()


def test_the_dictionary_heals_once_pixels_are_centred() -> None:
    """What `centre` is for: pixels after an activation share a large mean, and the atom that points along it wins them all."""
    torch.manual_seed(0)
    pixels = (torch.randn(4, 8, 4, 4) + 4).relu()
    used = {}
    for centre in (False, True):
        torch.manual_seed(1)
        step = step_of({"stage1": pixels}, {"stage1": pixels})
        method = SparseRepresentationMatching(SparseRepresentationMatching.Config(name="srm", centre=centre), step, torch.zeros(2))
        optimiser = torch.optim.Adam(method.dictionary.parameters(), 0.02)
        for _ in range(40):
            optimiser.zero_grad()
            method.dictionary_loss(step)["stage1"].value.backward()
            optimiser.step()
        used[centre] = method.health([step.teacher])["stage1"].effective
    assert used[True] > 2 * used[False]


def test_health_over_several_views_is_that_of_all_their_pixels() -> None:
    torch.manual_seed(0)
    teacher = maps((4, 3, 2, 2), (4, 5, 1, 1))
    method, _ = made(maps((4, 2, 2, 2), (4, 2, 1, 1)), teacher, sparsity=0.3)
    halves = [View(torch.zeros(2), {k: v[part] for k, v in teacher.items()}, torch.zeros(2), {}) for part in (slice(0, 1), slice(1, 4))]
    found = method.health(halves)
    assert found.keys() == teacher.keys()
    for stage, health in found.items():
        pixels = teacher[stage].permute(0, 2, 3, 1).flatten(0, 2)
        dictionary = at(method.dictionary, stage)
        wins = [0] * len(dictionary.atoms)
        missed = 0.0
        for x in pixels.tolist():
            code = slow_code(dictionary, x, method.kept[stage])
            wins[code.index(max(code))] += 1
            back = [sum(k * atom[c] for k, atom in zip(code, dictionary.atoms.tolist(), strict=True)) for c in range(len(x))]
            missed += sum((a - b) ** 2 for a, b in zip(x, back, strict=True))
        shares = [n / sum(wins) for n in wins if n]
        assert (health.atoms, health.used) == (len(wins), len(shares))
        assert health.effective == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)
        assert health.error == pytest.approx(missed / (pixels - pixels.mean(0)).square().sum().item(), rel=1e-9)


def test_the_dictionary_phase_reads_the_teacher_alone() -> None:
    world = World.make()
    method = world.method("srm")
    step = world.step()
    world.student.net.register_forward_hook(lambda *_: pytest.fail("the student ran"))
    phase = method.phases(world.student)[0]
    assert phase.of_teacher
    assert set(phase.loss(step)) == {"stage1", "stage2", "stage3"}


def test_a_learned_dictionary_fits_any_student(tmp_path: Path) -> None:
    world = World.make()
    method = world.method("srm", reseed=1)
    world.fit(method, 0)
    file = tmp_path / "dictionary.safetensors"
    checkpoint.save_weights(file, {name: t for name, t in method.state_dict().items() if name.startswith("dictionary.")})
    other = World.make(student="vgg8", teacher="resnet14")
    heir = other.method("srm", student_stages=("stage2", "stage3"), teacher_stages=("stage2", "stage3"))
    with pytest.raises(RuntimeError, match="student_dictionary"):
        heir.load_state_dict(checkpoint.load_weights(file))
    heir = other.method("srm")
    heir.load_state_dict(checkpoint.load_weights(file), strict=False)
    assert isinstance(heir, SparseRepresentationMatching)
    assert isinstance(method, SparseRepresentationMatching)
    assert not moved(snapshot(method.dictionary), snapshot(heir.dictionary))
    assert heir.health([world.step().teacher]) == method.health([world.step().teacher])


def test_a_phase_that_was_stopped_goes_on_with_the_same_dictionary(tmp_path: Path) -> None:
    cfg = QUICK.model_copy(update={"epochs": 6})

    def trained(stop: bool) -> dict[str, Tensor]:
        world = World.make()
        method = world.method("srm", reseed=1)
        if stop:
            batches = world.batches(cfg.batch_size)
            epochs = batches.epoch
            batches.epoch = lambda n: epochs(n) if n < 2 else pytest.fail("stopped")  # type: ignore[method-assign]
            with pytest.MonkeyPatch.context() as patch, pytest.raises(pytest.fail.Exception):
                patch.setattr("pipeline.train.SAVE_EVERY", 0.0)
                world.fit(method, 0, cfg, batches=batches, state_file=tmp_path / "state")
            world = World.make(seed=1)  # a new process
            world.teacher = World.make().teacher
            method = world.method("srm", reseed=1)
            assert (tmp_path / "state").exists()
        world.fit(method, 0, cfg, state_file=tmp_path / "state" if stop else None)
        assert isinstance(method, SparseRepresentationMatching)
        return snapshot(method.dictionary)

    assert not moved(trained(False), trained(True))


def test_numbers_of_the_dictionary_are_in_the_curves() -> None:
    world = World.make()
    method = world.method("srm")
    curves = world.fit(method, 0)
    assert 0 < curves["note/used stage3"][-1] <= 1
    assert curves["note/error stage3"][-1] > 0
    assert 0 <= world.fit(method, 1)["note/agreement stage3"][-1] <= 1


def test_matching_trains_no_layer_beyond_its_stages() -> None:
    world = World.make()
    method = world.method("srm", student_stages=("stage1",), teacher_stages=("stage2",))
    trained = {id(p) for module in method.phases(world.student)[1].trains for p in module.parameters()}
    named = dict(world.student.net.named_parameters())
    assert {name.split(".")[0] for name in named if id(named[name]) in trained} == {"stem", "stage1"}


def test_a_stage_may_have_a_dot_in_its_name() -> None:
    student, teacher = {"layer.1": torch.randn(2, 2, 2, 2).double()}, {"layer.2": torch.randn(2, 3, 2, 2).double()}
    method, step = made(student, teacher)
    assert set(method.dictionary_loss(step)) == {"layer.2"}
    assert set(method.match_loss(step)) == {"pixel", "image"}


def test_settings_that_cannot_be_are_refused() -> None:
    world = World.make()
    for settings, told in (
        ({"student_stages": ("stage9",)}, r"method\.student_stages: there is no 'stage9'. Did you mean 'stage3'.*stem"),
        ({"teacher_stages": ("stag2",)}, r"method\.teacher_stages: there is no 'stag2'. Did you mean 'stage2'"),
        ({"pixel": False, "image": False}, r"method\.pixel and method\.image are both false"),
        ({"kernel": "linear"}, r"method\.image needs similarities.*method\.image to false"),
        ({"kernel": "cosine"}, "'sigmoid', 'rbf' or 'linear'"),
        ({"sparsity": 0}, "sparsity"),
    ):
        with pytest.raises(ValueError, match=told):
            world.method("srm", **settings)

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from world import QUICK, World, maps, method_on_maps, moved, noise, snapshot, step_of_maps

from pipeline import checkpoint
from pipeline.methods.srm import (
    Config,
    Dictionary,
    Health,
    Kernel,
    SparseRepresentationMatching,
    dictionary_of,
)
from pipeline.taps.answer import Answer, Frozen
from pipeline.taps.step import Step
from pipeline.taps.tapped import Tapped

PAPERS_FORM: dict[str, Any] = {"centre": False}


def made(
    student: dict[str, Tensor], teacher: dict[str, Tensor], **settings: Any
) -> tuple[SparseRepresentationMatching, Step]:
    method, step = method_on_maps(SparseRepresentationMatching, student, teacher, **settings)
    for dictionary in (*method.dictionary.values(), *method.student_dictionary.values()):
        assert isinstance(dictionary, Dictionary)
        torch.nn.init.normal_(dictionary.bias)
    return method.eval(), step


def similarity(kernel: str, bias: float, x: list[float], y: list[float]) -> tuple[float, float]:
    """The score, and the similarity that the kernel makes of it."""
    if kernel == "rbf":
        score = -math.exp(bias) * sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x)
        return score, math.exp(score)
    score = sum(a * b for a, b in zip(x, y, strict=True)) + bias
    return score, score if kernel == "linear" else 1 / (1 + math.exp(-score))


def slow_prepared(dictionary: Dictionary, x: list[float]) -> list[float]:
    return [(a - m) / dictionary.scale.item() for a, m in zip(x, dictionary.mean.tolist(), strict=True)]


def slow_code(dictionary: Dictionary, x: list[float], size: int) -> list[float]:
    prepared, bias = slow_prepared(dictionary, x), dictionary.bias.item()
    atoms = dictionary.atoms.tolist()
    similarities = [similarity(dictionary.kernel, bias, prepared, atom)[1] for atom in atoms]
    best = sorted(range(len(atoms)), key=lambda m: -similarities[m])[:size]
    return [k if m in best else 0.0 for m, k in enumerate(similarities)]


def slow_reconstruction(dictionary: Dictionary, code: list[float]) -> list[float]:
    channels = zip(*dictionary.atoms.tolist(), strict=True)
    return [sum(k * value for k, value in zip(code, atoms, strict=True)) for atoms in channels]


KERNELS: list[Kernel] = ["sigmoid", "rbf", "linear"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_reconstruction_equals_the_slow_loop(kernel: Kernel) -> None:
    torch.manual_seed(0)
    teacher = maps((2, 3, 2, 2), (2, 4, 1, 2))
    method, step = made(
        maps((2, 2, 2, 2), (2, 3, 1, 2)), teacher, kernel=kernel, image=False, mu=2.0, sparsity=0.34
    )
    for dictionary in (dictionary_of(method.dictionary, name) for name in teacher):
        dictionary.mean, dictionary.scale = torch.randn_like(dictionary.mean), torch.tensor(1.7).double()
    loss = method.dictionary_loss(step)
    for name, teacher_map in teacher.items():
        dictionary, errors = dictionary_of(method.dictionary, name), []
        for image in teacher_map.permute(0, 2, 3, 1).tolist():
            for x in (x for row in image for x in row):
                code = slow_code(dictionary, x, 2)  # a third of 6 and of 8 atoms
                assert sum(k != 0 for k in code) == 2
                target, back = slow_prepared(dictionary, x), slow_reconstruction(dictionary, code)
                errors += [(p - q) ** 2 for p, q in zip(target, back, strict=True)]
        assert loss[name].value.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


@pytest.mark.parametrize("labels_on", ["similarities", "scores"])
@pytest.mark.parametrize(("kernel", "image"), [("sigmoid", True), ("rbf", True), ("linear", False)])
def test_the_loss_of_phase_match_equals_the_slow_loop(kernel: Kernel, image: bool, labels_on: str) -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 2, 2), (2, 3, 1, 2)), maps((2, 3, 2, 2), (2, 4, 1, 2))
    method, step = made(student, teacher, kernel=kernel, image=image, labels_on=labels_on, sparsity=0.34)
    expected_pixel = expected_image = 0.0
    for name in student:
        of_student = dictionary_of(method.student_dictionary, name)
        of_teacher = dictionary_of(method.dictionary, name)
        by_pixel, by_image = [], []
        for s_image, t_image in zip(
            student[name].permute(0, 2, 3, 1).tolist(),
            teacher[name].permute(0, 2, 3, 1).tolist(),
            strict=True,
        ):
            codes, similarities = [], []
            for s_row, t_row in zip(s_image, t_image, strict=True):
                for s, t in zip(s_row, t_row, strict=True):
                    code = slow_code(of_teacher, t, 2)
                    bias, atoms = of_student.bias.item(), of_student.atoms.tolist()
                    scores, alike = zip(*(similarity(kernel, bias, s, atom) for atom in atoms), strict=True)
                    logits = scores if labels_on == "scores" else alike
                    winner = max((m for m in range(len(code)) if code[m]), key=code.__getitem__)
                    by_pixel.append(math.log(sum(math.exp(z) for z in logits)) - logits[winner])
                    codes.append(code)
                    similarities.append(alike)
            for m in range(len(of_student.atoms)):
                y = sum(code[m] for code in codes) / len(codes)
                p = sum(alike[m] for alike in similarities) / len(similarities)
                by_image.append(-y * math.log(p) - (1 - y) * math.log(1 - p) if image else 0.0)
        expected_pixel += sum(by_pixel) / len(by_pixel)
        expected_image += sum(by_image) / len(by_image)
    loss = method.match_loss(step)
    assert loss["pixel"].value.item() == pytest.approx(expected_pixel, rel=1e-9)
    assert ("image" in loss) == image
    if image:
        assert loss["image"].value.item() == pytest.approx(expected_image, rel=1e-9)


def test_the_defaults_are_those_of_the_paper() -> None:
    """Appendix B: lambda .02, mu 2, tau 4 (or 8), alpha .75 (or .5), which weighs KD."""
    cfg = Config(name="srm")
    assert (cfg.sparsity, cfg.mu, cfg.temperature) == (0.02, 2, 4)
    assert (cfg.ce_weight, cfg.kd_weight) == (0.25, 0.75)
    assert (cfg.kernel, cfg.pixel, cfg.image, cfg.labels_on, cfg.reseed) == (
        "sigmoid",
        True,
        True,
        "similarities",
        0,
    )


@pytest.mark.parametrize(
    ("width", "sparsity", "size"),
    [
        # transitions and last block of the DenseNet-121 of the paper's CIFAR-100 tables: k 5, 10 and 40
        *((128, 0.02, 5), (256, 0.02, 10), (1024, 0.02, 40)),
        (64, 0.03, 3),  # 3.84
        (50, 0.29, 29),  # 28.999999999999996 in floating point
    ],
)
def test_k_is_rounded_down(width: int, sparsity: float, size: int) -> None:
    method, _ = made(maps((1, 2, 1, 1)), maps((1, width, 1, 1)), sparsity=sparsity)
    assert method.code_sizes == {"stage1": size}


@pytest.mark.parametrize(("sparsity", "size"), [(0.005, 1), (0.02, 1), (0.03, 1), (0.5, 32), (1.0, 64)])
def test_a_code_uses_its_share_of_the_atoms_and_at_least_one(sparsity: float, size: int) -> None:
    method, step = made(maps((2, 3, 2, 2)), maps((2, 32, 2, 2)), sparsity=sparsity)
    codes, labels = method.codes(step.teacher, "stage1", torch.Size((2, 2)))
    assert codes.shape == (2, 4, 64)
    assert ((codes > 0).sum(2) == size).all()
    assert torch.equal(codes.argmax(2), labels)


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf"])
def test_atoms_are_told_apart_where_similarities_in_float32_are_not(kernel: Kernel) -> None:
    """Each of the three largest scores has the similarity 1 or 0 in float32."""
    dictionary = Dictionary(1, 4, kernel)
    scores = {"sigmoid": [30.0, 50.0, 10.0, 40.0], "rbf": [-300.0, -200.0, -900.0, -250.0]}[kernel]
    with torch.no_grad():
        atoms = torch.tensor(scores)[:, None]
        dictionary.atoms.copy_(atoms if kernel == "sigmoid" else (-atoms).sqrt())
        code, winners = dictionary.code(torch.full((1, 1, 1), 1.0 if kernel == "sigmoid" else 0.0), 2)
    kept = dictionary.similarities(torch.tensor([50.0, 40.0] if kernel == "sigmoid" else [-200.0, -250.0]))
    assert kept[0] == kept[1]  # so the order can only come from the scores
    assert winners.item() == 1
    assert code[0, 0].tolist() == [0, kept[0].item(), 0, kept[1].item()]


def test_maps_before_the_activation_are_used_with_preactivation() -> None:
    """By every phase and by the health of the dictionaries, where a map ends in an activation."""
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 2, 2), (2, 3, 1, 2)), maps((2, 3, 2, 2), (2, 4, 1, 2))
    method, plain = made(student, teacher, preactivation=True, sparsity=0.3)
    others = step_of_maps(maps((2, 2, 2, 2), (2, 3, 1, 2)), maps((2, 3, 2, 2), (2, 4, 1, 2)))
    first, second = (
        Answer(a.logits, {**b.maps, "stage2": a.maps["stage2"]}, a.pooled, {"stage1": a.maps["stage1"]})
        for a, b in ((plain.student, others.student), (plain.teacher, others.teacher))
    )
    mixed = Step.of(student=first, teacher=second, labels=plain.labels, index=plain.index)
    assert not torch.equal(second.maps["stage1"], plain.teacher.maps["stage1"])
    for phase in (method.dictionary_loss, method.match_loss):
        values, expected = (
            {name: w.value.item() for name, w in phase(step).items()} for step in (mixed, plain)
        )
        assert values == expected
    assert method.health([mixed.teacher]) == method.health([plain.teacher])
    without, _ = made(student, teacher, sparsity=0.3)
    without.load_state_dict(method.state_dict())
    assert without.match_loss(mixed)["pixel"].value != without.match_loss(plain)["pixel"].value


def test_stored_codes_are_told_apart_by_all_that_decides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored of a teacher is found again by these settings."""
    asked: list[Frozen] = []

    def note(answer: Answer, frozen: Frozen) -> torch.Tensor:
        asked.append(frozen)
        return frozen.compute(answer)

    monkeypatch.setattr(Answer, "made_by", note)
    others: list[dict[str, Any]] = [{}, {"preactivation": True}, {"sparsity": 0.9}]
    for settings in others:
        method, step = made(maps((2, 2, 4, 2)), maps((2, 3, 4, 2)), **settings)
        method.match_loss(step)
    method, step = made(maps((2, 2, 2, 2)), maps((2, 3, 4, 2)))
    method.match_loss(step)
    assert {frozen.name for frozen in asked} == {"codes stage1"}
    assert len({frozen.settings for frozen in asked}) == len(asked) == 4


def test_a_layer_that_pools_can_be_tapped_for_a_map_of_one_pixel() -> None:
    taps = {"stage3": "stage3.0.relu2", "pooled map": "pool"}
    world = World.make(teacher="resnet8")
    images = world.step().images
    student, teacher = (Tapped(each.net, images[:2], taps=taps) for each in (world.student, world.teacher))
    assert student(images).maps["pooled map"].shape == (8, 64, 1, 1)
    world.student, world.teacher = student, teacher
    method = world.method("srm", preactivation=True)
    assert set(method.phases(student)[0].loss(world.step())) == {"stage3", "pooled map"}
    before = snapshot(student.net)
    world.fit(method, 1)
    still = {name for name in before if "num_batches" not in name} - moved(before, snapshot(student.net))
    assert still == {"0.fc.weight", "0.fc.bias"}


def test_a_perfect_dictionary_has_no_error() -> None:
    teacher = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    teacher[0, :, 0] = 40 * torch.eye(3)
    teacher[1, :, 0] = 40 * torch.eye(3)
    method, step = made(maps((2, 3, 1, 3)), {"stage1": teacher}, mu=1.0)
    dictionary = dictionary_of(method.dictionary, "stage1")
    with torch.no_grad():
        dictionary.atoms.copy_(40 * torch.eye(3))
        dictionary.bias.zero_()
    assert method.dictionary_loss(step)["stage1"].value.item() == pytest.approx(0, abs=1e-12)
    health = method.health([step.teacher])["stage1"]
    assert health == Health(3, 3, health.effective, health.error, [2, 2, 2])
    assert health.effective == pytest.approx(3)
    assert health.error == pytest.approx(0, abs=1e-12)


def test_a_student_that_is_the_teacher_has_the_same_winning_atoms() -> None:
    torch.manual_seed(0)
    teacher = maps((3, 8, 4, 4))
    method, step = made(teacher, teacher, labels_on="scores")
    before = method.match_loss(step)
    assert method.take_notes()["agreement stage1"] < 0.5
    dictionary = dictionary_of(method.student_dictionary, "stage1")
    with torch.no_grad():
        dictionary.load_state_dict(dictionary_of(method.dictionary, "stage1").state_dict())
        dictionary.atoms.mul_(50)
    after = method.match_loss(step)
    assert method.take_notes()["agreement stage1"] == 1
    assert after["pixel"].value < before["pixel"].value / 10


def test_the_settings_pixel_and_image_choose_the_terms() -> None:
    student, teacher = maps((2, 2, 2, 2)), maps((2, 3, 2, 2))
    for pixel, image, terms in (
        (True, False, {"pixel"}),
        (False, True, {"image"}),
        (True, True, {"pixel", "image"}),
    ):
        method, step = made(student, teacher, pixel=pixel, image=image)
        assert set(method.match_loss(step)) == terms


@pytest.mark.parametrize("settings", [PAPERS_FORM, {"labels_on": "scores"}, {"kernel": "rbf"}])
def test_the_gradient_equals_finite_differences(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    teacher = maps((2, 2, 2, 2), (2, 3, 1, 1))
    method, step = made(maps((2, 2, 1, 2), (2, 2, 2, 2)), teacher, sparsity=0.4, **settings)
    inputs = [x.requires_grad_() for x in step.student.maps.values()]

    def match(first: Tensor, second: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        changed = step_of_maps({"stage1": first, "stage2": second}, teacher)
        return tuple(term.value for term in method.match_loss(changed).values())

    def reconstruct(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(term.value for term in method.dictionary_loss(step).values())

    assert torch.autograd.gradcheck(match, (*inputs, *method.student_dictionary.parameters()))
    assert torch.autograd.gradcheck(reconstruct, tuple(method.dictionary.parameters()))


def test_codes_and_pixels_of_the_student_are_averaged_if_sizes_differ() -> None:
    torch.manual_seed(0)
    student, teacher = maps((2, 2, 2, 2), (2, 3, 4, 4)), maps((2, 3, 4, 4), (2, 4, 2, 2))
    method, step = made(student, teacher, sparsity=0.34)
    codes, labels = method.codes(step.teacher, "stage1", torch.Size((2, 2)))
    winners, means, pixels = method.targets(step, "stage1", "stage1")
    assert torch.equal(winners, labels)
    assert torch.equal(means, codes.mean(1))
    for b in range(2):
        # these four pixels of the teacher are averaged to one at the lower left
        block = teacher["stage1"][b, :, 2:, :2].flatten(1).T.tolist()
        four_codes = (slow_code(dictionary_of(method.dictionary, "stage1"), x, 2) for x in block)
        mean = [sum(values) / 4 for values in zip(*four_codes, strict=True)]
        assert codes[b, 2].tolist() == pytest.approx(mean)
        assert labels[b, 2].item() == mean.index(max(mean))
    assert torch.equal(pixels[:, 2], student["stage1"][:, :, 1, 0])
    _, _, pixels = method.targets(step, "stage2", "stage2")
    assert torch.allclose(pixels[:, 3], student["stage2"][:, :, 2:, 2:].mean((2, 3)))


@pytest.mark.parametrize("settings", [PAPERS_FORM, {}])
def test_one_image_of_one_channel_is_enough(settings: dict[str, Any]) -> None:
    method, step = made(maps((1, 1, 1, 1)), maps((1, 1, 1, 1)), **settings)
    method.dictionary.train()
    assert method.dictionary_loss(step)["stage1"].value.isfinite()
    assert all(term.value.isfinite() for term in method.match_loss(step).values())


def test_the_nearest_atom_wins_with_the_rbf_kernel() -> None:
    torch.manual_seed(0)
    method, step = made(maps((2, 3, 3, 3)), maps((2, 3, 3, 3)), kernel="rbf", sparsity=0.01)
    labels, _, _ = method.targets(step, "stage1", "stage1")
    pixels = step.teacher.maps["stage1"].permute(0, 2, 3, 1).flatten(0, 2)
    atoms = dictionary_of(method.dictionary, "stage1").atoms
    assert torch.equal(labels.flatten(), torch.cdist(pixels, atoms).argmin(1))


def test_pixels_are_centred_by_the_first_batch() -> None:
    torch.manual_seed(0)
    teacher = {"stage1": 5 + 3 * torch.randn(8, 4, 6, 6, dtype=torch.float64)}
    method, first = made(maps((8, 2, 6, 6)), teacher)
    dictionary = dictionary_of(method.dictionary, "stage1")
    method.dictionary_loss(first)
    assert not dictionary.mean.any()  # in eval mode nothing changes
    method.dictionary.train()
    method.dictionary_loss(first)
    prepared = dictionary.prepared(teacher["stage1"].permute(0, 2, 3, 1))
    assert torch.allclose(prepared.mean((0, 1, 2)), torch.zeros(4).double(), atol=1e-6)
    assert prepared.square().mean().item() == pytest.approx(1)
    mean = dictionary.mean.clone()
    for epoch in (0, 1):
        method.dictionary_loss(
            step_of_maps(
                dict(first.student.maps), {"stage1": teacher["stage1"] + 9}, epoch, starts_epoch=epoch > 0
            )
        )
    assert torch.equal(dictionary.mean, mean)


def test_the_form_of_the_paper_does_not_change_pixels() -> None:
    method, step = made(maps((2, 2, 2, 2)), {"stage1": 5 + noise(2, 3, 2, 2)}, **PAPERS_FORM)
    method.dictionary.train()
    before = snapshot(method.dictionary)
    method.dictionary_loss(step)
    assert moved(before, snapshot(method.dictionary)) == {"0.stage1.wins"}


def test_dead_atoms_are_moved_to_pixels_in_the_first_half_of_the_phase() -> None:
    torch.manual_seed(0)
    student, teacher = maps((4, 2, 4, 4)), maps((4, 4, 4, 4))
    method, step = made(student, teacher, reseed=2, mu=2.0, sparsity=0.01)
    method.dictionary.train()
    dictionary = dictionary_of(method.dictionary, "stage1")
    with torch.no_grad():
        dictionary.atoms[3:] = 0  # they cannot win, because the others have larger products with all pixels
        dictionary.atoms[:3] = torch.tensor([[9.0, 0, 0, 0], [-9, 9, 9, 9], [0, -9, -9, -9]])
    method.dictionary_loss(step)
    dead = dictionary.wins == 0
    assert 0 < int(dead.sum()) < 8
    for epoch, progress, expected in ((1, 0.1, False), (2, 0.6, False), (2, 0.2, True)):
        dictionary.wins.copy_((~dead).long())
        before = dictionary.atoms.clone()
        later = step_of_maps(student, teacher, epoch)
        later.progress = progress
        method.dictionary_loss(later)
        assert torch.equal((dictionary.atoms != before).any(1), dead & expected)
    assert dictionary.wins.sum() == 4 * 16  # the pixels of the one batch of this epoch
    pixels = dictionary.prepared(teacher["stage1"].permute(0, 2, 3, 1)).flatten(0, 2)
    assert (torch.cdist(dictionary.atoms[dead].detach(), pixels).min(1).values < 1e-6).all()


def test_more_atoms_win_pixels_if_the_pixels_are_centred() -> None:
    """Pixels after an activation share a large mean. The atom that points along it wins most of them."""
    torch.manual_seed(0)
    pixels = (torch.randn(4, 8, 4, 4) + 4).relu()
    used = {}
    for centre in (False, True):
        torch.manual_seed(1)
        step = step_of_maps({"stage1": pixels}, {"stage1": pixels})
        method = SparseRepresentationMatching(Config(name="srm", centre=centre), step, torch.zeros(2))
        optimizer = torch.optim.Adam(method.dictionary.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            torch.autograd.backward(method.dictionary_loss(step)["stage1"].value)
            optimizer.step()
        used[centre] = method.health([step.teacher])["stage1"].effective
    assert used[True] > 2 * used[False]


def test_health_counts_the_pixels_of_all_answers() -> None:
    torch.manual_seed(0)
    teacher = maps((4, 3, 2, 2), (4, 5, 1, 1))
    method, _ = made(maps((4, 2, 2, 2), (4, 2, 1, 1)), teacher, sparsity=0.3)
    halves = [
        Answer(torch.zeros(2), {k: v[part] for k, v in teacher.items()}, torch.zeros(2), {})
        for part in (slice(0, 1), slice(1, 4))
    ]
    by_map = method.health(halves)
    assert by_map.keys() == teacher.keys()
    for name, health in by_map.items():
        pixels = teacher[name].permute(0, 2, 3, 1).flatten(0, 2)
        dictionary = dictionary_of(method.dictionary, name)
        wins = [0] * len(dictionary.atoms)
        missed = 0.0
        for x in pixels.tolist():
            code = slow_code(dictionary, x, method.code_sizes[name])
            wins[code.index(max(code))] += 1
            back = slow_reconstruction(dictionary, code)
            missed += sum((a - b) ** 2 for a, b in zip(x, back, strict=True))
        shares = [n / sum(wins) for n in wins if n]
        assert (health.atoms, health.used, health.wins) == (len(wins), len(shares), wins)
        assert health.effective == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)
        assert health.error == pytest.approx(
            missed / (pixels - pixels.mean(0)).square().sum().item(), rel=1e-9
        )


def test_phase_dictionary_never_runs_the_student() -> None:
    world = World.make()
    method = world.method("srm")
    step = world.step()
    phase = method.phases(world.student)[0]
    world.student.net.register_forward_hook(lambda *_: pytest.fail("the student ran"))
    assert phase.of_teacher
    assert set(phase.loss(step)) == {"stage1", "stage2", "stage3"}


def test_the_dictionaries_of_a_teacher_fit_any_student(tmp_path: Path) -> None:
    world = World.make()
    method = world.method("srm", reseed=1)
    world.fit(method, 0)
    file = tmp_path / "dictionary.safetensors"
    checkpoint.save_weights(
        file, {name: t for name, t in method.state_dict().items() if name.startswith("dictionary.")}
    )
    other = World.make(student="vgg8", teacher="resnet14")
    another = other.method("srm", student_maps=("stage2", "stage3"), teacher_maps=("stage2", "stage3"))
    with pytest.raises(RuntimeError, match="student_dictionary"):
        another.load_state_dict(checkpoint.load_weights(file))
    another = other.method("srm")
    another.load_state_dict(checkpoint.load_weights(file), strict=False)
    assert isinstance(another, SparseRepresentationMatching)
    assert isinstance(method, SparseRepresentationMatching)
    assert not moved(snapshot(method.dictionary), snapshot(another.dictionary))
    assert another.health([world.step().teacher]) == method.health([world.step().teacher])


def test_a_stopped_phase_dictionary_continues_to_the_same_dictionaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, file = QUICK.model_copy(update={"epochs": 6}), tmp_path / "state"
    whole = World.make()
    method = whole.method("srm", reseed=1)
    whole.fit(method, 0, cfg)

    stopped = World.make()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(stopped.method("srm", reseed=1), 0, cfg, stop=(2, 1), state_file=file)
    assert file.exists()

    continued = World.make(seed=1)  # another student, as if in a new process: all must come from the file
    continued.teacher = World.make().teacher
    other = continued.method("srm", reseed=1)
    continued.fit(other, 0, cfg, state_file=file)
    assert isinstance(method, SparseRepresentationMatching)
    assert isinstance(other, SparseRepresentationMatching)
    assert not moved(snapshot(method.dictionary), snapshot(other.dictionary))


def test_the_notes_of_the_dictionaries_are_in_the_curves() -> None:
    world = World.make()
    method = world.method("srm")
    curves = world.fit(method, 0)
    assert 0 < curves["note/used stage3"][-1] <= 1
    assert curves["note/error stage3"][-1] > 0
    assert 0 <= world.fit(method, 1)["note/agreement stage3"][-1] <= 1


def test_phase_match_trains_no_layer_after_its_last_map() -> None:
    world = World.make()
    method = world.method("srm", student_maps=("stage1",), teacher_maps=("stage2",))
    trained = {id(p) for module in method.phases(world.student)[1].trains for p in module.parameters()}
    named = dict(world.student.net.named_parameters())
    assert {name.split(".")[0] for name in named if id(named[name]) in trained} == {"stem", "stage1"}


def test_the_name_of_a_map_may_have_a_dot() -> None:
    method, step = made({"layer.1": noise(2, 2, 2, 2)}, {"layer.2": noise(2, 3, 2, 2)})
    assert set(method.dictionary_loss(step)) == {"layer.2"}
    assert set(method.match_loss(step)) == {"pixel", "image"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel": False, "image": False}, r"method\.pixel and method\.image are both false"),
        ({"kernel": "linear"}, r"method\.image needs similarities.*method\.image to false"),
        ({"kernel": "cosine"}, "'sigmoid', 'rbf' or 'linear'"),
        ({"sparsity": 0}, "sparsity"),
    ],
)
def test_illegal_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World.make().method("srm", **settings)

"""What every method must do, whatever it computes."""

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from owning import HEAD, owning, up_to
from torch import Tensor
from world import CLASSES, QUICK, World, moved, snapshot

from pipeline import checkpoint, methods
from pipeline.methods import Method
from pipeline.methods.kd import Config, KnowledgeDistillation
from pipeline.params import load_params
from pipeline.taps.step import Labelled, Step
from pipeline.training.loop import set_trainable

ROOT = Path(__file__).parents[2]
Settings = dict[str, Any]
VARIANTS: list[tuple[str, Settings]] = [(name, {}) for name in methods.names()] + [
    ("fitnet", {"joint": True}),
    ("kd", {"ce_weight": 0.0}),
    ("kd", {"standardise": True}),
    ("knowledge_representing", {"sparse": False, "weight_penalty": "l1"}),
    ("knowledge_representing", {"alternate": True}),
    ("knowledge_representing", {"combine": {"name": "kdgan"}}),
    ("refilled", {"score": "squared", "tuple_distances": "normalised"}),
    ("at", {"combine": {"name": "crd"}}),
    ("fitnet", {"combine": {"name": "fsp"}}),
    ("vid", {"combine": {"name": "jacobian"}}),
]
every_method = pytest.mark.parametrize(
    ("name", "settings"),
    VARIANTS,
    ids=lambda v: v if isinstance(v, str) else v.get("combine", {}).get("name") or ",".join(v) or "default",
)
START_IN_AN_EPOCH = ("dictionary",)  # phases that find something at the first step of an epoch
FIELDS = ("student_maps", "teacher_maps", "student_map", "teacher_map")
OF_MAPS = [
    (name, field)
    for name in methods.names()
    for field in FIELDS
    if field in methods.load(name).Config.model_fields
]


@every_method
def test_phases_have_different_names_and_the_last_is_distill(name: str, settings: Settings) -> None:
    world = World.make()
    phases = [phase.name for phase in world.method(name, **settings).phases(world.student)]
    assert phases[-1] == "distill"
    assert len(set(phases)) == len(phases)


@every_method
def test_terms_are_finite_scalars_with_a_gradient(name: str, settings: Settings) -> None:
    world = World.make()
    method = world.method(name, **settings)
    for phase in method.phases(world.student):
        for term, (value, weight) in phase.loss(world.step()).items():
            assert value.shape == (), term
            assert value.isfinite(), term
            assert weight > 0, term
            assert value.requires_grad, term


@every_method
@pytest.mark.parametrize("labelled", [8, 6])
def test_no_step_outlives_its_turn(name: str, settings: Settings, labelled: int) -> None:
    """It has the memory of a batch. In a circle it would keep it until Python looks for circles."""
    world = World.make()
    method = world.method(name, **settings)
    for phase in method.phases(world.student):
        set_trainable(phase, world.student, method)
        step = world.step()
        if labelled < 8:
            step = dataclasses.replace(step, labelled=Labelled(torch.arange(labelled), labelled / 8))
        left = weakref.ref(step)
        gc.disable()
        try:
            total = torch.stack([term.weight * term.value for term in phase.loss(step).values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            method.after_backward(step, world.student)
            method.take_notes()
            del step, total
            assert left() is None, phase.name
        finally:
            gc.enable()


@every_method
def test_a_phase_trains_all_that_it_names_and_nothing_else(name: str, settings: Settings) -> None:
    world = World.make()
    method = world.method(name, **settings)
    teacher = snapshot(world.teacher.net)
    trainable = {name for name, _ in _parameters(world, method)}
    trained: set[str] = set()
    for n, phase in enumerate(method.phases(world.student)):
        inside = {id(t) for module in phase.trains for t in (*module.parameters(), *module.buffers())}
        named = {
            f"{k}.{key}"
            for k, m in enumerate((world.student.net, method))
            for key, t in m.state_dict(keep_vars=True).items()
            if id(t) in inside
        }
        before = snapshot(world.student.net, method)
        world.fit(method, n)
        changed = moved(before, snapshot(world.student.net, method))
        unmoved = sorted(named & trainable - changed)
        assert changed <= named, f"{phase.name} also changes {sorted(changed - named)[:5]}"
        assert not unmoved, f"{phase.name} does not change {unmoved[:5]}"
        trained |= changed
    assert trainable <= trained
    assert not moved(teacher, snapshot(world.teacher.net))


def _parameters(world: World, method: Method[Any]) -> list[tuple[str, Tensor]]:
    return [
        (f"{k}.{key}", p)
        for k, module in enumerate((world.student.net, method))
        for key, p in module.named_parameters()
    ]


@every_method
def test_a_new_process_goes_on_to_the_same_student(name: str, settings: Settings, tmp_path: Path) -> None:
    whole = World.make()
    method = whole.method(name, **settings)
    for n in range(len(method.phases(whole.student))):
        whole.fit(method, n)

    first = World.make()
    method = first.method(name, **settings)
    for n in range(len(method.phases(first.student)) - 1):
        first.fit(method, n)
    checkpoint.save_network(tmp_path, first.student.net.state_dict(), {})
    checkpoint.save_weights(tmp_path / "method.safetensors", method.state_dict())

    second = World.make()
    method = second.method(name, **settings)
    second.student.net.load_state_dict(checkpoint.load_network_weights(tmp_path))
    method.load_state_dict(checkpoint.load_weights(tmp_path / "method.safetensors"))
    second.fit(method)
    assert not moved(snapshot(whole.student.net), snapshot(second.student.net))


@every_method
def test_a_phase_stopped_inside_an_epoch_goes_on_to_the_same_student(
    name: str, settings: Settings, tmp_path: Path
) -> None:
    """Each phase of the second training is stopped at a step, and goes on in a world that knows nothing."""
    whole = World.make()
    method, cfg = whole.method(name, **settings), QUICK.model_copy(update={"accumulate": 2})
    other = World.make()
    own = other.method(name, **settings)
    for n in range(len(method.phases(whole.student))):
        curves = whole.fit(method, n, cfg)
        file = tmp_path / f"{n}.state"
        with pytest.raises(KeyboardInterrupt):
            other.fit(own, n, cfg, stop=(n % 2, 1), state_file=file)
        other = World.make(seed=9)
        other.teacher = World.make().teacher
        own = other.method(name, **settings)
        resumed = other.fit(own, n, cfg, state_file=file)
        assert {key: resumed[key] for key in curves if key != "seconds"} == {
            key: curves[key] for key in curves if key != "seconds"
        }
        assert not moved(snapshot(whole.student.net, method), snapshot(other.student.net, own))


@every_method
def test_terms_of_stored_answers_equal_those_of_networks(name: str, settings: Settings) -> None:
    world = World.make()
    method = world.method(name, **settings).eval()
    live, answered = world.step(), world.step()
    for step in (live, answered):
        step.images.requires_grad_()  # so that the answers have a graph back to the images, for jacobian
    stored = Step.of(
        student=answered.student,
        teacher=answered.teacher,
        labels=answered.labels,
        index=answered.index,
        images=answered.images,
    )
    for phase in method.phases(world.student):
        values = []
        for step in (live, stored):
            torch.manual_seed(0)  # the same noise, for kdgan
            values.append({term: weighted.value.item() for term, weighted in phase.loss(step).items()})
        assert values[0] == values[1]


def test_the_baseline_never_runs_the_teacher() -> None:
    world = World.make()
    world.teacher.net.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    world.fit(world.method("ce"))


def test_kd_from_a_teacher_of_other_classes_is_refused() -> None:
    live = World.make().step(4)
    teacher = dataclasses.replace(live.teacher, logits=live.teacher.logits[:, :2])
    probe = Step.of(student=live.student, teacher=teacher, labels=live.labels, index=live.index)
    with pytest.raises(
        ValueError,
        match=r"method\.kd_weight is 0\.9, but the teacher has 2 classes and the student 3.* Set .* to 0",
    ):
        KnowledgeDistillation(Config(name="kd"), probe, live.labels)
    KnowledgeDistillation(Config(name="kd", kd_weight=0), probe, live.labels)


def settings_of_maps(name: str, field: str, *named: str) -> Settings:
    """These maps in one of the FIELDS. eskd has maps only with attention."""
    value: Any = named[0] if field.endswith("_map") else named
    return {field: value} | ({"of": "at"} if name == "eskd" else {})


@pytest.mark.parametrize(("name", "field"), OF_MAPS)
def test_a_map_that_does_not_exist_is_refused(name: str, field: str) -> None:
    settings = settings_of_maps(name, field, "stage9")
    with pytest.raises(
        ValueError, match=rf"method\.{field}: there is no 'stage9'\. Did you mean 'stage3'\? Choose .*stem"
    ):
        World.make().method(name, **settings)


@pytest.mark.parametrize(("name", "field"), OF_MAPS)
def test_the_maps_that_a_setting_names_are_matched(name: str, field: str) -> None:
    named = ("stage1", "stage2")[: 1 if field.endswith("_map") else 2]
    pairs = World.make().method(name, **settings_of_maps(name, field, *named)).pairs
    column = 0 if field.startswith("student") else 1
    assert {pair[column] for pair in pairs} - {"pooled"} == set(named)


@pytest.mark.parametrize(
    "name", [name for name, field in OF_MAPS if field == "student_maps" and name not in ("eskd", "fsp")]
)
def test_all_maps_but_the_stem_are_matched_if_none_is_named(name: str) -> None:
    pairs = World.make().method(name).pairs
    for column in (0, 1):
        assert {pair[column] for pair in pairs} - {"pooled"} == {"stage1", "stage2", "stage3"}


@pytest.mark.parametrize(
    ("name", "settings"), [("mgd", {}), ("ofd", {}), ("semckd", {"preactivation": True})], ids=str
)
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_a_map_without_an_activation_is_refused_if_there_must_be_one(
    name: str, settings: Settings, network: str
) -> None:
    live = World.make().step(4)
    answers = {"student": live.student, "teacher": live.teacher}
    answers[network] = dataclasses.replace(answers[network], preactivations={})
    student, teacher = answers["student"], answers["teacher"]
    probe = Step.of(student=student, teacher=teacher, labels=live.labels, index=live.index)
    method = methods.load(name)
    with pytest.raises(
        ValueError, match=rf"method\.{network}_maps: map 'stage1' of the {network} does not end"
    ):
        method(method.Config(name=name, **settings), probe, live.labels)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("student_stages", "student_maps"),
        ("teacher_stages", "teacher_maps"),
        ("student_stage", "student_map"),
        ("teacher_stage", "teacher_map"),
    ],
)
@pytest.mark.parametrize("where", ["method", "method.combine"])
def test_the_old_name_of_a_setting_is_refused_with_the_new_one(
    old: str, new: str, where: str, tmp_path: Path
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    method: Settings = {"name": "at" if new.endswith("maps") else "fitnet", old: ["stage1"]}
    params["runs"]["kd"]["method"] = method if where == "method" else {"name": "kd", "combine": method}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=rf"runs\.kd\.{where}\.{old} is now called {new}$"):
        load_params(file)


def partly_labelled(world: World, garbage: int) -> Step:
    """A step of eight images whose second, fourth, ... have a label that must not be read."""
    step = world.step()
    labels = step.labels.clone()
    labels[1::2] = (labels[1::2] + garbage) % CLASSES
    return dataclasses.replace(step, labels=labels, labelled=Labelled(torch.arange(0, 8, 2), 0.5))


@every_method
def test_labels_of_unlabelled_images_change_no_loss(name: str, settings: Settings) -> None:
    world = World.make()
    method = world.method(name, **settings).eval()
    for phase in method.phases(world.student):
        if phase.needs_labels:  # it never gets such images
            continue
        values = []
        for garbage in range(CLASSES):
            torch.manual_seed(0)  # the same noise, for kdgan
            loss = phase.loss(partly_labelled(world, garbage))
            values.append({term: weighted.value.item() for term, weighted in loss.items()})
        assert values[0] == values[1] == values[2]


@every_method
def test_phases_that_do_not_need_labels_learn_from_unlabelled_images(name: str, settings: Settings) -> None:
    """And the others learn nothing from them."""
    world = World.make()
    method = world.method(name, **settings).eval()
    for phase in method.phases(world.student):
        trained = set_trainable(phase, world.student, method)
        for module in (world.student.net, method):
            module.eval()  # so that images reach one another through no batch norm
        method.train(phase.name in START_IN_AN_EPOCH)
        if phase.name == "embed":  # of refilled; its batches have labelled images alone
            assert phase.needs_labels
            continue
        step = dataclasses.replace(partly_labelled(world, 0), images=world.step().images.requires_grad_())
        total = torch.stack([weight * value for value, weight in phase.loss(step).values()]).sum()
        (of_images,) = torch.autograd.grad(total, step.images, retain_graph=True, allow_unused=True)
        assert trained
        learned = of_images is not None and bool(of_images[1::2].abs().sum() > 0)
        assert learned != phase.needs_labels, phase.name


@every_method
def test_a_step_whose_images_all_have_labels_gives_the_same_loss(name: str, settings: Settings) -> None:
    world = World.make()
    method = world.method(name, **settings).eval()
    for phase in method.phases(world.student):
        losses = []
        for labelled in (None, Labelled(torch.arange(8), 1.0)):
            torch.manual_seed(0)
            losses.append(phase.loss(dataclasses.replace(world.step(), labelled=labelled)))
        assert losses[0].keys() == losses[1].keys()
        for term in losses[0]:
            torch.testing.assert_close(losses[0][term].value, losses[1][term].value)


@pytest.mark.parametrize(
    ("name", "settings", "needs_labels"),
    [
        ("ce", {}, True),
        ("kd", {}, False),
        ("fitnet", {}, True),
        ("fitnet", {"joint": True}, False),
        ("srm", {}, True),
        ("dkd", {}, True),
        ("dist", {}, False),
        ("ttm", {}, False),
        ("wttm", {}, False),
        ("mlkd", {}, False),
        ("mlkd", {"term_weight": 0.0}, True),
        ("reviewkd", {}, False),
        ("at", {}, False),
        ("at", {"term_weight": 0.0}, True),
        ("crd", {}, True),
        ("crd", {"combine": {"name": "at"}}, False),
        ("crd", {"combine": {"name": "aml"}}, True),
    ],
)
def test_only_labels_teach_a_last_phase_without_kd_or_terms_that_need_none(
    name: str, settings: Settings, needs_labels: bool
) -> None:
    world = World.make()
    kd_weight = 1.0 if name == "kd" else 0.0
    method = world.method(name, **settings, kd_weight=kd_weight)
    assert method.phases(world.student)[-1].needs_labels == needs_labels


# phase -> the parameters of the student that it trains; every other phase trains none, or in the end all
OF_OWNING = {"hint": up_to(2), "match": up_to(3), "flow": up_to(3)}
OF_TEACHER = ("dictionary", "aggregate", "auxiliary")


@every_method
def test_parameters_that_belong_to_no_layer_are_trained_too(name: str, settings: Settings) -> None:
    world = owning(World.make())
    if name == "hkd":  # its auxiliary teacher is made of layers alone
        with pytest.raises(ValueError, match="the network itself, a Owning, has weights of its own"):
            world.method(name, **settings)
        return
    method = world.method(name, **settings)
    everything = {key for key, _ in world.student.net.named_parameters()}
    expected = OF_OWNING | {"embed": everything - HEAD, "distill": everything}
    for n, phase in enumerate(method.phases(world.student)):
        wanted = set() if phase.name in OF_TEACHER else expected[phase.name]
        before = dict(snapshot(world.student.net))
        world.fit(method, n)
        changed = {key.removeprefix("0.") for key in moved(before, snapshot(world.student.net))}
        assert changed & everything == wanted, phase.name

"""Networks as people have them: with weights, an input and classes of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallRuns

from pipeline import checkpoint, nets
from pipeline.data.seen import Seen
from pipeline.data.store import Store
from pipeline.evaluation.evaluate import evaluate_run
from pipeline.files import sha256
from pipeline.functional import Input
from pipeline.params import Params
from pipeline.records.record import Result
from pipeline.runs.context import Context
from pipeline.runs.teacher import train_teacher
from pipeline.settings import InputError
from pipeline.training.monitor import print_once

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 0.01}
INPUT: dict[str, Any] = {"size": 12, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 16, "val": 0.2, "test": 0.2},
    "protocol": {"shots": 4},
    "train": QUICK,
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": QUICK}},
    "students": {"small": {"net": "wrn_10_1", "input": INPUT}},
    "runs": {
        "kd": {"teacher": "big", "student": "small", "seeds": [0], "method": {"name": "kd", "kd_weight": 1.0}}
    },
}
CLASSES = ["c0", "c1", "c2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return SmallRuns(tmp_path_factory.mktemp("photographs"), SETTINGS, images=45)


def weights(runs: SmallRuns, net: str, classes: int, seed: int = 5) -> dict[str, Any]:
    """`start` of a file with random weights for this number of classes."""
    torch.manual_seed(seed)
    file = runs.place / f"{net}-{classes}-{seed}.safetensors"
    checkpoint.save_weights(file, nets.build(net, classes).state_dict())
    return {"source": "file", "file": str(file), "sha256": sha256(file)}


def teacher(runs: SmallRuns, **settings: Any) -> Params:
    big = {"net": "resnet8", "input": {"mean": "data", "std": "data"}, "min_accuracy": 0, "train": QUICK}
    return runs.params(teachers={"big": big | settings})


def trained(runs: SmallRuns, params: Params) -> Result:
    return train_teacher(params.teacher_run("big"), out=runs.place / "big", **runs._common())


def loaded(runs: SmallRuns) -> tuple[torch.nn.Module, dict[str, Any]]:
    return checkpoint.load_network(runs.place / "big")


def names_of(runs: SmallRuns) -> list[str]:
    return Store.open(runs.data).classes


# teachers


def test_a_teacher_as_it_is_keeps_its_weights_and_is_cut_to_the_datas_classes(
    runs: SmallRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    start, (a, b, c) = weights(runs, "resnet8", 5), names_of(runs)
    params = teacher(runs, start=start, classes=["x", c, a, "y", b], train={"epochs": 0})
    result = trained(runs, params)
    net, facts = loaded(runs)
    whole = checkpoint.load_weights(Path(start["file"]))
    own = net.state_dict()
    assert torch.equal(own["fc.weight"], whole["fc.weight"][[2, 4, 1]])
    assert torch.equal(own["fc.bias"], whole["fc.bias"][[2, 4, 1]])
    assert all(torch.equal(own[key], whole[key]) for key in whole if not key.startswith("fc."))
    assert facts["classes"] == [a, b, c]
    assert result.curves == {}
    told = f"teacher big: taken as it is, validation accuracy {result.metrics['val_accuracy']:.1%}"
    assert told in capsys.readouterr().out
    store = Store.open(runs.data)
    assert 0 <= result.metrics["val_accuracy"] <= 1
    input = Input.from_facts(facts["input"])
    assert input == Input(16, tuple(store.mean), tuple(store.std))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": {"epochs": 0}}, r"teachers\.big\.train\.epochs is 0.*Name them in their order"),
        ({"train": {"epochs": 0}, "classes": ["x", "y", "z"]}, "do not know 3 of the data's classes"),
        (
            {"train": {"epochs": 0}, "classes": ["x", "A", "B", "C"]},
            "names 4 classes.*would be new.*Name all classes",
        ),
        ({"classes": ["x", "A", "B", "C", "y"], "start": {"source": "random"}}, "start.source is random"),
        ({"train": {"epochs": 0}, "start": {"source": "random"}}, "start.source is random"),
    ],
)
def test_a_teacher_that_cannot_be_taken_as_it_is_is_refused(
    runs: SmallRuns, settings: dict[str, Any], says: str
) -> None:
    real = dict(zip("ABC", names_of(runs), strict=True))
    named = (
        {"classes": [real.get(name, name) for name in settings["classes"]]} if "classes" in settings else {}
    )
    given = {"start": weights(runs, "resnet8", 5)} | settings | named
    with pytest.raises(InputError, match=f"(?s){says}"):
        trained(runs, teacher(runs, **given))


def test_a_classifier_for_other_classes_is_replaced_and_it_is_said(
    runs: SmallRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    print_once.cache_clear()
    start = weights(runs, "resnet8", 7, seed=8)
    trained(runs, teacher(runs, start=start))
    assert "teachers.big: the loaded weights are for other classes" in capsys.readouterr().out
    assert loaded(runs)[0].state_dict()["fc.weight"].shape[0] == 3
    facts = checkpoint.load_facts(runs.place / "big")
    assert "fc.weight" not in facts["loaded"]
    assert len(facts["loaded"]) > 10


def test_the_head_alone_is_trained(runs: SmallRuns, capsys: pytest.CaptureFixture[str]) -> None:
    start = weights(runs, "resnet8", 7)
    trained(runs, teacher(runs, start=start, train=QUICK | {"part": "head"}))
    assert "\nteacher big: 1 epoch on " in f"\n{capsys.readouterr().out}"
    own, before = loaded(runs)[0].state_dict(), checkpoint.load_weights(Path(start["file"]))
    assert all(torch.equal(own[key], before[key]) for key in own if not key.startswith("fc."))
    trained(runs, teacher(runs, start=start, train=QUICK))
    own = loaded(runs)[0].state_dict()
    assert not any(torch.equal(own[key], before[key]) for key in own if key.endswith("conv1.weight"))


def test_weights_without_a_stated_normalisation_are_refused_when_params_are_read(runs: SmallRuns) -> None:
    with pytest.raises(InputError, match=r"(?s)teachers\.big.*input: \{mean: imagenet, std: imagenet\}"):
        teacher(runs, start=weights(runs, "resnet8", 3), input={})
    with pytest.raises(InputError, match=r"students\.small"):
        runs.params(students={"small": {"net": "wrn_10_1", "start": weights(runs, "wrn_10_1", 3)}})


# students


@pytest.fixture(scope="module")
def ready(runs: SmallRuns) -> SmallRuns:
    trained(runs, teacher(runs))
    return runs


def started(ready: SmallRuns, **settings: Any) -> dict[str, Any]:
    params = ready.params(students={"small": {"net": "wrn_10_1", "input": INPUT} | settings})
    ready.pretrain("kd", params)
    folder = ready.place / "initial/kd/seed-0"
    return checkpoint.load_network_weights(folder) | {"facts": checkpoint.load_facts(folder)}


def test_a_student_starts_from_a_file(ready: SmallRuns) -> None:
    start = weights(ready, "wrn_10_1", 3)
    own, file = started(ready, start=start), checkpoint.load_weights(Path(start["file"]))
    assert all(torch.equal(own[key], file[key]) for key in file)
    assert set(own["facts"]["loaded"]) == {name for name, _ in nets.build("wrn_10_1", 3).named_parameters()}
    assert started(ready)["facts"]["loaded"] == []


def test_what_was_pretrained_learns_at_its_own_rate(ready: SmallRuns) -> None:
    """The file is not needed once the initial students are there."""
    start = weights(ready, "wrn_10_1", 9, seed=2)
    moved: dict[float, dict[str, float]] = {}
    for factor in (1.0, 0.01):
        student = {"net": "wrn_10_1", "input": INPUT, "start": start}
        params = ready.params(students={"small": student}, train=QUICK | {"pretrained_lr": factor})
        ready.pretrain("kd", params)
        hidden = Path(start["file"]).rename(ready.place / "elsewhere")
        ready.distill("kd", params)
        hidden.rename(start["file"])
        before, after = (
            checkpoint.load_network_weights(ready.place / place / "kd/seed-0")
            for place in ("initial", "students")
        )
        moved[factor] = {
            key: (after[key] - before[key]).abs().max().item() for key in after if key.endswith(".weight")
        }
    assert moved[0.01]["fc.weight"] > 0.3 * moved[1.0]["fc.weight"]
    convolution = next(key for key in moved[1.0] if "conv" in key)
    assert 0 < moved[0.01][convolution] < 0.1 * moved[1.0][convolution]


# each network's own input


def test_validation_and_test_show_each_network_images_of_its_own_size(
    ready: SmallRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: set[tuple[str, int]] = set()
    forward = torch.nn.Module.__call__

    def watched(self: torch.nn.Module, *args: Any, **named: Any) -> Any:
        if hasattr(self, "taps"):
            seen.add(("teacher" if args[0].shape[3] == 16 else "student", args[0].shape[3]))
        return forward(self, *args, **named)

    params = ready.params()
    ready.pretrain("kd", params)
    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    ready.distill("kd", params)
    assert seen == {("teacher", 16), ("student", 12)}
    seen.clear()
    students = ready.place / "students/kd"
    result, predictions = evaluate_run(ready.data, ready.place / "big", students, work=tmp_path)
    assert seen == {("teacher", 16), ("student", 12)}
    assert 0 <= result.metrics["accuracy"] <= 1
    assert len(predictions.rows) == len(Store.open(ready.data).indices("test"))


def test_the_exported_student_carries_its_own_input(ready: SmallRuns, tmp_path: Path) -> None:
    from pipeline.data.decode import decode
    from pipeline.deploy.predictor import Predictor
    from pipeline.export.build_bundle import ExportConfig
    from pipeline.export.export_run import export_run
    from pipeline.records.record import Record

    params = ready.params()
    ready.pretrain("kd", params)
    distilled = ready.distill("kd", params)
    students = ready.place / "students/kd"
    result, predictions = evaluate_run(ready.data, ready.place / "big", students, work=tmp_path)
    past = {}
    for stage, done in (("distill", distilled), ("evaluate", result)):
        past[stage] = Record(stage, "kd", dict(params.run("kd").settings))
        past[stage].add(done)
    out = tmp_path / "bundle"
    cfg = ExportConfig(formats=("onnx", "int8"), int8={"required": False})
    export_run("kd", cfg, data=ready.data, students=students, past=past, out=out, record="r")
    predictor = Predictor(out)
    assert (predictor.bundle.size, predictor.bundle.kept) == (12, 16)
    assert predictor.bundle.facts["mean"] == INPUT["mean"]
    store = Store.open(ready.data)
    rows = store.indices("test")
    answers = predictor(Seen(store.images, 12)[rows])
    assert [store.classes.index(answer.label) for answer in answers] == predictions.students[0].label.tolist()
    table = (ready.data / "files.csv").read_text().splitlines()[1:]
    files = [ready.place / "images" / line.split(",")[4] for line in table]
    assert np.array_equal(predictor.decode(files[rows[0]]), Seen(store.images, 12)[rows[:1]][0])
    assert not np.array_equal(decode(files[rows[0]], 12, 3), predictor.decode(files[rows[0]]))


def test_a_context_gives_each_network_its_own_view(ready: SmallRuns) -> None:
    run = ready.params().run("kd")
    context = Context.of_students(ready.data, run.protocol, run.augment)
    big = context.load_network(ready.place / "big")
    assert big.input == context.data_input
    small = context.tap(nets.build("wrn_10_1", 3), {}, Input(12, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)))
    probe = context.probe(small, big)
    assert probe.images.shape[3] == 12
    assert probe.teacher_images.shape[3] == 16
    batch = next(context.batches(run.train, 0, small, big).epoch(0))
    assert batch.images.shape[3] == 12
    assert batch.for_teacher is not None
    assert batch.for_teacher(batch.images, batch.index).shape[3] == 16


def test_validation_is_the_same_without_room_for_its_images(
    ready: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ready.params().run("kd")
    own = Input(12, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    net = nets.build("wrn_10_1", 3)
    found = []
    for limit in (2**31, 0):
        monkeypatch.setattr("pipeline.runs.context.resident_bytes", lambda device, limit=limit: limit)
        context = Context.of_students(ready.data, run.protocol, run.augment)
        found.append(context.validate(net, own))
        assert bool(context._validation) == bool(limit)
    assert found[0] == found[1]


def test_every_method_takes_a_teacher_of_another_size(ready: SmallRuns) -> None:
    from pipeline import methods

    run = ready.params().run("kd")
    context = Context.of_students(ready.data, run.protocol, run.augment)
    big, small = context.load_network(ready.place / "big"), Input(12, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    for name in methods.names():
        student = context.tap(nets.build("resnet8", 3), {}, small)
        if name == "jacobian":  # it compares gradients pixel by pixel
            with pytest.raises(InputError, match="images of different sizes"):
                context.build_method(methods.load(name).Config(name=name), student, big)
            continue
        built = context.build_method(methods.load(name).Config(name=name), student, big)
        step = context.probe(student, big)
        for phase in built.phases(student):
            loss = phase.loss(step)
            assert all(torch.isfinite(term.value) for term in loss.values()), name


# a teacher that only answers


def test_an_onnx_file_teaches_kd_and_is_tested_beside_the_student(runs: SmallRuns, tmp_path: Path) -> None:
    from pipeline.export import onnx_format  # noqa: F401  the exporter's package must be there
    from pipeline.export.quiet import quiet

    torch.manual_seed(3)
    net = nets.build("resnet8", 3).eval()
    file = runs.place / "teacher.onnx"
    with quiet():
        torch.onnx.export(
            net,
            (torch.zeros(2, 3, 16, 16),),
            file,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    big = {
        "net": f"onnx:{file}",
        "start": {"source": "file", "sha256": sha256(file)},
        "input": {"mean": [0.4] * 3, "std": [0.2] * 3},
        "classes": names_of(runs),
        "train": {"epochs": 0},
        "min_accuracy": 0,
    }
    params = runs.params(teachers={"big": big})
    result = trained(runs, params)
    store = Store.open(runs.data)
    rows = store.indices("val")
    input = Input(16, (0.4,) * 3, (0.2,) * 3)
    pictures = torch.tensor(store.images[rows]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        truth = (net(input.normalise_(pictures)).argmax(1).numpy() == store.labels[rows]).mean()
    assert result.metrics["val_accuracy"] == pytest.approx(truth)
    runs.pretrain("kd", params)
    runs.distill("kd", params)
    scores, _ = evaluate_run(runs.data, runs.place / "big", runs.place / "students/kd", work=tmp_path)
    assert 0 <= scores.details["teacher"]["accuracy"] <= 1
    at = {"kd": SETTINGS["runs"]["kd"] | {"method": {"name": "at"}}}
    with pytest.raises(InputError, match="gives logits alone"):
        runs.pretrain("kd", runs.params(teachers={"big": big}, runs=at))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"students": {"small": {"net": "onnx:x.onnx"}}}, "can be a teacher, but not a student"),
        (
            {"teachers": {"big": {"net": "onnx:x.onnx", "start": {"source": "file", "sha256": "0"}}}},
            r"cannot be trained. Write train: \{epochs: 0\}",
        ),
        ({"students": {"small": {"net": "timm:resnet18x"}}}, "resnet18"),
        ({"runs": {"kd": SETTINGS["runs"]["kd"] | {"augment": {"crops": 1}}}}, "runs.kd.augment.crops"),
    ],
)
def test_what_cannot_be_is_refused_when_params_are_read(
    runs: SmallRuns, sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        runs.params(**sections)


def test_a_run_has_views_of_its_own(runs: SmallRuns) -> None:
    kd = SETTINGS["runs"]["kd"]
    params = runs.params(augment={"preset": "standard", "hue": 0.1}, runs={
        "kd": kd | {"augment": {"mixup": 0.2}},
        "strong": kd | {"augment": {"preset": "strong"}},
    })  # fmt: skip
    assert (params.run("kd").augment.hue, params.run("kd").augment.mixup) == (0.1, 0.2)
    assert params.run("strong").augment.hue == 0.05
    assert params.run("kd").settings["augment"]["mixup"] == 0.2

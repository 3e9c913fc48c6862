"""Precision `auto`: what is chosen, that it is chosen once, and that a stop cannot change it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallRuns
from world import World, snapshot

from pipeline.checkpoint import load_network_weights
from pipeline.records.record import load_record, recording
from pipeline.runs import precision
from pipeline.runs.context import Context
from pipeline.runs.measure import measure_run
from pipeline.runs.precision import settled
from pipeline.runs.precision_trial import HOPELESS, PLAIN, Parts, Setting, choose, measure, settings_on
from pipeline.runs.student import build_student
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]
HALF, HALF_LAST, LAST = Setting("bf16", False), Setting("bf16", True), Setting("fp32", True)
ONE: list[Parts] = [(1.0, 2.0), (1.1, 2.0), (0.9, 2.1)]


def times(parts: list[Parts], student: float, teacher: float) -> list[Parts]:
    return [(student * each[0], teacher * each[1]) for each in parts]


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ({HALF: times(ONE, 0.5, 0.5)}, HALF),
        ({HALF: times(ONE, 0.5, 0.5), HALF_LAST: times(ONE, 0.4, 0.5)}, HALF_LAST),
        ({HALF: times(ONE, 0.97, 0.97)}, PLAIN),  # it may be chance
        ({HALF: times(ONE, 1.3, 0.3)}, PLAIN),  # a student alone would be slower
        ({HALF: times(ONE, 0.3, 1.1)}, PLAIN),
        ({HALF: [(0.2, 0.2), (0.2, 0.2), (3.0, 4.0)]}, PLAIN),  # not surely
        ({HALF: []}, PLAIN),  # it fell behind
        ({HALF: [], LAST: times(ONE, 0.9, 0.9)}, LAST),
        ({HALF: times(ONE, 3, 3), LAST: times(ONE, 2, 2)}, PLAIN),
    ],
)
def test_the_fastest_is_chosen_that_is_nowhere_slower(
    others: dict[Setting, list[Parts]], wanted: Setting
) -> None:
    assert choose({PLAIN: ONE} | others)[0] == wanted


def test_ratios_are_those_of_whole_steps_to_fp32() -> None:
    _, ratios = choose({PLAIN: ONE, HALF: times(ONE, 0.5, 0.5), HALF_LAST: []})
    assert ratios == {"fp32": 1.0, "bf16": 0.5}


def test_a_student_without_a_teacher_has_one_part() -> None:
    assert choose({PLAIN: [(1.0,)] * 3, HALF: [(0.5,)] * 3})[0] == HALF


def test_what_is_compared_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    both, cpu, cuda = ["fp32", "fp32 channels_last"], torch.device("cpu"), torch.device("cuda")
    for has, more in ((False, []), (True, ["bf16", "bf16 channels_last"])):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert [str(each) for each in settings_on(cpu)] == both + more
        assert {each.precision for each in settings_on(cuda)} == {"fp32", "tf32", "bf16"}
        assert settings_on(cuda)[0] == PLAIN


def test_measuring_leaves_networks_and_random_numbers_alone() -> None:
    world = World.make()
    world.student.net.train()
    before, random = snapshot(world.student.net, world.teacher.net), torch.get_rng_state()
    world.student.input = world.teacher.input = world.batches().input
    found = measure(world.student, world.teacher, channels=3, batch=4, device=torch.device("cpu"))
    assert torch.equal(random, torch.get_rng_state())
    after = snapshot(world.student.net, world.teacher.net)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (world.student.net.training, world.teacher.net.training) == (True, False)
    assert all(each.requires_grad and each.grad is None for each in world.student.net.parameters())
    assert len(found[PLAIN]) >= 3
    assert {len(parts) for parts in found[PLAIN]} == {2}
    assert all(len(each) in (0, len(found[PLAIN])) for each in found.values())


def test_a_setting_that_falls_behind_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def parts(trial: Any) -> Parts:
        calls.append(str(trial.setting))
        return (1.1 * HOPELESS if trial.setting == HALF else 1.0,)

    monkeypatch.setattr("pipeline.runs.precision_trial._Trial.parts", parts)
    monkeypatch.setattr("pipeline.runs.precision_trial.has_bf16", lambda device: True)
    world = World.make()
    found = measure(world.student, None, channels=3, batch=2, device=torch.device("cpu"))
    assert calls.count("bf16") == 1
    assert calls.count("bf16 channels_last") == 10
    assert found[HALF] == []


TRAIN = {"epochs": 0, "steps": 4, "batch_size": 9, "lr": 0.01, "precision": "auto"}
RUN = {"teacher": "big", "student": "small"}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {},
    "train": TRAIN,
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": TRAIN}},
    "runs": {
        "ce": RUN | {"method": {"name": "ce"}, "seeds": [0]},
        "kd": RUN | {"method": {"name": "kd"}, "seeds": [0, 1]},
    },
}
FASTER = {PLAIN: ONE, HALF_LAST: times(ONE, 0.5, 0.5)}
PLAINER = {PLAIN: ONE, HALF_LAST: []}


@pytest.fixture
def small(tmp_path: Path) -> SmallRuns:
    return SmallRuns(tmp_path, SETTINGS, images=45)


class Measured:
    """Stands in for the measurement: the figures it gives, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[Setting, list[Parts]]) -> None:
        self.seconds, self.count = seconds, 0
        monkeypatch.setattr(precision, "measure", self)

    def __call__(self, *_: Any, **__: Any) -> dict[Setting, list[Parts]]:
        self.count += 1
        return self.seconds


def weights(small: SmallRuns, run: str, seed: int) -> dict[str, torch.Tensor]:
    return load_network_weights(small.place / "students" / run / f"seed-{seed}")


def test_all_runs_and_seeds_take_one_choice_and_record_it(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measured(monkeypatch, FASTER)
    teacher = small.train_teacher("big")
    assert measured.count == 1
    results = []
    for name in ("ce", "kd"):
        small.pretrain(name)
        results.append(small.distill(name))
    assert measured.count == 2  # the teacher alone, and the student with its teacher
    said = "precision auto is bf16 channels_last here, in 0.50 of the time of fp32"
    assert f"kd seed 1 (2 of 2) distill: {said}" in capsys.readouterr().out
    for result in (teacher, *results):
        for facts in result.details["precision"].values():
            assert (facts["precision"], facts["channels_last"]) == ("bf16", True)
            assert facts["ratios"]["bf16 channels_last"] == 0.5
    assert results[1].details["precision"].keys() == {"distill/seed-0", "distill/seed-1"}
    with recording(tmp_path / "record.json", "distill", "kd", {}) as record:
        record.add(results[1])
    assert load_record(tmp_path / "record.json").details["precision"] == results[1].details["precision"]
    auto = [weights(small, "kd", seed) for seed in (0, 1)]
    named = small.params(train=TRAIN | {"precision": "bf16", "channels_last": True})
    result = small.distill("kd", named)
    assert "precision" not in result.details
    for seed, own in enumerate(auto):
        assert all(torch.equal(value, weights(small, "kd", seed)[name]) for name, value in own.items())


def test_a_training_that_goes_on_keeps_what_it_began_with(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(monkeypatch, FASTER)
    small.train_teacher("big")
    small.pretrain("kd")
    straight = small.distill("kd").metrics
    whole = weights(small, "kd", 0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipeline.runs.phase.fit", stopped_after_two_steps)
        small.distill("kd")
    shutil.rmtree(small.place / "work" / "precision")
    measured.seconds = PLAINER
    resumed = small.distill("kd")
    assert resumed.metrics == straight
    assert {facts["precision"] for facts in resumed.details["precision"].values()} == {"bf16"}
    assert all(torch.equal(value, weights(small, "kd", 0)[name]) for name, value in whole.items())


def stopped_after_two_steps(phase: Any, batches: Any, cfg: Any, **options: Any) -> None:
    from world import interrupt

    from pipeline.training.loop import fit

    interrupt(batches, 0, 1)
    fit(phase, batches, cfg, **options)


def test_a_choice_is_found_again_for_the_same_networks_device_and_batch(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = Measured(monkeypatch, FASTER)
    params = small.params()
    small.train_teacher("big")
    run, work = params.run("kd"), tmp_path / "other"
    context = Context.of_students(small.data, run.protocol, run.augment)
    teacher = context.load_network(small.place / "big")
    student, _ = build_student(context, run, 0, teacher)

    def found(cfg: Any, **options: Any) -> str:
        own, facts = settled(context, student, teacher, cfg, work=work, **options)
        assert own.precision == facts["precision"]
        return own.precision

    measured.count = 0
    assert [found(run.train), found(run.train)] == ["bf16"] * 2
    assert measured.count == 1
    measured.seconds = PLAINER
    assert found(run.train) == "bf16"
    assert found(run.train.model_copy(update={"batch_size": 8})) == "fp32"
    assert measured.count == 2
    with torch.no_grad():
        next(student.net.parameters()).zero_()
    assert found(run.train) == "bf16"  # weights make no difference
    monkeypatch.setattr(precision, "name_of", lambda device: "another card")
    assert found(run.train) == "fp32"
    for file in (work / "precision").glob("*.json"):
        file.write_text("{")
    assert found(run.train) == "fp32"
    assert measured.count == 4
    begun = tmp_path / "begun.json"
    begun.write_text(json.dumps({"precision": "bf16", "channels_last": False, "device": "", "ratios": {}}))
    assert found(run.train, begun=begun) == "bf16"
    plain = run.train.model_copy(update={"precision": "fp32"})
    assert settled(context, student, teacher, plain, work=work) == (plain, {})


def test_a_plan_makes_the_choice_that_the_training_finds(
    small: SmallRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.place)
    monkeypatch.setattr("pipeline.runs.measure.SECONDS", 0.0)
    params, measured = small.params(), Measured(monkeypatch, FASTER)
    run, big = params.run("kd"), params.teacher_run("big")
    measure_run(run, "distill", big, small.data, is_known=False)
    assert measured.count == 1
    context = Context.of_students(small.data, run.protocol, run.augment)
    teacher = context.tap(context.build_network(big.cfg), {}, context.data_input)
    teacher.net.eval()
    student, _ = build_student(context, run, 1, teacher)
    _, facts = settled(context, student, teacher, run.train, work=Path(".work"))
    assert facts["precision"] == "bf16"
    assert measured.count == 1


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2" or torch.accelerator.is_available(),
    reason="this machine may compute faster in bf16",
)
def test_a_cpu_without_units_for_bf16_computes_in_fp32() -> None:
    world = World.make()
    world.student.input = world.teacher.input = world.batches().input
    seconds = measure(world.student, world.teacher, channels=3, batch=32, device=torch.device("cpu"))
    assert choose(seconds)[0].precision == "fp32"


TWO = """
import sys
from pathlib import Path
import torch
from pipeline.runs import precision
from pipeline.runs.context import Context
from pipeline.runs.precision_trial import PLAIN, Setting
from pipeline.data.augment import AugmentConfig
from pipeline.data.protocol import ProtocolConfig
from pipeline.training.recipe import TrainConfig
from pipeline import nets
context = Context.of_students(Path(sys.argv[1]), ProtocolConfig(), AugmentConfig())
student = context.tap(nets.build("resnet8", 3), {}, context.data_input)
def measure(*_, batch, **__):
    assert context.is_main and batch == 4
    return {PLAIN: [(1.0,)] * 3, Setting("bf16", False): [(0.5,)] * 3}
precision.measure = measure
cfg = TrainConfig(precision="auto", batch_size=8)
for _ in range(2):
    found, facts = precision.settled(context, student, None, cfg, work=Path(sys.argv[2]))
print(f"seen {found.precision} {facts['ratios']};", end="", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_take_the_choice_of_the_first(small: SmallRuns, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(tmp_path / "two.py"), str(small.data), str(tmp_path / "w")]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("seen bf16 {'fp32': 1.0, 'bf16': 0.5};") == 2, done.stdout


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"precision": "fp8"}, r"train\.precision: .*'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
        ({"amp": "bf16"}, r"train\.amp is now called precision$"),
        ({"channels_last": "yes, please"}, r"train\.channels_last"),
        ({"deterministic": "perhaps"}, r"train\.deterministic"),
        ({"precision": "auto", "channels_last": True}, "precision is auto, which also chooses channels_last"),
    ],
)
def test_a_bad_value_is_refused(setting: dict[str, Any], message: str, small: SmallRuns) -> None:
    with pytest.raises(InputError, match=message):
        small.params(train=setting)


def test_a_record_with_the_old_key_still_loads(tmp_path: Path) -> None:
    with recording(tmp_path / "record.json", "distill", "kd", {"train": {"amp": "no"}}):
        pass
    assert load_record(tmp_path / "record.json").params["train"]["amp"] == "no"

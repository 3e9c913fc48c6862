"""What is learned from a teacher alone, and how a run uses it; through DVC in test_repro.py."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import SmallRuns
from torch import Tensor

from pipeline import checkpoint
from pipeline.params import Params
from pipeline.records.record import Result

RUN: dict[str, Any] = {
    "teacher": "atoms",
    "student": "small",
    "seeds": [0],
    "method": {"name": "srm"},
    "phases": {"match": {"epochs": 1}},
}
SETTINGS: dict[str, Any] = {
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "protocol": {"shots": 4},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "min_accuracy": 0, "train": {"epochs": 1, "batch_size": 8}}},
    "knowledge": {
        "atoms": {
            "teacher": "big",
            "method": {"name": "srm", "mu": 3.0},
            "phases": {"dictionary": {"epochs": 2}},
        }
    },
    "runs": {"srm": RUN},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    runs = SmallRuns(tmp_path_factory.mktemp("knowledge"), SETTINGS, images=45)
    runs.train_teacher("big")
    assert list(runs.learn_knowledge("atoms").curves) == ["dictionary/seed-0"]
    return runs


def pretrained(runs: SmallRuns, params: Params, name: str) -> tuple[Result, dict[str, Tensor]]:
    result = runs.pretrain(name, params)
    return result, checkpoint.load_weights(runs.place / "initial" / name / "seed-0/method.safetensors")


def knowledge_of(place: Path) -> dict[str, Tensor]:
    return checkpoint.load_weights(place / "atoms/knowledge.safetensors")


def test_knowledge_is_a_copy_of_the_teacher_with_what_was_learned(runs: SmallRuns) -> None:
    atoms, big = runs.place / "atoms", runs.place / "big"
    facts = checkpoint.load_facts(atoms)
    knows = facts.pop("knows")
    assert (knows["method"], knows["phases"], knows["settings"]["mu"]) == ("srm", ["dictionary"], 3.0)
    assert facts == checkpoint.load_facts(big)
    weights, of_teacher = checkpoint.load_network_weights(atoms), checkpoint.load_network_weights(big)
    assert all(weights[name].equal(tensor) for name, tensor in of_teacher.items())
    assert all(name.startswith("dictionary.") for name in knowledge_of(runs.place))


def test_what_is_printed_names_the_knowledge_and_the_phase(
    runs: SmallRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.learn_knowledge("atoms")
    assert capsys.readouterr().out.startswith("knowledge atoms dictionary: 2 epochs on ")


def test_a_run_loads_knowledge_and_trains_the_other_phases(
    runs: SmallRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    result, method = pretrained(runs, runs.params(), "srm")
    assert list(result.curves) == ["match/seed-0"]
    assert "\nsrm seed 0 match: 1 epoch on " in capsys.readouterr().out
    learned = knowledge_of(runs.place)
    assert learned
    assert all(method[name].equal(tensor) for name, tensor in learned.items())


def test_a_run_of_the_plain_teacher_trains_all_phases(runs: SmallRuns) -> None:
    own = RUN | {"teacher": "big", "method": {"name": "srm", "mu": 3.0}}
    result, _ = pretrained(runs, runs.params(runs={"srm": own}), "srm")
    assert list(result.curves) == ["dictionary/seed-0", "match/seed-0"]


def test_another_method_uses_only_the_teacher(runs: SmallRuns) -> None:
    kd = RUN | {"method": {"name": "kd"}, "phases": {}}
    result, _ = pretrained(runs, runs.params(runs={"kd": kd}), "kd")
    assert result.curves == {}


@pytest.mark.parametrize(("key", "value", "learned_with"), [("mu", 2.0, "3.0"), ("sparsity", 0.5, "0.02")])
def test_settings_must_be_those_of_the_knowledge(
    key: str, value: float, learned_with: str, runs: SmallRuns
) -> None:
    assert runs.params().run("srm").method.model_dump()["mu"] == 3.0  # from the knowledge
    other = runs.params(runs={"srm": RUN | {"method": {"name": "srm", key: value}}})
    message = rf"runs\.srm\.method\.{key} is {value}, but knowledge\.atoms was learned with {learned_with}"
    with pytest.raises(ValueError, match=message):
        runs.pretrain("srm", other)


def test_settings_of_other_phases_may_differ(runs: SmallRuns) -> None:
    other = runs.params(runs={"srm": RUN | {"method": {"name": "srm", "pixel": False}}})
    assert list(runs.pretrain("srm", other).curves) == ["match/seed-0"]


def test_a_run_cannot_set_a_learned_phase(runs: SmallRuns) -> None:
    other = runs.params(runs={"srm": RUN | {"phases": {"dictionary": {"epochs": 5}}}})
    message = r"runs\.srm\.phases\.dictionary: knowledge\.atoms has learned this phase"
    with pytest.raises(ValueError, match=message):
        runs.pretrain("srm", other)


def test_a_run_with_a_protocol_of_its_own_is_refused(runs: SmallRuns) -> None:
    message = r"runs\.srm\.protocol: knowledge\.atoms was learned under the common"
    with pytest.raises(ValueError, match=message):
        runs.params(runs={"srm": RUN | {"protocol": {"shots": 2}}})


def test_a_method_that_learns_nothing_from_the_teacher_alone_is_refused(runs: SmallRuns) -> None:
    kd = runs.params(knowledge={"atoms": {"teacher": "big", "method": {"name": "kd"}}}, runs={"srm": RUN})
    message = r"knowledge\.atoms\.method\.name: no phase of kd learns from the teacher alone"
    with pytest.raises(ValueError, match=message):
        runs.learn_knowledge("atoms", kd)


def test_knowledge_cannot_set_a_phase_that_reads_the_student(runs: SmallRuns) -> None:
    atoms = SETTINGS["knowledge"]["atoms"] | {"phases": {"match": {"epochs": 1}}}
    with pytest.raises(ValueError, match=r"knowledge\.atoms\.phases: there is no 'match'.*dictionary"):
        runs.learn_knowledge("atoms", runs.params(knowledge={"atoms": atoms}))

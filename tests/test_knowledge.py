"""What is learned of a teacher alone, in `runs.learn`, and how a run finds it; through DVC in test_repro.py."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from world import save_pictures

from pipeline import checkpoint, config
from pipeline.data.prepare import prepare
from pipeline.record import Record
from pipeline.runs import learn, pretrain, train_teacher

RUN = {"teacher": "atoms", "student": "small", "seeds": [0], "method": {"name": "srm"}, "phases": {"match": {"epochs": 1}}}
PARAMS: dict[str, Any] = {
    "launcher": "python",
    "data": {"source": "folder", "size": 8, "val": 0.2, "test": 0.2},
    "augment": {},
    "protocol": {"shots": 4},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "teachers": {"big": {"net": "resnet8", "train": {"epochs": 1, "batch_size": 8}}},
    "knowledge": {"atoms": {"teacher": "big", "method": {"name": "srm", "mu": 3.0}, "phases": {"dictionary": {"epochs": 2}}}},
    "students": {"small": {"net": "wrn_10_1"}},
    "runs": {"srm": RUN},
    "export": {},
    "benchmark": {},
}


def params(place: Path, **runs: Any) -> config.Params:
    file = place / "params.yaml"
    file.write_text(yaml.safe_dump(PARAMS | {"data": PARAMS["data"] | {"root": str(place / "images")}, "runs": runs or PARAMS["runs"]}))
    return config.load(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("knowledge")
    save_pictures(place / "images", 45)
    given = params(place)
    (place / "data").mkdir()
    prepare(given.data, place / "data")
    train_teacher(given, "big", Record("teacher", "big", {}), data=place / "data", out=place / "big", work=place / "work")
    told = Record("knowledge", "atoms", {})
    learn(given, "atoms", told, data=place / "data", teacher=place / "big", out=place / "atoms", work=place / "work")
    assert list(told.curves) == ["dictionary/seed-0"]
    return place


def initial(place: Path, given: config.Params, run: str, teacher: str) -> tuple[Record, dict]:
    told, out = Record("pretrain", run, {}), place / "initial" / f"{run}-{teacher}"
    pretrain(given, run, told, data=place / "data", teacher=place / teacher, out=out, work=place / "work")
    return told, checkpoint.load_weights(out / "seed-0/method.safetensors")


def test_it_is_the_teacher_and_something_more(place: Path) -> None:
    weights, facts = checkpoint.load_net(place / "atoms")
    teacher, own = checkpoint.load_net(place / "big")
    assert (facts["knows"]["method"], facts["knows"]["phases"], facts["knows"]["settings"]["mu"]) == ("srm", ["dictionary"], 3.0)
    assert {key: value for key, value in facts.items() if key != "knows"} == own
    assert all(weights[name].equal(tensor) for name, tensor in teacher.items())
    assert all(name.startswith("dictionary.") for name in checkpoint.load_weights(place / "atoms/knowledge.safetensors"))


def test_a_run_takes_it_over_and_trains_the_other_phases(place: Path) -> None:
    told, method = initial(place, params(place), "srm", "atoms")
    assert list(told.curves) == ["match/seed-0"]
    learned = checkpoint.load_weights(place / "atoms/knowledge.safetensors")
    assert learned
    assert all(method[name].equal(tensor) for name, tensor in learned.items())


def test_a_run_of_the_plain_teacher_learns_for_itself(place: Path) -> None:
    told, _ = initial(place, params(place, srm=RUN | {"teacher": "big", "method": {"name": "srm", "mu": 3.0}}), "srm", "big")
    assert list(told.curves) == ["dictionary/seed-0", "match/seed-0"]


def test_another_method_sees_only_the_teacher(place: Path) -> None:
    told, _ = initial(place, params(place, kd=RUN | {"method": {"name": "kd"}, "phases": {}}), "kd", "atoms")
    assert told.curves == {}


def test_settings_are_those_it_was_learned_with(place: Path) -> None:
    assert params(place).method("srm").model_dump()["mu"] == 3.0
    for key, value, was in (("mu", 2.0, "3.0"), ("sparsity", 0.5, "0.02")):
        with pytest.raises(
            ValueError, match=rf"runs\.srm\.method\.{key} is {value}, but what the teacher atoms knows was learned with {was}"
        ):
            initial(place, params(place, srm=RUN | {"method": {"name": "srm", key: value}}), "srm", "atoms")


def test_settings_of_other_phases_are_free(place: Path) -> None:
    told, _ = initial(place, params(place, srm=RUN | {"method": {"name": "srm", "pixel": False}}), "srm", "atoms")
    assert list(told.curves) == ["match/seed-0"]


def test_a_phase_that_is_learned_cannot_be_set_by_a_run(place: Path) -> None:
    given = params(place, srm=RUN | {"phases": {"dictionary": {"epochs": 5}}})
    with pytest.raises(ValueError, match=r"runs\.srm\.phases\.dictionary: knowledge\.atoms has learned this phase"):
        initial(place, given, "srm", "atoms")


def test_a_run_with_images_of_its_own_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match=r"runs\.srm\.protocol: knowledge\.atoms was learned under the common"):
        params(place, srm=RUN | {"protocol": {"shots": 2}})


def test_a_method_that_learns_nothing_of_the_teacher_alone_is_refused(place: Path) -> None:
    given = params(place)
    kd = given.model_copy(update={"knowledge": {"atoms": given.knowledge["atoms"].model_copy(update={"method": {"name": "kd"}})}})
    with pytest.raises(ValueError, match=r"knowledge\.atoms\.method\.name: no phase of kd learns of the teacher alone"):
        learn(
            kd, "atoms", Record("knowledge", "atoms", {}), data=place / "data", teacher=place / "big", out=place / "no", work=place / "work"
        )

"""params.yaml: what is legal, what each run is made of, and how a mistake is reported."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipeline import methods
from pipeline.benchmark.speed import BenchmarkConfig
from pipeline.data.augment import AugmentConfig
from pipeline.data.sources import DataConfig
from pipeline.export.build_bundle import ExportConfig
from pipeline.nets import torchvision_zoo
from pipeline.params import load_params
from pipeline.settings import InputError, load_section

ROOT = Path(__file__).parents[1]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())


Change = Callable[[Any], object]  # changes the sections of a params file in place


def write_params(folder: Path, change: Change) -> Path:
    """Our params.yaml, changed."""
    params = deepcopy(DEFAULT)
    change(params)
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(params))
    return file


@pytest.mark.parametrize(("given", "taken"), [("1:30", None), ("90", 90), ("on", None)])
def test_a_number_of_epochs_is_what_it_looks_like(given: str, taken: int | None, tmp_path: Path) -> None:
    """YAML 1.1 reads 1:30 as 90."""
    file = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    file.write_text(re.sub(r"^  steps: \d+", f"  epochs: {given}", text, flags=re.MULTILINE))
    if taken:
        assert load_params(file).train.epochs == taken
    else:
        with pytest.raises(InputError, match=r"train\.epochs: "):
            load_params(file)


SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "export": ExportConfig,
    "benchmark": BenchmarkConfig,
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_alone_is_what_it_is_in_the_whole(name: str, tmp_path: Path) -> None:
    """For stages that need no other."""
    file = write_params(tmp_path, lambda p: None)
    assert load_section(name, SECTIONS[name], file) == getattr(load_params(file), name)
    write_params(tmp_path, lambda p: p[name].update(typo=1))
    with pytest.raises(InputError, match=rf"params\.yaml: unknown key {name}\.typo"):
        load_section(name, SECTIONS[name], file)


def method_of(p: Any) -> Any:
    return p["runs"]["kd"]["method"]


def test_our_params_compare_kd_and_fitnet_with_the_baseline() -> None:
    params = load_params(ROOT / "params.yaml")
    found = {name: run.method["name"] for name, run in params.runs.items()}
    assert found == {"alone": "ce", "kd": "kd", "fitnet": "fitnet"}
    assert all(len(run.seeds) == 3 for run in params.runs.values())


def test_no_line_of_a_params_file_is_over_110_columns() -> None:
    for file in (ROOT / "params.yaml", *(ROOT / "recipes").rglob("*.yaml")):
        assert max(map(len, file.read_text().splitlines())) <= 110, file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: method_of(p).update(temprature=2),
            r"runs\.kd\.method\.temprature.*Did you mean 'temperature'",
        ),
        (
            lambda p: method_of(p).update(name="kdd"),
            r"runs\.kd\.method\.name: there is no 'kdd'. Did you mean 'kd'.*fitnet",
        ),
        (lambda p: method_of(p).pop("name"), r"runs\.kd\.method\.name is missing"),
        (
            lambda p: method_of(p).update(temperature=0),
            r"runs\.kd\.method\.temperature: .*greater than 0 \(it is 0\)",
        ),
        (lambda p: p["runs"]["kd"].update(studnt="small"), r"runs\.kd\.studnt.*Did you mean 'student'"),
        (
            lambda p: p["runs"]["kd"].update(student="smal"),
            r"runs\.kd\.student: there is no 'smal'. Did you mean 'small'",
        ),
        (
            lambda p: p["runs"]["kd"].update(teacher="bg"),
            r"runs\.kd\.teacher: there is no 'bg'. Did you mean 'big'",
        ),
        (lambda p: method_of(p).update(temperature=True), r"temperature: a number is needed, not true"),
        (lambda p: p["runs"]["kd"].update(seeds=[0, True]), r"kd\.seeds: a number is needed"),
        (lambda p: p["augment"].update(crop=[True, 1.0]), r"augment\.crop: a number is needed"),
        (lambda p: p["train"].update(lr=1e9), r"train\.lr: .*less than or equal to 100 "),
        (
            lambda p: p["train"].update(steps=0, epochs=10**7),
            r"train\.epochs: .*less than or equal to 1000000 ",
        ),
        (lambda p: p["train"].update(steps=10**10), r"train\.steps: .*less than or equal to 1000000000 "),
        (lambda p: p["train"].update(weight_decay=1e9), r"train\.weight_decay: .*less than or equal"),
        (lambda p: p["augment"].update(pad=8), r": augment\.pad is 8, .*of 8 pixels .*Lower it"),
        (lambda p: p["runs"]["kd"].update(augment={"pad": 9}), r"runs\.kd\.augment\.pad is 9"),
        (lambda p: p["benchmark"].update(batches=[True]), r"benchmark\.batches: a number is needed, not"),
        (lambda p: p["data"].update(channels=True), r"data\.channels: a number is needed, not true"),
        (
            lambda p: p["students"]["small"].update(input={"mean": [True], "std": [1]}),
            r"input\.mean: a number is needed, not \[true\]",
        ),
        (lambda p: method_of(p).update(temperature=1e9), r"temperature: .*less than or equal to 1000 "),
        (lambda p: p["augment"].update(views=10**9), r"augment\.views: .*less than or equal to 10000 "),
        (lambda p: p["benchmark"].update(batches=[10**9]), r"batches\.0: .*less than or equal to 100000 "),
        (lambda p: p["benchmark"].update(seconds=1e9), r"seconds: .*less than or equal to 3600 "),
        (lambda p: p["benchmark"].update(threads=10**9), r"threads: .*less than or equal to 4096 "),
        (lambda p: p["export"].update(int8={"max_drop": 1e9}), r"max_drop: .*less than or equal to 100 "),
        (lambda p: p["protocol"].update(seed=2**63), r"protocol\.seed: .*less than 9223372036854775808 "),
        (lambda p: p["protocol"].update(class_seed=2**63), r"class_seed: .*less than 9223372036854775808 "),
        (lambda p: p["augment"].update(seed=2**63), r"augment\.seed: .*less than 9223372036854775808 "),
        (
            lambda p: p["knowledge"].update(a={"teacher": "big", "method": {"name": "srm"}, "seed": 2**63}),
            r"knowledge\.a\.seed: .*less than 9223372036854775808 ",
        ),
        (
            lambda p: method_of(p).update(combine={"name": "at", "term_weight": 0}),
            r"runs\.kd\.method\.combine\.term_weight is 0, so the second method adds nothing",
        ),
        (lambda p: method_of(p).update(ce_weight=0, kd_weight=0), r"runs\.kd\.method: all weights are 0"),
        (lambda p: p["runs"]["kd"].update(seeds=[2**63]), r"a seed must be below"),
        (lambda p: p["runs"]["kd"].update(seeds=[]), r"runs\.kd\.seeds: .*at least 1"),
        (lambda p: p["runs"]["kd"].update(seeds=[1, 1]), r"runs\.kd\.seeds: seeds must be different"),
        (lambda p: p["runs"]["kd"].update(seeds=[-1]), r"runs\.kd\.seeds: seeds must be .*not negative"),
        (
            lambda p: method_of(p).update(combine={"name": "crdd"}),
            r"runs\.kd\.method\.combine\.name: there is no 'crdd'.*'crd'",
        ),
        (lambda p: method_of(p).update(combine={"name": "kd"}), r"kd cannot be combined with itself"),
        (
            lambda p: method_of(p).update(combine={"name": "crd", "kd_weight": 1}),
            r"combine\.kd_weight: a partner only adds its terms. Set kd_weight of runs\.kd\.method",
        ),
        (
            lambda p: method_of(p).update(combine={"name": "crd", "dimension": 1}),
            r"combine\.dimension.*Did you mean 'dimensions'",
        ),
        (
            lambda p: p["knowledge"].update(big={"teacher": "big", "method": {"name": "srm"}}),
            r"knowledge\.big: there is also a teacher of this name. Choose another",
        ),
        (
            lambda p: p["knowledge"].update(a={"teacher": "bg", "method": {"name": "srm"}}),
            r"knowledge\.a\.teacher: there is no 'bg'",
        ),
        (
            lambda p: p["runs"]["kd"].update(protocol={"shotz": 1}),
            r"runs\.kd\.protocol\.shotz.*Did you mean 'shots'",
        ),
        (
            lambda p: p["runs"]["kd"].update(protocol={"class_seed": 1}),
            r"runs\.kd\.protocol\.class_seed: runs share their teachers, so it is set once, in `protocol`",
        ),
        (
            lambda p: p["runs"]["fitnet"]["phases"]["hint"].update(epocs=1),
            r"runs\.fitnet\.phases\.hint\.epocs.*Did you mean 'epochs'",
        ),
        (lambda p: p["runs"].update({"a b;c": p["runs"]["kd"]}), r"runs\.a b;c: a name has letters"),
        (lambda p: p["runs"].clear(), r"runs is empty"),
        (lambda p: p["data"].update(square="fit"), r"data\.square: .*'crop', 'squash' or 'pad'"),
        (lambda p: p["analysis"].update(kdd={}), r"analysis: there is no 'kdd'. Did you mean 'kd'"),
        (
            lambda p: p["analysis"].update(kd={"transfer": {"source": "digits", "size": 8}}),
            r"analysis\.kd\.transfer\.size: other images are decoded as those of `data`. Leave it out",
        ),
        (
            lambda p: p["teachers"]["big"].update(net="resnet21"),
            r"teachers\.big\.net: .*there is no 'resnet21'",
        ),
        (
            lambda p: p["teachers"]["big"]["train"].update(epochs="many"),
            r"teachers\.big\.train\.epochs: .*integer.*'many'",
        ),
        (
            lambda p: p["teachers"]["big"]["start"].update(source="file"),
            r"teachers\.big\.start.*name a state dict",
        ),
        (
            lambda p: p["students"]["small"].update(widht=2),
            r"students\.small\.widht.*Choose one of: input, net, start, taps",
        ),
        *(
            (
                lambda p, net=net: p["students"]["small"].update(net=net),
                r"students\.small\.net: .*form package",
            )
            for net in (":", "a:", ":b", "a b:c", "..:x")
        ),
        (lambda p: p["data"].update(sorce="x"), r"data\.sorce.*Did you mean 'source'"),
        (lambda p: p["train"].update(lr=float("inf")), r"train\.lr: .*finite"),
        (lambda p: p.pop("data"), r"data is missing"),
        (
            lambda p: p["students"]["small"].update(start="torchvision"),
            r"students.small.start needs keys with values \(source, file, .*\), not 'torchvision'",
        ),
        (lambda p: p.update(trian={}), r"unknown key trian.*Did you mean 'train'"),
    ],
)
def test_a_mistake_is_reported_in_one_line_that_names_it_and_what_is_legal(
    change: Change, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_params(write_params(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(("method", "plural"), [("at", "s"), ("fitnet", "")])
def test_an_old_name_is_refused_with_the_new_one(side: str, method: str, plural: str, tmp_path: Path) -> None:
    old, new = f"{side}_stage{plural}", f"{side}_map{plural}"

    def rename(p: Any) -> None:
        p["runs"]["kd"]["method"] = {"name": method, old: "stage1"}

    assert new in methods.load(method).Config.model_fields
    with pytest.raises(InputError, match=rf"runs\.kd\.method\.{old} is now called {new}$"):
        load_params(write_params(tmp_path, rename))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00", "a: " + "[" * 5000 + "]" * 5000])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """YAML would take the last one, and a run whose name was forgotten to change would be lost."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count("\n  kd: ") == 1
    (tmp_path / "params.yaml").write_text(text.replace("\n  kd: ", "\n  alone: "))
    with pytest.raises(InputError, match=r"params\.yaml cannot be read: 'alone' is there twice\s.*line \d+"):
        load_params(tmp_path / "params.yaml")


def test_a_list_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + "\n[a, b]: 3\n")
    with pytest.raises(InputError, match=r"(?s)params\.yaml cannot be read: .*unhashable key"):
        load_params(tmp_path / "params.yaml")


def test_a_wrong_torchvision_name_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"students\.small\.net: .*resnet19.*Did you mean 'torchvision:resnet1"
    ):
        load_params(
            write_params(tmp_path, lambda p: p["students"]["small"].update(net="torchvision:resnet19"))
        )


def test_weights_that_torchvision_does_not_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"net": "torchvision:resnet18", "start": {"source": "torchvision"}}
    file = write_params(tmp_path, lambda p: p["students"].update(small=start))
    load_params(file)
    monkeypatch.setattr(torchvision_zoo, "has_weights", lambda name: False)
    with pytest.raises(InputError, match=r"students\.small\.start\.source: torchvision has no weights for"):
        load_params(file)


def test_a_phase_and_a_protocol_override_the_common_settings(tmp_path: Path) -> None:
    def change(p: Any) -> None:
        p["runs"]["fitnet"] |= {"phases": {"hint": {"epochs": 7}}, "protocol": {"shots": 9}}

    params = load_params(write_params(tmp_path, change))
    fitnet, kd = params.run("fitnet"), params.run("kd")
    assert fitnet.training("hint") == params.train.model_copy(update={"epochs": 7, "steps": 0})
    assert fitnet.training("distill") == params.train
    assert fitnet.protocol == params.protocol.model_copy(update={"shots": 9})
    assert kd.protocol == params.protocol


def test_a_run_has_the_settings_of_the_knowledge_that_it_uses(tmp_path: Path) -> None:
    def change(p: Any) -> None:
        p["knowledge"]["atoms"] = {"teacher": "big", "method": {"name": "srm", "mu": 3.0}}
        p["runs"]["srm"] = {
            "teacher": "atoms",
            "student": "small",
            "method": {"name": "srm", "kd_weight": 0.5},
        }

    run = load_params(write_params(tmp_path, change)).run("srm")
    assert run.method.model_dump()["mu"] == 3.0
    assert run.method.kd_weight == 0.5


def test_every_method_has_a_line_and_those_in_comments_are_legal(tmp_path: Path) -> None:
    text = re.sub(r"^  # (\w+: {teacher| +phases: )", r"  \1", (ROOT / "params.yaml").read_text(), flags=re.M)
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path / "params.yaml")
    assert {run.method["name"] for run in params.runs.values()} == set(methods.names())
    assert params.run("srm").training("match").lr == 0.01

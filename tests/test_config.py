import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import config, methods

ROOT = Path(__file__).parents[1]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())


def written(tmp_path: Path, change: Callable[[Any], Any]) -> Path:
    params = deepcopy(DEFAULT)
    change(params)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params))
    return file


def test_the_shipped_params_are_legal() -> None:
    params = config.load(ROOT / "params.yaml")
    assert {name: run.method["name"] for name, run in params.runs.items()} == {"alone": "ce", "kd": "kd", "fitnet": "fitnet"}
    assert all(len(run.seeds) == 3 for run in params.runs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["runs"]["kd"]["method"].update(temprature=2), r"runs\.kd\.method\.temprature.*Did you mean 'temperature'"),
        (lambda p: p["runs"]["kd"]["method"].update(name="kdd"), r"runs\.kd\.method\.name: there is no 'kdd'. Did you mean 'kd'.*fitnet"),
        (lambda p: p["runs"]["kd"]["method"].pop("name"), r"runs\.kd\.method\.name is missing"),
        (lambda p: p["runs"]["kd"]["method"].update(temperature=0), r"runs\.kd\.method\.temperature: .*greater than 0 \(it is 0\)"),
        (lambda p: p["runs"]["kd"].update(studnt="small"), r"runs\.kd\.studnt.*Did you mean 'student'"),
        (lambda p: p["runs"]["kd"].update(student="smal"), r"runs\.kd\.student: there is no 'smal'. Did you mean 'small'"),
        (lambda p: p["runs"]["kd"].update(teacher="bg"), r"runs\.kd\.teacher: there is no 'bg'. Did you mean 'big'"),
        (lambda p: p["runs"]["kd"].update(seeds=[]), r"runs\.kd\.seeds: .*at least 1"),
        (
            lambda p: p["runs"]["kd"]["method"].update(combine={"name": "crdd"}),
            r"runs\.kd\.method\.combine\.name: there is no 'crdd'.*'crd'",
        ),
        (lambda p: p["runs"]["kd"]["method"].update(combine={"name": "kd"}), r"kd can't be combined with itself"),
        (
            lambda p: p["runs"]["kd"]["method"].update(combine={"name": "crd", "kd_weight": 1}),
            r"combine\.kd_weight: a partner only adds its terms",
        ),
        (
            lambda p: p["runs"]["kd"]["method"].update(combine={"name": "crd", "dimension": 1}),
            r"combine\.dimension.*Did you mean 'dimensions'",
        ),
        (
            lambda p: p["knowledge"].update(big={"teacher": "big", "method": {"name": "srm"}}),
            r"knowledge\.big: a teacher is called big too",
        ),
        (lambda p: p["knowledge"].update(a={"teacher": "bg", "method": {"name": "srm"}}), r"knowledge\.a\.teacher: there is no 'bg'"),
        (lambda p: p["runs"]["kd"].update(seeds=[1, 1]), r"runs\.kd\.seeds: seeds must be different"),
        (lambda p: p["runs"]["kd"].update(protocol={"shotz": 1}), r"runs\.kd\.protocol\.shotz.*Did you mean 'shots'"),
        (lambda p: p["runs"]["fitnet"]["phases"]["hint"].update(epocs=1), r"runs\.fitnet\.phases\.hint\.epocs.*Did you mean 'epochs'"),
        (lambda p: p["runs"].update({"a b;c": p["runs"]["kd"]}), r"runs\.a b;c: a name has letters"),
        (lambda p: p["runs"].clear(), r"runs is empty"),
        (lambda p: p["teachers"]["big"].update(net="resnet21"), r"teachers\.big\.net: .*there is no 'resnet21'"),
        (lambda p: p["teachers"]["big"]["train"].update(epochs="many"), r"teachers\.big\.train\.epochs: .*integer.*'many'"),
        (lambda p: p["teachers"]["big"]["start"].update(source="file"), r"teachers\.big\.start.*name a state dict"),
        (lambda p: p["students"]["small"].update(widht=2), r"students\.small\.widht.*Choose one of: net, taps"),
        (lambda p: p["data"].update(sorce="x"), r"data\.sorce.*Did you mean 'source'"),
        (lambda p: p["train"].update(lr=float("inf")), r"train\.lr: .*finite"),
        (lambda p: p.pop("data"), r"data is missing"),
        (lambda p: p.update(trian={}), r"unknown key trian.*Did you mean 'train'"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(change: Callable, message: str, tmp_path: Path) -> None:
    with pytest.raises(config.InputError, match=message) as caught:
        config.load(written(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_what_isn_t_a_params_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(config.InputError, match=r"params\.yaml"):
        config.load(tmp_path / "params.yaml")


def test_a_torchvision_name_is_checked_without_building(tmp_path: Path) -> None:
    with pytest.raises(config.InputError, match=r"students\.small\.net: .*resnet19.*Did you mean 'resnet1"):
        config.load(written(tmp_path, lambda p: p["students"]["small"].update(net="torchvision:resnet19")))


def test_a_phase_and_a_protocol_override_the_common_settings(tmp_path: Path) -> None:
    def change(p: Any) -> None:
        p["runs"]["fitnet"] |= {"phases": {"hint": {"epochs": 7}}, "protocol": {"shots": 9}}

    params = config.load(written(tmp_path, change))
    assert params.phase("fitnet", "hint") == params.train.model_copy(update={"epochs": 7})
    assert params.phase("fitnet", "distill") == params.train
    assert (params.run_protocol("fitnet").shots, params.run_protocol("kd").shots) == (9, DEFAULT["protocol"]["shots"])
    assert params.run_protocol("fitnet").seed == DEFAULT["protocol"]["seed"]


def test_every_method_has_its_line_and_the_commented_ones_are_legal(tmp_path: Path) -> None:
    text = re.sub(r"^  # (\w+: {teacher)", r"  \1", (ROOT / "params.yaml").read_text(), flags=re.M)
    (tmp_path / "params.yaml").write_text(text)
    params = config.load(tmp_path / "params.yaml")
    assert {run.method["name"] for run in params.runs.values()} == set(methods.names())

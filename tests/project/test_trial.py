"""What a training would stop at is said before the first one begins."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scratch_project import ROOT

from pipeline import nets
from pipeline.data.prepare import prepare
from pipeline.data.store import Store
from pipeline.files import sha256
from pipeline.params import load_params
from pipeline.project.trial import try_trainings
from pipeline.settings import InputError

DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())
KNOWN = {"teacher": "big", "method": {"name": "srm", "mu": 2.0}}
SRM = {"teacher": "atoms", "student": "small", "method": {"name": "srm"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    prepare(load_params(ROOT / "params.yaml").data, folder)
    return Store.open(folder)


def knowing(p: Any, **run: Any) -> None:
    p["knowledge"]["atoms"] = KNOWN
    p["runs"]["srm"] = SRM | run


def starting(p: Any, section: str, file: str, net: str) -> None:
    path = Path(file)
    torch.save(nets.build("resnet8", classes=10).state_dict(), path)
    start = {"source": "file", "file": str(path), "sha256": sha256(path)}
    name = "big" if section == "teachers" else "small"
    p[section][name] = {"net": net, "start": start, "input": {"mean": "data", "std": "data"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: None, None),
        (lambda p: knowing(p), None),
        (lambda p: starting(p, "teachers", "w.pt", "resnet8"), None),
        (
            lambda p: p["runs"]["fitnet"].update(phases={"hnit": {"epochs": 1}}),
            r"^runs\.fitnet\.phases: there is no 'hnit'. Did you mean 'hint'\? Choose one of: distill, hint",
        ),
        (
            lambda p: p["runs"]["kd"].update(phases={"hint": {"epochs": 1}}),
            r"^runs\.kd\.phases: there is no 'hint'",
        ),
        (
            lambda p: p["knowledge"].update(atoms=KNOWN | {"phases": {"dictionry": {"epochs": 1}}}),
            r"^knowledge\.atoms\.phases: there is no 'dictionry'. Did you mean 'dictionary'",
        ),
        (
            lambda p: p["knowledge"].update(hints={"teacher": "big", "method": {"name": "fitnet"}}),
            r"^knowledge\.hints\.method\.name: no phase of fitnet learns from the teacher alone",
        ),
        (
            lambda p: knowing(p, phases={"dictionary": {"epochs": 1}}),
            r"^runs\.srm\.phases\.dictionary: knowledge\.atoms has learned this phase",
        ),
        (
            lambda p: knowing(p, method={"name": "srm", "mu": 3.0}),
            r"^runs\.srm\.method\.mu is 3\.0, but knowledge\.atoms was learned with 2\.0",
        ),
        (
            lambda p: p["protocol"].update(shots=500),
            r"^runs\.alone: protocol\.shots: 500 images of each class are wanted, but class '\d' has only",
        ),
        (
            lambda p: p["runs"]["kd"].update(protocol={"shots": 500}),
            r"^runs\.kd: protocol\.shots: 500 images of each class are wanted",
        ),
        (
            lambda p: p["teachers"]["big"]["train"].update(batch_size=2000),
            r"^teachers\.big\.train\.batch_size is 2000, but there are only \d+ images to learn from",
        ),
        (
            lambda p: p["train"].update(batch_size=2000),
            r"^runs\.alone: train\.batch_size is 2000, but there are only \d+ images.*Lower it to \d+",
        ),
        (
            lambda p: p["runs"]["fitnet"]["phases"].update(hint={"batch_size": 2000}),
            r"^runs\.fitnet\.phases\.hint\.batch_size is 2000",
        ),
        (
            lambda p: p["runs"]["fitnet"]["phases"].update(distill={"batch_size": 2000}),
            r"^runs\.fitnet\.phases\.distill\.batch_size is 2000",
        ),
        (
            lambda p: p["knowledge"].update(atoms=KNOWN | {"phases": {"dictionary": {"batch_size": 2000}}}),
            r"^knowledge\.atoms\.phases\.dictionary\.batch_size is 2000",
        ),
        (
            lambda p: (
                p["protocol"].update(rest="unlabelled"),
                p["train"].update(unlabelled_share=0.9, accumulate=32),
            ),
            r"^runs\.kd: train\.unlabelled_share leaves 6 labelled image\(s\) in a batch of 64",
        ),
        (
            lambda p: p["students"]["small"].update(taps={"last": "layer9"}),
            r"^runs\.alone: .*layer9",
        ),
        (
            lambda p: p["teachers"]["big"].update(taps={"last": "layer9"}),
            r"^teachers\.big: .*layer9",
        ),
        (
            lambda p: p["runs"]["kd"].update(method={"name": "at", "student_maps": ["stage9"]}),
            r"^runs\.kd: method\.student_maps: .*stage9",
        ),
        (
            lambda p: p["protocol"].update(class_overlap=0.4),
            r"^runs\.kd\.method matches the teacher's logits",
        ),
        (
            lambda p: starting(p, "teachers", "w.pt", "resnet14"),
            r"^teachers\.big\.start: w\.pt does not fit resnet14",
        ),
        (
            lambda p: starting(p, "students", "w.pt", "resnet14"),
            r"^students\.small\.start: w\.pt does not fit resnet14",
        ),
    ],
)
def test_what_a_training_would_stop_at(
    change: Callable[[Any], object],
    message: str | None,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = deepcopy(DEFAULT)
    change(settings)
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    params = load_params()
    if message is None:
        try_trainings(params, store)
    else:
        with pytest.raises(InputError, match=message):
            try_trainings(params, store)

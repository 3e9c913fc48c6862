from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import Params, load_params
from pipeline.project.check import modules_of_stages
from pipeline.settings import InputError

ROOT = Path(__file__).parents[2]


def load(place: Path, analysis: Any, **data: Any) -> Params:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= data
    (place / "params.yaml").write_text(yaml.safe_dump(params | {"analysis": analysis}))
    return load_params(place / "params.yaml")


def test_no_run_needs_to_be_analysed(tmp_path: Path) -> None:
    assert load(tmp_path, {}).analysis == {}
    assert not [name for name, _ in modules_of_stages(load(tmp_path, {})) if name.startswith("analyse")]


def test_other_images_are_decoded_like_the_runs_own(tmp_path: Path) -> None:
    analysis = {"fitnet": {"transfer": {"source": "folder", "root": "others", "val": 0.3}}, "kd": {}}
    params = load(tmp_path, analysis, square="pad")
    other = params.transfer("fitnet")
    assert other is not None
    assert (other.size, other.channels, other.root, other.val) == (
        params.data.size,
        params.data.channels,
        "others",
        0.3,
    )
    assert other.square == "pad"
    assert params.transfer("kd") is None


def test_an_analysis_depends_on_the_code_of_the_runs_method(tmp_path: Path) -> None:
    named = dict(modules_of_stages(load(tmp_path, {"fitnet": {}})))
    assert "pipeline.methods.fitnet" in named["analyse/fitnet"]
    assert "analyse/kd" not in named


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ({"fitnets": {}}, r"analysis: there is no 'fitnets'\. Did you mean 'fitnet'"),
        ({"fitnet": {"image": 3}}, r"unknown key analysis\.fitnet\.image: .*Did you mean 'images'"),
        ({"fitnet": {"images": -1}}, r"analysis\.fitnet\.images"),
        (
            {"fitnet": {"transfer": {"source": "folders"}}},
            r"analysis\.fitnet\.transfer.*Did you mean 'folder'",
        ),
        (
            {"fitnet": {"transfer": {"source": "folder", "size": 9}}},
            r"analysis\.fitnet\.transfer\.size: .*as those of `data`",
        ),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, analysis: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, analysis)

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import config
from pipeline.inputs import InputError
from stages.check import stages

ROOT = Path(__file__).parents[2]


def load(place: Path, analysis: Any) -> config.Params:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (place / "params.yaml").write_text(yaml.safe_dump(params | {"analysis": analysis}))
    return config.load(place / "params.yaml")


def test_nothing_need_be_looked_into(tmp_path: Path) -> None:
    assert load(tmp_path, {}).analysis == {}
    assert not [name for name, _ in stages(load(tmp_path, {})) if name.startswith("analyse")]


def test_other_images_are_decoded_as_the_runs_own(tmp_path: Path) -> None:
    params = load(tmp_path, {"fitnet": {"transfer": {"source": "folder", "root": "others", "val": 0.3}}, "kd": {}})
    other = params.transfer("fitnet")
    assert other is not None
    assert (other.size, other.channels, other.root, other.val) == (params.data.size, params.data.channels, "others", 0.3)
    assert params.transfer("kd") is None


def test_the_code_of_a_run_s_method_is_what_its_analysis_depends_on(tmp_path: Path) -> None:
    named = dict(stages(load(tmp_path, {"fitnet": {}})))
    assert "pipeline.methods.fitnet" in named["analyse/fitnet"]
    assert "analyse/kd" not in named


@pytest.mark.parametrize(
    ("analysis", "told"),
    [
        ({"fitnets": {}}, r"analysis: there is no 'fitnets'\. Did you mean 'fitnet'"),
        ({"fitnet": {"image": 3}}, r"unknown key analysis\.fitnet\.image: .*Did you mean 'images'"),
        ({"fitnet": {"images": -1}}, r"analysis\.fitnet\.images"),
        ({"fitnet": {"transfer": {"source": "folders"}}}, r"analysis\.fitnet\.transfer.*Did you mean 'folder'"),
        ({"fitnet": {"transfer": {"source": "folder", "size": 9}}}, r"analysis\.fitnet\.transfer\.size: .*as those of `data`"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, analysis: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(tmp_path, analysis)

"""Names that cannot be built, and the error messages for them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from nets.refused import refusal
from pydantic import ValidationError

from pipeline.nets import NetConfig, names


def test_every_family_lists_its_names() -> None:
    listed = names()
    assert len(listed) == len(set(listed))
    assert {"resnet8x4", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2_x0.5", "allcnn"} <= set(listed)
    assert {"densenet121", "wrn_<depth>_<width>", "mobilenet_x<width>"} <= set(listed)
    assert {"torchvision:<name>", "timm:<name>", "onnx:<file>", "<package.module>:<factory>"} <= set(listed)
    assert {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"} <= set(listed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt20", "Did you mean 'resnet20'"),
        ("resnet21", "Did you mean 'resnet"),
        ("ResNet8x4", "Did you mean 'resnet8x4'"),
        ("wrn-40-2", "Did you mean 'wrn_40_2'"),
        ("vgg12", "Did you mean 'vgg1"),
        ("shufflenetv2_x0.25", "Did you mean 'shufflenetv2_x0.5'"),
        ("", "Choose one of: .*resnet20"),
        ("resnet18", "Write 'torchvision:resnet18'"),
        ("torchvision:resnet81", "Did you mean 'torchvision:resnet18'"),
        ("torchvision:", "Choose one of: .*torchvision:resnet18"),
        ("torchvision:fcn_resnet50", "there is no 'torchvision:fcn_resnet50'"),
        ("wrn_15_2", "6 n \\+ 4.*'wrn_16_2'"),
        ("wrn_4_2", "'wrn_10_2'"),
        ("wrn_16_0", "'wrn_16_1'"),
        ("resnet8_x0", "resnet8_x0.5"),
        ("resnet9_x0.5", "Did you mean 'resnet"),
        ("mobilenetv2_x0", "from 0.1 to 10"),
        ("allcnn_x99", "from 0.1 to 10"),
        ("mobilenet_x.5", "Did you mean 'mobilenet_x0.5'"),
        ("mobilenet_x-1", "Did you mean 'mobilenet"),
        ("efficientnet_lite3", "Did you mean 'efficientnet_lite"),
        ("onnx:", "'onnx:' names no file"),
        ("timm:resnet81", "Did you mean 'timm:resnet18"),
    ],
)
def test_a_wrong_name_is_refused_with_what_to_do(name: str, message: str) -> None:
    assert re.search(message, refusal(name))


def test_the_settings_are_strict() -> None:
    assert NetConfig(net="resnet8").taps == {}
    with pytest.raises(ValidationError, match="nett"):
        NetConfig.model_validate({"net": "resnet8", "nett": 1})
    with pytest.raises(ValidationError, match="taps"):
        NetConfig.model_validate({"net": "resnet8", "taps": {"stage1": 3}})


def test_importing_nets_loads_no_torch_and_building_loads_no_zoo() -> None:
    code = (
        "import sys, pipeline.nets\n"
        "assert 'torch' not in sys.modules\n"
        "import pipeline.nets.start; pipeline.nets.names(); pipeline.nets.build('resnet8', 2)\n"
        "assert not {'torchvision', 'timm', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

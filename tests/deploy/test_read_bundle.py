import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.deploy.read_bundle import BundleError, open_bundle, sealed, transform

# a transform as bundles had it before pictures could be kept at another size than the student sees
ONE_STEP = {
    "exif_transpose": True,
    "background": "white",
    "crop": "largest centred square",
    "size": 16,
    "filter": "bilinear",
    "antialias": True,
    "mode": "RGB",
}
NESTED = json.loads('{"a": [' * 20 + "1" + "]}" * 20)
BAD_SIDES: tuple[Any, ...] = (0, -24, 4097, 24.0, True, "24", None, [24])


def test_it_reads_the_facts_of_a_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert (opened.name, opened.classes[2], opened.size, opened.channels, opened.max_batch) == (
        "tiny",
        "cat",
        16,
        3,
        64,
    )
    assert opened.kept == 24
    assert opened.formats == ["onnx", "int8"]
    assert opened.read("README.md") == b"# A student\n"
    assert len(opened.golden().images) == 8


def test_a_picture_that_is_kept_as_it_is_seen_has_the_transform_of_older_bundles(
    bent: Callable[..., Path],
) -> None:
    assert json.dumps(transform(16, 3, 16)) == json.dumps(ONE_STEP)
    assert open_bundle(bent({"transform": ONE_STEP})).kept == 16
    kept = bent({"transform": transform(16, 3, 4096)})
    assert open_bundle(kept).kept == 4096


@pytest.mark.parametrize("square", ["crop", "squash", "pad"])
def test_the_way_to_a_square_is_read(bent: Callable[..., Path], square: str) -> None:
    assert open_bundle(bent({"transform": transform(16, 3, 24, square)})).square == square


def test_any_changed_byte_of_bundle_json_is_noticed(own: Path) -> None:
    path = own / "bundle.json"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(whole), 300):
        broken = bytearray(whole)
        broken[position] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(broken)
        with pytest.raises(BundleError):
            open_bundle(own)
    for broken in (
        bytearray(whole + b" "),
        bytearray(whole.replace(b'"cat"', b'"cat" ')),
        bytearray(b'{"seal": 1, ' + whole[1:]),
    ):
        path.write_bytes(broken)
        with pytest.raises(BundleError, match=r"seal|schema"):
            open_bundle(own)


def test_a_name_in_any_script_is_sealed_and_read(bent: Callable[..., Path]) -> None:
    assert open_bundle(bent({"name": "Škôlka 学生"})).name == "Škôlka 学生"


def test_any_changed_file_is_noticed(own: Path) -> None:
    bundle = open_bundle(own)
    for name in bundle.facts["files"]:
        whole = (own / name).read_bytes()
        for broken in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], b""):
            (own / name).write_bytes(broken)
            with pytest.raises(BundleError, match="is not the file that was exported"):
                bundle.read(name)
        (own / name).unlink()
        with pytest.raises(BundleError, match="is missing"):
            bundle.read(name)


def test_links_into_dvcs_cache_are_followed(own: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name in ("student.onnx", "bundle.json"):
        os.replace(own / name, tmp_path / "cache" / name)
        (own / name).symlink_to(tmp_path / "cache" / name)
    assert open_bundle(own).model("onnx")


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    for content, why in (
        (b"", "cannot be read"),
        (b"[1]", "JSON object"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ):
        (tmp_path / "bundle.json").write_bytes(content)
        with pytest.raises(BundleError, match=why):
            open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"schema": 1}, "reads 2"),
        ({"name": 3}, "'name'"),
        ({"classes": ["ant"]}, "'classes'"),
        ({"classes": ["ant", "ant", "bee"]}, "twice"),
        ({"classes": None}, "'classes'"),
        ({"input": {"size": 16, "channels": 3, "dtype": "float32", "layout": "NHWC"}}, "uint8 NHWC"),
        ({"input": {"size": 10**9, "channels": 3, "dtype": "uint8", "layout": "NHWC"}}, "size"),
        ({"input": {"size": True, "channels": 3, "dtype": "uint8", "layout": "NHWC"}}, "size"),
        ({"transform": {"filter": "bicubic"}}, "'transform'"),
        ({"transform": []}, "AttributeError"),
        *[({"transform": {**ONE_STEP, "kept": bad}}, "no valid size 'kept'") for bad in BAD_SIDES],
        ({"transform": {**ONE_STEP, "kept": 16}}, "'transform' is not the one"),
        ({"transform": {**ONE_STEP, "size": 24}}, "'transform' is not the one"),
        *[
            ({"transform": {**ONE_STEP, "square": bad}}, "no known 'square'")
            for bad in ("fit", 3, ["pad"], None)
        ],
        ({"transform": {**ONE_STEP, "square": "crop"}}, "'transform' is not the one"),
        ({"transform": {**ONE_STEP, "square": "pad"}}, "'transform' is not the one"),
        ({"transform": {**transform(16, 3, 24, "pad"), "border": [0, 0, 0]}}, "'transform' is not the one"),
        *[({"temperature": bad}, "'temperature'") for bad in (0.0, -1.5, 2, "2", True, None, [2.5])],
        ({"outputs": ["logits"]}, "'outputs'"),
        ({"max_batch": 0}, "'max_batch'"),
        ({"metrics": NESTED}, "nested more than 40 levels"),
        ({"formats": {}}, "no format 'onnx'"),
        ({"formats": {"onnx": {"file": "other.onnx"}}}, "is not listed"),
        ({"formats": {"onnx": {}}}, "KeyError"),
    ],
)
def test_facts_that_this_predictor_cannot_use_are_refused_although_sealed(
    bent: Callable[..., Path], facts: dict[str, Any], why: str
) -> None:
    with pytest.raises(BundleError, match=why):
        open_bundle(bent(facts))


@pytest.mark.parametrize("name", ["../student.onnx", "/etc/passwd", "a/b", ".hidden", "bundle.json", ""])
def test_a_file_outside_the_bundle_is_refused(own: Path, name: str) -> None:
    facts = json.loads((own / "bundle.json").read_text())
    facts.pop("seal")
    facts["files"][name] = facts["files"]["README.md"]
    (own / "bundle.json").write_text(sealed(facts))
    with pytest.raises(BundleError, match="plain file name"):
        open_bundle(own)


def test_a_file_that_claims_to_be_huge_is_not_read(own: Path) -> None:
    facts = json.loads((own / "bundle.json").read_text())
    facts.pop("seal")
    facts["files"]["golden.npz"]["bytes"] = 1 << 40
    (own / "bundle.json").write_text(sealed(facts))
    with pytest.raises(BundleError, match="but 67108864 are allowed"):
        open_bundle(own).golden()


def test_a_refused_int8_file_is_not_offered(bent: Callable[..., Path], template: Any) -> None:
    formats = {**template.facts["formats"], "int8": {**template.facts["formats"]["int8"], "accepted": False}}
    opened = open_bundle(bent({"formats": formats}))
    assert opened.formats == ["onnx"]
    with pytest.raises(BundleError, match="did not pass its gate"):
        opened.model("int8")
    with pytest.raises(BundleError, match="Choose one of"):
        opened.model("torchscript")  # type: ignore[arg-type]


def test_golden_answers_that_prove_nothing_are_refused(
    bent: Callable[..., Path], workshop: Any, template: Any
) -> None:
    images = workshop.pictures(8)
    logits = workshop.answers(template.files["student.onnx"], images)
    sound = {"images": images, "logits_fp32": logits, "logits_int8": logits}
    assert open_bundle(bent(golden__npz=workshop.npz(**sound))).golden().logits["int8"].shape == (8, 5)
    for bad in (
        {"images": images[:1]},
        {"images": images.astype(np.float32)},
        {"images": images[:, :8]},
        {"logits_fp32": np.zeros_like(logits)},
        {"logits_fp32": np.repeat(logits[:1], 8, axis=0)},
        {"logits_fp32": np.full_like(logits, np.nan)},
        {"logits_int8": logits[:3]},
        {"images": np.array([{}], dtype=object)},
    ):
        with pytest.raises(BundleError, match=r"golden\.npz"):
            open_bundle(bent(golden__npz=workshop.npz(**sound | bad))).golden()
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bent(golden__npz=b"PK rubbish")).golden()


def test_golden_answers_run_no_code(bent: Callable[..., Path], workshop: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bent(golden__npz=workshop.npz(images=np.array([Evil()], dtype=object)))).golden()
    assert not (tmp_path / "executed").exists()


def test_golden_answers_that_unpack_to_gigabytes_are_refused(bent: Callable[..., Path]) -> None:
    from io import BytesIO
    from zipfile import ZIP_DEFLATED, ZipFile

    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(65 << 20))
    with pytest.raises(BundleError, match="too large"):
        open_bundle(bent(golden__npz=file.getvalue())).golden()

"""README.md of a bundle: what the student is, what was measured, and how to run it in each runtime."""

from collections.abc import Mapping
from string import Template
from typing import Any

from pipeline.export import calibration
from pipeline.export.machine import has_vnni

PICTURE = "picture.jpg"
CLASSES_SHOWN = 20
FILES = {
    "onnx": "float32, for any ONNX runtime",
    "int8": "int8 weights and activations, for CPUs",
    "torchscript": "TorchScript; torch has deprecated it, and loading such a file runs code from it",
    "pt2": "torch.export's own file, for work that goes on in torch",
    "safetensors": "the weights only",
}
PIXELS = """\
import numpy as np
from PIL import Image, ImageOps

picture = ImageOps.exif_transpose(Image.open("$picture")).convert("RGB")
$square
pixels = $pixels"""
SQUARES: dict[str, str] = {  # by how a picture becomes a square
    "crop": "square = ImageOps.fit(picture, ($kept, $kept), Image.Resampling.BILINEAR)",
    "squash": "square = picture.resize(($kept, $kept), Image.Resampling.BILINEAR)",
    "pad": """\
longest = max(picture.size)
width, height = (max(1, (2 * side * $kept + longest) // (2 * longest)) for side in picture.size)
square = Image.new("RGB", ($kept, $kept), $border)
whole = picture.resize((width, height), Image.Resampling.BILINEAR)
square.paste(whole, (($kept - width) // 2, ($kept - height) // 2))""",
}
ONNXRUNTIME = f"""\
import json
import onnxruntime
{PIXELS}

session = onnxruntime.InferenceSession("$file", providers=["CPUExecutionProvider"])
logits, probabilities = session.run(["logits", "probabilities"], {{"image": pixels}})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(classes[probabilities[0].argmax()], probabilities[0].max())"""
OPENVINO = f"""\
import openvino
{PIXELS}

model = openvino.compile_model("$file", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
print(model(pixels)["probabilities"][0].argmax())"""
TORCHSCRIPT = f"""\
import torch
{PIXELS}

script = torch.jit.load("student.ts")  # runs code from the file
logits, probabilities = script(torch.tensor(pixels))
print(probabilities[0].argmax().item())"""
PT2 = f"""\
import torch
{PIXELS}

module = torch.export.load("student.pt2").module()
logits, probabilities = module(torch.tensor(pixels))
print(probabilities[0].argmax().item())"""
WEIGHTS = """\
from safetensors.numpy import load_file

weights = load_file("student.safetensors")  # the names are those of the network's state_dict
print(sum(array.size for array in weights.values()), "numbers")"""


def text(bundle: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """The card of `bundle`, whose files have `sizes` bytes. Its Python code runs beside the files."""
    classes, formats = bundle["classes"], bundle["formats"]
    some = ", ".join(classes[:CLASSES_SHOWN])
    more = f" and {len(classes) - CLASSES_SHOWN} more (bundle.json)" if len(classes) > CLASSES_SHOWN else ""
    parts = [
        f"# {bundle['name']}",
        f"An image classifier for {len(classes)} classes: {some}{more}.",
        _accuracy(bundle["metrics"]),
        *([_calibration(bundle["calibration"])] if "calibration" in bundle else []),
        "## Files",
        _files(bundle, sizes),
        *([_int8(formats["int8"], bundle["cpu"]["flags"])] if "int8" in formats else []),
        "## Input and output",
        _interface(bundle),
        "## Run it",
        _run_it(bundle),
        "## Where it comes from",
        _origin(bundle),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(metrics: Mapping[str, Any]) -> str:
    mean, exported = f"{100 * metrics['accuracy']:.2f}", metrics["exported"]
    if metrics["n"] > 1:
        spread = f"{100 * metrics['spread']:.2f}"
        accuracy = f"{mean} ± {spread} % (mean ± standard deviation of {metrics['n']:.0f} seeds)"
    else:
        accuracy = f"{mean} % (one seed)"
    return (
        f"Accuracy on the test images, which were used neither to train nor to choose a student: {accuracy}. "
        f"This bundle holds the student of seed {exported['seed']}, the best on validation images. "
        f"Its accuracy on the test images is {100 * exported['accuracy']:.2f} %, its balanced accuracy "
        f"{100 * exported['balanced_accuracy']:.2f} % (mean recall of the classes), and its macro-F1 "
        f"{100 * exported['macro_f1']:.2f} % (mean F1 of the classes)."
    )


def _calibration(facts: Mapping[str, Any]) -> str:
    if not facts["found"]:
        return f"Its probabilities are not calibrated: {calibration.remarks(facts)[0]}."
    tested, int8 = facts["float"], facts.get("int8")
    of_int8 = f" (int8: {_errors(int8)})" if int8 else ""
    rows = [
        f"| {level} | {100 * each['answered']:.2f} | "
        f"{'' if each['accuracy'] is None else format(100 * each['accuracy'], '.2f')} |"
        for level, each in tested["thresholds"].items()
    ]
    table = "\n".join(
        ["| probability of at least | answered % | accuracy of these % |", "|--:|--:|--:|", *rows]
    )
    return (
        f"Its probabilities are calibrated: they are the softmax of `logits / {facts['temperature']:g}`. The "
        f"temperature was fitted on {facts['images']} validation images. On {tested['images']} test images "
        f"the expected calibration error ({tested['bins']} bins) is {_errors(tested)}{of_int8}. What "
        f"`predict --min-confidence` costs and saves on these test images:\n\n{table}"
    )


def _errors(facts: Mapping[str, Any]) -> str:
    return f"{100 * facts['ece_before']:.2f} % without it and {100 * facts['ece_after']:.2f} % with it"


def _files(bundle: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    formats, median = bundle["formats"], bundle["latency"]["median_ms"]
    rows = []
    for format, entry in formats.items():
        took = f"{median[format]:.3g}" if format in median else ""
        refused = "**refused, do not deploy it**: " if entry.get("accepted") is False else ""
        rows.append((entry["file"], took, f"{refused}{FILES[format]}"))
    rows.append(("golden.npz", "", "a few real images and the answers to expect"))
    rows.append(("student.html", "", "the student in a browser, served beside onnxruntime-web"))
    lines = [f"| {file} | {sizes[file] / 1e6:.2f} | {took} | {what} |" for file, took, what in rows]
    lines.append("| bundle.json | | | these facts for programs, with the hash of every file |")
    table = "\n".join(["| file | MB | ms for one image | what it is |", "|---|---|---|---|", *lines])
    largest = max((entry["parity"]["rel"] for entry in formats.values() if "parity" in entry), default=0.0)
    return (
        f"{table}\n\nMilliseconds are medians on one thread of {bundle['cpu']['model']}, from pixels to "
        "probabilities. Every float file except the weights was compared with the trained network on "
        f"{formats['onnx']['parity']['images']} real images and on extreme ones. It gives the same class "
        f"each time, and its logits differ by at most {largest:.0e} of the largest logit."
    )


def _int8(entry: Mapping[str, Any], flags: list[str]) -> str:
    quality, test = entry["quality"], entry["test"]
    if not entry["accepted"]:
        return (
            "Use the float file. The int8 file is not close enough to it: "
            f"on {quality['images']} validation images, even with its first layer in float, "
            f"{'; '.join(entry['refused'])}. It is kept as {entry['file']}, for you to examine."
        )
    table = [
        "| images | float, % right | int8, % right | points lost (95 % interval) | same class, % | logits |",
        "|---|---|---|---|---|---|",
        _compared(f"{quality['images']} validation images", quality),
        _compared(f"{test['images']} test images", test),
    ]
    parts = [
        "The int8 file compared with the float file. It was accepted for its results on validation images. "
        "The last column says how far its logits are above their error.",
        "\n".join(table),
    ]
    if entry["float_first"]:
        parts.append("Its first layer stays in float, because in int8 it was not close enough.")
    if not entry["portable"] and has_vnni(flags):
        parts.append(
            "On CPUs without VNNI some of its sums may saturate: check its answers there with golden.npz."
        )
    return "\n\n".join(parts)


def _compared(images: str, quality: Mapping[str, Any]) -> str:
    cells = [
        images,
        f"{100 * quality['accuracy_fp32']:.2f}",
        f"{100 * quality['accuracy']:.2f}",
        f"{quality['drop']:.2f} ({quality['low']:.2f} to {quality['high']:.2f})",
        f"{100 * quality['agreement']:.2f}",
        f"{quality['snr_db']:.1f} dB",
    ]
    return f"| {' | '.join(cells)} |"


def _interface(bundle: Mapping[str, Any]) -> str:
    size, channels = bundle["input"]["size"], bundle["input"]["channels"]
    scaled = f" (softmax of `logits / {bundle['temperature']:g}`)" if "temperature" in bundle else ""
    return (
        f"The input is `image`: uint8 pixels, N x {size} x {size} x {channels}, for any N "
        f"(tested with up to {bundle['max_batch']}). {bundle['transform']['words']} "
        f"The outputs are `logits` and `probabilities`{scaled}, both N x classes, with the classes in the "
        "order of bundle.json. The metadata of the ONNX file holds the classes and the transform too."
    )


def _run_it(bundle: Mapping[str, Any]) -> str:
    formats, size = bundle["formats"], bundle["input"]["size"]
    best = formats["int8"]["file"] if formats.get("int8", {}).get("accepted") else formats["onnx"]["file"]
    transform = bundle["transform"]
    kept, border = transform.get("kept", size), tuple(transform.get("border", ()))
    values = {
        "picture": PICTURE,
        "square": Template(SQUARES[transform.get("square", "crop")]).substitute(kept=kept, border=border),
        "file": best,
        "pixels": _pixels(bundle),
    }
    snippets = [
        (f"onnxruntime ({best}; it needs only numpy, Pillow and onnxruntime):", ONNXRUNTIME),
        ("OpenVINO, another runtime for Intel and AMD CPUs (compare its answers with golden.npz):", OPENVINO),
        *([("TorchScript:", TORCHSCRIPT)] if "torchscript" in formats else []),
        *([("torch.export:", PT2)] if "pt2" in formats else []),
        ("The weights:", WEIGHTS),
    ]
    code = [
        f"{title}\n\n```python\n{Template(snippet).substitute(values)}\n```" for title, snippet in snippets
    ]
    return "\n\n".join(
        [
            "With this project's code, which checks the bundle and reads whole folders: "
            "`python -m pipeline.deploy verify BUNDLE`, then "
            "`python -m pipeline.deploy predict BUNDLE PICTURES...`.",
            "Without it, for one ordinary picture (the project's predictor also lays transparency on white "
            "and reads 16-bit pixels):",
            *code,
        ]
    )


def _pixels(bundle: Mapping[str, Any]) -> str:
    """Code that makes pixels of the square that pictures become first."""
    size, is_grey = bundle["input"]["size"], bundle["input"]["channels"] == 1
    luma = '.convert("L")' if is_grey else ""
    seen = f".resize(({size}, {size}), Image.Resampling.BILINEAR)" if "kept" in bundle["transform"] else ""
    return f"np.asarray(square{luma}{seen})[None{', :, :, None' if is_grey else ''}]"


def _origin(bundle: Mapping[str, Any]) -> str:
    made, versions = bundle["provenance"], bundle["versions"]
    hashes = ", ".join(f"{what} `{made[what][:12]}`" for what in ("data", "teacher", "student", "code"))
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return (
        f"The network is `{made['net']}`, distilled and exported by this project. The record of the export "
        f"is `{made['record']}` (tag `stage.export` in MLflow). Hashes: {hashes}. Made with {packages}. "
        "bundle.json holds all parameters and the whole hashes."
    )

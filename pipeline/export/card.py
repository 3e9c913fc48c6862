"""README.md of a bundle: what the student is, what it was measured to do, and how to run it in each runtime."""

from collections.abc import Mapping
from typing import Any

from pipeline.export.machine import has_vnni

PICTURE = "picture.jpg"


def text(bundle: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """The card of `bundle`, whose files have `sizes` bytes. Its Python snippets run as they stand, beside the files."""
    classes, formats = bundle["classes"], bundle["formats"]
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more (bundle.json)" if len(classes) > 20 else "")
    parts = [
        f"# {bundle['name']}",
        f"An image classifier of {len(classes)} classes: {shown}.",
        _measured(bundle),
        "## Files",
        _files(bundle, sizes),
        *([_int8(formats["int8"], bundle["cpu"]["flags"])] if "int8" in formats else []),
        "## Input and output",
        _interface(bundle),
        "## Run it",
        _snippets(bundle),
        "## Where it comes from",
        _origin(bundle),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(bundle: Mapping[str, Any]) -> str:
    metrics = bundle["metrics"]
    spread = f" ± {100 * metrics['spread']:.2f}" if metrics["n"] > 1 else ""
    runs = f"over {metrics['n']:.0f} training runs (mean ± standard deviation)" if metrics["n"] > 1 else "in one training run"
    exported = metrics["exported"]
    return (
        f"On test images it never learned or was chosen from: {100 * metrics['accuracy']:.2f}{spread} % right {runs}. This file is the run "
        f"of seed {exported['seed']}, the best on validation images: {100 * exported['accuracy']:.2f} % right on the test images."
    )


def _files(bundle: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    told = {
        "onnx": "float32, for any ONNX runtime",
        "int8": "int8 weights and activations, for CPUs",
        "torchscript": "TorchScript, which torch has deprecated; loading such a file runs code from it",
        "pt2": "torch.export, for those who go on in torch",
        "safetensors": "the weights alone",
    }
    median = bundle["latency"]["median_ms"]
    rows = ["| file | MB | ms an image | what |", "|---|---|---|---|"]
    for form, entry in bundle["formats"].items():
        took = f"{median[form]:.3g}" if form in median else ""
        refused = "**refused**, don't deploy: " if entry.get("accepted") is False else ""
        rows.append(f"| {entry['file']} | {sizes[entry['file']] / 1e6:.2f} | {took} | {refused}{told[form]} |")
    rows.append(f"| golden.npz | {sizes['golden.npz'] / 1e6:.2f} | | a few real images and the answers to expect |")
    rows.append(f"| student.html | {sizes['student.html'] / 1e6:.2f} | | the student in a browser, served beside onnxruntime-web |")
    rows.append("| bundle.json | | | all of this for programs, with the hash of every file |")
    largest = max((entry["parity"]["rel"] for entry in bundle["formats"].values() if "parity" in entry), default=0.0)
    return "\n".join(rows) + (
        f"\n\nMilliseconds: median, one thread of {bundle['cpu']['model']}, pixels to probabilities. Every float file was compared with "
        f"the trained network on {bundle['formats']['onnx']['parity']['images']} real images and on extreme ones: the same class each "
        f"time, logits within {largest:.0e} of the largest."
    )


def _int8(entry: Mapping[str, Any], flags: list[str]) -> str:
    quality, test = entry["quality"], entry["test"]

    def told(q: Mapping[str, Any]) -> str:
        return (
            f"{100 * q['accuracy']:.2f} % right where float has {100 * q['accuracy_fp32']:.2f} %: {q['drop']:.2f} points lost "
            f"(95 % interval {q['low']:.2f} to {q['high']:.2f}), the same class for {100 * q['agreement']:.2f} %, logits "
            f"{q['snr_db']:.1f} dB above their error"
        )

    if not entry["accepted"]:
        return (
            f"Float is what ships; it is as good as said above. The int8 file isn't close enough to it: on {quality['images']} validation "
            f"images, with the first layer in float as well, {'; '.join(entry['refused'])}. It is kept as {entry['file']}, to be looked at."
        )
    first = " The first layer stays in float: in int8 it wasn't close enough." if entry["float_first"] else ""
    exact = "" if entry["portable"] or not has_vnni(flags) else " On CPUs without VNNI its sums may saturate: check there with golden.npz."
    return (
        f"int8 beside float: on {quality['images']} validation images, which decided that it ships, {told(quality)}. "
        f"On {test['images']} test images {told(test)}.{first}{exact}"
    )


def _interface(bundle: Mapping[str, Any]) -> str:
    given, size = bundle["input"], bundle["input"]["size"]
    return (
        f"`image`: uint8 pixels, N x {size} x {size} x {given['channels']}, any N (run up to {bundle['max_batch']}). "
        f"{bundle['transform']['words']} Out come `logits` and `probabilities`, both N x classes, in the order of the classes above. "
        "Labels and transform stand in the ONNX file's own metadata too."
    )


def _snippets(bundle: Mapping[str, Any]) -> str:
    formats, size = bundle["formats"], bundle["input"]["size"]
    grey = bundle["input"]["channels"] == 1
    best = formats["int8"]["file"] if formats.get("int8", {}).get("accepted") else formats["onnx"]["file"]
    pixels = [
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        f'picture = ImageOps.exif_transpose(Image.open("{PICTURE}")).convert("RGB")',
        f"square = ImageOps.fit(picture, ({size}, {size}), Image.Resampling.BILINEAR)",
        'pixels = np.asarray(square.convert("L"))[None, :, :, None]' if grey else "pixels = np.asarray(square)[None]",
    ]
    onnxruntime = [
        "import json",
        "import onnxruntime",
        *pixels,
        "",
        f'session = onnxruntime.InferenceSession("{best}", providers=["CPUExecutionProvider"])',
        'logits, probabilities = session.run(["logits", "probabilities"], {"image": pixels})',
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        "print(classes[probabilities[0].argmax()], probabilities[0].max())",
    ]
    openvino = [
        "import openvino",
        *pixels,
        "",
        f'model = openvino.compile_model("{best}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        'print(model(pixels)["probabilities"][0].argmax())',
    ]
    torchscript = [
        "import torch",
        *pixels,
        "",
        'script = torch.jit.load("student.ts")  # runs code from the file',
        "logits, probabilities = script(torch.tensor(pixels))",
        "print(probabilities[0].argmax().item())",
    ]
    pt2 = [
        "import torch",
        *pixels,
        "",
        'module = torch.export.load("student.pt2").module()',
        "logits, probabilities = module(torch.tensor(pixels))",
        "print(probabilities[0].argmax().item())",
    ]
    weights = [
        "from safetensors.numpy import load_file",
        "",
        'weights = load_file("student.safetensors")  # the names are those of the network\'s state_dict',
        'print(sum(array.size for array in weights.values()), "numbers")',
    ]
    told = [
        (f"onnxruntime ({best}; numpy, Pillow and onnxruntime are all it needs):", onnxruntime),
        ("OpenVINO, an alternative on Intel and AMD (its answers can be compared with golden.npz):", openvino),
        *([("TorchScript:", torchscript)] if "torchscript" in formats else []),
        *([("torch.export:", pt2)] if "pt2" in formats else []),
        ("The weights:", weights),
    ]
    code = "\n\n".join("\n".join([words, "", "```python", *lines, "```"]) for words, lines in told)
    return (
        "With this project's code, checked and for whole folders: `python -m pipeline.deploy verify BUNDLE`, then "
        "`python -m pipeline.deploy predict BUNDLE PICTURES...`. By hand, for ordinary pictures (the project's predictor also lays "
        f"transparency on white and reads 16-bit pixels):\n\n{code}"
    )


def _origin(bundle: Mapping[str, Any]) -> str:
    made, versions = bundle["provenance"], bundle["versions"]
    hashes = ", ".join(f"{what} `{made[what][:12]}`" for what in ("data", "teacher", "student", "code"))
    return (
        f"A {made['net']}, distilled and exported by this project's graph; record `{made['record']}` (MLflow's tag `stage.export`). "
        f"Hashes: {hashes}. Made with {', '.join(f'{package} {number}' for package, number in versions.items())}. "
        "All parameters and the whole hashes are in bundle.json."
    )

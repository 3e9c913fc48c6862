"""README.md of a bundle: what the student is, what was measured, and how to run it in each runtime."""

from collections.abc import Mapping
from string import Template
from typing import Any

import yaml

from pipeline.data.sources import OWN
from pipeline.export import calibration, latency
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
    classes, formats, made = bundle["classes"], bundle["formats"], bundle["provenance"]
    some = ", ".join(classes[:CLASSES_SHOWN])
    more = f" and {len(classes) - CLASSES_SHOWN} more (bundle.json)" if len(classes) > CLASSES_SHOWN else ""
    parts = [
        _front_matter(bundle),
        f"# {bundle['name']}",
        f"An image classifier for {len(classes)} classes: {some}{more}. The network is `{made['net']}`.",
        "## How good it is",
        _accuracy(bundle),
        "## What it is for, and what not",
        _use(bundle),
        "## Data",
        _data(bundle),
        *_per_class(bundle),
        "## Calibration",
        _calibration(bundle),
        "## Files",
        _files(bundle, sizes),
        *([_int8(formats["int8"], bundle["cpu"]["flags"])] if "int8" in formats else []),
        "## Input and output",
        _interface(bundle),
        "## Run it",
        _run_it(bundle),
        "## How it was made, and whom to cite",
        _origin(bundle),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(bundle: Mapping[str, Any]) -> str:
    """What hubs of models read. No licence is claimed: data and teacher may restrict it."""
    formats, source = bundle["formats"], bundle["provenance"].get("source", "")
    tags = ["image-classification", "knowledge-distillation", *(form for form in FILES if form in formats)]
    facts = {
        "license": "other",
        "license_name": "not-chosen-yet",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": ["accuracy"],
        # hubs take this for one of their own data sets, so images of one's own are named below only
        **({"datasets": [_dataset(source)]} if _is_public(source) else {}),
        "model-index": [{"name": bundle["name"], "results": [_results(bundle)]}],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _results(bundle: Mapping[str, Any]) -> dict[str, Any]:
    exported, formats = bundle["metrics"]["exported"], bundle["formats"]
    scores = {formats["onnx"]["file"]: exported["accuracy"]}
    if formats.get("int8", {}).get("accepted"):
        scores[formats["int8"]["file"]] = formats["int8"]["test"]["accuracy"]
    source = bundle["provenance"].get("source", "images")
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": source, "type": _dataset(source), "split": "test"},
        "metrics": [
            {"type": "accuracy", "value": round(value, 4), "name": f"accuracy of {file}"}
            for file, value in scores.items()
        ],
    }


def _dataset(source: str) -> str:
    return source.rpartition(":")[2].lower()


def _is_public(source: str) -> bool:
    return source not in ("", *OWN)


def _accuracy(bundle: Mapping[str, Any]) -> str:
    metrics, formats = bundle["metrics"], bundle["formats"]
    exported, int8 = metrics["exported"], formats.get("int8", {})
    low, high = exported["interval"]
    lines = [
        f"`{formats['onnx']['file']}` is right on **{100 * exported['accuracy']:.2f} %** of "
        f"{exported['images']:,} test images (95 % interval {100 * low:.2f} to {100 * high:.2f} %), which "
        "were used neither to train nor to choose it. "
        f"Its balanced accuracy is {100 * exported['balanced_accuracy']:.2f} % (mean recall of the classes), "
        f"and its macro-F1 {100 * exported['macro_f1']:.2f} % (mean F1 of the classes).",
    ]
    if int8.get("accepted"):
        lines.append(f"`{int8['file']}` is right on **{100 * int8['test']['accuracy']:.2f} %** of them.")
    if metrics["n"] > 1:
        lines.append(
            f"It is the student of seed {exported['seed']}, the best of {metrics['n']:.0f} on validation "
            f"images. The method reaches {100 * metrics['accuracy']:.2f} ± {100 * metrics['spread']:.2f} % "
            f"(mean ± standard deviation of {metrics['n']:.0f} seeds)."
        )
    else:
        lines.append(f"It is the student of seed {exported['seed']}, the only one that was trained.")
    return " ".join(lines)


def _use(bundle: Mapping[str, Any]) -> str:
    size, tested = bundle["input"]["size"], bundle["metrics"]["exported"]["images"]
    return (
        f"For pictures like those it learned from, each of which belongs to one of the "
        f"{len(bundle['classes'])} classes. It gives one of them to a picture of anything else, too, and a "
        f"high probability is no proof. It sees pictures at {size} x {size} pixels, so smaller details are "
        f"lost. The figures hold for images like the {tested:,} test images; other cameras, places or times "
        "may give other figures. Test it on images of your own before anything depends on it, and do not let "
        "it decide alone about people."
    )


def _data(bundle: Mapping[str, Any]) -> str:
    made = bundle["provenance"]
    splits = ", ".join(f"{images:,} {split}" for split, images in made.get("splits", {}).items())
    learned = made.get("learned_from", {})
    others = f" and {learned['unlabelled']:,} without labels" if learned.get("unlabelled") else ""
    lines = [f"Source: {made['source']} ({splits} images)." if "source" in made else ""]
    lines.append(
        f"The student learned from {learned['images']:,} labelled images{others}." if learned else ""
    )
    lines.append(f"The hash of all pixels, labels and splits is `{made['data'][:12]}`.")
    return " ".join(filter(None, lines))


def _per_class(bundle: Mapping[str, Any]) -> list[str]:
    """A table of the classes, or of the hardest ones."""
    exported = bundle["metrics"]["exported"]
    counted = zip(bundle["classes"], exported["images_per_class"], exported["per_class"], strict=True)
    found = sorted((each for each in counted if each[2] is not None), key=lambda each: each[2])
    if not found:
        return []
    rest = f" The {CLASSES_SHOWN} hardest of {len(found)}." if len(found) > CLASSES_SHOWN else ""
    rows = [f"| {_cell(name)} | {n} | {100 * right:.2f} |" for name, n, right in found[:CLASSES_SHOWN]]
    return [
        "## Results of each class",
        f"The float file on the test images, the hardest class first.{rest}",
        "\n".join(["| class | test images | right % |", "|---|--:|--:|", *rows]),
    ]


def _cell(name: str) -> str:
    return " ".join(name.split()).replace("|", "\\|")


def _calibration(bundle: Mapping[str, Any]) -> str:
    facts = bundle.get("calibration")
    if not facts or not facts["found"]:
        why = f": {calibration.remarks(facts)[0]}" if facts else ""
        error = f"{100 * bundle['metrics']['exported']['ece']:.2f}"
        return (
            f"Its probabilities are not calibrated{why}. On the test images the expected calibration error "
            f"(15 bins) is {error} %: so far is the mean probability from the share that is right."
        )
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
        f"the expected calibration error ({tested['bins']} bins) is {_errors(tested)}{of_int8}. What it "
        f"costs and saves on these test images to answer only from some probability on:\n\n{table}"
    )


def _errors(facts: Mapping[str, Any]) -> str:
    return f"{100 * facts['ece_before']:.2f} % without it and {100 * facts['ece_after']:.2f} % with it"


def _files(bundle: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    formats, median = bundle["formats"], bundle["latency"]["median_ms"]
    rows = []
    for format, entry in formats.items():
        took = f"{median[format]:.3f}" if format in median else ""
        refused = "**refused, do not deploy it**: " if entry.get("accepted") is False else ""
        rows.append((entry["file"], took, f"{refused}{FILES[format]}"))
    rows.append(("golden.npz", "", "a few real images and the answers to expect"))
    rows.append(
        ("student.html", "", "the student in a browser, from a web server that has onnxruntime-web beside it")
    )
    lines = [f"| {file} | {sizes[file] / 1e6:.2f} | {took} | {what} |" for file, took, what in rows]
    lines.append("| bundle.json | | | these facts for programs, with the hash of every file |")
    table = "\n".join(["| file | MB | ms for one image | what it is |", "|---|---|---|---|", *lines])
    largest = max((entry["parity"]["rel"] for entry in formats.values() if "parity" in entry), default=0.0)
    return (
        f"{table}\n\nMilliseconds: {latency.WORDS} ({bundle['cpu']['model']}), from pixels to probabilities, "
        "as onnxruntime takes them in a process of its own. Every float file except the weights was compared "
        "with the trained network on "
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
            "For ordinary pictures (a full predictor also lays transparency on white and reads 16-bit "
            "pixels):",
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
    cite = f"Please cite the method: {made['cite']}\n\n" if made.get("cite") else ""
    method = f" with the method `{made['method']}`" if "method" in made else ""
    return (
        f"{cite}The network is `{made['net']}`, trained{method} by folder-to-student and exported by it. The "
        f"record of the export is `{made['record']}`. Hashes: {hashes}. Made with {packages}. bundle.json "
        "holds all parameters and the whole hashes.\n\nNo licence is chosen yet. The code that made these "
        "files is under the Apache licence 2.0, which says nothing about them: the images and the teacher's "
        "weights may limit what you may do. Choose a licence before you publish, and write it at the top of "
        "this file."
    )

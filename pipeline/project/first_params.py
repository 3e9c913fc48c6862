"""The first params.yaml of a project: that of this repository, with choices for the images at hand."""

import json
import math
import re
import textwrap
from typing import Any

from pipeline.project.look import Look
from pipeline.project.named_net import Named, named_net

COLUMN = 28  # where the comments of params.yaml begin
EPOCHS = f"{'  epochs: 0':<{COLUMN}}# or, instead, steps: how many batches"


def first_params(template: str, look: Look, *, teacher: str = "", student: str = "") -> tuple[str, str]:
    """The text of params.yaml, and a sentence on what it trains."""
    is_photo = look.are_photographs
    big = named_net(teacher or ("torchvision:resnet50" if is_photo else "resnet20"), "--teacher")
    small = named_net(student or ("torchvision:mobilenet_v2" if is_photo else "resnet8"), "--student")
    text = re.sub(r"^  steps: .*$", EPOCHS, template, flags=re.MULTILINE)
    for section, values in _settings(look).items():
        text = _with_values(text, section, values)
    teach = _teacher_train(look) if big.is_trainable else {"epochs": 0}
    text = _with_entry(text, "teachers", "big", [*big.lines(), *_lines("train", teach)])
    text = _with_entry(text, "students", "small", small.lines())
    text = _with_runs(text)
    return f"{_head(look)}\n{text}", _sentence(look, big, small)


def _settings(look: Look) -> dict[str, dict[str, Any]]:
    channels = 1 if look.is_grey and not look.are_photographs else 3
    pad = max(1, _size(look) // (32 if look.are_photographs else 8))
    balance = {"class_balance": "sampler", "select": "macro_f1"} if look.are_unbalanced else {}
    return {
        "data": look.data | {"size": _size(look), "channels": channels},
        "augment": {"pad": pad, "flip": 0.5},  # in so few epochs better than crops (docs/results.md)
        "protocol": {"shots": 0, "rest": "unused"},  # all images; a folder `unlabelled` is seen anyway
        "train": _student_train(look) | balance,
    }


def _size(look: Look) -> int:
    """Photographs at what a processor can train with; small pictures as they are."""
    return min(160, look.side // 32 * 32) if look.are_photographs else min(64, max(8, look.side))


def _student_train(look: Look) -> dict[str, Any]:
    if look.are_photographs:  # pretrained weights change slowly
        return _times(look, steps=400, epochs=(8, 30), batch=32) | {
            "optimizer": "adamw",
            "lr": 0.001,
            "weight_decay": 0.02,
            "decay": "weights",
            "schedule": "cosine",
            "warmup": 0.1,
            "label_smoothing": 0.1,
            "clip": 1.0,
        }
    return _times(look, steps=4000, epochs=(20, 200), batch=64)


def _teacher_train(look: Look) -> dict[str, Any]:
    if look.are_photographs:
        return _student_train(look) | {"lr": 0.0005}
    return _student_train(look) | {"lr": 0.003, "weight_decay": 0.0005, "schedule": "onecycle"}


def _times(look: Look, *, steps: int, epochs: tuple[int, int], batch: int) -> dict[str, Any]:
    """Epochs for about so many steps. Few images get small batches, since a batch is full or dropped."""
    learning = max(1, round(0.7 * look.labelled))
    size = min(batch, max(8, 2 ** int(math.log2(learning / 6 + 1))))
    wanted = math.ceil(steps / max(1, learning // size))
    return {"epochs": min(epochs[1], max(epochs[0], wanted)), "points": 10, "batch_size": size}


def _sentence(look: Look, big: Named, small: Named) -> str:
    how = "start from pretrained weights where there are some" if look.are_photographs else "learn from zero"
    return f"Teacher {big.net}, student {small.net}, at {_size(look)} x {_size(look)} pixels; they {how}."


# The text of params.yaml, changed line by line: comments stay as they are


def _with_values(text: str, section: str, values: dict[str, Any]) -> str:
    before, body, after = _parts(text, section)
    for key, value in values.items():
        body = _with_value(body, key, value)
    return before + body + after


def _with_value(body: str, key: str, value: Any) -> str:
    """The section with `key` set, at its place or at the end."""
    found = re.search(rf"^  {key}: *[^#\n]*(#[^\n]*)?\n", body, flags=re.MULTILINE)
    comment = (found[1] if found else "") or ""
    line = f"{f'  {key}: {_yaml(value)}':<{COLUMN}}{comment}".rstrip() + "\n"
    if comment and len(line) - len(comment) > COLUMN + 1:
        line = line.replace(comment, f" {comment}")
    if found:
        return body[: found.start()] + line + body[found.end() :]
    return body.rstrip("\n") + "\n" + line + "\n"


def _with_entry(text: str, section: str, name: str, lines: list[str]) -> str:
    before, body, after = _parts(text, section)
    head = body.partition("\n")[0]
    return f"{before}{head}\n  {name}:\n" + "".join(f"    {line}\n" for line in lines) + "\n" + after


RUNS = """  alone:                    # the baseline: the student without a teacher
    teacher: big
    student: small
    method: {name: ce}
    seeds: [0, 1, 2]
  kd:
    teacher: big
    student: small
    method: {name: kd, ce_weight: 0.1, kd_weight: 0.9, temperature: 4.0}
    seeds: [0, 1, 2]
"""


def _with_runs(text: str) -> str:
    """Two runs; the others of the template stay as comments. No analysis of a run that is gone."""
    before, body, after = _parts(text, "runs")
    head, comments = body.partition("\n")[0], body.partition("\n\n")[2]
    text = f"{before}{head}\n{RUNS}\n{comments}{after}"
    return re.sub(r"^(  )fitnet(: \{images: 6\})", r"\1kd\2", text, flags=re.MULTILINE)


def _parts(text: str, section: str) -> tuple[str, str, str]:
    """The text before a section, the section to where the next one or its comment begins, and the rest."""
    found = re.search(rf"^{section}:[^\n]*\n(?:  [^\n]*\n|\n(?=  ))*\n?", text, flags=re.MULTILINE)
    assert found, section
    return text[: found.start()], found[0], text[found.end() :]


def _lines(key: str, values: dict[str, Any]) -> list[str]:
    indent = " " * (len(key) + 3)
    return textwrap.wrap(f"{key}: {_yaml(values)}", 100, subsequent_indent=indent)


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in value.items()) + "}"
    is_plain = not isinstance(value, str) or re.fullmatch(r"[\w./:-]+", value)
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def _head(look: Look) -> str:
    classes = textwrap.wrap(f"Classes: {', '.join(look.classes)}", 106, max_lines=3)
    return "".join(f"# {line}\n" for line in (f"{look.words()}.", *classes))

"""What each step of gpu_check does. A step returns figures; a `fault` among them makes it a failure."""

import importlib.metadata
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from experiments.on_device import (
    CLASSES,
    MEAN,
    RECIPE,
    ROOT,
    STD,
    Check,
    StoppedError,
    World,
    batches_of,
    network,
    pictures,
)
from pipeline import methods
from pipeline.device import products
from pipeline.evaluation.scores import logits_of
from pipeline.export.deployable import Deployable
from pipeline.settings import InputError
from pipeline.training.recipe import TrainConfig

Figures = dict[str, Any]
PACKAGES = (
    "accelerate", "numpy", "onnxruntime", "onnxruntime-gpu", "pydantic", "torch", "torchvision", "triton",
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # of `train`
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16 channels_last": {"precision": "bf16", "channels_last": True},
}
COMPILED = "bf16 channels_last compiled"


class AbsentError(Exception):
    """This machine does not have what the step needs."""


def facts(check: Check) -> Figures:
    found: Figures = {"python": sys.version.split()[0], "cores": os.cpu_count(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if check.cuda:
        card = torch.cuda.get_device_properties(check.device)
        found |= {"device": card.name, "GiB": round(card.total_memory / 2**30, 1)}
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def method_steps(check: Check, name: str, batch: int, size: int) -> Figures:
    """Of each phase: milliseconds a step, and the lines that wait for the device after the first two."""
    world = World(check, "resnet8", "resnet14", 20 * batch, batch, size)
    method, found = world.method(name), Figures(milliseconds={}, waits={})
    for n, phase in enumerate(method.phases(world.student)):
        make_step = world.stepper(method, n)
        losses = [make_step(), make_step()]
        with check.waits() as waits:
            losses += [make_step(), make_step()]
        if waits:
            found["waits"][phase.name] = waits
        if not torch.stack(losses).isfinite().all():
            found["fault"] = f"the loss of phase {phase.name} is not finite"
        found["milliseconds"][phase.name] = round(1000 * check.typical(make_step), 2)
    return found


def repeats(check: Check, name: str, batch: int, size: int) -> Figures:
    """The same seed twice, and a training that is stopped and goes on: are the weights the same, bit for bit?

    If not, the same with deterministic algorithms, which must give the same weights.
    """
    found: Figures = {}
    for mode in ("default", "deterministic"):
        cfg = RECIPE.model_copy(update={"deterministic": mode == "deterministic"})
        try:
            first, again, resumed = (
                weights(check, name, batch, size, cfg, stop=stop) for stop in (False, False, True)
            )
        except InputError as error:
            return found | {mode: {"refused": str(error)}}
        found[mode] = {"same seed": difference(first, again), "resumed": difference(first, resumed)}
        if set(found[mode].values()) == {"identical"}:
            return found
    found["fault"] = "the weights differ with deterministic algorithms too"
    return found


def weights(
    check: Check, name: str, batch: int, size: int, cfg: TrainConfig, *, stop: bool
) -> dict[str, Tensor]:
    """Of student and method after all phases. With `stop`, each is stopped and goes on in new objects."""
    make_world = partial(World, check, "resnet8", "resnet14", 2 * batch, batch, size)
    world = make_world(seed=0)
    method = world.method(name)
    with TemporaryDirectory() as folder:
        for n in range(len(method.phases(world.student))):
            if stop:
                with suppress(StoppedError):
                    world.fit(method, n, cfg, Path(folder), stop=True)
                world = make_world(seed=n + 1)  # other weights: all must come from the files
                method = world.method(name)
                for finished in range(n):
                    world.fit(method, finished, cfg, Path(folder))
            world.fit(method, n, cfg, Path(folder))
    state = {f"student.{key}": value.cpu() for key, value in world.student.net.state_dict().items()}
    return state | {f"method.{key}": value.cpu() for key, value in method.state_dict().items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    if all(value.numpy().tobytes() == other[key].numpy().tobytes() for key, value in one.items()):
        return "identical"
    far = {
        key: (value.double() - other[key].double()).abs().max().item()
        for key, value in one.items()
        if value.numel()
    }
    largest = max(far, key=lambda key: far[key])
    return f"differs by {far[largest]:.2g} in {largest}"


def loop(check: Check, precision: str, images: int, batch: int) -> Figures:
    """The training loop with kd and its data: images a second, and the lines that wait for the device."""
    world = World(check, "resnet8", "resnet14", images, batch)
    cfg = RECIPE.model_copy(update={"precision": precision})
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        curves = world.fit(world.method("kd"), -1, cfg, Path(one))
        with check.waits() as waits:
            world.fit(world.method("kd"), -1, cfg, Path(other))
    seconds = curves["seconds"][1] - curves["seconds"][0]
    found = {"images/s": round(images / seconds), "loss": curves["loss"]}
    return found | {"steps": 2 * -(-images // batch), "waits": waits}


def peak(check: Check, side: int) -> Figures:
    """FLOP/s of a product of large matrices of random numbers: what speeds are compared with."""
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(side, side, device=check.device, dtype=dtype)
        with products(tf32=name == "tf32"):
            check.peak[name] = 2 * side**3 / check.typical(partial(torch.mm, matrix, matrix))
    return {f"{name} TFLOP/s": round(flops / 1e12, 3) for name, flops in check.peak.items()}


def speed(
    check: Check, name: str, nets: tuple[str, str], batch: int, size: int, settings: Sequence[str]
) -> Figures:
    """Of training steps of a method on one batch, in each setting; `nets` are the student and the teacher."""
    found: Figures = {}
    for setting in settings:
        cfg = RECIPE.model_copy(update=SETTINGS[setting.removesuffix(" compiled")])
        world = World(check, *nets, batch, batch, size)
        with world.computing(cfg):
            make_step = world.stepper(world.method(name), -1, cfg)
            with FlopCounterMode(display=False) as counter:
                make_step()
            if setting == COMPILED:
                make_step = world.compiled(make_step)
            found[setting] = step_figures(check, make_step)
        seconds = found[setting]["ms"] / 1000
        found[setting]["images/s"] = round(batch / seconds)
        # in fp32 torch lets convolutions round to TF32 on a GPU
        if flops := check.peak.get("tf32" if cfg.precision == "fp32" else cfg.precision):
            found[setting]["share of peak"] = round(counter.get_total_flops() / seconds / flops, 4)
    return found


def step_figures(check: Check, make_step: Callable[[], object]) -> Figures:
    """Milliseconds, kernel launches, and the share of the time for which kernels run."""
    first, seconds = check.seconds(make_step), check.typical(make_step)
    with profile() as profiler:
        check.seconds(make_step)
    events = profiler.key_averages()
    kernels = [each for each in events if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
    return {
        "ms": round(1000 * seconds, 3),
        "seconds of the first step": round(first, 1),
        "launches": sum(each.count for each in events if "Launch" in each.key),
        "kernels busy": round(sum(each.self_device_time_total for each in kernels) / 1e6 / seconds, 2),
    }


def data(check: Check, count: int, size: int, batch: int) -> Figures:
    """Images a second of an epoch's batches, and the lines that wait: pixels on the device, or in a file."""
    found: Figures = {}
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", pictures(count, size)[0])
        images = np.load(Path(folder) / "images.npy", mmap_mode="r")
        for name, limit in (("resident", 1 << 40), ("not resident", 0)):
            with patch("pipeline.data.views.resident_bytes", lambda device, limit=limit: limit):
                batches = batches_of(check, images, np.arange(count) % CLASSES, batch)
            with check.waits() as waits:
                next(batches.epoch(0))
            seconds = check.seconds(partial(deque, batches.epoch(1), maxlen=0))
            found[name] = {"images/s": round(count / seconds), "waits": waits}
    return found


def evaluation(check: Check, student: str, count: int) -> Figures:
    """Logits on the device beside those of the CPU: the largest difference over the largest logit."""
    images, net, found = pictures(count, 32)[0], network(student, seed=0).eval(), Figures()
    wanted = np.zeros(0)
    for name, device, fast in (
        ("cpu", "cpu", False),
        ("fp32", check.device, False),
        ("tf32", check.device, True),
    ):
        predict = Deployable(net, MEAN, STD).to(device).predict
        with products(tf32=fast):
            predict(images[:256])
            start = time.perf_counter()
            logits = logits_of(predict, images, range(count))
        found[name] = {"seconds": round(time.perf_counter() - start, 2)}
        wanted = logits if name == "cpu" else wanted
        found[name]["difference"] = float(f"{np.abs(logits - wanted).max() / np.abs(wanted).max():.2g}")
    return found


def export(check: Check, student: str) -> Figures:
    """The ONNX file in onnxruntime: the CPU beside torch, CUDA beside the CPU. It fails if they differ."""
    import onnxruntime

    from pipeline.deploy.runtime import session
    from pipeline.export.onnx_format import write
    from pipeline.export.parity import check as check_parity

    images, found = pictures(256, 32)[0], Figures()
    model = Deployable(network(student, seed=0), MEAN, STD).eval()
    reference: Callable[[np.ndarray], Any] = model.outputs
    with TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"
        write(model, file, size=32, channels=3, classes=CLASSES, metadata={})
        for provider in ("cpu", "cuda") if check.cuda else ("cpu",):
            if provider == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise AbsentError(
                    f"onnxruntime {onnxruntime.__version__} has no CUDA; on the CPU: {found['cpu']}"
                )
            run_file = session(file.read_bytes(), threads=2, providers=(provider,), name=file.name).run

            def candidate(pixels: np.ndarray, run_file: Any = run_file) -> tuple[np.ndarray, np.ndarray]:
                logits, probabilities = run_file(["logits", "probabilities"], {"image": pixels})
                return logits, probabilities

            result = check_parity(reference, candidate, images, name=f"onnx on {provider}", exact=model.exact)
            seconds = check.typical(partial(candidate, images))
            found[provider] = {
                "difference": float(f"{result.rel:.2g}"),
                "images/s": round(len(images) / seconds),
            }
            reference = candidate
    return found


def digits(epochs: int | None) -> Figures:
    """From the pictures to a kd student of one seed, in this process, with the settings of params.yaml."""
    import sklearn  # noqa: F401
    import yaml

    from pipeline.data.prepare import prepare
    from pipeline.params import load_params
    from pipeline.runs.student import distill, pretrain
    from pipeline.runs.teacher import train_teacher

    given = yaml.safe_load((ROOT / "params.yaml").read_text())
    given |= {"runs": {"kd": given["runs"]["kd"] | {"seeds": [0]}}, "analysis": {}, "knowledge": {}}
    for recipe in (given["train"], *(teacher["train"] for teacher in given["teachers"].values())):
        recipe["epochs"] = epochs or recipe["epochs"]
    for each in given["teachers"].values():
        each["min_accuracy"] = 0  # with few epochs it may not be above chance
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_text(yaml.safe_dump(given))
        (folder / "data").mkdir()
        params = load_params(folder / "params.yaml")
        prepare(params.data, folder / "data")
        run = params.run("kd")
        common: dict[str, Any] = {"data": folder / "data", "work": folder / "work", "code": ""}
        common["on_point"] = lambda name, curves: None
        teacher = train_teacher(params.teacher_run(run.teacher), out=folder / "teacher", **common)
        common["teacher"] = folder / "teacher"
        pretrain(run, out=folder / "initial", **common)
        student = distill(run, initial=folder / "initial", out=folder / "student", **common)
    return {"teacher": teacher.metrics, "student": student.metrics}


def steps(check: Check) -> Iterator[tuple[str, float, Callable[[], Figures]]]:
    """Name, the seconds that it needs on a GPU, and the step: the most important first."""
    cuda, names = check.cuda, methods.names()
    batches, side = ((64, 1024), 8192) if cuda else ((4,), 128)
    small = (64, 32) if cuda else (4, 16)  # batch and size for the methods
    in_store, in_loop, evaluated = (50_000, 4096, 10_000) if cuda else (500, 8, 100)
    pair = ("resnet8x4", "resnet32x4") if cuda else ("resnet8", "resnet8")
    size, batch, in_large_store = (224, 128, 2_000) if cuda else (32, 4, 8)
    eager = list(SETTINGS)
    cases = [(name, n) for n in batches for name in (("ce", "kd") if cuda else ("kd",))]
    yield "facts", 0, partial(facts, check)
    yield from ((f"method {name}", 3, partial(method_steps, check, name, *small)) for name in names)
    yield from ((f"repeat {name}", 6, partial(repeats, check, name, *small)) for name in names)
    yield "peak", 5, partial(peak, check, side)
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        yield f"loop, precision {precision}", 5, partial(loop, check, precision, in_loop, batches[0])
    for name, n in cases:
        yield f"speed {name}, batch {n}", 10, partial(speed, check, name, pair, n, 32, eager)
    large, fitting = ("resnet50", eager) if cuda else ("resnet18", eager[:1])
    on_large = partial(speed, check, "ce", (f"torchvision:{large}", pair[1]), batch, size, fitting)
    yield f"speed {large}, batch {batch}", 20, on_large
    for n in batches:
        yield f"data, batch {n}", 5, partial(data, check, in_store, 32, n)
    yield f"data of size {size}", 10, partial(data, check, in_large_store, size, batch)
    yield "evaluation", 10, partial(evaluation, check, pair[0], evaluated)
    yield "export", 15, partial(export, check, pair[0])
    yield "digits", 20, partial(digits, None if cuda else 1)
    for name, n in cases:
        yield f"compiled {name}, batch {n}", 40, partial(speed, check, name, pair, n, 32, [COMPILED])

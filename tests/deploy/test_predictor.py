import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from pipeline.data.decode import Readable, decode, fit, load, see
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import BundleError, transform

ROOT = Path(__file__).parents[2]


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    file = BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_it_answers_as_the_file_does_in_onnxruntime(bundle: Path, template: Any, workshop: Any) -> None:
    images = workshop.pictures(150, seed=3)  # more than one batch
    logits, probabilities = Predictor(bundle).run(images)
    assert np.array_equal(logits, workshop.answers(template.files["student.onnx"], images))
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert Predictor(bundle).run(images[:0])[0].shape == (0, 5)


def test_pictures_of_any_size_are_decoded_as_in_evaluation(bundle: Path) -> None:
    files = [
        jpeg(width, height, width)
        for width, height in ((17, 40), (333, 500), (640, 480), (16, 16), (5, 90), (1, 1), (250, 249))
    ]
    predictor = Predictor(bundle)
    evaluated = predictor.run(np.stack([decode(file, 16, 3, kept=24) for file in files]))[1]
    answers = predictor(files)
    assert [answer.label for answer in answers] == [
        predictor.bundle.classes[row.argmax()] for row in evaluated
    ]
    assert np.array_equal(np.stack([answer.probabilities for answer in answers]), evaluated)
    assert len({answer.label for answer in answers}) > 1


def test_every_kind_of_picture_gives_the_same_answer(bundle: Path, tmp_path: Path) -> None:
    content = jpeg(30, 20)
    (tmp_path / "a.jpg").write_bytes(content)
    given: list[Readable] = [
        content,
        tmp_path / "a.jpg",
        str(tmp_path / "a.jpg"),
        BytesIO(content),
        Image.open(BytesIO(content)),
    ]
    answers = Predictor(bundle)(iter(given))
    assert len({answer.probabilities.tobytes() for answer in answers}) == 1
    assert Predictor(bundle)([]) == []
    for single in (content, "a.jpg", Image.new("RGB", (3, 3)), BytesIO(content)):
        with pytest.raises(BundleError, match="list of pictures"):
            Predictor(bundle)(single)  # type: ignore[arg-type]


def test_the_likeliest_classes_come_first(bundle: Path, workshop: Any) -> None:
    answer = Predictor(bundle)(workshop.pictures(1))[0]
    top = answer.top(3)
    assert top[0] == (answer.label, answer.probability)
    assert [probability for _, probability in top] == sorted(answer.probabilities.tolist(), reverse=True)[:3]
    assert len(answer.top(99)) == 5


def test_int8_answers_nearly_the_same(bundle: Path, workshop: Any) -> None:
    images = workshop.pictures(40, seed=5)
    fp32, int8 = Predictor(bundle).run(images)[0], Predictor(bundle, format="int8").run(images)[0]
    assert 0 < np.abs(fp32 - int8).max() < 0.05 * np.abs(fp32).max()


@pytest.mark.parametrize("kept", [7, 16, 24])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_kept_at_one_size_and_seen_at_another(
    workshop: Any, tmp_path: Path, channels: int, kept: int
) -> None:
    folder = workshop.draft(tmp_path, channels, kept=kept, int8=False).write(tmp_path / "bundle")
    predictor = Predictor(folder)
    content = jpeg(40, 30)
    pixels = see(fit(load(content), kept, channels), 16)
    assert np.array_equal(predictor.decode(content), pixels)
    assert np.array_equal(predictor([content])[0].probabilities, predictor.run(pixels[None])[1][0])


@pytest.mark.parametrize("kept", [16, 23, 25])
def test_a_changed_size_is_refused_although_sealed(
    bent: Callable[..., Path], template: Any, kept: int
) -> None:
    """The ONNX file says too how pictures become pixels; golden answers cannot, because they hold pixels."""
    changed = transform(16, 3, kept)
    with pytest.raises(BundleError, match="'transform' in its metadata is not what"):
        Predictor(bent({"transform": {**changed, "words": template.facts["transform"]["words"]}}))


def test_many_threads_get_the_same_answers_as_one(bundle: Path, workshop: Any) -> None:
    predictor = Predictor(bundle, threads=2)
    images = workshop.pictures(64, seed=1)
    want = [predictor.run(images[i : i + 1])[1] for i in range(64)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in list(range(start, 64)) + list(range(start)):
            if not np.allclose(predictor.run(images[i : i + 1])[1], want[i], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_and_spinning_reach_the_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    make = onnxruntime.InferenceSession

    def spy(content: bytes, options: Any, **rest: Any) -> Any:
        seen.append(
            (
                options.intra_op_num_threads,
                options.get_session_config_entry("session.intra_op.allow_spinning"),
            )
        )
        return make(content, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    Predictor(bundle, threads=2)
    Predictor(bundle, threads=3, spin=True)
    assert seen == [(2, "0"), (3, "1")]
    with pytest.raises(BundleError, match="threads"):
        Predictor(bundle, threads=0)


def test_a_provider_is_used_or_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Predictor(bundle, providers=["cpu"]).providers == ["CPUExecutionProvider"]
    with pytest.raises(BundleError, match=r"no 'cudda'.*cpu"):
        Predictor(bundle, providers=["cudda"])
    with pytest.raises(BundleError, match="the list is empty"):
        Predictor(bundle, providers=[])
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda c, o, **_: make(c, o, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(
        BundleError, match=r"CUDAExecutionProvider cannot be used here; .* run on CPUExecutionProvider"
    ):
        Predictor(bundle, providers=["cuda", "cpu"])


def test_cuda_is_refused_on_a_machine_without_it(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA")
    if Path("/dev/nvidiactl").exists():
        assert Predictor(bundle, providers=["cuda"]).providers[0] == "CUDAExecutionProvider"
    else:
        with pytest.raises(BundleError, match="CUDAExecutionProvider cannot be used here"):
            Predictor(bundle, providers=["cuda"])
    assert capfd.readouterr().out == ""


def test_a_model_with_other_answers_is_refused(
    bent: Callable[..., Path], workshop: Any, template: Any
) -> None:
    with pytest.raises(BundleError, match=r"does not answer here .*doctor"):
        Predictor(bent(student__onnx=workshop.graph(seed=1)))
    swapped = bent(student__int8__onnx=workshop.graph(seed=2))
    assert Predictor(swapped)
    with pytest.raises(BundleError, match=r"Use format 'onnx'"):
        Predictor(swapped, format="int8")


def test_a_model_that_onnxruntime_refuses_is_named(bent: Callable[..., Path], workshop: Any) -> None:
    def unconnected(model: Any) -> None:
        model.graph.node[4].input[0] = "nowhere"

    with pytest.raises(BundleError, match="onnxruntime cannot load it"):
        Predictor(bent(student__onnx=workshop.graph(bend=unconnected)))


def test_wrong_pixels_and_unreadable_pictures_are_refused(bundle: Path) -> None:
    predictor = Predictor(bundle)
    for pixels in (
        np.zeros((1, 16, 16, 3)),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((1, 3, 16, 16), np.uint8),
    ):
        with pytest.raises(BundleError, match="uint8 of shape N x 16 x 16 x 3"):
            predictor.run(pixels)
    with pytest.raises(BundleError, match=r"Picture 1 \(.*none\.jpg\) cannot be used"):
        predictor([jpeg(4, 4), "none.jpg"])


HUGE = 750_000_000  # numbers, of four bytes each
BOMBS: dict[str, tuple[list[tuple[str, list[str], list[str]]], dict[str, list[int]]]] = {
    "filled": ([("ConstantOfShape", ["shape"], ["bomb"])], {"shape": [HUGE]}),
    "spread": (
        [("ReduceSum", ["flat"], ["one"]), ("Expand", ["one", "shape"], ["bomb"])],
        {"shape": [HUGE, 1]},
    ),
    "doubled": (
        [("Concat", [f"x{i}" if i else "flat"] * 2, [f"x{i + 1}" if i < 25 else "bomb"]) for i in range(26)],
        {},
    ),
    "padded": ([("Pad", ["flat", "ends"], ["bomb"])], {"ends": [0, 0, 0, HUGE // 2]}),
}
LOAD_ALL = """
import resource, sys
from pipeline.deploy import runtime
from pipeline.deploy.benchmark_bundle import peak_memory
from pipeline.deploy.predictor import Predictor
from pipeline.deploy.read_bundle import BundleError

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
runtime.memory = lambda: 256 << 20
for folder in sys.argv[1:]:
    try:
        print("accepted", Predictor(folder).format)
    except BundleError:
        print("refused")
print(peak_memory())
"""


def test_a_small_file_that_asks_for_gigabytes_is_refused(
    bundle: Path, workshop: Any, template: Any, tmp_path: Path
) -> None:
    """Each answers as the student does: it adds zero times the sum of what it computed."""
    from onnx import helper, numpy_helper

    def plant(model: Any, name: str) -> None:
        nodes, constants = BOMBS[name]
        axis: dict[str, Any] = {"axis": 0}
        made = [
            helper.make_node(op, given, out, **(axis if op == "Concat" else {})) for op, given, out in nodes
        ]
        made += [
            helper.make_node("ReduceSum", ["bomb"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        ]
        softmax = model.graph.node.pop()
        model.graph.node[-1].output[0] = "raw"
        model.graph.node.extend([*made, helper.make_node("Add", ["raw", "nothing"], ["logits"]), softmax])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(values), key) for key, values in constants.items()
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))

    folders = [str(bundle)]
    for name in BOMBS:
        files = template.files | {
            "student.onnx": workshop.graph(bend=lambda model, name=name: plant(model, name))
        }
        folders.append(str(replace(template, files=files).write(tmp_path / name)))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *folders], cwd=ROOT, capture_output=True, text=True
    )
    *results, peak = done.stdout.splitlines()
    assert results == ["accepted onnx"] + ["refused"] * len(BOMBS), done.stderr
    assert float(peak) < 700

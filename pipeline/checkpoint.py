"""Networks and the state of a training, saved and loaded. Nothing is unpickled."""

import hashlib
import inspect
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline import nets
from pipeline.files import atomic_file
from pipeline.records.selection import rank
from pipeline.settings import InputError


def save_weights(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors. Tensors that share memory are written separately."""
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    with atomic_file(file) as partial:
        partial.write_bytes(content)  # save_file would make the file readable by its owner only


def load_weights(file: Path) -> dict[str, Tensor]:
    """The state dict that `save_weights` wrote."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: there are no usable weights ({error}). "
            "Run `dvc repro`, or `dvc checkout` if they were made before."
        ) from error


def save_network(folder: Path, state: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a network to `folder`: its weights, and the `facts` that it can be built again from."""
    save_weights(_weights_file(folder), state)
    with atomic_file(folder / "net.json") as file:
        file.write_text(json.dumps(facts, indent=1) + "\n")


def load_facts(folder: Path) -> dict[str, Any]:
    """The facts that `save_network` wrote: name, taps, classes and scores of the network."""
    try:
        facts: dict[str, Any] = json.loads((folder / "net.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder}: there is no usable network ({error}). "
            "Run `dvc repro`, or `dvc checkout` if it was made before."
        ) from error
    return facts


def load_network_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict that `save_network` wrote."""
    return load_weights(_weights_file(folder))


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `save_network` wrote, frozen and in eval mode, and its facts."""
    facts, weights = load_facts(folder), load_network_weights(folder)
    net = nets.build(facts["net"], len(facts["classes"]), facts["channels"])
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights do not fit a {facts['net']} as it is built now. "
            "Run `dvc repro` to train it again."
        ) from error
    return net.eval().requires_grad_(False), facts


def digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def weights_of(net: nn.Module) -> Iterator[bytes]:
    """All tensors of a network, with their names and forms."""
    for name, tensor in sorted(net.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def code_of(net: nn.Module, *others: Path) -> Iterator[bytes]:
    """The Python files beside the classes of a network, and the others: files, or folders of files."""
    files = {file for folder in _folders_of(net) for file in folder.glob("*.py")}
    files |= {file for other in others for file in (other.glob("*.py") if other.is_dir() else [other])}
    return (file.read_bytes() for file in sorted(files, key=lambda file: (file.parent.name, file.name)))


def _folders_of(net: nn.Module) -> set[Path]:
    return {Path(inspect.getfile(type(module))).parent for module in net.modules()}


def _weights_file(folder: Path) -> Path:
    return folder / "weights.safetensors"


def student_folders(students: Path) -> dict[int, Path]:
    """The folders of a run's students by seed."""
    folders = sorted(students.glob("seed-*"), key=_seed_of)
    if not folders:
        raise InputError(f"{students}: there is no trained student. Run `dvc repro`.")
    return {_seed_of(folder): folder for folder in folders}


def best_seed(students: Path) -> int:
    """The seed of the student that is best on validation images. That student is exported.

    `train.select`, which its facts hold, says what is best.
    """

    def score(folder: Path) -> tuple[float, ...]:
        facts = load_facts(folder)
        return rank(facts, facts.get("select", "accuracy"))

    folders = student_folders(students)
    return max(folders, key=lambda seed: score(folders[seed]))


def _seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them: nothing that needs unpickling.

    The hash at the end is checked by `load_state`, as torch does not notice a changed byte.
    """
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is no usable file."""
    size = hashlib.sha256().digest_size
    try:
        whole = path.read_bytes()
        if hashlib.sha256(whole[:-size]).digest() != whole[-size:]:
            raise ValueError
        content = io.BytesIO(whole[:-size])
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file fails in any way
        print(f"{path} is damaged ({type(error).__name__}); this phase starts again.")
        return None
    return state

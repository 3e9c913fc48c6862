"""`package.module:factory`: any network that can be imported, built by `factory(num_classes=...)`."""

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

from torch import nn

from pipeline.settings import InputError, unknown

NAMES = ("<package.module>:<factory>",)
NOT_MODULES = ("onnx", "timm", "torchvision")  # before a colon, they name networks of other kinds


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    if not _is_ours(name):
        return None
    path, attribute = parts_of(name)
    net = _factory(_import(name, path), name, attribute)(num_classes=classes)
    if not isinstance(net, nn.Module):
        raise InputError(
            f"net: {name!r} returned a {type(net).__name__}. It must return a torch.nn.Module whose "
            "forward(images) gives the logits."
        )
    return without_inplace(net)


def check(name: str) -> None:
    """Refuse a module that cannot be imported, and one without the factory. Other networks are taken."""
    if _is_ours(name):
        path, attribute = parts_of(name)
        _factory(_import(name, path), name, attribute)


def _is_ours(name: str) -> bool:
    return ":" in name and name.partition(":")[0] not in NOT_MODULES


def parts_of(name: str) -> tuple[str, str]:
    """The module and the factory in it. Nothing is imported."""
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), attribute)):
        raise InputError(
            f"net: {name!r} is not of the form package.module:factory, such as my_nets.small:make_net."
        )
    return path, attribute


def _import(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(
            f"{missing}."
        ):  # the module exists, but imports a missing one
            raise _import_failed(name, path, error) from error
        raise InputError(
            f"net: {name!r} names the module {path!r}, but there is no {missing!r}. Put it in the project's "
            "folder, or install it here. Networks of torchvision are written torchvision:NAME, those of timm "
            "timm:NAME, and ONNX files onnx:FILE."
        ) from error
    except (ImportError, SyntaxError) as error:
        raise _import_failed(name, path, error) from error


def _import_failed(name: str, path: str, error: Exception) -> InputError:
    return InputError(
        f"net: {name!r} names the module {path!r}, but its import fails with {type(error).__name__}: "
        f"{error}. Try `python -c 'import {path}'`."
    )


def _factory(module: ModuleType, name: str, attribute: str) -> Callable[..., object]:
    if not hasattr(module, attribute):
        offers = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"net: in {module.__name__}", attribute, offers)
    factory: object = getattr(module, attribute)
    if not callable(factory):
        raise InputError(
            f"net: {name!r} is of type {type(factory).__name__}. "
            "It must be a function or class that builds a network."
        )
    if not _takes_num_classes(factory):
        raise InputError(
            f"net: {name!r} cannot be called as {attribute}(num_classes=...). Give it a parameter "
            "`num_classes` and defaults for all others, or write a function of that form around it."
        )
    return factory


def without_inplace(net: nn.Module) -> nn.Module:
    """The network without in-place activations, which would overwrite the map that a hook has just caught."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind(num_classes=0)
    except (TypeError, ValueError):  # ValueError: a built-in function without a signature
        return False
    return True

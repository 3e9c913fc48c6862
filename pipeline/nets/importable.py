"""`package.module:factory`: any network that can be imported, made by `factory(num_classes=...)`."""

import importlib
import inspect

from torch import nn

from pipeline.inputs import InputError, unknown

NAMES = ("<package.module>:<factory>",)


def build(name: str, classes: int, channels: int) -> nn.Module | None:
    path, colon, attribute = name.partition(":")
    if not colon or path == "torchvision":
        return None
    if not all(part.isidentifier() for part in (*path.split("."), attribute)):
        raise InputError(f"net: {name!r} isn't of the form package.module:factory, such as my_nets.small:make_net.")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path and not path.startswith(f"{error.name}."):  # one of its own imports is missing
            raise _import_failed(name, path, error) from error
        raise InputError(
            f"net: {name!r} names the module {path!r}, but there is no {error.name!r}. Put it in the project's folder or install it here; "
            "networks of torchvision are torchvision:NAME."
        ) from error
    except (ImportError, SyntaxError) as error:
        raise _import_failed(name, path, error) from error
    offers = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not hasattr(module, attribute):
        raise unknown(f"net: in {path}", attribute, offers)
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"net: {name!r} is a {type(factory).__name__}, not a function or class that makes a network.")
    if not _takes_num_classes(factory):
        raise InputError(
            f"net: {name!r} can't be called as {attribute}(num_classes={classes}). Give it a parameter `num_classes` and defaults for all "
            "others, or write a function of that form around it."
        )
    net = factory(num_classes=classes)
    if not isinstance(net, nn.Module):
        raise InputError(
            f"net: {name!r} returned a {type(net).__name__}; it must return a torch.nn.Module whose forward(images) gives the logits."
        )
    return without_inplace(net)


def without_inplace(net: nn.Module) -> nn.Module:
    """An in-place activation would overwrite the map that a tap has just caught."""
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return net


def _import_failed(name: str, path: str, error: Exception) -> InputError:
    return InputError(
        f"net: {name!r} names the module {path!r}, which fails to import: {type(error).__name__}: {error}. Try `python -c 'import {path}'`."
    )


def _takes_num_classes(factory: object) -> bool:
    try:
        inspect.signature(factory).bind(num_classes=0)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it doesn't, or it is a built-in that can't tell
        return False
    return True

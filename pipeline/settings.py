"""Strict settings, how they are read from params.yaml, and the error for input that cannot be used."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

PARAMS = Path("params.yaml")


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Base of every Config: an unknown key is refused, and nothing changes after validation."""

    RENAMED: ClassVar[dict[str, str]] = {}  # old key -> new key; the error for an old key names the new one

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_flag(cls, given: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1; and in YAML `yes` and `on` are true."""
        takes_numbers = _kinds(cls.model_fields[info.field_name or ""].annotation) & {int, float}
        if takes_numbers and any(isinstance(each, bool) for each in [given, *_items(given)]):
            raise ValueError(f"a number is needed, not {str(given).lower()}")
        return given


def _kinds(annotation: Any) -> set[type]:
    """All types in it; that of each value of a `Literal`."""
    if inner := get_args(annotation):
        return set().union(*map(_kinds, inner))
    return {annotation if isinstance(annotation, type) else type(annotation)}


def _items(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


class InputError(ValueError):
    """Something that a person gave cannot be used. The message names it and says what to do."""


def unknown(what: str, value: str, legal: Iterable[str]) -> InputError:
    """The error for a name that is not a legal one. It gives the nearest legal name, then all of them."""
    legal = sorted(legal)
    near = difflib.get_close_matches(value, legal, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{what}: there is no {value!r}.{hint} Choose one of: {', '.join(legal) or '(none)'}.")


class _Loader(yaml.SafeLoader):
    """Without numbers to the base 60: `1:30` is a text here, and so refused where a number is needed.

    A key that is there twice is refused, since the first of two runs with one name would be lost in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # a list, which the parser refuses itself
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_clock = tag.endswith((":int", ":float")) and ":" in str(value)
        return "tag:yaml.org,2002:str" if is_clock else tag


def read_params(path: Path) -> dict[str, Any]:
    """The sections of a file as they are."""
    try:
        given = yaml.load(path.read_text(), _Loader)  # noqa: S506 - it is a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deep. Take brackets away.") from None
    if not isinstance(given, dict):
        raise InputError(
            f"{path} must hold sections such as `data:` and `runs:`, but it holds a {type(given).__name__}."
        )
    return given


M = TypeVar("M", bound=BaseModel)


def load_section(name: str, model: type[M], path: Path = PARAMS) -> M:
    """One section of params.yaml, for a stage that needs no other and should start quickly.

    `check` has looked at the file as a whole.
    """
    return checked(model, read_params(path).get(name, {}), name)


def checked(model: type[M], given: dict[str, Any], where: str) -> M:
    """Settings of params.yaml, or an error that names what is wrong; `where` in the file they are."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_explain(model, problem, where) for problem in error.errors())
        raise InputError(f"params.yaml: {problems}") from error


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    place = ".".join(([where] if where else []) + path)
    if problem["type"] == "extra_forbidden":
        section = _section(model, path[:-1])
        renamed = getattr(section, "RENAMED", {})
        if path[-1] in renamed:
            return f"{place} is now called {renamed[path[-1]]}"
        return str(unknown(f"unknown key {place}", path[-1], section.model_fields)).rstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "model_type":
        keys = ", ".join(_section(model, path).model_fields)
        return f"{place} needs keys with values ({keys}), not {problem['input']!r}"
    given = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
    return f"{place}: {problem['msg'].removeprefix('Value error, ').rstrip('.')}{given}"


def _section(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The Config of the section that `path` leads to."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:
            current = get_args(current)[-1]  # dict[str, X]: the key is part of the path
    section: type[BaseModel] = current
    return section

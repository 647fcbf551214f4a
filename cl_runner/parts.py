"""What the class of a method, probe or family says of itself: its options, their types, and a few attributes.

A method or probe is a dataclass whose fields are its options. Those of this package are read from the source text,
because importing them imports torch, which takes seconds that composing a configuration should not. A class of the
user's own is imported, once its node is chosen.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, create_model
from pydantic.errors import PydanticUserError

from cl_runner import config, registry
from cl_runner.config import FamilyKind, Schema
from cl_runner.registry import PartKind, Place
from cl_runner.said import OLD_DATA, TOLD, Said, wrong

HERE = Path(__file__).parent
#: The key of a node that names the class behind it.
TARGET = "_target_"
#: kind -> the file and class that every part of it extends.
_BASES: dict[PartKind, tuple[str, str]] = {
    "methods": ("cl_runner.methods.base", "Method"),
    "probes": ("cl_runner.probes.base", "Probe"),
    "families": ("cl_runner.families.base", "Family"),
}


#: What a method says of itself for people; Method says what each of them means.
SPOKEN = ("learns", "keeps", "old_data", "told")


@dataclasses.dataclass(frozen=True)
class PartSpec:
    """What the class of a method or probe says of itself; Method and Probe say what each attribute means.

    Attributes:
        text: its docstring.
    """

    schema: type[Schema]
    families: tuple[str, ...]
    chooses: bool = False
    isolates: bool = False
    protects: bool = False
    directs: bool = False
    joins: bool = False
    renews: bool = False
    rebuilds: bool = False
    goes_back: bool = False
    recalls: Said = ""
    trains_nothing: bool = False
    writes: bool = False
    by_answers: bool = False
    routes: bool = False
    measures: bool = True
    learns: Said = None
    keeps: Said = None
    old_data: Said = None
    told: Said = None
    text: str = ""
    higher_is_better: bool = True
    unit: str = "%"


def method_spec(name: str, node: Mapping[str, Any] | None = None) -> PartSpec:
    """The options, their types and the class attributes of a method.

    Args:
        name: of its node under `method`.
        node: what stands there; only its key `_target_` counts.

    Raises:
        ValueError: nothing of that name is known, or the user's class is none or cannot be imported.
    """
    return _method_spec(_described("methods", name, node))


@functools.cache
def _method_spec(cls: Any) -> PartSpec:
    acting = ("chooses", "isolates", "protects", "directs", "joins", "renews", "recalls", "rebuilds", "goes_back")
    telling = ("trains_nothing", "writes", "by_answers", "routes", "measures")
    return PartSpec(
        _schema(cls),
        cls.families,
        **{name: getattr(cls, name) for name in (*acting, *telling, *SPOKEN)},
        text=_text(cls),
    )


def _text(cls: Any) -> str:
    """The docstring of a class; what dataclasses write in its place is none."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def probe_spec(name: str, node: Mapping[str, Any] | None = None) -> PartSpec:
    """The same of a probe."""
    return _probe_spec(_described("probes", name, node))


@functools.cache
def _probe_spec(cls: Any) -> PartSpec:
    return PartSpec(_schema(cls), cls.families, higher_is_better=cls.higher_is_better, unit=cls.unit)


def options_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without the key that names its class."""
    return {key: value for key, value in node.items() if key != TARGET}


def part_class(kind: PartKind, name: str, node: Mapping[str, Any] | None = None) -> Any:
    """The class of a method, probe or family, imported.

    Raises:
        ValueError: as `method_spec`.
    """
    place = registry.find(kind, name, (node or {}).get(TARGET))
    cls = registry.load(place)
    if not place.built_in:
        _check_class(kind, cls, place)
    return cls


def family_kind(name: str) -> FamilyKind:
    """Which of the four built-in families `backbone.family` behaves as.

    Raises:
        ValueError: the user's class is none, cannot be imported, or does not say it.
    """
    if registry.find("families", name).built_in:
        return typing.cast(FamilyKind, name)
    kind: FamilyKind = part_class("families", name).kind
    return kind


def _described(kind: PartKind, name: str, node: Mapping[str, Any] | None) -> Any:
    """The class, or what its source says of it."""
    place = registry.find(kind, name, (node or {}).get(TARGET))
    return _outline(place.module, place.name) if place.built_in else part_class(kind, name, node)


@functools.cache
def _outline(module: str, name: str) -> Any:
    """A class of this package as its source text describes it: the same bases, options and literal class attributes."""
    tree = ast.parse((HERE.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    places = {own: (module, own) for own in classes}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cl_runner."):
            places |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    found = classes[name]
    written = [ast.unparse(base) for base in found.bases]
    # Others, such as ABC, say nothing of options.
    bases = tuple(_outline(*places[base]) for base in written if base in places)
    is_dataclass = any(ast.unparse(decorator).startswith("dataclass") for decorator in found.decorator_list)
    annotations: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            if annotation.startswith("ClassVar"):
                if node.value is not None:
                    attributes[node.target.id] = ast.literal_eval(node.value)
            elif is_dataclass:
                assert node.value is None, f"{name}.{node.target.id}: values live in conf/"
                # Our own source, evaluated with the names of types that the schema has.
                annotations[node.target.id] = eval(annotation, vars(config))
    text = ast.get_docstring(found) or ""
    outline = type(name, bases, {**attributes, "__annotations__": annotations, "__doc__": text})
    return dataclasses.dataclass(outline) if is_dataclass else outline


def _schema(cls: Any) -> type[Schema]:
    """The fields of a dataclass, inherited ones included, as the schema of a node."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.init:
            given: Any = ... if field.default is dataclasses.MISSING else field.default
            if field.default_factory is not dataclasses.MISSING:
                given = Field(default_factory=field.default_factory)
            fields[field.name] = (hints[field.name], given)
    return create_model(cls.__name__, __base__=Schema, **fields)


def _check_class(kind: PartKind, cls: Any, place: Place) -> None:
    """A class of the user's own is what its place in the configuration needs, or a ValueError says what is missing."""
    module, name = _BASES[kind]
    base = getattr(importlib.import_module(module), name)
    if not inspect.isclass(cls) or not issubclass(cls, base):
        raise ValueError(f"{place.asked}: {place.name} is no {name}. Write: class {place.name}({name}), from {module}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise ValueError(f"{place.asked}: {place.name} lacks what every {name} has: {missing}")
    if kind == "families":
        if getattr(cls, "kind", None) not in get_args(FamilyKind):
            kinds = ", ".join(get_args(FamilyKind))
            raise ValueError(f"{place.asked}: {place.name}.kind says which family it behaves as, one of {kinds}")
        return
    if "__dataclass_fields__" not in vars(cls):
        raise ValueError(f"{place.asked}: {place.name} is no dataclass. Write @dataclass above the class")
    try:
        _schema(cls)
    except (NameError, TypeError, PydanticUserError) as error:
        raise ValueError(f"{place.asked}: the types of {place.name}'s options cannot be read: {error}") from error
    known: dict[str, Collection[str] | None] = {"old_data": OLD_DATA, "told": TOLD, "learns": None, "keeps": None}
    for name, words in known.items() if kind == "methods" else ():
        mistake = wrong(getattr(cls, name), vars(cls)["__dataclass_fields__"], words)
        if mistake:
            raise ValueError(f"{place.asked}: what {place.name}.{name} says cannot be read: {mistake}")

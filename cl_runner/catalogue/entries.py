"""What an option of group `method` is: from its class, its file and those it starts from, and what it is tried with."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_runner.access import access
from cl_runner.built_in import FAMILIES, METHODS
from cl_runner.catalogue.comments import meanings
from cl_runner.catalogue.kinds import conditions, kind_of
from cl_runner.combinations import COMPANIONS, refused
from cl_runner.compose import check_options
from cl_runner.groups import file_of, nodes_of, purpose, starts_from
from cl_runner.overrides import command_line, written
from cl_runner.parts import TARGET, PartSpec, method_spec
from cl_runner.said import Said, filled, texts

#: A paper: by authors or venue and year, or by the number that it has in an archive.
_PAPER = re.compile(
    r"(?:(?:[A-Z]\w+ )?[A-Z][\w-]+ (?:et al\.|& [A-Z]\w+)(?:,? [A-Z]+)? (?:19|20)\d\d"
    r"|arXiv:\d{4}\.\d{4,5}|\d{4}\.[a-z][\w-]*\.\d+)"
)


@dataclass(frozen=True)
class OptionEntry:
    """An option of a method's class.

    Attributes:
        value: in this file of group `method`.
        may_be: its type and range.
        read: with which values of others it is read, or not; empty = always.
        meaning: with its source, as its file says it.
    """

    key: str
    value: Any
    may_be: str
    read: str
    meaning: str


@dataclass(frozen=True)
class NodeEntry:
    """One method of a chain: its class and options."""

    key: str
    defined_by: str
    text: str
    options: tuple[OptionEntry, ...]


@dataclass(frozen=True)
class Entry:
    """What an option of group `method` brings.

    Attributes:
        source: its papers; or `control` or `bound`.
        trains: empty = what others of its chain choose, or all weights.
        old_data, told: words of cl_runner/said.py.
        beside: an option that every method is tried with -> None where they compose, or why they are refused; None
            for methods that are not tried.
        nodes: the methods that it chains.
    """

    name: str
    purpose: str
    source: str
    command: str
    trains: str
    keeps: tuple[str, ...]
    old_data: tuple[str, ...]
    told: tuple[str, ...]
    families: tuple[str, ...]
    beside: Mapping[str, str | None] | None
    nodes: tuple[NodeEntry, ...]

    def content(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def entry(option: str, folders: Sequence[Path] = ()) -> Entry:
    """What an option of group `method` is.

    Raises:
        ValueError: its file, one that it starts from, or a class of the user's own cannot be read, which is named.
    """
    try:
        nodes = nodes_of(option, folders)
        said = meanings(option, folders)
    except (OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        place = file_of("method", option, folders)
        raise ValueError(f"{place} cannot be read: {' '.join(str(error).split())}") from None
    specs = {name: method_spec(name, node) for name, node in nodes.items()}
    values = {name: _filled(name, node, specs[name]) for name, node in nodes.items()}
    given = access({"method": values, "task_order": {"joint": False, "restart": False}}, None)
    return Entry(
        name=option,
        purpose=purpose("method", option, folders),
        source=source(option, folders),
        command=command_line([f"method={option}"], folders),
        trains=", ".join(_spoken(specs, values, "learns")),
        keeps=tuple(_spoken(specs, values, "keeps")),
        old_data=given.old_data,
        told=given.told,
        families=tuple(f for f in FAMILIES if all(f in spec.families for spec in specs.values())),
        beside=_beside(nodes, folders),
        nodes=tuple(_node(name, nodes[name], values[name], specs[name], said) for name in nodes),
    )


def source(option: str, folders: Sequence[Path] = ()) -> str:
    """The papers that an option's first line names, or else those of the options that it starts from."""
    line = purpose("method", option, folders)
    papers = list(dict.fromkeys(_PAPER.findall(line)))
    kind = re.search(r"\b(control|(?:lower |upper )?bound)\b", line, re.IGNORECASE)
    if kind and not papers:
        return kind[1].lower()
    return ", ".join(papers or dict.fromkeys(source(start, folders) for start in starts_from(option, folders)))


def _filled(name: str, node: Mapping[str, Any], spec: PartSpec) -> dict[str, Any]:
    """The values of a node, with the defaults of a user's class; checked, but for what Hydra has yet to look up."""
    defaults = {
        key: f.get_default(call_default_factory=True)
        for key, f in spec.schema.model_fields.items()
        if not f.is_required()
    }
    if "${" not in str(node):
        check_options(f"method.{name}", node, spec)
    return {**defaults, **node}


def _spoken(specs: Mapping[str, PartSpec], values: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    found = []
    for node, spec in specs.items():
        said: Said = getattr(spec, name)
        found += [filled(text, values[node], written) for text in texts(said, spec.schema, values[node], None) or ()]
    return list(dict.fromkeys(found))


def _node(
    name: str, node: Mapping[str, Any], values: Mapping[str, Any], spec: PartSpec, said: Mapping[str, list[str]]
) -> NodeEntry:
    """A method of the chain with its options, nested ones by their dotted keys."""
    options = []
    for option, field in spec.schema.model_fields.items():
        value = values.get(option)
        inner = value if isinstance(value, Mapping) else {}
        read = "; ".join(conditions(f"method.{name}", field))
        meaning = _meaning(said.get(f"{name}.{option}", [])) or field.description or ""
        options.append(OptionEntry(f"method.{name}.{option}", value, kind_of(field), read, meaning))
        options += [
            OptionEntry(
                f"method.{name}.{option}.{key}", one, "", read, _meaning(said.get(f"{name}.{option}.{key}", []))
            )
            for key, one in inner.items()
        ]
    place = (
        str(node[TARGET])
        if TARGET in node
        else f"cl_runner.methods.{METHODS[name].replace(':', '.')}"
        if name in METHODS
        else name
    )
    return NodeEntry(f"method.{name}", place, spec.text, tuple(options))


def _meaning(said: Sequence[str]) -> str:
    return "; here: ".join(said)


@functools.cache
def _companions() -> dict[str, dict[str, dict[str, Any]]]:
    return {companion: nodes_of(companion) for companion in COMPANIONS}


def _beside(nodes: Mapping[str, Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, str | None] | None:
    """Of `COMPANIONS` those that are none of these methods: None = the tests chain them, or why they are refused."""
    if any(name not in METHODS or TARGET in node for name, node in nodes.items()):
        return None
    return {
        companion: refused({**nodes, **others}, folders)
        for companion, others in _companions().items()
        if not others.keys() & nodes.keys()
    }

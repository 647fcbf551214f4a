"""Records of local files: parquet, CSV, TSV, JSON lines and JSON, most of them also compressed by gzip."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from cl_runner.config import TaskDefinition
from cl_runner.data.converters import Record, converted


def check_form(path: Path) -> str:
    """The format of a file.

    Raises:
        ValueError: its ending tells none.
    """
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    if form not in READERS or path.name.endswith(".parquet.gz"):
        raise ValueError(f"{path}: the format is told by the ending, one of .parquet .csv .tsv .jsonl .json (and .gz)")
    return form


def file_records(path: Path, definition: TaskDefinition) -> Iterator[Record]:
    """The first `max_rows` records of a file, of which more than the wanted columns may be present.

    Raises:
        ValueError: the file is not readable in its format.
    """
    reader = READERS[check_form(path)]
    if definition.convert == "squad":
        reader = _document
    try:
        yield from itertools.islice(converted(definition.convert, reader(path), str(path)), definition.max_rows)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def check_archive(path: Path) -> None:
    """Called when a file holds a mistake: a damaged .gz may give wrong text long before its checksum tells.

    Raises:
        ValueError: the file is a damaged .gz.
    """
    if path.suffix != ".gz" or not path.is_file():
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file ({error})") from None


def _separated(path: Path, delimiter: str) -> Iterator[Record]:
    # Reviews are longer than the module's default limit of 131,072 characters more often than one thinks.
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        lines = (line for line in csv.reader(file, delimiter=delimiter) if line)
        header = next(lines, [])
        for number, line in enumerate(lines, start=1):
            if len(line) != len(header):
                kind = "more" if len(line) > len(header) else "fewer"
                raise ValueError(
                    f"row {number} of {path} has {kind} cells than the header "
                    f"({len(line)}, the header has {len(header)}: {', '.join(header)})"
                )
            yield dict(zip(header, line, strict=True))


def _json_lines(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is not JSON, one object a line ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(f"line {number} of {path} is not a JSON object; one object a line is expected")
            yield record


def _json(path: Path) -> Iterator[Record]:
    """JSON lines, or one array of objects."""
    with _open(path) as file:
        start = next((character for line in file if (character := line.strip()[:1])), "")
    if start != "[":
        yield from _json_lines(path)
        return
    for number, record in enumerate(_parsed(path), start=1):
        if not isinstance(record, dict):
            raise ValueError(f"element {number} of {path} is not a JSON object; an array of objects is expected")
        yield record


def _document(path: Path) -> Iterator[Record]:
    """A file that is one JSON object."""
    document = _parsed(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not one JSON object, which convert: squad expects")
    yield document


def _parsed(path: Path) -> Any:
    with _open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error})") from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "parquet": _parquet,
    "csv": lambda path: _separated(path, ","),
    "tsv": lambda path: _separated(path, "\t"),
    "jsonl": _json_lines,
    "json": _json,
}

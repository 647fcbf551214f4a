"""Records of local files: parquet, CSV, TSV, JSON lines, JSON, most of them also as .gz; folders of `save_to_disk`.

A reader gives the raw rows of a file, which cost little, and makes records of those that are wanted. Own code reads CSV
and JSON lines, because pandas, pyarrow and datasets guess where these say no: of short rows, repeated names, other
fields, quotes that do not fit, and without the row's number.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from cl_runner.config import TaskDefinition
from cl_runner.data.converters import DOCUMENTS
from cl_runner.data.labels import class_names
from cl_runner.data.places import is_saved, typed
from cl_runner.data.reader import Reader, Record
from cl_runner.data.separated import AsTheEndingSays, Separated
from cl_runner.git_lfs import is_pointer

#: Options of a definition -> the formats that they say something of.
_OPTIONS = {
    "delimiter": ("csv", "tsv"),
    "quoting": ("csv", "tsv"),
    "header": ("csv", "tsv"),
    "encoding": ("csv", "tsv", "jsonl", "json"),
}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
FORMS = ("parquet", "csv", "tsv", "jsonl", "json")


def form_of(path: Path, definition: TaskDefinition, name: str) -> str:
    """The format of a file or folder.

    Raises:
        ValueError: its ending tells none, or an option says something that this format does not have.
    """
    form = "folder" if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[2]
    if form not in (*FORMS, "folder") and definition.delimiter is not None:
        form = "csv"  # such as .txt
    if form == "arrow":
        (template, *_) = [one for place in definition.path or () for one in place if one.endswith(".arrow")]
        raise ValueError(
            f"{path} is a part of a folder that the library datasets wrote by save_to_disk. Name the folder itself: "
            f"{typed(f'task.{name}.path', str(Path(template).parent))}"
        )
    if form not in (*FORMS, "folder") or path.name.endswith(".parquet.gz"):
        raise ValueError(
            f"{path}: the format is told by the ending, one of .parquet .csv .tsv .jsonl .json (and .gz); "
            f"another one is read as rows of cells with task.{name}.delimiter=CHARACTER"
        )
    if form == "folder" and not is_saved(path):
        raise ValueError(
            f"{path} is a folder, and none that the library datasets wrote by save_to_disk. Name its files: "
            f"{typed(f'task.{name}.path', f'{path}/*.ENDING')}"
        )
    for option, forms in _OPTIONS.items():
        value = getattr(definition, option)
        if form not in forms and value not in (None, True):
            raise ValueError(
                f"task.{name}.{option} says how {' and '.join(forms)} files are read, and {path} is none. "
                f"Type: task.{name}.{option}={'true' if option == 'header' else 'null'}"
            )
    return form


def reader_of(path: Path, definition: TaskDefinition, name: str, split: str) -> Reader:
    """What reads a file or folder.

    Args:
        split: of a folder that holds several.

    Raises:
        ValueError: its format is not known, or it is a pointer of Git LFS.
    """
    if path.is_file() and is_pointer(path):
        raise ValueError(f"{path} is a pointer of Git LFS, not the data. Type: git lfs pull, in that folder")
    form = form_of(path, definition, name)
    opened = partial(_open, path, definition.encoding or "utf-8-sig")
    if form in ("csv", "tsv"):
        return Separated(path, definition, f"task.{name}", form, opened)
    if definition.convert in DOCUMENTS:
        return _Document(path, opened, str(definition.convert))
    readers = {"jsonl": _JsonLines, "json": _Json}
    if form in readers:
        return readers[form](path, opened)
    return _Parquet(path, definition.label) if form == "parquet" else _saved(path, split, definition.label)


def file_records(path: Path) -> Iterator[Record]:
    """The records of a .parquet, .csv, .tsv, .jsonl or .json file.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    opened = partial(_open, path, "utf-8")
    try:
        if form == "parquet":
            reader: Reader = _Parquet(path, "")
        elif form in ("csv", "tsv"):
            reader = Separated(path, AsTheEndingSays(), None, form, opened)
        elif form in ("jsonl", "json"):
            reader = _JsonLines(path, opened) if form == "jsonl" else _Json(path, opened)
        else:
            raise ValueError(
                f"{path} is no {', '.join(f'.{one}' for one in FORMS[:-1])} or .{FORMS[-1]} file (or .gz of these)"
            )
        for _, record in reader.parse(enumerate(reader.raws(), start=1)):
            yield record
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


@contextmanager
def explained(path: Path, definition: TaskDefinition, name: str) -> Iterator[None]:
    """What cannot be read of a file, as one message with its name."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(_encoding_said(path, definition, name, error)) from None
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read (its JSON is nested too deeply)") from None


def _encoding_said(path: Path, definition: TaskDefinition, name: str, error: UnicodeDecodeError) -> str:
    said = f"{path} cannot be read ({error})"
    if not path.is_file() or path.suffix == ".parquet":
        return said
    key = f"task.{name}.encoding"
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        first = file.read(64)
        for mark, encoding in _MARKS.items():
            if first.startswith(mark) and definition.encoding != encoding:
                return f"{said}. Its first bytes are the mark of {encoding.upper()}. Type: {key}={encoding}"
        if definition.encoding is not None:
            return f"{said}. Name the encoding that it has: {key}=utf-8, utf-16, cp1252, ..."
        file.seek(0)
        number = next((number for number, line in enumerate(file, start=1) if not _is_utf8(line)), 1)
    return (
        f"line {number} of {path} is no UTF-8 ({error.reason}: {error.object[error.start]:#x}). If the file comes from "
        f"Windows, type: {key}=cp1252 (or the encoding that it has)"
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def _open(path: Path, encoding: str) -> IO[str]:
    # A mark of the byte order at the beginning is no text in whichever spelling UTF-8 is asked for.
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


# JSON -------------------------------------------------------------------------------------------------------


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields have a name each."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


class _JsonLines(Reader):
    def __init__(self, path: Path, opened: Callable[[], IO[str]]) -> None:
        super().__init__(path)
        self._opened = opened

    def raws(self) -> Iterator[Any]:
        with self._opened() as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        for row, (number, line) in raws:
            where = f"line {number} of {self.place}"
            try:
                record = _DECODER.decode(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON, one object a line ({error}){self._whole(number)}") from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where} is not a JSON object; one object a line is expected")
            yield row, record

    def _whole(self, number: int) -> str:
        """What the file is if it is one object over several lines."""
        if number > 1:
            return ""
        try:
            with self._opened() as file:
                document = json.load(file)
        except ValueError:
            return ""
        lists = [repr(key) for key, value in document.items() if isinstance(value, list)]
        inside = f": write what its {' or '.join(lists)} holds as the whole file" if lists else ""
        return f". It is one object over several lines; an array of objects, or one a line, is expected{inside}"


class _Json(_JsonLines):
    """JSON lines, or one array of objects."""

    def raws(self) -> Iterator[Any]:
        with self._opened() as file:
            start = next((character for line in file if (character := line.strip()[:1])), "")
        self._array = start == "["
        yield from _parsed(self.place, self._opened) if self._array else super().raws()

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        pairs = iter(raws)
        first = next(pairs, None)
        if first is None:
            return
        pairs = itertools.chain([first], pairs)
        if not self._array:  # known since the first row was read
            yield from super().parse(pairs)
            return
        for number, record in pairs:
            if not isinstance(record, dict):
                raise ValueError(
                    f"element {number} of {self.place} is not a JSON object; an array of objects is expected"
                )
            yield number, record


class _Document(_JsonLines):
    """A file that is one JSON object."""

    def __init__(self, path: Path, opened: Callable[[], IO[str]], kind: str) -> None:
        super().__init__(path, opened)
        self._kind = kind

    def raws(self) -> Iterator[Any]:
        yield _parsed(self.place, self._opened)

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        for number, document in raws:
            if not isinstance(document, dict):
                raise ValueError(f"{self.place} is not one JSON object, which convert: {self._kind} expects")
            yield number, document


def _parsed(place: str, opened: Callable[[], IO[str]]) -> Any:
    with opened() as file:
        text = file.read()
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"{_element(text)} of {place}: {error}") from None


def _element(text: str) -> str:
    """Which element of an array cannot be used, as a message calls it."""
    end = text.find("[") + 1
    for number in itertools.count(1):
        while text[end : end + 1] in (",", *" \t\r\n"):
            end += 1
        try:
            end = _DECODER.raw_decode(text, end)[1]
        except ValueError:
            return f"element {number}"
    raise AssertionError


# Arrow ------------------------------------------------------------------------------------------------------


def _taken(batches: Iterable[Any], raws: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Record]]:
    """The wanted rows of Arrow's batches or tables; `raws` are row numbers with the rows' places, ascending."""
    wanted = iter(raws)
    following = next(wanted, None)
    start = 0
    for batch in batches:
        numbers, places = [], []
        while following is not None and following[1] < start + batch.num_rows:
            numbers.append(following[0])
            places.append(following[1] - start)
            following = next(wanted, None)
        if places:
            rows = batch if len(places) == batch.num_rows else batch.take(places)
            yield from zip(numbers, rows.to_pylist(), strict=True)
        start += batch.num_rows


class _Parquet(Reader):
    def __init__(self, path: Path, label: str) -> None:
        import pyarrow
        import pyarrow.parquet

        super().__init__(path)
        self._file_of = partial(pyarrow.parquet.ParquetFile, path)
        self._broken = pyarrow.ArrowException
        with self._read(), self._file_of() as file:
            self._rows, schema = file.metadata.num_rows, file.schema_arrow
        repeated = [column for column in schema.names if schema.names.count(column) > 1]
        if repeated:
            raise ValueError(f"{path} has several columns that are called {repeated[0]!r}. Rename all but one of them")
        if b"ClassLabel" in (schema.metadata or {}).get(b"huggingface", b""):
            from datasets import Features

            self.class_names = class_names(Features.from_arrow_schema(schema), label)

    @contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except self._broken as error:
            raise ValueError(f"{self.place} is not a readable parquet file ({error})") from None

    def raws(self) -> Iterator[Any]:
        yield from range(self._rows)

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        with self._read(), self._file_of() as file:
            yield from _taken(file.iter_batches(), raws)


class ArrowData(Reader):
    """A split of the library datasets, of the hub or of a folder.

    Args:
        data: a datasets.Dataset.
    """

    def __init__(self, place: object, data: Any, label: str) -> None:
        super().__init__(place)
        self._data = data
        self.class_names = class_names(data.features, label)

    def raws(self) -> Iterator[Any]:
        """The rows' places."""
        yield from range(len(self._data))

    def parse(self, raws: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Record]]:
        """Records as Arrow has them: nothing is decoded."""
        yield from _taken(self._data.with_format("arrow").iter(batch_size=10_000), raws)


def _saved(path: Path, split: str, label: str) -> ArrowData:
    """A split in a folder of `save_to_disk`, or one of the splits in a folder of several."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises its own, Arrow's and json's errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}, a folder of save_to_disk, cannot be read: {reason}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"{path} holds the splits {', '.join(map(str, found))}, and none is called {split!r}")
        found = found[split]
    return ArrowData(path, found, label)

"""Questions as they were published: of a file that the user has, or of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cl_runner.data.hub import hub_split
from cl_runner.data.readers import file_records


def published(
    node: str, path: str | None, dataset: str, split: str, revision: str, source: str, name: str
) -> Iterator[Mapping[str, Any]]:
    """The records of a probe's questions.

    Args:
        node: of the probe, as `probe.NODE.path` names its file.
        path: the file; None = the hub's `dataset`.
        source: where the file is published, as messages say it.
        name: of the file as it is published.

    Raises:
        ValueError: they are not there; the text says what to get and to type.
    """
    typed = f"probe.{node}.path=FOLDER/{name}"
    if path is None:
        remedy = f"Without a network, get {source}, and type: {typed}"
        return iter(hub_split(dataset, remedy, dataset, None, split, revision))
    file = Path(path).expanduser()
    if not file.is_file() or not file.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(
            f"probe.{node}.path={path} is no .jsonl, .jsonl.gz or .parquet file. Get {source}, and type: {typed}"
        )
    return file_records(file)

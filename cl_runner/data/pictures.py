"""Which file a row's picture is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cl_runner.config import TaskDefinition
from cl_runner.data.example import Picture


def picture_column(definition: TaskDefinition, name: str) -> str:
    """The column that names each row's picture; "" = there are none.

    Raises:
        ValueError: the definition's `picture` is not FOLDER/{COLUMN}.
    """
    if definition.picture is None:
        return ""
    folder, _, column = definition.picture.rpartition("/")
    if not folder or len(column) < 3 or column[0] != "{" or column[-1] != "}":
        raise ValueError(f"task.{name}.picture={definition.picture} must be a folder and a column: FOLDER/{{COLUMN}}")
    return column[1:-1]


def find_picture(definition: TaskDefinition, given: str, where: str) -> Picture:
    """The file that a row means.

    Data sets name pictures by their place on the machine that made them, so that it is the longest end of that path
    which lies below the definition's folder.

    Args:
        given: as the row names it.
        where: the row, for messages.

    Raises:
        ValueError: there is no such file.
    """
    assert definition.picture is not None
    folder = Path(definition.picture.rpartition("/")[0]).expanduser()
    parts = [part for part in PurePosixPath(given).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.is_file():
            return Picture(str(path), "/".join(parts[start:]), path.stat().st_size)
    if not parts:
        raise ValueError(f"{where} names no picture")
    fetch = f" {definition.download.strip().removesuffix('.')}." if definition.download else ""
    raise ValueError(
        f"{where} asks about the picture {given}, of which no end lies below {folder}.{fetch} "
        "Set data_root=FOLDER, or CL_RUNNER_DATA, to the folder that holds the data sets."
    )

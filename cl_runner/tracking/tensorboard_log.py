"""TensorBoard's event files, written by its own writer, without torch and without TensorFlow.

`torch.utils.tensorboard` wraps the same writer, and makes an event of every number. Here a line of metrics.jsonl is one
event, so that the events of a folder tell how many lines are there, whatever ended the process before. What is not of a
line has tags that begin with `run/`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.tracking.tracker import INTERRUPTED, Cell, Told, Tracker

#: Before the tags of what is not of a line.
_RUN = "run/"
_ENDS = {0: "completed", INTERRUPTED: "interrupted"}


class TensorboardLog(Tracker):
    """One folder of event files, `tensorboard/` in the run's. Each process of a resumed run adds a file to it."""

    title = "TensorBoard"

    def __init__(self, told: Told):
        self._folder = told.folder / "tensorboard"
        self._writer: Any = None
        self._step = 0  # the last training step
        self._known: set[str] = set()  # tags of the whole run that are there
        super().__init__(told)

    def open(self) -> int:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        sent = 0
        for event in events(self._folder):
            tags = [value.tag for value in event.summary.value]
            sent += not tags or not tags[0].startswith(_RUN) or tags[0] == f"{_RUN}accuracy"
            self._step = max(self._step, event.step)
            self._known |= {tag for tag in tags if tag.startswith(_RUN)}
        self._writer = EventFileWriter(str(self._folder))
        if f"{_RUN}config" not in self._known:
            told = {"id": self.told.run_id, "group": self.told.group, "tags": list(self.told.tags)}
            self._say(config=_code(dict(self.told.config)), told=_code(told))
        self._say(status="running")
        return sent

    def point(self, number: int, values: Mapping[str, float]) -> None:
        self._step = int(values["step"])
        self._add({name: {"simple_value": value} for name, value in values.items() if name != "step"})

    def settle(self) -> None:
        self._writer.flush()

    def matrices(
        self,
        number: int,
        columns: Sequence[str],
        tables: Mapping[str, Sequence[Sequence[Cell]]],
        images: Mapping[str, Path],
    ) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        content = _texts({name: _table(columns, rows) for name, rows in tables.items()})
        for name, path in images.items():
            with Image.open(path) as picture:
                width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=path.read_bytes())
            content[f"plots/{name}"] = {"image": image}
        self._add(content)

    def numbers(self, values: Mapping[str, float | int | str | None]) -> None:
        numbers = {f"{_RUN}{name}": value for name, value in values.items() if isinstance(value, int | float)}
        new = {tag: {"simple_value": value} for tag, value in numbers.items() if tag not in self._known}
        if new:  # an event without a tag would be a line
            self._add(new)

    def close(self, exit_code: int) -> None:
        self._say(status=_ENDS.get(exit_code, "failed"))
        self._writer.close()

    def _say(self, **texts: str) -> None:
        self._add(_texts(texts))

    def _add(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """One event of all these values, at the last training step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, **value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=self._step, summary=summary))


def events(folder: Path) -> Iterator[Any]:
    """The summary events of a folder's files, in their order; one that a killed process left unfinished is not read."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        for data in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(data)
            if event.HasField("summary"):
                yield event


def _texts(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    metadata = create_summary_metadata(display_name="", description="")
    return {
        f"{_RUN}{name}": {"metadata": metadata, "tensor": TensorProto(dtype=DT_STRING, string_val=[text.encode()])}
        for name, text in texts.items()
    }


def _code(content: Mapping[str, Any]) -> str:
    """A block that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in json.dumps(content, indent=1).splitlines())


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines: list[Sequence[Cell]] = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


def _shown(cell: Cell) -> str:
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell

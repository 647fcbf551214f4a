"""Pictures with several captions each, from the files in which Flickr30k and COCO are published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_runner.data.places import nearest

LAYOUTS = (
    "Karpathy's dataset_flickr30k.json or dataset_coco.json, COCO's captions_val2014.json, Flickr30k's "
    "results_20130124.token, or an array of objects with `filename` and `raw`"
)
_TOKEN = re.compile(r"(.+)#\d+\t(.*)")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture and what people said of it.

    Attributes:
        file: below the folder of pictures.
        split: of the file; "" where it has none.
    """

    file: str
    references: tuple[str, ...]
    split: str


def captioned(path: Path) -> list[Captioned]:
    """All pictures of a file, in its order.

    Raises:
        ValueError: it cannot be read, or has another layout.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = list(_of_lines(text) if path.suffix == ".token" else _of_json(json.loads(text)))
    except (OSError, UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    except (KeyError, TypeError, AttributeError, _Other) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, _Other) else str(error)
        raise ValueError(f"{path} holds no captions as expected ({reason}). Known are {LAYOUTS}") from None
    empty = next((one for one in found if not any(caption.strip() for caption in one.references)), None)
    if not found or empty is not None:
        what = f"{empty.file} has no caption" if empty is not None else "it names no picture"
        raise ValueError(f"{path}: {what}. Known are {LAYOUTS}")
    return found


def of_split(found: Sequence[Captioned], split: str | None, path: Path, key: str) -> list[Captioned]:
    """Those of one split; None = all.

    Args:
        key: of the configuration, for messages.

    Raises:
        ValueError: the file has no such split.
    """
    if split is None:
        return list(found)
    splits = sorted({one.split for one in found} - {""})
    if not splits:
        raise ValueError(f"{path} knows no splits, of which {key}={split} is to be one. Type: {key}=null")
    if split not in splits:
        raise ValueError(
            f"{path} has no split {split!r}, but {', '.join(splits)}.{nearest(split, splits)} Type: {key}={splits[0]}"
        )
    return [one for one in found if one.split == split]


class _Other(Exception):
    """How a file differs from the layouts that are known."""


def _of_lines(text: str) -> Iterator[Captioned]:
    """`1000092795.jpg#0<tab>caption`, as Flickr30k was released."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _TOKEN.fullmatch(line)
        if match is None and line.strip():
            raise _Other(f"line {number} is not FILE#NUMBER, a tab and a caption")
        if match is not None:
            found.setdefault(match[1], []).append(match[2])
    return (Captioned(file, tuple(captions), "") for file, captions in found.items())


def _of_json(content: Any) -> Iterator[Captioned]:
    if isinstance(content, list):  # as the hub's nlphuji/flickr30k has them, which PIECE read
        return (Captioned(one["filename"], _texts(one["raw"]), one.get("split", "")) for one in content)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise _Other("there is no list `images`")
    return _of_coco(content) if "annotations" in content else map(_of_karpathy, content["images"])


def _of_karpathy(image: Mapping[str, Any]) -> Captioned:
    # COCO's lie in the folders of its two halves, which `filepath` names.
    file = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
    return Captioned(file, _texts([one["raw"] for one in image["sentences"]]), image["split"])


def _of_coco(content: Mapping[str, Any]) -> Iterator[Captioned]:
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[Any, list[str]] = {}
    for one in content["annotations"]:
        found.setdefault(one["image_id"], []).append(one["caption"])
    lost = next((number for number in found if number not in files), None)
    if lost is not None:
        raise _Other(f"a caption is of the image {lost}, which `images` does not name")
    return (Captioned(files[number], _texts(captions), "") for number, captions in found.items())


def _texts(captions: Any) -> tuple[str, ...]:
    if isinstance(captions, str):
        captions = json.loads(captions)  # of the hub's CSV, whose cells are JSON
    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise _Other("captions are no list of texts")
    return tuple(one.strip() for one in captions if one.strip())

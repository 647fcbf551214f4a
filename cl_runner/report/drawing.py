"""What all pictures share: style, cells with numbers, and the names and the order of layers and modules."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure

from cl_runner.matrix import Floats

#: The modules of cl_runner/sparse/summary.py, from a model's beginning to its end.
MODULES = (
    "embeddings",
    "query",
    "key",
    "value",
    "query_key_value",
    "attention_output",
    "ffn_gate",
    "ffn_input",
    "ffn_output",
    "layer_norm",
    "pooler",
    "classifier",
    "lm_head",
    "other",
)
#: Okabe & Ito's colours, distinguishable with colour-blind eyes; markers tell a second round apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A8A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Rows, columns or names that a picture has room for: of more the names are thinned out, and it grows no further.
MOST = 40
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    # Task names may hold $ and must not become formulas.
    "text.parse_math": False,
    # Letters of a PDF stay letters; the names inside an SVG are the same whenever it shows the same.
    "pdf.fonttype": 42,
    "svg.hashsalt": "cl_runner",
}
#: Formats of pictures -> what would differ from one time to the next, left out.
FORMATS: Mapping[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def drawing(
    path: Path, width: float, height: float, style: Mapping[Any, Any] | None = None, caption: str = ""
) -> Iterator[Figure]:
    """A figure in inches, outside pyplot so that nothing stays open; in the end written to `path`.

    It is a PNG of 150 dots per inch, an SVG or a PDF, as the path ends; the same bytes whenever it shows the same.

    Args:
        style: settings of matplotlib besides `STYLE`.
        caption: lines below it, small.
    """
    with rc_context({**STYLE, **(style or {})}), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; tables have the name.
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if caption:
            room = int(16 * figure.get_figwidth())  # letters of this size that fit
            lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, room)]
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color="#555555")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white", metadata=FORMATS[path.suffix[1:]])


def grid_shape(count: int, most: int) -> tuple[int, int]:
    """Rows and columns of a grid of panels that has at most so many columns."""
    across = min(most, count)
    return -(-count // across), across


def panels(figure: Figure, count: int, most: int) -> list[Axes]:
    """The plots of a grid of `grid_shape`, row by row; the places left over stay empty."""
    down, across = grid_shape(count, most)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return grid[:count]


def thinned(count: int) -> range:
    """The places, of 0 to count - 1, of names that a picture has room for: all of them, or every k-th."""
    return range(0, count, max(1, -(-count // MOST)))


def _crowded(rows: int, columns: int) -> bool:
    """Whether the cells of a heat map are too many for numbers in them."""
    return rows * columns > MOST**2


def short(name: str, length: int = 26) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= length else name[: length - 1] + "…"


def signed(value: float) -> str:
    """One decimal, with a true minus sign."""
    return f"{value:.1f}".replace("-", "−")


def ink_on(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue, _ = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def cells(axes: Axes, values: Floats, colours: Colormap | None = None, scale: Normalize | None = None) -> None:
    """Coloured cells, the first row above; those that are masked or NaN stay blank.

    They are no image, of which matplotlib makes several numbers of 8 bytes for each dot of the picture.

    Args:
        values: numbers [rows, columns], or colours [rows, columns, 4] between 0 and 1.
    """
    down, across = (np.arange(count + 1) - 0.5 for count in values.shape[:2])
    shown = np.ma.masked_invalid(values) if values.ndim == 2 else values
    axes.pcolormesh(across, down, shown, cmap=colours, norm=scale, rasterized=True)
    axes.set_xlim(*across[[0, -1]])
    axes.set_ylim(*down[[-1, 0]])


def heat_map(
    axes: Axes,
    values: Floats,
    texts: Sequence[Sequence[str]],
    names: tuple[Sequence[str], Sequence[str]],
    colours: Colormap,
    scale: Normalize,
    notes: tuple[str, str],
    size: float,
) -> None:
    """Coloured cells with their texts, names at the left and above, the scale at the right; NaN stays blank.

    Of more than MOST x MOST cells without texts, and with the names that there is room for.

    Args:
        values, texts: [rows, columns].
        names: of the rows and of the columns, as `name_axes` takes them.
        notes: below the cells, and beside the scale.
        size: of the texts.
    """
    cells(axes, values, colours, scale)
    crowded = _crowded(*values.shape)
    for (row, column), value in () if crowded else np.ndenumerate(values):
        ink = ink_on(colours(scale(value))) if np.isfinite(value) else "#666666"
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=size, color=ink)
    _name_axes(axes, *names, crowded)
    axes.set_xlabel(notes[0])
    colour_bar(axes, colours, scale, notes[1])


def _name_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str], crowded: bool) -> None:
    """Names of a heat map's rows on the left and of its columns above, of one line or two each."""
    down, across = (thinned(len(names)) if crowded else range(len(names)) for names in (rows, columns))
    lines = [[short(line) for line in columns[place].split("\n")] for place in across]
    axes.set_xticks(across, ["\n".join(parts) for parts in lines])
    axes.set_yticks(down, [short(rows[place]) for place in down])
    turned = max(len(line) for parts in lines for line in parts) > 9
    axes.tick_params(axis="x", rotation=35 if turned else 0, length=0, top=True, labeltop=True)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", length=0)
    if turned:
        for label in axes.get_xticklabels():
            label.set(ha="left", rotation_mode="anchor")
    axes.grid(False)
    axes.spines[:].set_visible(False)


def heat_map_size(rows: int, columns: int) -> tuple[float, float, float]:
    """Width and height of a heat map in inches, and the font size of its numbers."""
    if _crowded(rows, columns):
        rows, columns = min(rows, MOST), min(columns, MOST)
    cell = 0.72 if columns <= 8 else 0.56
    return cell * columns + 2.9, 0.36 * rows + 1.9, 8.5 if columns <= 8 else 7.5


def colour_bar(axes: Axes, colours: Colormap, scale: Normalize, label: str) -> None:
    """The scale of a heat map, at its right."""
    figure = cast(Figure, axes.figure)
    # Beside the cells in their own height, however far the names above them reach to the right.
    place = axes.inset_axes((1.0 + 0.15 / figure.get_figwidth(), 0.0, 0.18 / figure.get_figwidth(), 1.0))
    figure.colorbar(ScalarMappable(scale, colours), cax=place).set_label(label)
    if isinstance(scale, LogNorm):
        plain_numbers(place)
    place.spines[:].set_visible(False)
    place.grid(False)


def plain_numbers(axes: Axes) -> None:
    """No powers of ten at the scale of a log axis; over few decades twos and fives have their numbers as well."""
    low, high = axes.get_ylim()
    told = ("2", "5") if high < 100 * low else ()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in told else "")


def name_bars(axes: Axes, names: Sequence[str], places: range) -> None:
    """Names of the horizontal bars at some places, the first one above."""
    axes.set_yticks(places, [short(names[place]) for place in places])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def legend_above(axes: Axes) -> None:
    """A legend in two columns at the right above the plot."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)


def rows_and_columns(cells: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The layers and modules of cells, each once, in the order they are shown."""
    found = [(str(cell["layer"]), cell["module"]) for cell in cells]
    return layer_order([layer for layer, _ in found]), [name for name in MODULES if name in {m for _, m in found}]


def module_names(modules: Sequence[str]) -> list[str]:
    """Names of modules as people read them."""
    return [name.replace("_", " ") for name in modules]


def layer_order(names: Sequence[str]) -> list[str]:
    """Each layer once: embeddings, then the blocks of each stack by number, then pooler and heads, then the rest."""
    unique = list(dict.fromkeys(names))
    stacks = [name.rpartition(".")[0] for name in unique]

    def key(name: str) -> tuple[int, int, int]:
        stack, _, last = name.rpartition(".")
        if re.search(r"embed|wte$|wpe$|shared$", last):
            place = 0
        elif last.isdigit():
            return 1, stacks.index(stack), int(last)
        else:
            place = 2 if "pooler" in last else 3
        return place, unique.index(name), 0

    return sorted(unique, key=key)


def layer_names(layers: Sequence[str]) -> list[str]:
    """Short names of different layers: "block 3", or "decoder 3" in a model of two stacks."""
    stacks = {layer.rpartition(".")[0] for layer in layers if layer.rpartition(".")[2].isdigit()}
    alike = Counter(layer.rpartition(".")[2] for layer in layers)
    names = []
    for layer in layers:
        parts = layer.split(".")
        if parts[-1].isdigit():
            names.append(f"{parts[-3] if len(stacks) > 1 else 'block'} {parts[-1]}")
        else:
            names.append(short(parts[-1] if alike[parts[-1]] == 1 else ".".join(parts[-2:])))
    return names

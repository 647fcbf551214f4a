"""Cells of heat maps: each has its colour, where it belongs, and a blank one none."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from cl_runner.matrix import Floats
from cl_runner.report.drawing import cells

COLOURS, SCALE = colormaps["viridis"], Normalize(0, 5)


def dots(values: Floats, *how: object) -> np.ndarray:
    """The colour [rows, columns, 3] in the middle of each cell, 0 to 255."""
    figure = Figure(figsize=(3, 2), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    cells(axes, values, *how)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())
    places = [(np.arange(count) + 0.5) * size / count for count, size in zip(values.shape, picture.shape, strict=False)]
    return picture[np.ix_(*(place.astype(int) for place in places))][..., :3].astype(int)


@pytest.mark.parametrize("colours", [False, True])
def test_each_cell_has_its_colour(colours: bool) -> None:
    values = np.array([[0.0, 1.0, 2.0], [np.nan, 4.0, 5.0]])
    meant = COLOURS(SCALE(values))
    meant[1, 0] = 0.0
    found = dots(meant) if colours else dots(values, COLOURS, SCALE)
    meant[1, 0] = 1.0  # white
    assert np.abs(found - 255 * meant[..., :3]).max() <= 1

"""Many images on one page: contact sheets, and one image through the noising process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.planes import Window, draw, frame, grey_window, lay_out, paper, planes_of, volume_of
from voxelry.viz.style import INK, as_array, headline, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["process", "sheet"]


def sheet(
    images: Sequence[Any],
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    space: Space | None = None,
    title: str = "",
    window: Window | None = None,
    anatomical: bool | None = None,
) -> Figure:
    """A contact sheet: the planes through the middle of each image, all with the same grey values.

    Args:
        images: each `(C, *spatial)`, of one shape; `(*spatial)` too if `space` is given.
        columns: images per row; by default what makes the sheet about as wide as a page.
        titles: one per image.
        space: the grid they share; by default voxels of 1 mm.
        title: one line on top.
        window: grey values of black and white; by default the 0.5th and 99.5th percentile of them all.
        anatomical: see `planes_of`.

    Raises:
        SettingError: no images, shapes that differ, or titles of another number.
    """
    if len(images) == 0:
        raise SettingError("images: expected at least one")
    space = space or Space.from_spacing(as_array(images[0], "images").shape[1:])
    volumes = [volume_of(image, space, f"images[{i}]") for i, image in enumerate(images)]
    if titles is not None and len(titles) != len(volumes):
        raise SettingError(f"titles: expected {len(volumes)}, one per image, got {len(titles)}")
    grey = window or grey_window(np.stack(volumes))
    planes = lay_out(planes_of(space, anatomical=anatomical), gap=0.03 * max(space.extent))
    width, height = paper(planes)
    columns = min(columns or max(1, round(6 / len(planes))), len(volumes))
    rows = -(-len(volumes) // columns)
    scale = min(10 / (columns * width * 1.06), 2.8 / height)
    head, foot = (0.3 if titles is not None else 0.08), (0.35 if title else 0.08)
    cell = height * scale + head
    fig = new_figure(columns * width * scale * 1.06 + 0.1, rows * cell + foot)
    total = fig.get_size_inches()
    middle = [(size - 1) / 2 for size in space.shape]
    for i, volume in enumerate(volumes):
        row, column = divmod(i, columns)
        left = (0.05 + column * width * scale * 1.06) / total[0]
        bottom = 1 - (foot + (row + 1) * cell) / total[1] + 0.04 / total[1]
        axes = fig.add_axes((left, bottom, width * scale / total[0], height * scale / total[1]))
        for plane in planes:
            draw(axes, plane, volume, middle, grey)
        frame(axes, planes, margin=0.0, label=False)
        if titles is not None:
            axes.set_title(titles[i], fontsize=9, color=INK, loc="left", pad=4)
    headline(fig, title)
    return fig


def process(
    steps: Sequence[Any],
    times: Sequence[int | float | str],
    *,
    space: Space | None = None,
    title: str = "",
    window: Window | None = None,
    anatomical: bool | None = None,
) -> Figure:
    """One image at several times of the noising (or denoising) process, one row per plane, one column per time.

    Args:
        steps: the image at each time, `(C, *spatial)`; `(*spatial)` too if `space` is given.
        times: what to write above each; a number is shown as `t = ...`.
        space: the grid; by default voxels of 1 mm.
        title: one line on top.
        window: grey values of black and white; by default each image has its own, since noise has a wider range.
        anatomical: see `planes_of`.

    Raises:
        SettingError: no steps, or times of another number.
    """
    if len(steps) == 0 or len(times) != len(steps):
        raise SettingError(f"times: expected one per step, got {len(times)} for {len(steps)} steps")
    space = space or Space.from_spacing(as_array(steps[0], "steps").shape[1:])
    volumes = [volume_of(step, space, f"steps[{i}]") for i, step in enumerate(steps)]
    planes = planes_of(space, anatomical=anatomical)
    widest = max(plane.size[0] for plane in planes)
    heights = [plane.size[1] for plane in planes]
    scale = min(10 / (len(volumes) * widest * 1.05), 7 / sum(heights), 3 / widest)
    top = 0.3 + (0.3 if title else 0.0)
    gap = 0.06
    fig = new_figure(len(volumes) * (widest * scale + gap) + gap, sum(heights) * scale + gap * len(planes) + top + 0.05)
    width, height = fig.get_size_inches()
    middle = [(size - 1) / 2 for size in space.shape]
    for column, volume in enumerate(volumes):
        grey = window or grey_window(volume)
        used = top
        for row, plane in enumerate(planes):
            tall = heights[row] * scale
            left = gap + column * (widest * scale + gap)
            axes = fig.add_axes((left / width, 1 - (used + tall) / height, widest * scale / width, tall / height))
            draw(axes, plane, volume, middle, grey)
            frame(axes, [plane], margin=0.0, label=False)
            if row == 0:
                time = times[column]
                fig.text(
                    (left + widest * scale / 2) / width, 1 - (top - 0.08) / height,
                    time if isinstance(time, str) else f"t = {time:g}",
                    ha="center", va="bottom", fontsize=9, color=INK,
                )  # fmt: skip
            used += tall + gap
    headline(fig, title)
    return fig

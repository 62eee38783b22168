"""Are these points where they were meant to be? Axis swaps and mirrored worlds, found from the points.

Every case is read as it stands and in the ways it could have been meant (`readings`). Three tests tell:

- the image: points lie outside as they stand, and inside when read in another way (`outside_test`);
- the pixels: many points of the dataset lie in empty background as they stand, and on something when read in
  another way (`background_test`);
- the cohort: a case lies far from the others as it stands, and among them when read in another way
  (`cohort_test`). Cases are compared in mm along the patient's axes, so that copies of one anatomy in other
  axes agree, and after removing the shift between them, so that they may be cropped differently.

A fault that all cases share is not visible to the last, and to the second only where points fall off the
anatomy: a swap of points deep inside a brain goes unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from voxelry.core.space import Space

__all__ = ["AS_GIVEN", "PlacedPoints", "Suspicion", "background_test", "cohort_test", "outside_test", "readings"]

Floats = NDArray[np.float64]

AS_GIVEN = "as given"
_FLIP = "LPS and RAS exchanged"
_FEWEST_CASES = 5  # fewer have no majority worth the name
_FAR = 9.0  # mean squared standard score from which a case is out of line: 3 standard deviations on average
_NEAR = 6.0  # up to which it counts as one of them
_BETTER = 4.0  # how much smaller another reading has to make it
_EMPTY = 0.01  # of the range of an image, up to which a pixel counts as background
_FLOOR = 0.02  # smallest standard deviation, as part of the configuration's size: clones are no evidence


@dataclass(frozen=True)
class PlacedPoints:
    """The points of one case and the grid of its image.

    Attributes:
        name: of the case, or of its landmark file.
        index: `(N, ndim)` index coordinates as they were read, NaN for absent.
        space: the grid.
        on_grid: the file holds normalised or index coordinates; otherwise world ones.
        normalised: those are divided by the size.
    """

    name: str
    index: Floats
    space: Space
    on_grid: bool = True
    normalised: bool = True


@dataclass(frozen=True)
class Suspicion:
    """Another reading that explains the points better.

    Attributes:
        name: of the case.
        reading: which one, as in `readings`.
        reason: the evidence, for a message.
    """

    name: str
    reading: str
    reason: str


def readings(points: PlacedPoints) -> dict[str, Floats]:
    """Index coordinates `(N, ndim)` as given, and for each way the points could have been meant.

    Points on the grid may have their axes in another order; world points may be in the other of LPS and RAS,
    or have x and z exchanged.
    """
    space, index = points.space, points.index
    found = {AS_GIVEN: index}
    if points.on_grid:
        scale = np.asarray(space.shape, dtype=np.float64) if points.normalised else np.ones(space.ndim)
        letters = "zyx"[-space.ndim :]
        given, *others = permutations(range(space.ndim))
        for order in reversed(others):  # the reversal first: it is the likeliest mistake
            columns = ", ".join(letters[axis] for axis in reversed(order))  # what to take for x, y, z
            name = "axis order reversed" if order == given[::-1] else f"columns taken in the order {columns}"
            found[name] = (index / scale)[:, order] * scale
    else:
        world = np.asarray(space.to_world(index), dtype=np.float64)
        found[_FLIP] = np.asarray(space.to_index(world * [-1.0, -1.0, 1.0]), dtype=np.float64)
        found["axis order reversed"] = np.asarray(space.to_index(world[:, ::-1]), dtype=np.float64)
    return found


def outside_test(points: PlacedPoints) -> Suspicion | None:
    """Whether at most half of the points lie inside the image as given, but all do in another reading."""
    present = np.isfinite(points.index).all(axis=1)
    inside = {name: int(points.space.contains(index[present]).sum()) for name, index in readings(points).items()}
    count = int(present.sum())
    if count == 0 or inside[AS_GIVEN] * 2 > count:
        return None
    best = max(inside, key=lambda name: inside[name])  # the first of equals: the likelier mistake comes first
    if inside[best] < count or best == AS_GIVEN:
        return None
    reason = f"{inside[AS_GIVEN]} of {count} points lie inside the image, {count} with {best}"
    return Suspicion(points.name, best, reason)


def background_test(intensities: Sequence[dict[str, Floats]]) -> tuple[str, str] | None:
    """Whether points lie in empty background as given and not in another reading: the reading and the reason.

    Args:
        intensities: per case and reading, the pixel at each point as a part of the image's range: `(N,)` in
            [0, 1], NaN outside the image.

    Empty is up to 1 % of the range. There have to be ten times as many points (at least ten) that only the
    other reading takes out of the background as there are that it puts there, 30 % of all or more in it
    as given, and 5 % or fewer after.
    """
    shared = set.intersection(*(set(values) for values in intensities)) if intensities else set()
    if AS_GIVEN not in shared:
        return None
    pooled = {name: np.concatenate([values[name] for values in intensities]) for name in sorted(shared)}
    known = np.isfinite(pooled[AS_GIVEN])
    given = pooled[AS_GIVEN][known] <= _EMPTY
    best: tuple[float, str, str] | None = None
    for name in shared - {AS_GIVEN}:
        other = ~(pooled[name][known] > _EMPTY)  # outside is as empty
        out, into = int((given & ~other).sum()), int((other & ~given).sum())
        if out >= max(10, 10 * into) and given.mean() >= 0.3 and other.mean() <= 0.05:
            reason = f"{given.mean():.0%} of them lie in empty background, {other.mean():.0%} with {name}"
            # of equals the reversal, the likelier mistake, whose name comes first
            best = min(best or (np.inf, "", ""), (float(other.mean()), name, reason))
    return None if best is None else best[1:]


def cohort_test(cases: Sequence[PlacedPoints]) -> list[Suspicion]:
    """Cases that fit the others in another reading only.

    With `F` the positions of a case in mm from the image's centre, aligned to the cohort's median by a shift,
    and `s` the median absolute deviation along each patient axis (as a standard deviation), a case's distance
    is the mean of `((F - median) / s)^2` over its points and axes. It is suspect if that is above 9 as given,
    and another reading makes it four times smaller and no larger than 6.

    Cases need the same number of points, and at least five of them; otherwise nothing is found.
    """
    counts = {len(case.index) for case in cases}
    if len(cases) < _FEWEST_CASES or len(counts) != 1 or counts == {0}:
        return []
    kept = np.isfinite(np.stack([case.index for case in cases])).all(axis=2).any(axis=0)
    if not kept.any():
        return []
    given = np.stack([_from_centre(case.space, case.index)[kept] for case in cases])
    median = _median(given)
    median = _median(np.stack([_shifted(points, median) for points in given]))
    residuals = np.stack([_shifted(points, median) for points in given]) - median
    spread = 1.4826 * np.nanmedian(np.abs(residuals), axis=(0, 1))
    size = np.sqrt(np.mean((median - median.mean(axis=0)) ** 2)) if len(median) > 1 else 0.0
    voxel = min(min(case.space.spacing) for case in cases)
    spread = np.maximum(spread, _FLOOR * max(float(size), voxel))

    def distance(points: Floats) -> float:
        scores = (_shifted(points, median) - median) / spread
        return float(np.mean(scores[np.isfinite(scores)] ** 2)) if np.isfinite(scores).any() else 0.0

    distances = [distance(points) for points in given]
    found = []
    for case, own in zip(cases, distances, strict=True):
        if own <= _FAR:
            continue
        others = {
            name: distance(_from_centre(case.space, index)[kept])
            for name, index in readings(case).items()
            if name != AS_GIVEN
        }
        best = min(others, key=lambda name: others[name])
        if others[best] * _BETTER <= own and others[best] <= _NEAR:
            reason = f"{own**0.5:.1f} standard deviations from the other cases, {others[best] ** 0.5:.1f} with {best}"
            found.append(Suspicion(case.name, best, reason))
    return found


def _from_centre(space: Space, index: Floats) -> Floats:
    """World mm relative to the image's centre, `(N, 3)`."""
    centre = (np.asarray(space.shape, dtype=np.float64) - 1) / 2
    return np.asarray(space.to_world(index) - space.to_world(centre), dtype=np.float64)


def _median(stack: Floats) -> Floats:
    """Per landmark and axis over cases, `(cases, N, 3) -> (N, 3)`, without the absent ones."""
    return np.asarray(np.nanmedian(stack, axis=0))


def _shifted(points: Floats, target: Floats) -> Floats:
    """`points` moved by their mean distance from `target`; fewer than three points stay, or nothing would be left."""
    difference = target - points
    present = np.isfinite(difference).all(axis=1)
    return points + difference[present].mean(axis=0) if present.sum() >= 3 else points

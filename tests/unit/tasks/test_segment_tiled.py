from collections import Counter

import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.io import open_image, write_image
from voxelry.metrics.instances import instance_metrics
from voxelry.metrics.matching import matched
from voxelry.metrics.overlap import mask_overlaps
from voxelry.ops.instances import Instances, LabelVolume, PackedCrops, from_labels, paint_blocks
from voxelry.phantoms.nuclei import make_nuclei
from voxelry.tasks.segment.stitch import candidate_pairs
from voxelry.tasks.segment.tiled import Tiles, image_key, predict_tiled, tile_cores


def balls(rng, shape, count, radius):
    """Balls of different sizes that don't touch, ids 1 to n; the image holds the ids."""
    labels = np.zeros(shape, dtype=np.int32)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    number = 0
    for _ in range(count):
        centre = rng.uniform(0, np.array(shape) - 1)
        size = rng.uniform(*radius)
        distance = np.linalg.norm(grid - centre, axis=-1)
        if not labels[distance < size + 1].any():
            number += 1
            labels[distance < size] = number
    return labels


def oracle(tile):
    """A perfect detector: the image's values are ids."""
    return from_labels(tile[0].astype(np.int64))


def scored(tile):
    """Perfect masks with scores that depend on the object and on how much of it the tile shows."""
    found = oracle(tile)
    scores = 1 / (1 + np.exp(-found.voxels() / 50)) - 0.01 * (found.boxes.sum(axis=1) % 3)
    return Instances(found.boxes, scores, found.classes, found.crops)


JOINING = ("join_iou", "nms_iou", "least_score", "progress")


def run(labels, detect=scored, **settings):
    reads = []

    def read(window):
        reads.append(window)
        return labels[None][(slice(None), *window)].copy()

    joined = {name: settings.pop(name) for name in JOINING if name in settings}
    tiles = Tiles(read, labels.shape, detect, **{"tile_size": 24, "overlap": 0.34, **settings})
    return predict_tiled(tiles, **joined), reads


@pytest.mark.parametrize(("shape", "tile"), [((70, 90), 24), ((40, 52, 60), (20, 24, 28))])
def test_tiled_equals_whole_also_for_objects_across_borders(rng, shape, tile):
    labels = balls(rng, shape, 60, (2.0, 7.0))
    found, reads = run(labels, tile_size=tile)
    assert len(reads) >= 4
    assert len(found) == labels.max()
    assert instance_metrics(found, labels, score_threshold=0)["pq"] == 1.0
    whole = from_labels(labels)
    matches = {tuple(box) for box in whole.boxes.tolist()}
    assert {tuple(box) for box in found.boxes.tolist()} == matches
    assert (np.diff(found.scores) <= 0).all()


def test_an_object_larger_than_every_tile_comes_out_in_one_piece():
    labels = np.zeros((20, 100), dtype=np.int32)
    labels[4:16, 3:97] = 1
    labels[9:11, 3:97] = 0
    labels[4:16, 50:53] = 1  # an H: some tiles see two pieces of it
    labels[17:19, 40:60] = 2
    found, _ = run(labels, tile_size=(20, 24), overlap=0.5)
    masks = [np.zeros(labels.shape, dtype=bool) for _ in found.crops]
    for mask, (window, crop) in zip(masks, found.crops, strict=True):
        mask[window] = crop
    assert any((mask == (labels == 1)).all() for mask in masks)
    assert any((mask == (labels == 2)).all() for mask in masks)
    assert len(found) == 2


def test_noisy_detections_are_neither_lost_nor_doubled(rng):
    from scipy.ndimage import binary_dilation, binary_erosion

    labels = balls(rng, (64, 72, 60), 70, (3.5, 7.0))

    def noisy(tile):
        """Each tile draws its own edges: every mask is eroded, dilated or kept, by the content of the tile."""
        draw = np.random.default_rng(int(tile.sum()))
        crops, boxes = [], []
        for window, mask in oracle(tile).crops:
            change = draw.choice([binary_erosion, binary_dilation, lambda mask: mask])
            crops.append((window, change(mask) if change(mask).any() else mask))
            low, high = [part.start - 0.5 for part in window], [part.stop - 0.5 for part in window]
            boxes.append(np.array(low + high) + draw.uniform(-0.7, 0.7, 6))
        scores = draw.uniform(0.5, 1, len(crops))
        return Instances(np.array(boxes).reshape(-1, 6), scores, np.ones(len(crops), dtype=int), crops)

    found, _ = run(labels, noisy, tile_size=32, overlap=0.5)
    assert len(found) == labels.max()
    # eroding the smallest ball leaves a third of it; two tiles may disagree even more
    assert len(matched(mask_overlaps(found, labels), 0.3)) == labels.max()


@pytest.mark.parametrize(("tile", "overlap"), [(32, 0.25), (40, 0.4)])
def test_noise_costs_no_more_than_on_the_whole_volume(rng, tile, overlap):
    """Objects larger than the overlap, edges drawn anew in every tile: parts are joined, pieces aren't left over."""
    from scipy.ndimage import binary_dilation, binary_erosion

    labels = balls(rng, (64, 72, 56), 40, (6, 13))

    def noisy(tile):
        draw = np.random.default_rng(int(tile.sum()))
        found, crops = oracle(tile), []
        for window, mask in found.crops:
            change = draw.choice([binary_erosion, binary_dilation, lambda mask: mask])
            drawn = change(np.pad(mask, 1, mode="edge"))[(slice(1, -1),) * 3]  # what the border cuts, goes on behind it
            crops.append((window, drawn if drawn.any() else mask))
        return Instances(found.boxes, draw.uniform(0.5, 1, len(crops)), found.classes, crops)

    whole = instance_metrics(noisy(labels[None]), labels)
    tiled = instance_metrics(run(labels, noisy, tile_size=tile, overlap=overlap)[0], labels)
    assert tiled["count_error"] == 0
    assert tiled["rq"] == whole["rq"] == 1.0
    assert tiled["pq"] > whole["pq"] - 0.05


def test_what_only_a_foreign_tile_sees_is_dropped(rng):
    """A detector that invents an object at the border of every tile: only the image's own borders keep theirs."""

    def inventive(tile):
        size = tile.shape[1:]
        crop = ((slice(size[0] - 3, size[0] - 1), slice(8, 12)), np.ones((2, 4), dtype=bool))
        box = [size[0] - 3.5, 7.5, size[0] - 1.5, 11.5]
        return Instances(np.array([box]), [0.9], [1], [crop])

    found, reads = run(np.zeros((60, 20), dtype=np.int32), inventive, tile_size=20, overlap=0.5)
    assert len(reads) > 3
    assert found.boxes.tolist() == [[56.5, 7.5, 58.5, 11.5]]


def test_classes_are_not_joined():
    labels = np.zeros((10, 60), dtype=np.int32)
    labels[2:8, 5:55] = 1

    def by_place(tile):
        found = oracle(tile)
        return Instances(found.boxes, found.scores, np.full(len(found), 1 + int(tile[0, 0, 0])), found.crops)

    labels[0, :] = 0
    same, _ = run(labels, by_place, tile_size=(10, 40), overlap=0.5)
    labels[0, 20] = 1  # the second tile's corner: its detector says class 2, and paints one voxel more
    other, _ = run(labels, by_place, tile_size=(10, 40), overlap=0.5)
    assert set(same.classes.tolist()) == {1}
    assert set(other.classes.tolist()) == {1, 2}


def test_only_sure_objects_are_what_they_are_among_all(rng):
    """What is left out for its score changes nothing else, although parts of sure objects may have low scores."""
    labels = balls(rng, (44, 40, 36), 20, (4.0, 11.0))

    def detect(tile):
        draw = np.random.default_rng(int(tile.sum()))
        found, size = oracle(tile), np.array(tile.shape[1:])
        crops = list(found.crops)
        for _ in range(20):
            sides = draw.integers(3, 14, len(size))
            low = draw.integers(0, size - sides)
            window = tuple(slice(int(a), int(b)) for a, b in zip(low, low + sides, strict=True))
            crops.append((window, draw.random(tuple(sides)) < 0.6))
        edges = [[part.start - 0.5 for part in w] + [part.stop - 0.5 for part in w] for w, _ in crops]
        scores = draw.uniform(0.05, 1, len(crops))
        return Instances(np.array(edges).reshape(-1, 6), scores, np.ones(len(crops), dtype=int), crops)

    settings = {"tile_size": 20, "overlap": 0.5}
    everything, _ = run(labels, detect, **settings)
    for least in (0.0, 0.5, 0.9, 1.1):
        sure, _ = run(labels, detect, **settings, least_score=least)
        wanted = everything.take(np.flatnonzero(everything.scores >= least))
        assert (len(wanted) < len(everything)) == (least > 0)
        np.testing.assert_array_equal(sure.boxes, wanted.boxes)
        np.testing.assert_array_equal(sure.scores, wanted.scores)
        np.testing.assert_array_equal(sure.packed().bits, wanted.packed().bits)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(rng, tmp_path):
    labels = balls(rng, (48, 52, 40), 40, (2.0, 6.0))
    whole, reads = run(labels)
    done = []

    def mortal(tile):
        if len(done) == 5:
            raise Killed
        done.append(1)
        return scored(tile)

    with pytest.raises(Killed):
        run(labels, mortal, state=tmp_path)
    assert len(list(tmp_path.glob("*/tile_*.npz"))) == 5
    resumed, left = run(labels, state=tmp_path)
    assert len(left) == len(reads) - 5
    for again in (resumed, run(labels, state=tmp_path)[0]):
        for name in ("boxes", "scores", "classes"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        np.testing.assert_array_equal(again.crops.bits, whole.crops.bits)
        np.testing.assert_array_equal(again.crops.starts, whole.crops.starts)
    # another model, and a torn file, are done afresh
    assert len(run(labels, state=tmp_path, key="other")[1]) == len(reads)
    next(tmp_path.glob("*/tile_000003.npz")).write_bytes(b"PK torn")
    torn = [run(labels, state=tmp_path, key=key)[1] for key in ("", "other")]
    assert sorted(map(len, torn)) == [0, 1]


def test_who_joins_tiles_that_another_is_at_does_hardly_any_of_them_again(rng, tmp_path):
    labels = balls(rng, (40, 40, 40), 8, (3.0, 5.0))
    asked: Counter[tuple[int, ...]] = Counter()

    def made(detect):
        def read(window):
            asked[tuple(part.start for part in window)] += 1
            return labels[window][None]

        return Tiles(read, labels.shape, detect, tile_size=16, overlap=0.25, state=tmp_path)

    other = made(scored)
    steps = iter(range(len(other)))

    def beside_the_other(tile):
        number = next(steps, None)
        if number is not None:
            other[number]
        return scored(tile)

    joined = predict_tiled(made(beside_the_other))
    assert len(asked) == len(other) > 20
    assert sum(asked.values()) <= len(other) + 1
    np.testing.assert_array_equal(joined.boxes, run(labels, tile_size=16, overlap=0.25)[0].boxes)


def test_the_key_of_an_image_changes_with_the_file_and_the_model(tmp_path):
    space = Space.from_spacing((4, 5, 6), (3.0, 1.0, 1.0))
    array = np.arange(120, dtype=np.float32).reshape(1, 4, 5, 6)
    keys = set()
    for name in ("a.nii.gz", "a.zarr"):
        path = write_image(tmp_path / name, array, space)
        keys |= {image_key(open_image(path), "m"), image_key(open_image(path), "n")}
        assert image_key(open_image(path), "m") in keys
        path = write_image(tmp_path / name, array + 1, Space.from_spacing((4, 5, 6)))
        keys.add(image_key(open_image(path), "m"))
    assert len(keys) == 6


def test_images_are_read_through_their_file(rng, tmp_path):
    labels = balls(rng, (30, 40), 12, (2.0, 5.0))
    file = open_image(write_image(tmp_path / "ids.nii.gz", labels[None], Space.from_spacing(labels.shape)))
    found = predict_tiled(Tiles(file, file.space.shape, oracle, tile_size=16, overlap=0.5))
    assert instance_metrics(found, labels)["pq"] == 1.0


@pytest.mark.parametrize("shape", [(37,), (37, 50), (20, 33, 41)])
def test_cores_share_the_volume_between_them(shape):
    from itertools import product

    from voxelry.ops.tiles import tiles

    windows = np.array([[p.start for p in w] + [p.stop for p in w] for w in tiles(shape, 16, 0.4)])
    cores = tile_cores(windows, shape)
    ndim = len(shape)
    for point in product(*(np.linspace(0, size - 1, 9) for size in shape)):
        inside = ((cores[:, :ndim] <= point) & (point < cores[:, ndim:])).all(axis=1)
        assert inside.any()
        seen = ((windows[:, :ndim] - 0.5 <= point) & (point <= windows[:, ndim:] - 0.5)).all(axis=1)
        assert (seen | ~inside).all()  # the tile that owns a point sees it


def test_a_blank_volume_has_no_objects(tmp_path):
    found, _ = run(np.zeros((30, 30, 30), dtype=np.int32), state=tmp_path)
    assert (len(found), found.ndim) == (0, 3)
    assert found.boxes.shape == (0, 6)


def test_a_detector_that_leaves_its_tile_is_refused():
    with pytest.raises(SettingError, match="masks inside the tile of shape"):
        run(np.zeros((30, 30), dtype=np.int32), lambda tile: from_labels(np.ones((25, 25), dtype=int)))
    with pytest.raises(SettingError, match="detect: expected instances of rank 2, got 3"):
        run(np.zeros((30, 30), dtype=np.int32), lambda tile: Instances.empty(3))


@pytest.mark.parametrize("ndim", [2, 3])
def test_candidate_pairs_are_all_overlapping_pairs(rng, ndim):
    low = rng.uniform(-20, 20, (60, ndim))
    boxes = np.concatenate([low, low + rng.uniform(0.5, 9, (60, ndim))], axis=1)
    meets = ((low[:, None] < boxes[None, :, ndim:]) & (boxes[:, None, ndim:] > low[None])).all(axis=-1)
    wanted = np.argwhere(np.triu(meets, 1))
    for cell in (2.0, 50.0):
        np.testing.assert_array_equal(candidate_pairs(boxes, np.full(ndim, cell)), wanted)


@pytest.mark.parametrize("ndim", [2, 3])
def test_packed_masks_are_the_masks(rng, ndim):
    crops = []
    for _ in range(7):
        size = tuple(int(n) for n in rng.integers(1, 6, ndim))
        window = tuple(slice(int(a), int(a) + n) for a, n in zip(rng.integers(0, 9, ndim), size, strict=True))
        crops.append((window, rng.random(size) < 0.5))
    crops[3] = ((slice(4, 4),) * ndim, np.zeros((0,) * ndim, dtype=bool))
    packed = PackedCrops.pack(crops, ndim)
    np.testing.assert_array_equal(packed.voxels(), [mask.sum() for _, mask in crops])
    both = PackedCrops.join([packed.take([2, 5]), packed.shift([3] * ndim)], ndim)
    for (window, mask), (wanted, truth) in zip(both[:2], [crops[2], crops[5]], strict=True):
        assert window == wanted
        np.testing.assert_array_equal(mask, truth)
    assert both[-1][0][0].start == crops[-1][0][0].start + 3
    with pytest.raises(IndexError):
        both[9]
    with pytest.raises(SettingError, match="bits: expected"):
        PackedCrops(packed.starts, packed.sizes, packed.bits[:-1])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_voxels_are_counted_without_unpacking(rng, ndim):
    volume = (31,) * ndim
    dense, crops = [], []
    for _ in range(12):
        low = rng.integers(0, 12, ndim)
        sides = rng.integers(1, 20, ndim)
        window = tuple(slice(int(a), int(b)) for a, b in zip(low, low + sides, strict=True))
        crops.append((window, rng.random(tuple(sides)) < 0.5))
        dense.append(np.zeros(volume, dtype=bool))
        dense[-1][window] = crops[-1][1]
    crops.append(((slice(5, 5),) * ndim, np.zeros((0,) * ndim, dtype=bool)))
    dense.append(np.zeros(volume, dtype=bool))
    packed = PackedCrops.pack(crops, ndim)
    first, second = (part.ravel() for part in np.indices((13, 13)))
    low = rng.integers(-2, 20, (169, ndim))
    high = low + rng.integers(-1, 25, (169, ndim))
    regions = [
        tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(begin, end, strict=True))
        for begin, end in zip(low, high, strict=True)
    ]
    inside = [dense[one][region].sum() for one, region in zip(first, regions, strict=True)]
    np.testing.assert_array_equal(packed.voxels_in(first, low, high), inside)
    both = [dense[one] & dense[other] for one, other in zip(first, second, strict=True)]
    np.testing.assert_array_equal(packed.shared_voxels(first, second), [mask.sum() for mask in both])
    np.testing.assert_array_equal(
        packed.shared_voxels(first, second, low, high),
        [mask[region].sum() for mask, region in zip(both, regions, strict=True)],
    )


def test_painting_in_blocks_is_painting_at_once_with_the_better_score_on_top(rng):
    labels = balls(rng, (20, 30), 20, (2.0, 5.0))
    whole = from_labels(labels)
    crops = [
        (tuple(slice(max(0, p.start - 2), p.stop - 2 - min(0, p.start - 2)) for p in w), m) for w, m in whole.crops
    ]
    crops = [(tuple(slice(p.start, p.start + n) for p, n in zip(w, m.shape, strict=True)), m) for w, m in crops]
    scores = rng.choice([0.25, 0.5, 0.75], len(whole))
    both = Instances(
        np.concatenate([whole.boxes, whole.boxes - 2]),
        np.concatenate([scores, scores[::-1]]),
        np.ones(2 * len(whole), dtype=int),
        [*whole.crops, *crops],
    )
    wanted = np.zeros(labels.shape, dtype=int)
    best = np.full(labels.shape, -1.0)
    for number, ((window, mask), score) in enumerate(zip(both.crops, both.scores, strict=True), start=1):
        better = np.zeros(labels.shape, dtype=bool)
        better[window] = mask
        better &= score > best
        wanted[better], best[better] = number, score
    for block in (None, (7, 30), (64, 9)):
        painted = np.zeros(labels.shape, dtype=np.int32)
        for window, part in paint_blocks(both, labels.shape, block):
            painted[window] = part
        np.testing.assert_array_equal(painted, wanted)
    lazy = LabelVolume(both, labels.shape)
    np.testing.assert_array_equal(np.asarray(lazy), wanted)
    np.testing.assert_array_equal(lazy[3:9], wanted[3:9])
    np.testing.assert_array_equal(lazy[-7:, 5:11], wanted[-7:, 5:11])
    assert lazy[4:4].shape == (0, 30)
    with pytest.raises(SettingError, match="slices without a step"):
        lazy[::2]


def test_memory_does_not_grow_with_the_volume():
    """One object, volumes of 8 and of 64 tiles: what is held at once is a tile, not the volume."""
    import tracemalloc

    def peak(size):
        def read(window):
            tile = np.zeros((1, *(part.stop - part.start for part in window)), dtype=np.float32)
            if all(part.start == 0 for part in window):
                tile[0, 2:6, 2:6, 2:6] = 1
            return tile

        tracemalloc.start()
        found = predict_tiled(Tiles(read, (size,) * 3, oracle, tile_size=32, overlap=0.0))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == 1
        return most

    peak(64)  # what is imported on the way counts once
    small, large = peak(64), peak(128)
    assert large < 1.2 * small
    assert large < 4 * 128**3 / 4


def check_tiles(labels):
    """Tiles of half an image and a bit give what is in the whole image."""
    found, reads = run(labels, oracle, tile_size=[size // 2 + 8 for size in labels.shape], overlap=0.3)
    assert len(reads) >= 2**labels.ndim
    scores = instance_metrics(found, labels)
    assert scores["pq"] >= 0.99
    assert scores["count_error"] == 0


@pytest.mark.parametrize("shape", [(96, 88), (40, 48, 44)])
def test_tiled_equals_whole_on_nuclei(shape):
    check_tiles(make_nuclei(0, ndim=len(shape), shape=shape, spacing=1e-3).masks.numpy().astype(np.int64))


@pytest.mark.parametrize("file", ["stardist/mask3d.tif", "stardist/mask2d.tif", "go_nuclear/1135_mini.h5"])
def test_tiled_equals_whole_on_real_nuclei(shared_data, file):
    dataset = "label" if file.endswith(".h5") else None
    check_tiles(open_image(shared_data / file, dataset=dataset).read()[0].astype(np.int64))

"""Every file of the conformance corpus: the right array in the right place, or a clear refusal."""

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile

from voxelry.core.errors import VoxelryError
from voxelry.core.space import Space
from voxelry.io.images.image import open_image

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[5] / "shared" / "data"))

VOLUME = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
OBLIQUE = Space(  # 3, 2 and 0.5 mm; row and column mirrored, plane and row tilted into each other
    VOLUME.shape,
    np.array([[0.0, 0.0, -0.5, 7.0], [1.8, -1.6, 0.0, -11.0], [2.4, 1.2, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]),
)
# what has to be refused: a pattern, and what the message has to say
REFUSED = [
    ("readers/pillow_tiff_odd/*_frame_loop.tiff", "its pages begin again after"),
    ("readers/nibabel/analyze.hdr", "no such file"),
    ("readers/nibabel/nifti?.hdr", "no such file"),
    ("readers/nibabel/bad_attribute+orig.HEAD", "can't be read"),
    ("readers/nibabel/bad_datatype+orig.HEAD", "multiple data types"),
    ("readers/nibabel/phantom_truncated.*", "Header inconsistency"),
    ("readers/nibabel/row_major.dconn.nii", "no voxel grid"),
    ("readers/nibabel/tinypet.v", "unknown image format"),
    ("readers/pynrrd/*byteskip_minus_five.nhdr", "byte skip"),
    ("readers/pynrrd/test1d_ascii.nrrd", "two or more sizes"),
    ("readers/pynrrd/test_customFields.nrrd", "two or more sizes"),
    ("readers/pynrrd/*.raw", "unknown image format"),
    ("readers/highdicom/seg_image_sm*", "where its frames lie"),
    ("readers/highdicom/seg_image_cr*", "where its frames lie"),
    ("readers/highdicom/seg_image_ct_binary_overlap*", "overlap"),
    ("readers/highdicom/sm_image*", "whole-slide"),
    ("readers/highdicom/s[!e]*", "no pixels"),
    ("readers/pydicom/MR_truncated.dcm", "less than expected"),
    ("readers/pydicom/badVR.dcm", "1A"),
    ("readers/pydicom/JPEG2000-embedded-sequence-delimiter.dcm", "can't be read"),
    ("readers/pydicom/*DICOMDIR*", "DICOMDIR index"),
    ("*/TINY_ALPHA/PT*", "no pixels"),
    ("readers/pydicom/rtplan*.dcm", "no pixels"),
    ("readers/pydicom/rtstruct.dcm", "no pixels"),
    ("readers/pydicom/reportsi*.dcm", "no pixels"),
    ("readers/pydicom/test-SR.dcm", "no pixels"),
    ("readers/pydicom/waveform_ecg.dcm", "no pixels"),
    ("readers/pydicom/UN_sequence.dcm", "no pixels"),
    ("readers/pydicom/*priv_SQ.dcm", "no pixels"),
    ("readers/pydicom/*no_meta*.dcm", "no pixels"),
    ("readers/pydicom/ExplVR_*NoMeta.dcm", "no pixels"),
    ("readers/pydicom/meta_missing_tsyntax.dcm", "no pixels"),
    ("readers/pydicom/empty_charset_LEI.dcm", "no pixels"),
    ("readers/rt_utils/*rt.dcm", "no pixels"),
    ("readers/pillow_tiff_odd/seek_too_large.tif", "no pages"),
    ("*/LICENSE", "unknown image format"),
    ("*/README*", "unknown image format"),
    ("*.txt", "unknown image format"),
    ("*.json", "unknown image format"),
    ("*.dump", "unknown image format"),
    ("*.icc", "unknown image format"),
    ("readers/pydicom/zipMR.gz", "unknown image format"),
    ("readers/viv_ome/*.xml", "unknown image format"),
    ("elastix/mhd2d/*.raw", "unknown image format"),
    ("*.fcsv", "unknown image format"),
]
BROKEN_TIFF = "readers/pillow_tiff_broken"  # read with a cap on memory, below
# series folders that are whole, and those that aren't one volume
SERIES = [
    "hippocrop_dicom/Study1",
    "hippocrop_dicom/Study2",
    "totalseg/example_ct_dicom",
    "readers/torchio_dicom",
    "readers/rt_utils/oriented_data",
    "readers/rt_utils/mock_data",
    "readers/pydicom/dicomdirtests/98892001/CT5N",
]
NO_SERIES = {
    "readers/pydicom/dicomdirtests/77654033/CT2": "a slice is missing",
    "readers/pydicom/dicomdirtests/98892001/CT2N": "differ in ImageOrientationPatient",
    "readers/pydicom/dicomdirtests/98892003/MR700": "differ in ImageOrientationPatient",
    "readers/pydicom/dicomdirtests/98892003/MR1": "choose one by its UID",
    "readers/rt_utils/empty": "no DICOM images",
    "readers/tiff_series_c_elegans_em": "expected an image, got a folder",
}
ZARR = [  # path, dataset, array inside it
    ("readers/zarr_v3_plain.zarr", "raw", "raw"),
    ("readers/zarr_v3_plain.zarr/raw_2", None, ""),
    ("readers/ome_zarr_py/v1", None, "0"),
    ("readers/ome_zarr_py/v2", None, "0"),
    ("readers/viv_ome/ome-zarr/blobs_image_v04.ome.zarr", None, "0"),
    ("readers/viv_ome/ome-zarr/blobs_image_v05.ome.zarr", None, "0"),
    ("readers/viv_ome/bioformats-zarr/data.zarr", None, "0/0"),
    ("readers/viv_ome/bioformats-zarr/data.zarr", "0/1", "0/1"),
]


def files(*folders):
    found = [item for folder in folders for item in (DATA / folder).rglob("*") if item.is_file()]
    names = sorted(item.relative_to(DATA).as_posix() for item in found)
    return [name for name in names if ".zarr/" not in name and "ome_zarr_py" not in name and BROKEN_TIFF not in name]


def refusal(name):
    return next((fault for pattern, fault in REFUSED if fnmatch(name, pattern)), None)


ALL = files(
    "readers",
    "sct",
    "tptbox_ct",
    "pyradiomics",
    "elastix",
    "neubias",
    "stardist",
    "plantseg",
    "totalseg",
    "afids_2009c",
)
# segmentation objects, whose frames become one map of labels
LABELS = [name for name in ALL if refusal(name) is None and fnmatch(name, "readers/*/[sl][ei][gv]*.dcm")]
IMAGES = [name for name in ALL if refusal(name) is None and not name.endswith(".h5") and name not in LABELS]
DICOM = [name for name in IMAGES if name.startswith("readers/") and (name.endswith(".dcm") or "dicomdirtests" in name)]
TIFF = [name for name in IMAGES if name.endswith((".tif", ".tiff"))]
ITK = [name for name in IMAGES if name.endswith((".mha", ".mhd", ".nrrd", ".nhdr"))]
NIBABEL = [
    name
    for name in IMAGES
    if name.lower().endswith((".nii", ".nii.gz", ".mgz", ".mnc", ".head", ".brik", ".brik.gz", ".par", ".rec"))
]
REST = [name for name in IMAGES if name not in {*DICOM, *TIFF, *ITK, *NIBABEL} and "example_ct_dicom" not in name]


def assert_same(image, array, affine, rng):
    """Voxels at random places: the same value in every channel at the same world point.

    `array` is `(*spatial, channels)`, `affine` its index-to-world matrix in RAS mm.
    """
    pixels = image.read()
    assert pixels.shape == (image.channels, *image.space.shape)
    assert pixels.dtype == image.dtype
    assert pixels.size == array.size
    index = np.stack([rng.integers(0, size, 300) for size in array.shape[:-1]], axis=-1)
    world = index @ affine[:3, :-1].T + affine[:3, -1]
    ours = image.space.to_index(world)
    assert np.abs(ours - np.round(ours)).max() < 1e-2
    assert np.abs(image.space.to_world(ours) - world).max() < 1e-3  # in the plane, at rank 2
    places = np.round(ours).astype(int)
    found = pixels[(slice(None), *places.T)].T
    np.testing.assert_allclose(found, array[tuple(index.T)], rtol=1e-6)


@contextmanager
def oracle():
    """The peers may warn about odd files; we may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def itk_affine(image):
    steps = np.array(image.GetDirection()).reshape(image.GetDimension(), -1) * np.array(image.GetSpacing())
    affine = np.zeros((3, image.GetDimension() + 1))
    affine[: len(steps), :-1] = steps
    affine[: len(steps), -1] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0]) @ affine


@pytest.mark.skipif(not DATA.is_dir(), reason="no data folder")
def test_no_file_is_left_out():
    assert [name for name in REST if name.endswith((".jpeg", ".png"))] == REST
    assert len(ALL) > 300


def check_refusal(path, fault):
    with pytest.raises(VoxelryError) as caught:
        open_image(path).read()
    message = str(caught.value)
    assert fault in message
    assert path.name.split(".")[0] in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name in ALL if refusal(name) is not None])
def test_what_is_no_image_is_refused(name, shared_data):
    check_refusal(shared_data / name, refusal(name))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("notes.txt", "unknown image format"),
        ("LICENSE", "unknown image format"),
        ("pair.hdr", "no such file"),
        ("cut.nii", "is cut short"),
        ("no.dcm", "has no 'Pixel Data'"),
    ],
)
def test_invented_files_that_are_no_image_are_refused(name, fault, tmp_path, write_series):
    path = tmp_path / name
    write_series(tmp_path / "series", VOLUME, OBLIQUE)
    nibabel.save(nibabel.Nifti1Image(VOLUME.T, np.eye(4)), tmp_path / "whole.nii")
    if name == "pair.hdr":
        nibabel.save(nibabel.Nifti1Pair(VOLUME.T, np.eye(4)), path)
        path.with_suffix(".img").unlink()
    elif name == "no.dcm":
        data = pydicom.dcmread(tmp_path / "series" / "000.dcm")
        del data.PixelData
        data.save_as(path)
    elif name == "cut.nii":
        path.write_bytes((tmp_path / "whole.nii").read_bytes()[:-40])
    else:
        path.write_text("This is no image.")
    check_refusal(path, fault)


@pytest.mark.parametrize("name", LABELS)
def test_segmentation_objects_are_read_as_labels(name, shared_data):
    labels = open_image(shared_data / name)
    with oracle():
        header = pydicom.dcmread(shared_data / name)
    assert labels.channels == 1
    assert labels.space.shape[-2:] == (header.Rows, header.Columns)
    found = labels.read()
    segments = len(header.SegmentSequence)
    assert set(np.unique(found)) <= set(range(segments + 1))
    assert (found > 0).any()


def check_against_nibabel(path, rng):
    with oracle():
        peer = nibabel.load(path)
        array = np.asarray(peer.dataobj)
        if hasattr(getattr(peer.dataobj, "file_like", None), "close"):
            peer.dataobj.file_like.close()
    if array.dtype.names:
        array = np.stack([array[channel] for channel in array.dtype.names], axis=-1)
    if array.ndim == 4 and path.suffix == ".mnc":
        array = np.moveaxis(array, 0, -1)
    array = array.reshape(*array.shape[:3], -1)
    kind = peer.header.get_xyzt_units()[0] if hasattr(peer.header, "get_xyzt_units") else "mm"
    unit = {"meter": 1000.0, "micron": 1e-3}.get(kind, 1.0)
    affine = np.diag([unit, unit, unit, 1.0])[:3] @ peer.affine
    image = open_image(path, ndim=3)
    assert_same(image, array, affine, rng)
    np.testing.assert_allclose(image.space.affine[:3, 3], affine[:3, 3], atol=1e-3)


@pytest.mark.parametrize("name", NIBABEL)
def test_nibabel_agrees(name, shared_data, rng):
    check_against_nibabel(shared_data / name, rng)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.MGHImage])
@pytest.mark.parametrize("channels", [1, 3])
def test_nibabel_agrees_on_invented_volumes(kind, channels, tmp_path, rng):
    array = rng.normal(0, 99, (5, 4, 3, channels)[: 3 + (channels > 1)]).astype(np.float32)
    path = tmp_path / f"a{kind.files_types[0][1]}"
    nibabel.save(kind(array, OBLIQUE.affine[:, [2, 1, 0, 3]]), path)
    check_against_nibabel(path, rng)


def check_against_itk(path, rng):
    peer = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(peer).T[..., None]
    assert_same(open_image(path, ndim=peer.GetDimension()), array, itk_affine(peer), rng)


# ITK reads neither bzip2 nor a fourth axis without direction: those two are in test_formats, against pynrrd
@pytest.mark.parametrize("name", [name for name in ITK if "_bz2" not in name and "simple4d" not in name])
def test_itk_agrees(name, shared_data, rng):
    check_against_itk(shared_data / name, rng)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_itk_agrees_on_invented_volumes(suffix, tmp_path, rng):
    image = sitk.GetImageFromArray(VOLUME)
    image.SetSpacing(OBLIQUE.spacing[::-1])
    directions = np.diag([-1.0, -1.0, 1.0]) @ (OBLIQUE.affine[:3, :3] / OBLIQUE.spacing)[:, ::-1]
    image.SetDirection(directions.ravel())
    image.SetOrigin([-7.0, 11.0, 5.0])
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    check_against_itk(tmp_path / f"a{suffix}", rng)


SHOWN = {  # TIFF 6.0, section 8: what the stored first row and first column are
    2: np.fliplr,  # top, right
    3: lambda stored: np.rot90(stored, 2),  # bottom, right
    4: np.flipud,  # bottom, left
    5: np.transpose,  # left, top
    6: lambda stored: np.rot90(stored, -1),  # right, top
    7: lambda stored: np.rot90(stored, 2).T,  # right, bottom
    8: np.rot90,  # left, bottom
}


def check_against_tifffile(path):
    with tifffile.TiffFile(path) as file:
        array, axes = file.series[0].asarray(), file.series[0].axes
        orientation = int(file.pages.first.tags.valueof("Orientation", 1))
        white_is_zero = array.dtype == bool and file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    if white_is_zero:  # tifffile gives the stored bits
        array = ~array
    if orientation > 1:  # tifffile gives the stored pixels
        array = SHOWN[orientation](array)
    channels = [axis for axis, letter in enumerate(axes) if letter in "CSQ" and (letter != "Q" or axis < len(axes) - 3)]
    array = np.moveaxis(array, channels, range(len(channels)))
    image = open_image(path, dataset="0", spacing=1.0)  # some hold pages of unlike sizes or no distances
    pixels = image.read()
    np.testing.assert_array_equal(pixels, array.reshape(pixels.shape))
    window = tuple(slice(size // 3, size // 3 + 5) for size in image.space.shape)
    np.testing.assert_array_equal(image.read(window), pixels[(slice(None), *window)])


@pytest.mark.parametrize("name", TIFF)
def test_tifffile_agrees(name, shared_data):
    check_against_tifffile(shared_data / name)


@pytest.mark.parametrize("orientation", [1, *SHOWN])
def test_tifffile_agrees_on_invented_pages_however_they_are_shown(orientation, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME[0], extratags=[(274, "H", 1, orientation, True)])
    check_against_tifffile(tmp_path / "a.tif")


@pytest.mark.parametrize("axes", ["ZYX", "CYX", "YXS", "ZCYX"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tifffile_agrees_on_invented_stacks(axes, tile, tmp_path, rng):
    array = rng.integers(0, 255, [{"Z": 4, "C": 2, "S": 3, "Y": 20, "X": 24}[axis] for axis in axes]).astype(np.uint8)
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    settings = {"metadata": {"axes": axes}, "photometric": photometric, "tile": tile, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, ome=True, **settings)
    check_against_tifffile(tmp_path / "a.ome.tif")


def check_against_pydicom_or_itk(path):
    # two colour pictures without a place: planes or moments, the file doesn't say
    image = open_image(path, ndim=2 if path.name.endswith("_2frame.dcm") else None)
    found = image.read()
    with oracle():
        data = pydicom.dcmread(path)
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and "RLE" not in syntax.name:
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
        else:
            expected = data.pixel_array
            if data.PhotometricInterpretation == "PALETTE COLOR":
                expected = pydicom.pixels.apply_color_lut(expected, data) >> 8
            expected = expected * float(data.get("RescaleSlope", 1)) * float(data.get("DoseGridScaling", 1))
            expected = expected + float(data.get("RescaleIntercept", 0))
    if image.metadata["PhotometricInterpretation"] not in ("MONOCHROME1", "MONOCHROME2"):
        expected = np.moveaxis(expected, -1, -3)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-6)
    spacing = data.get("PixelSpacing") or data.get("ImagerPixelSpacing") or (1, 1)
    for region in data.get("SequenceOfUltrasoundRegions", [])[:1]:
        spacing = (10 * region.PhysicalDeltaY, 10 * region.PhysicalDeltaX)
    assert image.space.spacing[-2:] == pytest.approx([float(step) for step in spacing])


@pytest.mark.parametrize("name", DICOM)
def test_pydicom_or_itk_agrees_on_one_file(name, shared_data):
    check_against_pydicom_or_itk(shared_data / name)


@pytest.mark.parametrize(
    "fields", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": -9}, {"BitsStored": 12, "HighBit": 11}]
)
def test_pydicom_agrees_on_one_invented_file(fields, write_series, tmp_path):
    path = write_series(tmp_path / "series", VOLUME, OBLIQUE) / "001.dcm"
    data = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path)
    check_against_pydicom_or_itk(path)


def check_series_against_itk(folder, rng):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    peer = reader.Execute()
    assert_same(open_image(folder), sitk.GetArrayFromImage(peer).T[..., None], itk_affine(peer), rng)


@pytest.mark.parametrize("name", SERIES)
def test_itk_agrees_on_a_series(name, shared_data, rng):
    check_series_against_itk(shared_data / name, rng)


def test_itk_agrees_on_an_invented_series(write_series, tmp_path, rng):
    check_series_against_itk(write_series(tmp_path / "series", VOLUME, OBLIQUE), rng)


def test_invented_folders_that_are_no_series_are_refused(write_series, tmp_path):
    for name in ("gap", "turned"):
        write_series(tmp_path / name, np.concatenate([VOLUME, VOLUME]), Space((6, 4, 5), OBLIQUE.affine))
    (tmp_path / "gap" / "001.dcm").unlink()
    path = tmp_path / "turned" / "002.dcm"
    data = pydicom.dcmread(path)
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.save_as(path)
    (tmp_path / "empty").mkdir()
    for name, fault in (
        ("gap", "a slice is missing"),
        ("turned", "differ in ImageOrientationPatient"),
        ("empty", "expected an image, got a folder"),
    ):
        with pytest.raises(VoxelryError, match=fault):
            open_image(tmp_path / name).read()


@pytest.mark.parametrize("name", NO_SERIES)
def test_a_folder_that_is_no_series_is_refused(name, shared_data):
    with pytest.raises(VoxelryError, match=NO_SERIES[name]):
        open_image(shared_data / name).read()


@pytest.mark.filterwarnings("ignore::UserWarning:zarr")
@pytest.mark.parametrize(("name", "dataset", "inside"), ZARR)
def test_zarr_python_agrees(name, dataset, inside, shared_data):
    check_against_zarr(shared_data / name, dataset, inside)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_python_agrees_on_an_invented_group(version, tmp_path):
    import zarr

    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_array("raw", data=VOLUME, chunks=(2, 3, 3))
    check_against_zarr(tmp_path / "a.zarr", "raw", "raw")


def check_against_zarr(path, dataset, inside):
    import zarr

    array = zarr.open_array(path / inside, mode="r")[...]
    pixels = open_image(path, dataset=dataset).read()
    np.testing.assert_array_equal(pixels, array.reshape(pixels.shape))


def check_against_h5py(path):
    image = open_image(f"{path}::raw")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(image.read()[0], file["raw"][...])
        assert image.space.spacing == pytest.approx(file["raw"].attrs["element_size_um"] / 1000)
    with pytest.raises(VoxelryError, match="there are label, raw"):
        open_image(path)


@pytest.mark.parametrize("name", ["go_nuclear/1135_mini.h5", "plantseg/sample_ovule.h5"])
def test_h5py_agrees(name, shared_data):
    check_against_h5py(shared_data / name)


def test_h5py_agrees_on_an_invented_container(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = VOLUME, VOLUME > 9
        file["raw"].attrs["element_size_um"] = np.array([0.28, 0.13, 0.13])
    check_against_h5py(tmp_path / "a.h5")


BROKEN = """
import json, resource, sys
from pathlib import Path
from voxelry.core.errors import VoxelryError
from voxelry.io.images.image import open_image
import voxelry.io.images.tiff
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[2:]:
    try:
        print(json.dumps([name, "read", list(open_image(name).read().shape)]))
    except VoxelryError as error:
        print(json.dumps([name, "refused", str(error)]))
# not ru_maxrss, which begins with that of the process that started this one
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def write_broken_tiffs(folder):
    """Three files, of which one ends early, one has other bytes in its data and one says that it is huge."""
    whole = folder / "whole.tif"
    tifffile.imwrite(whole, VOLUME[0], compression="zlib")
    with tifffile.TiffFile(whole) as file:
        width, data = file.pages.first.tags["ImageWidth"].valueoffset, file.pages.first.dataoffsets[0]
    content = whole.read_bytes()
    (folder / "cut.tif").write_bytes(content[: data + 3])
    (folder / "garbled.tif").write_bytes(content[:data] + b"\xff" * (len(content) - data))
    (folder / "wide.tif").write_bytes(content[:width] + b"\xff\xff" + content[width + 2 :])
    return [str(folder / f"{name}.tif") for name in ("cut", "garbled", "wide")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to know its own size")
def test_broken_tiffs_are_refused_in_little_memory(tmp_path):
    corpus = (DATA / BROKEN_TIFF).iterdir() if DATA.is_dir() else []
    names = [*sorted(str(item) for item in corpus), *write_broken_tiffs(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, str(1 << 29), *names],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    *lines, peak = run.stdout.splitlines()
    results = [json.loads(line) for line in lines]
    assert [name for name, _, _ in results] == names
    for name, outcome, text in results:
        # two have damaged fax codes only: the decoder resynchronises, and the size that was declared comes out
        if Path(name).name.startswith(("crash-0da013", "crash-74d2a7")):
            assert (outcome, text[0]) == ("read", 1)
        else:
            assert outcome == "refused"
            assert text.startswith(name)
            assert "\n" not in text
    assert int(peak) < 2 << 20  # KiB

"""Units of length: what each word means, and what happens to a word that means nothing."""

import math

import numpy as np
import pytest
import tifffile
from hydra.core.override_parser.overrides_parser import OverridesParser

from voxelry.cli.terminal import read_changes
from voxelry.core.errors import FileError
from voxelry.data.layouts.find import find_pairs
from voxelry.io import open_image
from voxelry.io.units import UnitError, millimetres

OME = {
    "Ym": 1e27, "Zm": 1e24, "Em": 1e21, "Pm": 1e18, "Tm": 1e15, "Gm": 1e12, "Mm": 1e9, "km": 1e6, "hm": 1e5,
    "dam": 1e4, "m": 1e3, "dm": 100.0, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "nm": 1e-6, "pm": 1e-9, "fm": 1e-12,
    "am": 1e-15, "zm": 1e-18, "ym": 1e-21, "Å": 1e-7, "thou": 0.0254, "li": 25.4 / 12, "in": 25.4, "ft": 304.8,
    "yd": 914.4, "mi": 1609344.0, "ua": 149597870700e3, "ly": 9460730472580800e3, "pc": 3.0856775814913673e19,
    "pt": 25.4 / 72,
}  # fmt: skip


@pytest.mark.parametrize(("unit", "length"), OME.items())
def test_the_symbols_of_omes_schema(unit, length):
    assert millimetres("a.tif", unit, "unit") == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize(
    ("unit", "length"),
    [
        ("micrometers", 1e-3), ("Micrometres", 1e-3), ("microns", 1e-3), ("um", 1e-3), ("UM", 1e-3), ("\u00b5m", 1e-3),
        ("\u03bcm", 1e-3), ("\\u00B5m", 1e-3), (" mm ", 1.0), ("MM", 1.0), ("millimeters", 1.0), ("inches", 25.4),
        ("inch", 25.4), ("feet", 304.8), ("yards", 914.4), ("miles", 1609344.0), ("angstroms", 1e-7), ("\u212b", 1e-7),
        ("decimeter", 100.0), ("picometers", 1e-9), ("Nanometer", 1e-6), ("thou", 0.0254), ("parsecs", OME["pc"]),
        ("meters", 1e3),
    ],
)  # fmt: skip
def test_words_as_people_write_them(unit, length):
    assert millimetres("a.tif", unit, "unit") == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("unit", [None, "", " ", "pixel", "pixels", "Pixel", "reference frame", "voxels"])
def test_no_unit_and_no_length(unit):
    assert millimetres("a.tif", unit, "unit") is None


@pytest.mark.parametrize("unit", ["furlong", "PM", "seconds", "mmm", "s", "ms", "µ m m"])
def test_a_word_that_is_not_known_is_refused_with_the_way_out(unit):
    with pytest.raises(UnitError, match=r"a.tif: PhysicalSizeXUnit: '.*' is no unit of length .*spacing="):
        millimetres("a.tif", unit, "PhysicalSizeXUnit")


def _imagej(path, unit):
    tifffile.imwrite(
        path,
        np.zeros((3, 4, 5), "u2"),
        imagej=True,
        resolution=(5, 5),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 0.5},
    )


def _ome(path, unit):
    sizes = {f"PhysicalSize{axis}": step for axis, step in (("X", 0.2), ("Y", 0.2), ("Z", 0.5))}
    units = {f"{field}Unit": unit for field in sizes}
    tifffile.imwrite(path, np.zeros((3, 4, 5), "u2"), ome=True, metadata={"axes": "ZYX"} | sizes | units)


def _nrrd(path, unit):
    header = (
        "NRRD0005\ntype: uint16\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
        "space directions: (0.2,0,0) (0,0.2,0) (0,0,0.5)\nkinds: domain domain domain\n"
        f'space units: "{unit}" "{unit}" "{unit}"\nendian: little\nencoding: raw\n\n'
    )
    path.write_bytes(header.encode() + np.zeros((3, 4, 5), "u2").tobytes())


FILES = {"i.tif": _imagej, "o.ome.tif": _ome, "n.nrrd": _nrrd}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("unit", ["micrometers", "inches", "thou", "dm", "nanometers"])
def test_every_format_reads_the_same_words(name, unit, tmp_path):
    FILES[name](tmp_path / name, unit)
    length = millimetres(name, unit, "")
    assert length is not None
    assert not math.isclose(length, 1.0)
    np.testing.assert_allclose(open_image(tmp_path / name).space.spacing, np.array([0.5, 0.2, 0.2]) * length, rtol=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_the_spacing_that_a_refusal_asks_for_opens_the_file(name, tmp_path):
    FILES[name](tmp_path / name, "furlong")
    with pytest.raises(FileError, match=r"furlong.*spacing="):
        open_image(tmp_path / name)
    image = open_image(tmp_path / name, spacing=[3, 2, 1])
    np.testing.assert_allclose(image.space.spacing, [3, 2, 1])
    assert image.read().shape == (1, 3, 4, 5)


def test_the_advice_is_what_the_command_line_takes(tmp_path):
    FILES["n.nrrd"](tmp_path / "n.nrrd", "furlong")
    with pytest.raises(FileError) as refusal:
        open_image(tmp_path / "n.nrrd")
    training, option = (str(refusal.value).split(f"{start} '")[1].split("'")[0] for start in ("order:", "--option"))
    override = OverridesParser.create().parse_override(training)
    assert override.get_key_element() == "data.options"
    assert open_image(tmp_path / "n.nrrd", **override.value()).space.spacing == (2, 1, 1)
    assert open_image(tmp_path / "n.nrrd", **read_changes([option])).space.spacing == (2, 1, 1)


def test_a_row_of_pairs_with_another_number_of_cells_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("name,image,target\na,a.tif,b.tif\nb,a,b.tif,c.tif\n")
    with pytest.raises(FileError, match=r"line 3: another number of cells than the header"):
        find_pairs(tmp_path / "pairs.csv")

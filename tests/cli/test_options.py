"""What a reader can't know is said on the command line, in the words that its refusal prints."""

from __future__ import annotations

import re
import shlex

import h5py
import numpy as np
import pytest
import tifffile
from hydra.core.override_parser.overrides_parser import OverridesParser

from voxelry.cli.terminal import read_options
from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io import open_image, write_image
from voxelry.io.advice import way_to_say

VOLUME = np.zeros((6, 7, 8), np.uint8)
VOLUME[1:4, 2:6, 2:7] = 1


def told(message: str) -> tuple[dict, dict]:
    """What a message's first advice says to a training, and to the other commands."""
    advice = re.search(r"(\S*data\.options=.*?) in a training, (.*?) elsewhere", message)
    assert advice, message
    (setting,) = shlex.split(advice[1])
    flags = shlex.split(advice[2])
    assert flags[::2] == ["--option"] * (len(flags) // 2)
    return OverridesParser.create().parse_override(setting).value(), read_options(flags[1::2])


@pytest.mark.parametrize(
    "values",
    [
        {"stack": 0},
        {"spacing": [2, 0.5, 1e-4]},
        {"ndim": 3, "spacing": [1, 0.25, 0.25]},
        {"dataset": "volumes/raw"},
        {"dataset": "1.2.840.113619.2"},
        {"dataset": "1.10"},
        {"dataset": "0"},
        {"dataset": "no"},
        {"dataset": "left, upper lobe's"},
        {"label_dataset": ["liver", "left kidney", "Tumour (1)"]},
    ],
)
def test_every_door_takes_what_is_printed_and_means_it(values):
    assert told(way_to_say(**values)) == (values, values)


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def labelled(root, **image):
    """A case whose image says too little, and its labels."""
    (root / "volumes").mkdir(parents=True)
    write_hdf5(root / "volumes/a.h5", **image)
    write_image(root / "labels/a.nii.gz", VOLUME[None], Space.from_spacing(VOLUME.shape, 2.0))
    return root / "volumes/a.h5"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.h5", lambda path: write_hdf5(path, raw=VOLUME, other=VOLUME)),
        ("a.npz", lambda path: np.savez(path, raw=VOLUME, other=VOLUME)),
        ("a.tif", lambda path: tifffile.imwrite(path, VOLUME, imagej=True, metadata={"axes": "ZYX", "spacing": 3.0})),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 3, 4, 5, 6), np.uint8)[0, :2])),
    ],
)
def test_the_advice_of_a_refusal_works(name, write, tmp_path):
    write(tmp_path / name)
    settings = {"ndim": 2} if name == "a.npy" else {}
    with pytest.raises(FileError) as refusal:
        open_image(tmp_path / name, **settings)
    for options in told(str(refusal.value)):
        assert open_image(tmp_path / name, **options).channels in (1, 2)


@pytest.mark.parametrize("command", ["index", "prepare"])
def test_index_and_prepare_take_it_as_doctor_does(command, run, tmp_path):
    labelled(tmp_path / "data", first=VOLUME * 100.0 + np.arange(8), second=VOLUME)
    source = [tmp_path / "data"] if command == "index" else ["--source", tmp_path / "data", "--workers", 0]
    own = ["--crop-size", 6] if command == "index" else ["--spacing", 2, "--min-pixels", 1, "--slices-per-class", 1]
    line = [command, *source, "--out", tmp_path / "out.sqlite", *own]
    status, _, err = run(*line)
    assert status == 1
    _, options = told(err)
    flags = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    status, _, err = run(*line, *flags, "--option", "spacing=2")
    assert status == 0, err
    assert (tmp_path / "out.sqlite").exists()
    status, _, err = run(*line, "--option", "spacin=2")
    assert status == 1
    assert "--option: expected one of dataset, spacing" in err

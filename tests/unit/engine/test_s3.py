"""Scans, a bundle and outputs on an S3 server."""

import logging

import fsspec
import numpy as np
import pytest

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

SHAPE = (4, 16, 16)


@pytest.fixture
def files(monkeypatch, tmp_path):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "of the test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("VOXELRY_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    yield system
    server.stop()


def test_from_s3_to_s3(files, tmp_path, write_series):
    rng = np.random.default_rng(0)
    space = Space.from_spacing(SHAPE)
    for number in range(2):
        volume = rng.integers(0, 999, SHAPE).astype(np.int16)
        write_image(f"s3://bucket/scans/n{number}.nii.gz", volume[None], space)
        files.put(str(write_series(tmp_path / f"d{number}", volume, space)), f"bucket/scans/d{number}", recursive=True)
    files.pipe("bucket/scans/n1.nii.gz", b"broken")
    network = UNet(ndim=3, out_channels=1, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["apex"], sigma=2.0)
    write_bundle(as_path("s3://bucket/run"), task, Preprocess(), record={}, card="")
    model = voxelry.load("s3://bucket/run", "cpu")
    states = [
        [row.state for row in voxelry.predict(model, "s3://bucket/scans", "s3://bucket/out", format="csv").rows]
        for _ in range(2)
    ]
    assert states == [["done", "done", "done", "failed"], ["kept", "kept", "kept", "failed"]]
    assert [path.name for path in visible(as_path("s3://bucket/out"))] == ["d0.csv", "d1.csv", "n0.csv"]
    array = rng.integers(0, 255, (1, 8, 96, 96)).astype(np.uint8)
    write_image("s3://bucket/large.zarr", array, Space.from_spacing((8, 96, 96)))
    window = (slice(0, 8), slice(70, 96), slice(0, 20))
    np.testing.assert_array_equal(open_image("s3://bucket/large.zarr").read(window), array[(slice(None), *window)])

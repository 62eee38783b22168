"""Many small scans from an S3 server to an S3 server: what is written, what is refused, how long it takes.

python benchmarks/elsewhere.py [--files 200] [--broken 3]

An S3 server (moto's) runs on 127.0.0.1 for as long. Half of the scans are DICOM series of four planes, half NIfTI; some
are cut short. `voxelry predict` is run twice by its command line, the second time with nothing to do.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from voxelry.bundle.bundle import write_bundle
from voxelry.core.fetch import put
from voxelry.core.remote import Remote, as_path
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

SHAPE = (4, 16, 16)


def write_series(folder: Path, volume: np.ndarray, number: int) -> None:
    folder.mkdir(parents=True)
    for plane, pixels in enumerate(volume):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.{number}.{plane + 1}"
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.Modality, data.InstanceNumber = f"1.2.{number}", "MR", plane + 1
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.PixelSpacing, data.SliceThickness = [1.0, 1.0], 1.0
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, plane]
        data.PixelData = pixels.astype("<i2").tobytes()
        data.save_as(folder / f"{plane}.dcm", enforce_file_format=True)


def write_scans(folder: Path, files: int, broken: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(files):
        volume = rng.integers(0, 999, SHAPE).astype(np.int16)
        place = folder / f"scan_{number:04d}"
        if number % 2:
            write_series(place, volume, number + 1)
            victim = place / "2.dcm"
        else:
            place = victim = write_image(place.with_suffix(".nii.gz"), volume[None], Space.from_spacing(SHAPE))
        if number < broken:
            victim.write_bytes(victim.read_bytes()[:200])


def write_model(folder: Path) -> None:
    network = UNet(ndim=3, out_channels=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["left", "right"], sigma=2.0)
    write_bundle(folder, task, Preprocess(), record={}, card="")


def predict(report: str) -> None:
    names = ("--model", "s3://models/run", "s3://scans/in", "--out", "s3://results/out", "--device", "cpu")
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "voxelry", "predict", *names, "--job-report", report],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in ran.stderr.splitlines() if line.startswith("voxelry: error")]
    print(f"exit {ran.returncode}, {time.monotonic() - started:.1f} s: {ran.stdout.strip()}")
    print("\n".join(lines))
    other = [line for line in ran.stderr.splitlines() if line not in lines and "predicting:" not in line]
    print("\n".join(other[-20:]))


def main() -> None:
    from moto.server import ThreadedMotoServer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--broken", type=int, default=3)
    asked = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", "VOXELRY_STATE": f"{folder}/state",
        }  # fmt: skip
        fsspec.config.set_conf_env(fsspec.config.conf)
        files = fsspec.filesystem("s3")
        for bucket in ("scans", "models", "results"):
            files.mkdir(bucket)
        write_scans(Path(folder) / "scans", asked.files, asked.broken)
        write_model(Path(folder) / "model")
        for source, target in (("scans", "s3://scans/in"), ("model", "s3://models/run")):
            place = as_path(target)
            assert isinstance(place, Remote)
            put(Path(folder) / source, place)
        for _ in range(2):
            predict("s3://results/jobs.csv")
            files.invalidate_cache()
            written = [name for name in files.find("results/out") if ".voxelry" not in name]
            print(f"{len(written)} outputs in s3://results/out")
    server.stop()


if __name__ == "__main__":
    main()

"""What a reconstruction is asked with in the page, and the shapes that it leaves open."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from voxelry.bundle.model import load
from voxelry.core.space import Space
from voxelry.io import open_image, write_image
from voxelry.io.meshes import read_mesh, write_mesh
from voxelry.ops.surface import extract_surface
from voxelry.serve.answers import Answer
from voxelry.serve.session import Session

pytestmark = pytest.mark.usefixtures("built")


def test_clicks_are_listed_with_their_slices_and_taken_away_again(opened, organs, tmp_path, place, spot):
    space = Space.from_spacing((24, 28, 32), (6.0, 4.4, 4.0))
    array = np.random.default_rng(0).integers(1, 500, (1, *space.shape)).astype(np.int16)
    session = Session([write_image(tmp_path / "ct.nii.gz", array, space)], load(organs, "cpu"), tmp_path / "out")
    asked = []
    rows = "#clickList li"
    with opened(session) as page:
        page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))

        def click(at, *keys):
            for key in keys:
                page.keyboard.down(key)
            page.mouse.click(*at)
            for key in keys:
                page.keyboard.up(key)

        page.keyboard.press("Tab")
        coronal, axial = spot(page, 0.25, 0.25), spot(page, 0.25, 0.75)
        click(coronal, "Shift")
        first = place(page)
        click(axial, "Shift")
        second = place(page)
        planes = [page.locator(f"{rows}:nth-child({row}) select").input_value() for row in (1, 2)]
        assert planes == ["coronal", "axial"]
        click(coronal, "Alt")  # the crosshair is in the coronal slice of the second click now, which has no prompt
        assert page.locator(rows).count() == 2
        page.click(f"{rows}:nth-child(1) button:first-child")
        click(coronal, "Alt")
        assert page.locator(rows).count() == 1
        page.select_option(f"{rows} select", "sagittal")
        page.select_option("#options select[name=label]", "spleen")
        page.click("#predict")
        page.wait_for_selector("#summary dd")
        assert page.locator("#summary dt:text-is('label') + dd").inner_text() == "2"
        page.focus("#view")
        page.click(f"{rows} button:has-text('✕')")
        assert page.locator(rows).count() == 0
    session.close()
    (body,) = asked
    assert (body["plane"], body["label"]) == (["sagittal"], "2")
    np.testing.assert_allclose([float(value) for value in body["click"][0].split(",")], second, atol=0.06)
    assert not np.allclose(first, second, atol=1)


def test_hypotheses_are_flipped_through(opened, scan, tmp_path):
    image = open_image(scan).space
    grid = np.indices((24, 24, 24)).astype(np.float32) - 11.5
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = np.asarray(image.to_world(np.array([5.0, 14.0, 15.0]))) - 23
    frame = Space((24, 24, 24), affine)
    (tmp_path / "answer").mkdir()
    for name, radius in {"scan": 6, "scan_1": 3, "scan_2": 9}.items():
        sphere = extract_surface(2 * np.sqrt((grid**2).sum(axis=0)) - 2 * radius, frame)
        write_mesh(tmp_path / "answer" / f"{name}.ply", sphere)
    volumes = [read_mesh(tmp_path / "answer" / f"scan_{number}.ply").volume_ml for number in (1, 2)]
    (tmp_path / "answer" / "scan.json").write_text(json.dumps({"hypotheses": 2, "volumes_ml": volumes}))
    session = Session([scan], None, tmp_path / "out")
    session.answers[0] = Answer(tmp_path / "answer", "scan", image)

    def orange(page):
        """How much of the picture is of the mesh's colour."""
        picture = Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("RGB")
        red, _, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
        return int(((red - blue) > 60).sum())

    with opened(session) as page:
        page.click("#slices button:has-text('3-D')")
        assert page.inner_text("#hypothesis") == "mean of all"
        seen = [orange(page)]
        for number in (1, 2):
            page.click("#after")
            assert page.inner_text("#hypothesis").startswith(f"{number} of 2, ")
            assert float(page.inner_text("#hypothesis").split()[-2]) == pytest.approx(volumes[number - 1], rel=1e-2)
            seen.append(orange(page))
        page.focus("#view")
        page.keyboard.press(".")
        assert page.inner_text("#hypothesis") == "mean of all"
    session.close()
    assert seen[1] < seen[0] < seen[2]

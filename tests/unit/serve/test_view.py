"""The server of the page: what it shows, predicts, corrects and saves, and whom it refuses."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'voxelry[view]')")
from starlette.testclient import TestClient

from voxelry.bundle.registry import recipe_named
from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, read_landmarks, write_image
from voxelry.io.meshes import read_mesh, write_mesh
from voxelry.ops.surface import Mesh
from voxelry.serve.answers import Answer
from voxelry.serve.app import make_app
from voxelry.serve.jobs import Jobs
from voxelry.serve.run import serve
from voxelry.serve.session import Session, askable
from voxelry.serve.volumes import shown, thinning

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"  # as in conftest.py


class TestAccess:
    @pytest.fixture
    def stranger(self, session, page):
        return TestClient(make_app(session, TOKEN, page), base_url=HOST)

    def test_the_token_of_the_address_opens_the_page_and_is_kept_from_scripts(self, stranger):
        assert stranger.get("/").status_code == stranger.get("/api/state").status_code == 401
        assert stranger.get("/?token=another").status_code == 401
        answer = stranger.get(f"/?token={TOKEN.replace(' ', '%20')}")
        assert "voxelry" in answer.text
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "SameSite=Strict" in answer.headers["set-cookie"]

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "evil.example"}, 403),  # a name that leads here
            ({"host": "127.0.0.1.evil.example:8000"}, 403),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
            ({"origin": "null"}, 403),
            ({"origin": HOST}, 200),
            ({"host": "localhost:8000"}, 200),
        ],
    )
    def test_only_this_servers_own_page_may_ask(self, client, headers, status):
        assert client.get("/api/state", headers=headers).status_code == status

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "scans.example", "origin": "https://scans.example"}, 200),
            ({"host": "Scans.Example:8443", "origin": "https://Scans.Example:8443"}, 200),
            ({"host": "scans.example", "origin": "https://evil.example"}, 403),
            ({"host": "scans.example", "origin": "https://scans.example:8443"}, 403),
            ({"host": "evil.example", "origin": "https://evil.example"}, 403),
            ({"host": "scans.example.evil.example"}, 403),
            ({"host": HOST.removeprefix("http://"), "origin": "https://scans.example"}, 403),
            ({"origin": HOST}, 200),
        ],
    )
    def test_a_proxy_that_is_named_may_pass_on_what_its_own_pages_ask(self, session, page, headers, status):
        app = make_app(session, TOKEN, page, hosts=["scans.example"])
        client = TestClient(app, base_url=HOST, cookies={"voxelry": TOKEN})
        assert client.get("/api/state", headers=headers).status_code == status
        assert TestClient(app, base_url=HOST).get("/api/state", headers=headers).status_code == max(status, 401)

    @pytest.mark.parametrize(
        "path",
        [
            *("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/api/cases/0/files/..%2f..%2fx"),
            *("/api/cases/0/files/..%2fscan.nii.gz/difference", "/api/cases/0/files/scan.nii.gz/difference"),
            *("/api/cases/-1/thumbnail.png", "/api/cases/9/thumbnail.png", "/api/checks/9", "/api/trainings/9"),
        ],
    )
    def test_nothing_beside_what_was_named_is_given(self, client, path):
        assert client.get(path).status_code in (400, 404)

    @pytest.mark.parametrize(
        ("task", "names"),
        [
            ("translate", {"steps", "sampler", "eta", "samples"}),
            ("reconstruct", {"click", "plane", "label"}),
        ],
    )
    def test_no_option_that_names_a_file_can_be_asked_for(self, task, names):
        assert {option.name for option in askable(recipe_named(task))} == names

    def test_links_out_of_the_page_are_not_followed(self, client, page, tmp_path):
        (tmp_path / "secret").write_text("mine")
        (page / "link").symlink_to(tmp_path / "secret")
        assert client.get("/link").status_code == 404

    def test_much_is_refused_before_it_is_read(self, client):
        assert client.post("/api/cases/0/predict", content=b"0" * (2 << 20)).status_code == 413
        many = client.post("/api/cases/0/predict", content=iter([b"{", b"}"]))
        assert many.status_code == 413


class TestShown:
    def test_a_voxel_lies_where_it_lies_in_the_file(self, client, image, tmp_path):
        (tmp_path / "got.nii").write_bytes(client.get("/api/cases/0/image.nii").content)
        got, given = read_image(tmp_path / "got.nii"), read_image(image)
        np.testing.assert_array_equal(got.array, given.array)
        assert got.space.is_close(given.space, 1e-6)

    @pytest.mark.parametrize("most", [200, 40])
    def test_large_images_are_thinned_where_they_are_finest(self, image, tmp_path, most):
        file = open_image(image)
        steps = thinning(file, most)
        assert steps[0] <= min(steps[1:])  # the thick axis
        path = shown(file, tmp_path / "thin.nii", most)
        thin, whole = read_image(path), read_image(image)
        assert thin.array.size <= most
        np.testing.assert_array_equal(
            thin.array, whole.array[(slice(None), *(slice(None, None, step) for step in steps))]
        )
        corner = np.array([1.0, 1.0, 1.0])
        np.testing.assert_allclose(thin.space.to_world(corner), whole.space.to_world(corner * steps), atol=1e-4)

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("u1", "u1"),
            ("i1", "i2"),
            ("u2", "u2"),
            ("u4", "i4"),
            ("u8", "i4"),
            ("i8", "i4"),
            ("f8", "f4"),
            ("f2", "f4"),
        ],
    )
    def test_numbers_are_of_a_type_that_viewers_know(self, tmp_path, given, kept):
        array = np.arange(8).reshape(1, 2, 2, 2).astype(given)
        path = write_image(tmp_path / "image.npy", array, Space.from_spacing((2, 2, 2)))
        got = read_image(shown(open_image(path, spacing=1), tmp_path / "shown.nii"))
        assert got.array.dtype == kept
        np.testing.assert_array_equal(got.array, array)

    def test_of_a_pyramid_the_finest_level_that_is_small_enough_is_shown(self, pyramid, tmp_path):
        path, array = pyramid
        session = Session([path], None, tmp_path / "out", most=4 * 4 * 4)
        header = session.header(0)
        assert header["shape"] == [1, 4, 8, 8]
        assert (header["shown"], header["every"], header["finer"]) == ([4, 4, 4], [1, 1, 1], False)
        got = read_image(session.volume(0))
        np.testing.assert_array_equal(got.array, array[..., ::2, ::2])
        assert got.space.spacing == pytest.approx((2.0, 1.0, 1.0), rel=1e-5)
        session.close()

    def test_of_a_large_pyramid_few_voxels_are_shown_until_more_are_asked_for(self, pyramid, page, tmp_path):
        path, array = pyramid
        session = Session([path], None, tmp_path / "out", first=4 * 2 * 2)
        header = session.header(0)
        assert (header["shown"], header["every"], header["finer"]) == ([4, 2, 2], [1, 1, 1], True)
        first = read_image(session.volume(0))
        np.testing.assert_array_equal(first.array, array[..., ::4, ::4])
        client = TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})
        finer = client.post("/api/cases/0/finer").json()
        assert (finer["shown"], finer["finer"]) == ([4, 8, 8], False)
        got = read_image(session.volume(0))
        np.testing.assert_array_equal(got.array, array)
        assert got.space.spacing == pytest.approx((2.0, 0.5, 0.5), rel=1e-5)
        np.testing.assert_allclose(got.space.origin, first.space.origin, atol=1e-6)
        session.close()

    def test_no_axis_is_longer_than_a_texture(self, tmp_path):
        array = np.arange(2049 * 3, dtype=np.uint16).reshape(1, 3, 2049)
        path = write_image(tmp_path / "wide.png", array, Space.from_spacing((3, 2049)))
        session = Session([path], None, tmp_path / "out")
        assert session.header(0)["every"] == [1, 2]
        assert read_image(session.volume(0)).array.shape[1:] == (3, 1025)
        session.close()

    @pytest.mark.parametrize("shape", [(5, 7), (6, 5, 7)])
    def test_rows_run_down_where_the_image_does_not_say_how_it_lies(self, tmp_path, shape):
        """As programs for pictures show them, planes away from the eye; what lies over it is turned with it."""
        array = np.arange(np.prod(shape), dtype=np.uint16).reshape(1, *shape)
        space = Space.from_spacing(shape, 2.0)
        np.save(tmp_path / "scan.npy", array[0])
        session = Session([tmp_path / "scan.npy"], None, tmp_path / "out", {"spacing": 2.0})
        assert session.header(0)["oriented"] is False
        write_image(tmp_path / "answer" / "scan.nii.gz", array, space)
        mesh = Mesh(np.add(np.eye(3), [1.0, 2.0, 3.0]), np.array([[0, 1, 2]]))
        write_mesh(tmp_path / "answer" / "scan.ply", mesh)
        session.answers[0] = Answer(tmp_path / "answer", "scan", space)
        for given in (session.volume(0), session.overlay(0, "scan.nii.gz")):
            got = read_image(given)
            np.testing.assert_array_equal(got.array, array)
            turned = space.to_world(np.array([3.0] * len(shape))) * [1, -1, -1]
            np.testing.assert_allclose(got.space.to_world(np.array([3.0] * len(shape))), turned, atol=1e-5)
        vertices = read_mesh(session.overlay(0, "scan.ply")).vertices
        np.testing.assert_allclose(vertices, mesh.vertices * [1, -1, -1], atol=1e-5)
        np.testing.assert_allclose(read_image(session.difference(0, "scan.nii.gz")).array, 0)
        session.close()

    def test_a_thumbnail_is_the_middle_axial_slice_with_anterior_up_and_left_on_the_left(self, tmp_path):
        """Stored as right to left, superior to inferior, anterior to posterior, with thick slices."""
        affine = np.array([[-1.0, 0, 0, 30], [0, 0, -1.0, 30], [0, -2.0, 0, 60], [0, 0, 0, 1]])[:, [2, 1, 0, 3]]
        space = Space((20, 31, 40), affine)
        array = np.zeros((1, *space.shape), dtype=np.int16)
        places = space.to_world(
            np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float)
        )
        low, high = places.min(axis=(0, 1, 2)), places.max(axis=(0, 1, 2))
        share = (places - low) / (high - low)
        array[0][(share[..., 0] < 0.5) & (share[..., 1] > 0.5)] = 1000  # left, anterior
        session = Session([write_image(tmp_path / "scan.nii.gz", array, space)], None, tmp_path / "out")
        seen = read_image(session.thumbnail(0)).array[0]
        session.close()
        rows, columns = seen.shape
        assert max(rows, columns) == 64
        assert seen[: rows // 2 - 2, : columns // 2 - 2].min() == 255
        assert seen[rows // 2 + 2 :].max() == 0
        assert seen[:, columns // 2 + 2 :].max() == 0

    def test_a_thumbnail_of_a_picture_keeps_its_shape(self, tmp_path):
        array = np.full((1, 30, 90), 7, dtype=np.uint8)
        session = Session([write_image(tmp_path / "x.png", array, Space.from_spacing((30, 90)))], None, tmp_path)
        client = TestClient(make_app(session, TOKEN, tmp_path), base_url=HOST, cookies={"voxelry": TOKEN})
        answer = client.get("/api/cases/0/thumbnail.png")
        assert answer.headers["content-type"] == "image/png"
        (tmp_path / "got.png").write_bytes(answer.content)
        assert read_image(tmp_path / "got.png").array.shape == (1, 21, 64)
        assert client.get("/api/cases/1/thumbnail.png").status_code == 400
        session.close()

    def test_a_check_tells_of_each_image_what_the_doctor_finds(self, image, page, tmp_path):
        folder = tmp_path / "data" / "volumes"
        array = np.random.default_rng(0).random((1, 6, 7, 8)).astype(np.float32)
        write_image(folder / "good.nii.gz", array, Space.from_spacing((6, 7, 8)))
        write_image(folder / "constant.nii.gz", np.ones_like(array), Space.from_spacing((6, 7, 8)))
        (folder / "broken.nii.gz").write_bytes(b"nothing")
        images = [*sorted(folder.iterdir()), image]
        session = Session(images, None, tmp_path / "out", folders=[tmp_path / "data"])
        client = TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})
        number = client.post("/api/checks").json()["job"]
        while (job := client.get(f"/api/checks/{number}").json())["state"] in ("waiting", "running"):
            time.sleep(0.01)
        assert job["state"] == "done", job["message"]
        assert [images[int(case)].name for case in sorted(job["answer"])] == ["broken.nii.gz", "constant.nii.gz"]
        assert all(line.startswith(("error: ", "warning: ")) for lines in job["answer"].values() for line in lines)
        session.close()

    def test_a_header_says_what_the_file_is(self, client, oblique):
        header = client.get("/api/cases/0").json()
        assert header["shape"] == [1, 8, 12, 16]
        assert header["every"] == [1, 1, 1]
        np.testing.assert_allclose(header["affine"], oblique, atol=1e-5)
        assert client.get("/api/cases/1").status_code == 400


class TestAnswers:
    def test_a_prediction_is_that_of_the_command_and_a_moved_point_is_saved_where_it_was_put(
        self, client, finished, model, image, tmp_path
    ):
        job = finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        assert job["state"] == "done", job["message"]
        points = job["answer"]["points"]
        expected = model.predict(image)
        assert [point["name"] for point in points] == ["left", "right"]
        np.testing.assert_allclose([point["position"] for point in points], expected.world, atol=1e-6)
        assert client.get("/api/state").json()["answers"]["0"]["points"] == points  # a reload finds it
        x, y, z = points[0]["position"]
        moved = [x + 3.0, y, z - 4.0]
        put = client.put("/api/cases/0/points", json=[{"index": 0, "position": moved}, {"index": 1, "position": None}])
        assert put.status_code == 200
        saved = client.post("/api/cases/0/save").json()
        found = read_landmarks(tmp_path / "answers" / saved["files"][0])
        assert np.linalg.norm(found.world[0] - expected.world[0]) == pytest.approx(5.0, abs=1e-6)
        assert np.isnan(found.world[1]).all()
        np.testing.assert_allclose(found.extras["uncertainty_mm"], expected.uncertainty_mm, rtol=1e-5)

    @pytest.mark.parametrize("format", ["mrk.json", "fcsv", "csv", "txt"])
    def test_points_are_renamed_and_added_and_saved_in_the_format_that_is_chosen(
        self, client, finished, session, tmp_path, format
    ):
        finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        space = open_image(session.images[0]).space
        places = space.to_world(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [6.0, 1.0, 9.0]])).tolist()
        changes = [{"index": number, "position": place} for number, place in enumerate(places[:2])]
        added = {"index": None, "name": "apex", "position": places[2]}
        renamed = client.put("/api/cases/0/points", json=[*changes, {"index": 0, "name": "base"}, added]).json()
        assert [point["name"] for point in renamed] == ["base", "right", "apex"]
        assert renamed[2]["radius"] is None
        saved = client.post("/api/cases/0/save", json={"points": format}).json()
        assert saved["files"] == [f"scan.{format}"]
        found = read_landmarks(tmp_path / "answers" / f"scan.{format}", space=space)
        np.testing.assert_allclose(found.world, places, atol=1e-4)
        if format != "txt":  # which has no names
            assert found.names == ("base", "right", "apex")
        assert client.post("/api/cases/0/save", json={"points": "exe"}).status_code == 400

    @pytest.mark.parametrize(
        ("points", "message"),
        [
            ([{"index": 2, "position": None}], "index: expected a number from 0 to 1, got 2"),
            ([{"index": 0, "position": [1, 2]}], "left: expected three numbers in mm or null"),
            ([{"index": 0, "position": [1, 2, "x"]}], "left: expected three numbers"),
            ([{"index": 0, "position": [1, 2, 1e999]}], "left: expected three numbers"),
            ([{"index": 0, "name": " "}], "name: expected a text"),
            ([{"index": None, "position": [1, 2, 3]}], "name: expected a text"),
            ({}, "body: expected a JSON list"),
        ],
    )
    def test_no_point_goes_nowhere(self, client, points, message, finished):
        finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        before = client.get("/api/state").json()["answers"]
        refused = client.put("/api/cases/0/points", content=json.dumps(points))
        assert refused.status_code == 400
        assert message in refused.text
        assert client.get("/api/state").json()["answers"] == before

    def test_a_difference_is_what_was_made_less_what_it_was_made_from(self, client, session, image, tmp_path):
        given = read_image(image)
        made = given.array.astype(np.float32) - 2.5
        made[0, 1, 2, 3] += 7
        write_image(tmp_path / "answer" / "scan.nii.gz", made, given.space)
        half = Space(given.space.shape, given.space.affine * 0.5)
        write_image(tmp_path / "answer" / "other.nii.gz", made, half)
        session.answers[0] = Answer(tmp_path / "answer", "scan", given.space)
        (tmp_path / "got.nii").write_bytes(client.get("/api/cases/0/files/scan.nii.gz/difference").content)
        got = read_image(tmp_path / "got.nii")
        expected = np.full(made.shape, -2.5)
        expected[0, 1, 2, 3] = 4.5
        np.testing.assert_allclose(got.array, expected, atol=1e-4)
        assert got.space.is_close(given.space, 1e-5)
        refused = client.get("/api/cases/0/files/other.nii.gz/difference")
        assert (refused.status_code, refused.text.partition(":")[0]) == (400, "difference")
        assert client.get("/api/cases/0/files/none.nii.gz/difference").status_code == 400

    def test_what_the_task_does_not_know_is_refused_in_a_line(self, client):
        refused = client.post("/api/cases/0/predict", json={"click": ["1,2,3"]})
        assert refused.status_code == 400
        assert refused.text.startswith("click: expected ")
        assert "\n" not in refused.text
        assert client.put("/api/cases/0/points", json=[]).text.startswith("answer: expected a prediction")
        assert client.get("/api/jobs/99").status_code == 404

    def test_a_save_that_fails_leaves_nothing_and_is_one_line(self, client, tmp_path, finished):
        finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        (tmp_path / "answers").write_text("a file where the folder should be")
        refused = client.post("/api/cases/0/save")
        assert refused.status_code == 400
        assert "\n" not in refused.text
        assert (tmp_path / "answers").read_text() == "a file where the folder should be"

    def test_many_at_once_get_the_same(self, client):
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: client.get("/api/cases/0/image.nii"), range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1

    def test_without_a_model_images_are_looked_at(self, image, page, tmp_path):
        session = Session([image], None, tmp_path)
        client = TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})
        assert client.get("/api/state").json()["task"] is None
        assert client.get("/api/cases/0/image.nii").status_code == 200
        assert "voxelry view --model" in client.post("/api/cases/0/predict", json={}).text
        session.close()


class TestJobs:
    @pytest.fixture
    def jobs(self):
        jobs = Jobs()
        yield jobs
        jobs.close()

    def test_one_at_a_time_and_the_next_goes_on_after_a_failure(self, jobs):
        def fails(progress):
            raise FileError("scan.nii", "is broken")

        first, second = jobs.start(fails), jobs.start(lambda progress: progress(2, 2) or "found")
        while jobs[second].state in ("waiting", "running"):
            time.sleep(0.001)
        assert (jobs[first].state, jobs[first].message) == ("failed", "scan.nii: is broken")
        assert (jobs[second].state, jobs[second].answer, jobs[second].done) == ("done", "found", 2)

    def test_a_job_is_given_up_at_its_next_part(self, jobs):
        def endless(progress):
            while True:
                progress(1, 2)
                time.sleep(0.001)

        number = jobs.start(endless)
        jobs.cancel(number)
        while jobs[number].state in ("waiting", "running"):
            time.sleep(0.001)
        assert jobs[number].state == "cancelled"

    def test_what_nobody_expected_ends_the_job_and_is_logged(self, jobs, caplog):
        number = jobs.start(lambda progress: 1 / 0)
        while jobs[number].state in ("waiting", "running"):
            time.sleep(0.001)
        assert jobs[number].state == "failed"
        assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("host", ["https://scans.example", "scans.example:80", "scans.example/", "*", ""])
def test_a_proxy_is_named_without_scheme_port_and_path(tmp_path, host):
    with pytest.raises(SettingError, match="host_name: expected a name without"):
        serve([], None, tmp_path, port=0, open_browser=False, hosts=[host])


def test_a_port_and_a_page_are_needed(monkeypatch, tmp_path):
    from voxelry.serve import run

    monkeypatch.setattr(run, "PAGE", tmp_path)
    with pytest.raises(SettingError, match="make page"):
        run.serve([], None, tmp_path, port=0, open_browser=False)

"""What a web socket tells of a job, and whom it tells nothing."""

import json
import threading

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from voxelry.core.errors import FileError
from voxelry.serve.app import make_app

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"  # as in conftest.py
HERE = HOST.replace("http", "ws")


def until_over(socket):
    """What is told until the socket is closed."""
    told = []
    while (message := socket.receive())["type"] == "websocket.send":
        told.append(json.loads(message["text"]))
    assert (message["type"], message["code"]) == ("websocket.close", 1000)
    return told


@pytest.mark.parametrize(("queue", "name"), [("jobs", "jobs"), ("trainings", "trainings"), ("checks", "checks")])
def test_changes_are_told_until_the_job_is_over(client, session, queue, name):
    goes = [threading.Event(), threading.Event()]

    def work(progress):
        goes[0].wait()
        progress(1, 2, "counting")
        goes[1].wait()
        return {"found": 7}

    number = getattr(session, name).start(work)
    with client.websocket_connect(f"{HERE}/api/{queue}/{number}/progress") as socket:
        first = socket.receive_json()
        assert first["state"] in ("waiting", "running")
        goes[0].set()
        while (told := socket.receive_json())["done"] == 0:
            pass
        assert (told["state"], told["total"], told["doing"]) == ("running", 2, "counting")
        goes[1].set()
        *_, last = until_over(socket)
    assert (last["state"], last["answer"]) == ("done", {"found": 7})
    assert not getattr(session, name)[number]._watchers


def test_of_a_job_that_is_over_its_end_is_told_at_once(client, session):
    def fails(progress):
        raise FileError("scan.nii", "is broken")

    number = session.jobs.start(fails)
    with client.websocket_connect(f"{HERE}/api/jobs/{number}/progress") as socket:
        *_, last = until_over(socket)
    assert (last["state"], last["message"]) == ("failed", "scan.nii: is broken")
    with client.websocket_connect(f"{HERE}/api/jobs/{number}/progress") as socket:
        assert until_over(socket) == [last]


def test_who_leaves_is_forgotten_and_the_job_goes_on(client, session):
    goes = threading.Event()
    number = session.jobs.start(lambda progress: goes.wait())
    with client.websocket_connect(f"{HERE}/api/jobs/{number}/progress") as socket:
        socket.receive_json()
    assert not session.jobs[number]._watchers
    assert not session.jobs[number].over
    goes.set()


def test_work_that_changes_often_is_told_of_seldom_but_its_end_is(client, session):
    def work(progress):
        for part in range(10_000):
            progress(part + 1, 10_000)
        return "found"

    number = session.jobs.start(work)
    with client.websocket_connect(f"{HERE}/api/jobs/{number}/progress") as socket:
        told = until_over(socket)
    assert len(told) < 1000
    assert (told[-1]["done"], told[-1]["answer"]) == (10_000, "found")


MINE = {"voxelry": TOKEN}


@pytest.mark.parametrize(
    ("path", "headers", "cookies", "reason"),
    [
        ("/api/jobs/1/progress", {"origin": "http://evil.example"}, MINE, "expected a page of this server"),
        ("/api/jobs/1/progress", {"origin": "http://127.0.0.1:1"}, MINE, "expected a page of this server"),
        ("/api/jobs/1/progress", {"origin": "null"}, MINE, "expected a page of this server"),
        ("/api/jobs/1/progress", {"host": "evil.example"}, MINE, "expected a host of this machine"),
        ("/api/jobs/1/progress", {}, {"voxelry": "another"}, "expected the address"),
        ("/api/jobs/1/progress", {}, {}, "expected the address"),
        ("/api/jobs/1/progress?token=another", {}, {}, "expected the address"),
        ("/api/jobs/9/progress", {}, MINE, ""),
        ("/api/answers/1/progress", {}, MINE, ""),
    ],
)
def test_strangers_and_what_is_no_job_are_told_nothing(session, page, path, headers, cookies, reason):
    session.jobs.start(lambda progress: "found")
    asking = TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies=cookies)
    with (
        pytest.raises(WebSocketDisconnect) as end,
        asking.websocket_connect(HERE + path, headers=dict(headers)) as socket,
    ):
        socket.receive_json()
    assert end.value.reason.startswith(reason)
    assert bool(end.value.reason) is bool(reason)


@pytest.mark.parametrize("headers", [{}, {"origin": HOST}])
def test_this_servers_own_page_is_told(session, page, headers):
    number = session.jobs.start(lambda progress: "found")
    asking = TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})
    with asking.websocket_connect(f"{HERE}/api/jobs/{number}/progress", headers=dict(headers)) as socket:
        assert until_over(socket)[-1]["answer"] == "found"

"""Lines that tell how far long work is."""

from voxelry.engine import logs


def test_an_evaluation_tells_how_far_it_is_and_a_short_one_nothing(caplog, monkeypatch):
    caplog.set_level("INFO", "voxelry")
    for _ in range(2):
        told = logs.EvaluationLines("test", 3)
        for name in "abc":
            told([name])
        monkeypatch.setattr(logs, "SECONDS", 0.0)
    assert caplog.messages == ["measured 1 of 3 for the test", "measured 2 of 3 for the test"]

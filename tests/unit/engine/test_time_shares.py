from voxelry.engine import time_shares
from voxelry.engine.time_shares import TimeShares


def test_time_is_counted_for_what_ended_with_it(monkeypatch):
    now = iter([0.0, 2.0, 3.0, 7.0, 8.0, 12.0, 20.0])
    monkeypatch.setattr(time_shares.time, "perf_counter", lambda: next(now))
    clock = TimeShares()
    clock.on_train_start(None, None)
    for _ in range(2):
        clock.on_train_batch_start(None, None, None, 0)
        clock.on_train_batch_end(None, None, None, None, 0)
    clock.on_validation_end(None, None)
    assert clock.seconds == {"preparing": 2.0, "waiting for data": 2.0, "learning": 8.0, "validating": 8.0}
    assert [row["share"] for row in clock.rows()] == ["10 %", "10 %", "40 %", "40 %"]

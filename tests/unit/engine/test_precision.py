import pytest
import torch

from voxelry.engine.precision import fast_half, resolve_precision


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_follows_the_processor(in_hardware, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": in_hardware}, raising=False)
    assert resolve_precision("auto", "cpu") == expected


def test_a_torch_that_cannot_tell_is_slow(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not fast_half("cpu")


def test_a_gpu_decides_where_it_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)
    assert resolve_precision("auto") == "bf16-mixed"
    assert resolve_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize("name", ["32-true", "16-mixed", "bf16-mixed"])
def test_others_stay(name):
    assert resolve_precision(name) == name

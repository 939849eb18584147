"""Seconds of a method's call."""

import pytest
import torch

from unbackdoor.api.defending import timed


def test_every_gpu_is_waited_for_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", order.append)
    monkeypatch.setattr("time.perf_counter", lambda: float(len(order)))
    found, seconds = timed(lambda: order.append("call") or "outcome")
    assert order == [0, 1, "call", 0, 1]
    assert (found, seconds) == ("outcome", 3.0)


def test_without_a_gpu_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("there is none"))
    assert timed(lambda: "outcome")[0] == "outcome"

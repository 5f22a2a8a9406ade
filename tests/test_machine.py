"""What is said of this machine is true of this process."""

import os

import pytest

from spoco_zoo.machine import count_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a process")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert count_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_machine_that_does_not_say_what_is_allowed_counts_them_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, counted in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert count_cores() == counted

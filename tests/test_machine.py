"""What is said of this machine is true of this process."""

import os

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from spoco_zoo.machine import count_cores, one_blas_thread


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


def test_one_thread_of_blas_lasts_until_the_last_user_leaves():
    def threads():
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    np.zeros((2, 2)) @ np.zeros((2, 2))
    with threadpool_limits(2, "blas"):
        before = threads()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert threads() == {1}
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == before

"""The number of threads is the fastest in a trial, within what the process may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inversight.core import threads
from inversight.core.threads import ThreadTrials, usable_threads, using_threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Compute with as many threads after a test as before it."""
    with using_threads(None):
        yield


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        ({1: 90.0, 2: 50.0, 4: 49.0}, 4, 2),  # 4 threads gain less than 5 %
        ({1: 50.0, 2: 49.0}, 8, 1),  # no more than 2 are tried
        ({1: 50.0, 2: 90.0}, 2, 1),
        ({1: 90.0, 2: 50.0, 4: 30.0, 6: 20.0}, 6, 6),  # all that there are, if not a power of two
    ],
)
def test_the_fastest_number_is_chosen(seconds: dict[int, float], most: int, expected: int) -> None:
    trials, before = ThreadTrials(most), torch.get_num_threads()
    assert trials.seconds("work", lambda: seconds[torch.get_num_threads()]) == seconds[expected]
    assert trials.fastest == {"work": expected} and torch.get_num_threads() == before


def test_trials_are_short_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: next(clock))
    tried: list[int] = []

    def estimate() -> float:
        tried.append(torch.get_num_threads())
        # A trial takes a second by this clock, which is more than 10 % of the second estimate alone.
        return 15.0 / len(tried)

    assert ThreadTrials(8).seconds("work", estimate) == 7.5
    assert tried == [1, 2]


def test_work_of_one_kind_is_tried_once() -> None:
    trials, tried = ThreadTrials(2), []

    def estimate() -> float:
        tried.append(torch.get_num_threads())
        return 60.0 / tried[-1]

    assert trials.seconds("first", estimate, "kind") == trials.seconds("second", estimate, "kind")
    assert tried == [1, 2, 2] and trials.fastest == {"first": 2, "second": 2}


def test_a_fixed_number_is_not_tried() -> None:
    trials = ThreadTrials(None)
    torch.set_num_threads(3)
    assert trials.seconds("work", torch.get_num_threads) == 3
    assert trials.fastest == {}


def test_without_a_choice_the_work_is_timed_with_one_thread() -> None:
    trials = ThreadTrials(1)
    torch.set_num_threads(3)
    assert trials.seconds("work", torch.get_num_threads) == 1
    assert trials.fastest == {}


@pytest.mark.parametrize(("own", "cores", "expected"), [(2, 8, 2), (8, 2, 2)])
def test_no_more_threads_than_cores_and_than_the_user_set(
    own: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cpu_count", lambda: cores)
    torch.set_num_threads(own)
    assert usable_threads() == expected

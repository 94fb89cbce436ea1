"""How many threads to compute with on a CPU.

The last bits of results depend on the number, so a number that is chosen here is recorded with them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from loky import cpu_count

_GAIN = 1.05
"""How many times faster a larger number of threads has to be."""
_SHARE = 0.1
"""Largest time of one trial, in times of the work that it is for."""


def usable_cores() -> int:
    """Return the cores that the process may use by its affinity and by the limits of its container."""
    cores: int = cpu_count()
    return cores


def usable_threads() -> int:
    """Return the most threads to compute with, at least 1.

    That is PyTorch's number, which OMP_NUM_THREADS and ``torch.set_num_threads`` set, but no more than
    :func:`usable_cores`.
    """
    return max(1, min(torch.get_num_threads(), usable_cores()))


@contextmanager
def using_threads(number: int | None) -> Iterator[None]:
    """Compute with ``number`` threads in the block, None: with as many as before it."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start_worker(threads: int) -> None:
    """Prepare a process of an executor, which computes with this number of threads."""
    torch.set_num_threads(threads)
    # Ctrl-C reaches every process of the terminal; this one ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class ThreadTrials:
    """Trials of each kind of work with 1, 2, 4, ... and ``most`` threads.

    most: None, where the number does not matter, as on a GPU, or is fixed: nothing is tried.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._tried: dict[str, int] = {}
        self.fastest: dict[str, int] = {}
        """The number of threads for each work, empty where there is no choice."""

    def seconds(self, name: str, estimate: Callable[[], float], kind: str | None = None) -> float:
        """Return the seconds of the work called ``name`` with the fastest number of threads.

        A larger number is taken if it is faster by at least 5 %. The trials end with the first number that
        is not, and with a trial that takes more than 10 % of the time of the work.

        Args:
            name: key of the number in ``fastest``.
            estimate: does a small part of the work, and returns the estimated seconds of the whole.
            kind: work of the same kind takes the number of the first that was tried. None: ``name``.
        """
        if self._most is None:
            return estimate()
        kind = kind or name
        known = self._tried.get(kind)
        number = known or 1
        started = time.perf_counter()
        with using_threads(number):
            best = estimate()
        while (
            known is None and number < self._most and time.perf_counter() - started <= _SHARE * best
        ):
            more = min(2 * number, self._most)
            started = time.perf_counter()
            with using_threads(more):
                found = estimate()
            self._tried[kind] = number if found * _GAIN > best else more
            if self._tried[kind] == number:
                break
            best, number = found, more
        if self._most > 1:
            self.fastest[name] = number
        return best

"""Independent tasks on a Ray cluster, each of which fills a folder.

Ray is optional (the extra ``ray``). What a task needs is sent to it, and the files that it leaves in a
folder of its own come back as bytes, so that the machines need no common disk.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from inversight.core.errors import ConfigError, StageError, one_line
from inversight.core.threads import usable_cores

K = TypeVar("K", bound=Hashable)
Files = dict[str, bytes]
"""The files of a folder by their path in it."""
Task = Any
"""A task that was submitted (``ray.ObjectRef``): its files, once they are there."""

LOCAL, AUTO = "local", "auto"
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^:/\s]+):(?P<port>\d{1,5})")
_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 30.0
_PROBE_SECONDS = 90.0
_STOP_SECONDS = 5.0
_RETRIES = 3
"""How often a task runs again whose machine or process was lost."""
_SAME = ("inversight", "torch")
"""Packages whose versions must be equal on all machines. Ray itself compares those of Ray and Python."""


class Cluster:
    """A Ray cluster that was joined, and the share of a machine that each task takes.

    Attributes:
        threads: cores of a task, which computes with as many threads, on every machine.
        device: the kind of device that tasks compute on; a GPU is "cuda" there, whatever its index here.
        gpus: GPUs of a task, a fraction if tasks share one; 0 on a CPU.
    """

    def __init__(self, ray: Any, address: str, *, threads: int, device: str, gpus: float) -> None:
        self._ray, self._address, self._tasks = ray, address, list[Task]()
        self.threads, self.device, self.gpus = threads, torch.device(device), gpus

    @property
    def slots(self) -> int:
        """Return how many tasks run at once."""
        return sum(self._slots(node["Resources"]) for node in self._nodes())

    def put(self, value: object) -> Task:
        """Send ``value`` to the cluster once, to be an argument of tasks.

        What is on a GPU here is on the GPU of that index there. A task on a GPU sees one, with index 0.

        Raises:
            StageError: it holds something that cannot be sent.
        """
        try:
            return self._ray.put(value)
        except Exception as error:
            raise StageError(
                f"--ray: a part of the audit cannot be sent to other machines ({one_line(error)}); run "
                "without --ray"
            ) from error

    def put_files(self, files: Files) -> Task:
        """Send files to the cluster once, to be in the folder of tasks."""
        return self._ray.put(files)

    def submit(
        self, fill: Callable[..., object], *arguments: object, files: tuple[Task | Files, ...] = ()
    ) -> Task:
        """Let ``fill(*arguments, folder)`` run where there is room, in a new folder that holds ``files``.

        ``fill`` is a function of a module that can be imported there. ``files`` may be other tasks,
        after which this one runs.
        """
        remote = self._ray.remote(_filled).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_retries=_RETRIES, name=fill.__name__
        )
        setup = _Setup(self.threads, _versions())
        task = remote.remote(setup, fill, len(files), *files, *arguments)
        self._tasks.append(task)
        return task

    def results(self, tasks: Mapping[K, Task]) -> Iterator[tuple[K, Files | Exception]]:
        """Give each task's files, or the error that it ended with, as they come."""
        keys = {task: key for key, task in tasks.items()}
        waiting = list(keys)
        while waiting:
            done, waiting = self._ray.wait(waiting, num_returns=1)
            for task in done:
                yield keys[task], self._result(task)

    def check(self) -> None:
        """Check that a task can run, and that all machines have the same versions of this package.

        Raises:
            ConfigError: they have not, or no machine is large enough for a task.
        """
        nodes = self._nodes()
        if not any(self._slots(node["Resources"]) for node in nodes):
            needs = f"{self.threads} cores" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise ConfigError(
                f"--ray {self._address}: no machine of the cluster has the {needs} of a task; start "
                "Ray with more (--num-cpus, --num-gpus), or change --workers or --device"
            )
        if self._address == LOCAL:
            return
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self._ray.remote(_check_versions)
        probes = {
            probe.options(
                num_cpus=0, scheduling_strategy=affinity(node["NodeID"], soft=False)
            ).remote(_versions()): node["NodeManagerAddress"]
            for node in nodes
        }
        done, late = self._ray.wait(list(probes), num_returns=len(probes), timeout=_PROBE_SECONDS)
        for one in done:
            if isinstance(error := self._result(one), Exception):
                raise ConfigError(f"--ray {self._address}: machine {probes[one]}: {error}")
        if late:
            raise ConfigError(
                f"--ray {self._address}: machine {probes[late[0]]} has not started Python within "
                f"{_PROBE_SECONDS:.0f} s"
            )

    def cancel(self) -> None:
        """Stop the tasks that have not ended, and give them time to delete their folders."""
        for task in self._running(0.0):
            # Not by force: Ray 2.60 aborts this process if such a task ends at the same time.
            self._ray.cancel(task)
        self._running(_STOP_SECONDS)
        self._tasks.clear()

    def _running(self, seconds: float) -> list[Task]:
        """Return the tasks that have not ended when all have, or after ``seconds``."""
        if not self._tasks:
            return []
        found: list[Task] = self._ray.wait(
            self._tasks, num_returns=len(self._tasks), timeout=seconds
        )[1]
        return found

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _slots(self, resources: Mapping[str, float]) -> int:
        by_cores = int(resources.get("CPU", 0.0) // self.threads)
        return (
            by_cores if not self.gpus else min(by_cores, int(resources.get("GPU", 0.0) / self.gpus))
        )

    def _result(self, task: Task) -> Any:
        """Return what a task that has ended left, its error if it failed."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError as error:
            cause: BaseException = error
            while isinstance(cause, errors.RayTaskError) and cause.cause is not None:
                cause = cause.cause
            if isinstance(cause, Exception) and not isinstance(cause, errors.RayError):
                return cause
            return StageError(f"a task on the cluster failed: {_last_line(cause)}")
        except errors.RayError as error:
            return StageError(
                f"a task was lost {_RETRIES + 1} times with its process or machine "
                f"({_last_line(error)}), perhaps for lack of memory; run the command again, it goes on "
                "with what is missing"
            )


@contextmanager
def joined(
    address: str | None, *, workers: int, threads: int, device: torch.device
) -> Iterator[Cluster | None]:
    """Give the Ray cluster at ``address`` to the block; None if that is None.

    Where this process has joined a cluster already, by ``ray.init``, that one is taken and kept.

    Args:
        address: as ``ray.init`` takes it: auto, HOST:PORT, or ray://HOST:PORT; or local, for one that
            is started on this machine and ended with the block.
        workers: number of tasks that share a GPU, on a GPU.
        threads: cores of a task.
        device: device of this process; tasks compute on one of its kind.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, or it does not fit.
    """
    if address is None:
        yield None
        return
    if device.index:
        raise ConfigError(
            f"--ray {address}: --device {device} cannot be used with it, since a task sees one GPU, with "
            f"index 0; give --device {device.type}"
        )
    ray = _import_ray()
    mine = not ray.is_initialized()
    if mine:
        with _same_signals():
            _connect(ray, address)
    gpus = 1.0 / workers if device.type == "cuda" else 0.0
    cluster = Cluster(ray, address, threads=threads, device=device.type, gpus=gpus)
    try:
        cluster.check()
        yield cluster
    finally:
        try:
            cluster.cancel()
        finally:
            if mine:
                ray.shutdown()


def pack(folder: Path) -> Files:
    """Return the files of a folder. Hidden ones are left out: locks, and work that is not complete."""
    found = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        path.as_posix(): file.read_bytes()
        for path, file in found.items()
        if not any(part.startswith(".") for part in path.parts)
    }


def unpack(files: Files, folder: Path) -> None:
    """Write files to ``folder``."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@dataclass(frozen=True)
class _Setup:
    """How a task computes."""

    threads: int
    versions: dict[str, str]


def _filled(setup: _Setup, fill: Callable[..., object], given: int, *rest: Any) -> Files:
    """Run a task on the machine that it was sent to; the first ``given`` of ``rest`` are files."""
    _check_versions(setup.versions)
    torch.set_num_threads(setup.threads)
    with TemporaryDirectory(prefix="inversight-") as name:
        for files in rest[:given]:
            unpack(files, Path(name))
        fill(*rest[given:], Path(name))
        return pack(Path(name))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _SAME}


def _check_versions(expected: Mapping[str, str]) -> None:
    """Check that this machine has the versions of the one that submits tasks.

    Raises:
        StageError: it has not.
    """
    own = _versions()
    for name, version in expected.items():
        if own[name] != version:
            raise StageError(
                f"{platform.node()} has {name} {own[name]}, and {version} is needed; install the same "
                "on every machine"
            )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _import_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed.
    """
    # It would report its use to its makers, and under `uv run` send the current folder to the cluster.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'inversight[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join the cluster at ``address``, or start one.

    Raises:
        ConfigError: there is none, or it cannot be joined.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Else it prints about lost processes to standard output, where the result goes. There is no option.
    ray._private.worker._worker_logs_enabled = False
    if address == LOCAL:
        # In this thread: the cluster ends with the thread that started it.
        ray.init(address=LOCAL, num_cpus=usable_cores(), include_dashboard=False, **quiet)
        return
    if address != AUTO:
        _check_listens(address)
    errors: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, **quiet)
        except BaseException as error:  # Ray raises SystemExit, too
            errors.append(error)

    # Ray waits for minutes where something else listens.
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(_JOIN_SECONDS)
    if thread.is_alive():
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers there within {_JOIN_SECONDS:.0f} s"
        )
    if errors and address == AUTO and isinstance(errors[0], ConnectionError):
        raise ConfigError(
            "--ray auto: no cluster runs on this machine; start one with `ray start --head`, or give "
            "--ray local"
        )
    if errors and isinstance(errors[0], ConnectionError):
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers there; if it asks for a token, set "
            "RAY_AUTH_MODE=token for this command, too"
        )
    if errors:
        raise ConfigError(f"--ray {address}: {' '.join(str(errors[0]).split())}")


def _check_listens(address: str) -> None:
    """Check that ``address`` is one, and that something listens there.

    Raises:
        ConfigError: not so.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts["port"]) < 1 << 16:
        raise ConfigError(f"--ray {address}: expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((parts["host"], int(parts["port"])), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"--ray {address}: no cluster there ({one_line(error)})") from None


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)

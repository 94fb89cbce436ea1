"""How a command runs: in one process or among several, stopped by signals, with progress shown."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from inversight.cli.printing import complain
from inversight.core.console import Quiet, Terminal
from inversight.core.errors import ConfigError, InversightError

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "0"}
"""The environment in which the threads of GNU's, LLVM's and Intel's OpenMP soon sleep while they wait.

GNU's spin 30,000 times before, a fraction of a millisecond: without that, two threads take 1.8 times as long
for the small steps of a training (docs/how-to/large-sets.md)."""


def wait_passively() -> None:
    """Let threads of this process and its children sleep while they wait long for others, and not spin.

    A thread that spins keeps a core from the thread that it waits for, where other processes use the
    cores too. Changes nothing if the environment says how to wait, or if PyTorch is loaded, when it is
    too late.
    """
    if not WAITING.keys() & os.environ.keys() and "torch" not in sys.modules:
        os.environ.update(WAITING)


@contextmanager
def running(folder: Path | None = None, remedy: str = "") -> Iterator[Terminal]:
    """Show progress while a command runs in one process; see :func:`interruptible`.

    Raises:
        ConfigError: this process is one of several, which would all write the same files.
    """
    several = int(os.environ.get("WORLD_SIZE", "1"))
    if several > 1:
        raise ConfigError(
            f"this command runs in one process, and was launched as {several}; run it without "
            "accelerate launch, which is for prior train, adapt and attack"
        )
    terminal = Terminal()
    with interruptible(folder, remedy), terminal.live():
        yield terminal


@contextmanager
def running_stage(
    options: dict[str, Any], folder: Path | None = None, remedy: str = ""
) -> Iterator[Any]:
    """As :func:`running`, for a stage that accelerate may have launched as several processes.

    Takes seed and device from ``options``, and yields a :class:`inversight.pipeline.context.Context`.
    """
    from inversight.core.processes import launched
    from inversight.pipeline.context import Context

    seed, device = options.pop("seed"), options.pop("device")
    processes, terminal = launched(device), Terminal()
    try:
        with interruptible(folder, remedy), terminal.live(processes.main):
            reporter = terminal if processes.main else Quiet()
            yield Context(seed, processes.device(device), reporter, processes)
    except InversightError as error:
        if processes.error_shared and not processes.main:
            raise typer.Exit(error.exit_code) from error  # The main process prints the error.
        raise
    # Not after an error, when the others would wait for this process.
    processes.close()


@contextmanager
def interruptible(folder: Path | None, remedy: str) -> Iterator[None]:
    """On Ctrl-C or SIGTERM print one line and exit with 130.

    If something was written to ``folder``, the line says to continue with the command ``remedy``.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        files = ("run.json", "training.json", "runs")
        begun = folder is not None and any((folder / file).exists() for file in files)
        complain(f"stopped; continue with: {remedy}" if begun else "stopped")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)

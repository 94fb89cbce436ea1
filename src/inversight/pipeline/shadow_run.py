"""Run the blocks of shadow models: in this process, and in worker processes beside it.

Every process takes blocks that no other one holds, so that work is shared whatever a block takes. A block's
result does not depend on who computed it. See :mod:`inversight.pipeline.ray_run` for other machines.
"""

from __future__ import annotations

import shutil
import time
from abc import abstractmethod
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError

from inversight.core.errors import StageError
from inversight.core.progress import Progress, part_of, silent
from inversight.core.threads import start_worker, using_threads
from inversight.models.target import Target
from inversight.pipeline.shadows import (
    Block,
    Measured,
    ShadowAttack,
    ShadowJob,
    measure_model,
    run_block,
    train_block,
)

_STEPS = 1000
"""Steps of the progress within a block."""
_POLL_SECONDS = 0.5


class ShadowRun(AbstractContextManager["ShadowRun"]):
    """The blocks of a job, each computed with ``threads`` threads.

    Use as a context, whose end stops processes of its own. The training may begin at once, beside
    earlier stages; the attack begins with :meth:`attack`, and :meth:`finish` waits until all is done.
    """

    def __init__(self, job: ShadowJob, folder: Path, blocks: list[Block], *, threads: int) -> None:
        self.job, self.folder, self.blocks, self.threads = job, folder, blocks, threads

    def __exit__(self, *_: object) -> None:
        return None

    def attack(self, attack: ShadowAttack) -> None:
        """Let the models be attacked and measured as soon as they are trained."""
        self._attack = attack

    @abstractmethod
    def finish(self, progress: Progress = silent) -> None:
        """Return when every block is there.

        Raises:
            StageError: a model could not be trained or attacked, or a process was lost.
        """

    def measure_target(self, target: Target) -> Measured:
        """Attack the model under audit as the shadow models, and measure it."""
        with using_threads(self.threads):  # as every process: results depend on it in the last bits
            return measure_model(self.job, self._attack, target, self.job.is_private)

    def missing(self) -> list[Block]:
        """Return the blocks that are not there."""
        return [block for block in self.blocks if not block.file(self.folder).is_file()]

    def note(self, done: int) -> str:
        """Return the progress in words after ``done`` blocks."""
        models = 2 * sum(block.pairs for block in self.blocks)
        return f"{2 * sum(block.pairs for block in self.blocks[:done])} of {models} models"


class LocalRun(ShadowRun):
    """The blocks of a job, run by this process and ``workers - 1`` others of this machine.

    Training begins at once in the others alone.
    """

    def __init__(
        self, job: ShadowJob, folder: Path, blocks: list[Block], *, workers: int, threads: int
    ) -> None:
        super().__init__(job, folder, blocks, threads=threads)
        others = min(workers, len(self.missing())) - 1
        # Also when nothing is missing: other stages' results must not depend on how far a stopped run came.
        self._shares_cores = min(workers, len(blocks)) > 1
        self._own_threads = torch.get_num_threads()
        self._futures: list[Future[object]] = []
        self._executor: ProcessPoolExecutor | None = None
        if others > 0:
            self._executor = ProcessPoolExecutor(
                others, initializer=start_worker, initargs=(threads,)
            )

    def __enter__(self) -> LocalRun:
        if self._shares_cores:
            # What this process does meanwhile would otherwise compete with the others for the cores.
            torch.set_num_threads(max(1, self._own_threads - self.threads))
        if self._executor is not None:
            for block in self.missing():
                self._submit(train_block, self.job, block, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._own_threads)
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)

    def attack(self, attack: ShadowAttack) -> None:
        super().attack(attack)
        for block in self.missing():
            self._submit(run_block, self.job, attack, block, self.folder)

    def finish(self, progress: Progress = silent) -> None:
        whole = len(self.blocks) * _STEPS
        while missing := self.missing():
            self._check()
            done = len(self.blocks) - len(missing)
            progress(done * _STEPS, whole, self.note(done))
            # From the end, where the others come last.
            for block in reversed(missing):
                part = part_of(progress, before=done * _STEPS, share=_STEPS, whole=whole)
                with using_threads(self.threads):
                    if run_block(self.job, self._attack, block, self.folder, part):
                        break
            else:
                time.sleep(_POLL_SECONDS)
        for block in self.blocks:  # of a process that was stopped when it had measured them
            shutil.rmtree(block.models(self.folder), ignore_errors=True)
        progress(whole, whole, self.note(len(self.blocks)))

    def _submit(self, task: object, *arguments: object) -> None:
        if self._executor is not None:
            self._futures.append(self._executor.submit(task, *arguments))

    def _check(self) -> None:
        """Raise what another process has raised."""
        for future in self._futures:
            if future.done() and not future.cancelled() and (error := future.exception()):
                if isinstance(error, TerminatedWorkerError):
                    raise StageError(
                        "shadows: a worker process was ended from outside, perhaps for lack of memory; run "
                        "the command again with fewer --workers, it goes on with the next block"
                    ) from error
                raise error

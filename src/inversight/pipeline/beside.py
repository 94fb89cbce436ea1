"""A classifier that another process trains while this one trains the prior, where a core is free for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial

from loky import ProcessPoolExecutor

from inversight.core.console import Quiet
from inversight.core.run import Run, fill_stage
from inversight.core.threads import start_worker, usable_threads
from inversight.pipeline.context import Context
from inversight.pipeline.estimate import Estimate
from inversight.pipeline.plan import Plan
from inversight.pipeline.train import network_stage
from inversight.report.formatting import mapping

_EVALUATOR = "evaluator"
_STARTED = 10.0
"""Seconds after which another process has surely begun to train."""
_WORTH = 3.0
"""Seconds of a training from which another process is worth its start."""


def with_stage_beside(plan: Plan, forecast: Estimate) -> Estimate:
    """Return the forecast with the stage that another process should train beside the prior, if there is one.

    That is the evaluator, which nothing before the scores needs. It gets the threads that the prior leaves.
    There is none beside shadow models, which take the other cores, nor where the number of threads was given,
    nor where the prior's training is over before another process would have trained.
    """
    seconds, threads = forecast.seconds, forecast.threads
    longest, own = seconds.get("prior") or 0.0, seconds.get(_EVALUATOR) or 0.0
    if plan.shadows or plan.device.type != "cpu" or not _WORTH <= own <= longest - _STARTED:
        return forecast
    left = usable_threads() - threads["prior"] if "prior" in threads else 0
    if _EVALUATOR not in threads or left < 1:
        return forecast
    number = min(threads[_EVALUATOR], left)
    return replace(forecast, beside=_EVALUATOR, threads=threads | {_EVALUATOR: number})


class TrainingBeside(AbstractContextManager["TrainingBeside"]):
    """The training of the stage that a run's manifest names as ``beside``, in a process of its own.

    Results do not depend on which process trains. What the other one has not finished, because it failed or
    was ended from outside, is left to this one. Leaving the context ends it.
    """

    def __init__(self, plan: Plan, run: Run) -> None:
        self._executor: ProcessPoolExecutor | None = None
        name = run.manifest.get("beside")
        if name != _EVALUATOR or run.folder(name).is_dir():
            return
        threads = int(mapping(run.manifest.get("stage_threads")).get(name, 1))
        train = partial(
            network_stage, images=plan.inputs.private, training=plan.settings.evaluator_training,
            name=name, image_shape=plan.shape, context=Context(plan.settings.seed, plan.device, Quiet()),
        )  # fmt: skip
        self._executor = ProcessPoolExecutor(1, initializer=start_worker, initargs=(threads,))
        self._training = self._executor.submit(fill_stage, run.folder(name), train)

    def wait(self) -> None:
        """Return when the other process has trained, or has failed to."""
        if self._executor is not None:
            with suppress(Exception):  # this process trains then, and meets the same error
                self._training.result()

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)

"""Follow a run elsewhere: in TensorBoard, MLflow or Weights & Biases.

All three write below the run folder and send nothing, unless MLFLOW_TRACKING_URI or WANDB_MODE say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from inversight.core.console import Reporter
from inversight.core.errors import ConfigError
from inversight.core.progress import Figures, Progress

_POINTS = 200
"""Most values of a figure that are logged of one stage."""


class Logger(Protocol):
    """Where figures and pictures of a run go."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log a figure called GROUP/NAME after ``step`` steps of its group."""

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Log an image (C, H, W) uint8 called GROUP/NAME, grey or RGB."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in ``folder/tensorboard``. run: not used, as all files in a folder are one run."""

    def __init__(self, folder: Path, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._writer.add_image(name, image, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """The run tagged ``inversight.run`` in the experiment inversight, by default in ``folder/mlflow``."""

    def __init__(self, folder: Path, run: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # A store without a server.
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI")
        self._client: Any = MlflowClient(address or (folder / "mlflow").resolve().as_uri())
        found = self._client.get_experiment_by_name("inversight")
        experiment = (
            self._client.create_experiment("inversight") if found is None else found.experiment_id
        )
        known = self._client.search_runs([experiment], f"tags.`inversight.run` = '{run}'")
        new = None if known else self._client.create_run(experiment, tags={"inversight.run": run})
        self._run: str = (new or known[0]).info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def scalar(self, name: str, value: float, step: int) -> None:
        self._client.log_metric(self._run, name, value, step=step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._client.log_image(self._run, image.permute(1, 2, 0).numpy(), key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """The run of the id ``run``, by default offline in ``folder/wandb``, from where `wandb sync` sends it."""

    def __init__(self, folder: Path, run: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "inversight"), id=run, resume="allow",
            dir=str(folder), mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            # Nothing about paths, code or the load of the machine.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True,
                x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
            ),
        )  # fmt: skip
        self._groups: set[str] = set()

    def _log(self, name: str, value: object, step: int) -> None:
        group = name.partition("/")[0]
        if group not in self._groups:  # Each group counts its own steps.
            self._groups.add(group)
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._run.log({name: value, f"{group}/step": step})

    def scalar(self, name: str, value: float, step: int) -> None:
        self._log(name, value, step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        import wandb

        pixels = image.permute(1, 2, 0).numpy()
        self._log(name, wandb.Image(pixels[..., 0] if pixels.shape[2] == 1 else pixels), step)

    def close(self) -> None:
        self._run.finish()


_LOGGERS: dict[str, Callable[[Path, str], Logger]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases,
}  # fmt: skip
"""By the name that is that of the package and of the extra too."""


def check_loggers(names: Iterable[str]) -> None:
    """Check that the packages of loggers are installed.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"--log {name}: {name} is not installed: pip install 'inversight[{name}]'"
            )


def open_loggers(names: Iterable[str], folder: Path, run: str) -> tuple[Logger, ...]:
    """Return the loggers called ``names``, which write to ``folder`` and go on with the run ``run``."""
    return tuple(_LOGGERS[name](folder, run) for name in dict.fromkeys(names))


@dataclass(frozen=True)
class Followed:
    """A reporter that passes everything on, and logs the figures in the notes of a stage's progress."""

    reporter: Reporter
    loggers: Sequence[Logger] = ()

    def say(self, text: str) -> None:
        self.reporter.say(text)

    def warn(self, text: str) -> None:
        self.reporter.warn(text)

    def stage(self, name: str) -> Progress:
        progress, group, shown = self.reporter.stage(name), group_name(name), -1

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal shown
            progress(done, total, note)
            point = done * _POINTS // max(total, 1)
            if isinstance(note, Figures) and point != shown:
                shown = point
                for key, value in note.values.items():
                    self.scalar(f"{group}/{key}", value, done)

        return update

    def scalar(self, name: str, value: float, step: int = 0) -> None:
        """Log a figure, see :class:`Logger`."""
        for logger in self.loggers:
            logger.scalar(name, value, step)

    def image(self, name: str, image: Tensor, step: int = 0) -> None:
        """Log an image, see :class:`Logger`."""
        for logger in self.loggers:
            logger.image(name, image, step)


def group_name(name: str) -> str:
    """Return the name of a stage in the characters that every logger takes."""
    return re.sub(r"[^\w. -]", "-", name)

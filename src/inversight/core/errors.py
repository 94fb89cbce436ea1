"""The one hierarchy of errors. A message says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class InversightError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(InversightError):
    """What the user gave is wrong: a path, an image, a weights file, an option. Exit code 2."""

    exit_code = 2


class DataError(InputError):
    """An image folder or an image file cannot be used."""


class TargetError(InputError):
    """A target, evaluator or its weights cannot be used."""


class ConfigError(InputError):
    """An option or a configuration value is unknown or out of range."""


class DesignError(InputError, ValueError):
    """Shadow models' membership is no design of complementary halves, or too small for one."""


class WeightsError(InputError):
    """Published weights (perceptual, Inception) are missing or not what they should be."""


class RunError(InputError):
    """A run folder cannot be written, resumed or read."""


class StageError(InversightError):
    """A stage failed although its input was right. Exit code 1."""


class DiskFullError(StageError):
    """There is no room on the disk. Exit code 1."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, the name of its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__

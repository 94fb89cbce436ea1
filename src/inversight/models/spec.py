"""How a model is named and read: its spec, its class names and its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from inversight.core.config import nearest
from inversight.core.errors import TargetError
from inversight.core.imaging import Size
from inversight.models.target import ACCESS_ORDER, Access

SERVICE = "endpoint:"
"""How the spec of a service begins: see inversight.attacks.endpoint."""

_SETTINGS = ("weights", "key")


@dataclass(frozen=True)
class ModelSpec:
    """A model as the user names it, and what its file does not say.

    spec: ``timm:NAME?weights=FILE``, ``torchvision:NAME?weights=FILE``,
    ``package.module:factory[?weights=FILE]``, a file or folder of a known format, or ``endpoint:URL``.
    ``&key=PART`` names the part of a weights file that holds several. classes: a file with one class
    name a line, in the order of the model's outputs. mean, std: normalisation of each channel (1 or 3
    numbers), instead of the file's. size: height and width of the input, or both in one number, instead of
    the images' own.
    trust: whether to load formats whose loading runs code. headers: for a service, ``NAME=VARIABLE``
    sends the value of an environment variable as the header NAME. role: the option that error messages
    name. access: what attackers get of it; None: all that the format gives. frozen_until: name of its last
    layer that training did not change; None: as gradients of its parameters tell.
    """

    spec: str
    classes: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: Size | None = None
    trust: bool = False
    headers: tuple[str, ...] = ()
    role: str = "--target"
    access: Access | None = None
    frozen_until: str | None = None

    def shape(self, size: int) -> tuple[int, int]:
        """Return height and width of the input for images of ``size``."""
        found = self.size or size
        return (found, found) if isinstance(found, int) else found

    @property
    def is_service(self) -> bool:
        """Whether the model is reached over the network."""
        return self.spec.startswith(SERVICE)

    @property
    def name(self) -> str:
        """The spec without ``?weights=FILE``."""
        return self.spec.partition("?")[0]

    @property
    def weights(self) -> Path | None:
        """The file of ``?weights=FILE``, None without one.

        Raises:
            TargetError: the part behind ``?`` is something else, or the file does not exist.
        """
        found = self._settings()
        if not found:
            return None
        weights = Path(found["weights"])
        if not weights.is_file():
            raise self.error(f"{weights}: no such weights file")
        return weights

    def access_of(self, given: Access) -> Access:
        """Return the access of attackers to a model that gives ``given``.

        Raises:
            TargetError: more was asked for.
        """
        wanted = self.access or given
        if ACCESS_ORDER.index(wanted) > ACCESS_ORDER.index(given):
            raise self.error(f"gives {given} access only; leave --access {wanted} out")
        return wanted

    @property
    def key(self) -> str | None:
        """The part of the weights file that ``&key=PART`` names, None without one.

        Raises:
            TargetError: as :attr:`weights`.
        """
        return self._settings().get("key")

    def _settings(self) -> dict[str, str]:
        query = self.spec.partition("?")[2]
        if not query:
            return {}
        settings = dict(parse_qsl(query, keep_blank_values=True))
        for key in settings:
            if key not in _SETTINGS:
                raise self.error(f"unknown setting {key}{nearest(key, _SETTINGS)}")
        if "weights" not in settings:
            raise self.error("expected ?weights=FILE after the name")
        return settings

    def error(self, reason: str) -> TargetError:
        """Return an error that begins with the option and the spec."""
        return TargetError(f"{self.role} {self.spec}: {reason}")


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the model's class names in the order of its outputs, one a line of ``--classes FILE``.

    Raises:
        TargetError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"--classes {path}: cannot be read ({error})") from None
    names = tuple(line for line in lines if line)
    if not names:
        raise TargetError(f"--classes {path}: is empty; expected one class name a line")
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise TargetError(f"--classes {path}: names {repeated} twice")
    return names


def absolute_spec(spec: str) -> str:
    """Return the spec of the same model with absolute paths."""
    if spec.startswith(SERVICE):
        return spec
    name, separator, query = spec.partition("?")
    if Path(name).exists():
        name = str(Path(name).absolute())
    parts = []
    for key, value in parse_qsl(query):
        parts.append(f"{key}={Path(value).absolute() if key == 'weights' else value}")
    return name + separator + "&".join(parts)

"""``--attack strongest``: the table from which it is chosen, and its place among an audit's attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inversight.core.config import IMPORT_PATH, Part, check_name, part
from inversight.core.errors import ConfigError
from inversight.settings.names import ATTACKS, AccessName

Spec = str | Mapping[str, Any]
"""An attack: its name, or a mapping with its class."""

STRONGEST = "strongest"
"""Stands for the attack that the table names for the access and the size at hand."""
ATTACK_NAMES = (*ATTACKS, STRONGEST, IMPORT_PATH)
"""What ``--attack`` takes."""


@dataclass(frozen=True)
class Measured:
    """An attack that did best with an access on images of a size.

    edge: largest edge of the images that were measured, in pixels. figures: what was measured; ends a
    sentence that begins "on digits at 8x8 ...". source: the page with the figures.
    """

    access: AccessName
    edge: int
    attack: str
    data: str
    figures: str
    source: str


TABLE: tuple[Measured, ...] = (
    Measured(
        "white-box", 8, "plug-and-play", "digits",
        "it shows exposure best at equal time: effect over error 10.7 (gmi 7.4, ppdg 4.6), AUC 0.63",
        "docs/exposure.md",
    ),
    Measured(
        "white-box", 28, "plug-and-play", "MNIST",
        "it shows exposure best at equal time, though little: effect over error 2.2 (gmi 1.6), AUC 0.51",
        "docs/exposure.md",
    ),
    Measured(
        "white-box", 32, "plug-and-play", "faces",
        "it shows exposure best at equal time: effect over error 5.7 (gmi 3.7), AUC 0.58",
        "docs/exposure.md",
    ),
    Measured(
        "scores", 8, "cma-es", "digits",
        "it comes nearest of those that use scores: DDCS 1.72 (rlb-mi 1.60); it shows exposure with an effect "
        "over error of 8.9, AUC 0.63",
        "docs/attacks.md, docs/exposure.md",
    ),
    Measured(
        "scores", 32, "cma-es", "faces",
        "it comes nearest of those that use scores: DDCS 1.17 (rlb-mi 1.11); exposure was not measured",
        "docs/attacks.md",
    ),
    Measured(
        "label", 8, "brep-mi", "digits",
        "it comes nearest of those that need labels alone: DDCS 2.40 (lokt 1.50); it shows exposure with an "
        "effect over error of 7.6, AUC 0.59",
        "docs/attacks.md, docs/exposure.md",
    ),
    Measured(
        "label", 32, "brep-mi", "faces",
        "it comes nearest of those that need labels alone: DDCS 1.27 (lokt 1.00); exposure was not measured",
        "docs/attacks.md",
    ),
)  # fmt: skip
"""The attacks to choose. A row is for images up to its size, the last of an access for larger ones too."""


def strongest_attack(access: str, edge: int) -> tuple[str, str]:
    """Return the name of the attack to choose, and why, in one sentence.

    access: white-box, scores or label. edge: largest edge of the images to reconstruct, in pixels.
    """
    rows = sorted((row for row in TABLE if row.access == access), key=lambda row: row.edge)
    row = next((row for row in rows if row.edge >= edge), rows[-1])
    carried = (
        ""
        if row.edge == edge
        else f"; nothing was measured at {edge}x{edge}, so this is carried over"
    )
    return row.attack, (
        f"--attack {STRONGEST} is {row.attack} here, as with {access} access on {row.data} at "
        f"{row.edge}x{row.edge} {row.figures} ({row.source}){carried}."
    )


def check_attack(spec: Spec) -> None:
    """Check that there is an attack of this name.

    Raises:
        ConfigError: there is none.
    """
    name = _name(spec)
    if isinstance(name, str):
        check_name("--attack", name, ATTACK_NAMES)


def is_strongest(spec: Spec) -> bool:
    """Return whether an attack is yet to be chosen."""
    return bool(_name(spec) == STRONGEST)


def replace_strongest(
    specs: Sequence[str | dict[str, Any]], chosen: dict[str, Any]
) -> tuple[str | dict[str, Any], ...]:
    """Return the attacks with ``chosen`` in place of ``strongest``, which is left out if they have it already.

    Raises:
        ConfigError: they have it with other settings.
    """
    others = [spec for spec in specs if not is_strongest(spec)]
    if chosen in others:
        return tuple(others)
    name = chosen["class"]
    if name in map(_name, others):
        raise ConfigError(
            f"--attack {STRONGEST}: is {name} here, which is given with other settings as well; leave one of "
            "the two out"
        )
    return tuple(chosen if is_strongest(spec) else spec for spec in specs)


def attack_part(spec: Spec) -> Part:
    """Return the attack that ``spec`` names with all of its settings, of ``strongest`` those that were given.

    Raises:
        ConfigError: unknown name, unknown setting, or value out of range.
    """
    check_attack(spec)
    if is_strongest(spec):
        given = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "class"}
        return Part(STRONGEST, None, given)
    return part(spec, ATTACKS, role="--attack")


def _name(spec: Spec) -> Any:
    return spec if isinstance(spec, str) else spec.get("class")

"""Attacks: target and prior -> reconstructions."""

from inversight.attacks.base import Attack, Reconstructions, require_access
from inversight.attacks.cma import CmaEs
from inversight.attacks.control import control
from inversight.attacks.files import load_latents, write_reconstructions
from inversight.attacks.mirror_genetic import MirrorGenetic
from inversight.attacks.plug_and_play import PlugAndPlay
from inversight.attacks.queries import QueriesSpentError, black_box, run_attack

ATTACKS = {
    "plug-and-play": PlugAndPlay,
    "mirror-black-box": MirrorGenetic,
    "cma-es": CmaEs,
}
"""The attacks that have a name of their own."""

__all__ = [
    "ATTACKS",
    "Attack",
    "CmaEs",
    "MirrorGenetic",
    "PlugAndPlay",
    "QueriesSpentError",
    "Reconstructions",
    "black_box",
    "control",
    "load_latents",
    "require_access",
    "run_attack",
    "write_reconstructions",
]

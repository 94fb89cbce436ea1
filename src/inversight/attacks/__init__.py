"""Attacks: target and prior -> reconstructions."""

from inversight.attacks.base import Attack, Reconstructions, require_access
from inversight.attacks.files import load_latents, write_reconstructions
from inversight.attacks.plug_and_play import PlugAndPlay

ATTACKS = {"plug-and-play": PlugAndPlay}
"""The attacks that have a name of their own."""

__all__ = [
    "ATTACKS",
    "Attack",
    "PlugAndPlay",
    "Reconstructions",
    "load_latents",
    "require_access",
    "write_reconstructions",
]

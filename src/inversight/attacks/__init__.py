"""Attacks: target and prior -> reconstructions."""

from inversight.attacks.base import Attack, Reconstructions, require_access
from inversight.attacks.brep_mi import BrepMi
from inversight.attacks.c2f_mi import C2fMi
from inversight.attacks.cma import CmaEs
from inversight.attacks.control import control
from inversight.attacks.files import load_latents, write_reconstructions
from inversight.attacks.lokt import Lokt
from inversight.attacks.mirror_genetic import MirrorGenetic
from inversight.attacks.plug_and_play import PlugAndPlay
from inversight.attacks.queries import QueriesSpentError, black_box, run_attack
from inversight.attacks.rlb_mi import RlbMi

ATTACKS = {
    "plug-and-play": PlugAndPlay,
    "mirror-black-box": MirrorGenetic,
    "cma-es": CmaEs,
    "c2f-mi": C2fMi,
    "rlb-mi": RlbMi,
    "brep-mi": BrepMi,
    "lokt": Lokt,
}
"""The attacks that have a name of their own."""

__all__ = [
    "ATTACKS",
    "Attack",
    "BrepMi",
    "C2fMi",
    "CmaEs",
    "Lokt",
    "MirrorGenetic",
    "PlugAndPlay",
    "QueriesSpentError",
    "Reconstructions",
    "RlbMi",
    "black_box",
    "control",
    "load_latents",
    "require_access",
    "run_attack",
    "write_reconstructions",
]

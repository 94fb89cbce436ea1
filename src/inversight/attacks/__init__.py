"""Attacks: target and prior -> reconstructions."""

from inversight.attacks.base import Attack, Reconstructions, check_fits
from inversight.attacks.brep_mi import BrepMi
from inversight.attacks.c2f_mi import C2fMi
from inversight.attacks.cma import CmaEs
from inversight.attacks.control import control
from inversight.attacks.files import load_latents, write_reconstructions
from inversight.attacks.gmi import Gmi
from inversight.attacks.if_gmi import IfGmi
from inversight.attacks.ked_mi import KedMi
from inversight.attacks.lokt import Lokt
from inversight.attacks.lomma import Lomma
from inversight.attacks.mi_face import MiFace
from inversight.attacks.mirror import Mirror
from inversight.attacks.mirror_genetic import MirrorGenetic
from inversight.attacks.parallel import gather, run_assigned
from inversight.attacks.plg_mi import PlgMi
from inversight.attacks.plug_and_play import PlugAndPlay
from inversight.attacks.ppdg import Ppdg
from inversight.attacks.queries import QueriesSpentError, black_box, run_attack
from inversight.attacks.rlb_mi import RlbMi
from inversight.attacks.vmi import Vmi
from inversight.attacks.weight_reconstruction import WeightReconstruction

__all__ = [
    "Attack", "BrepMi", "C2fMi", "CmaEs", "Gmi", "IfGmi", "KedMi", "Lokt", "Lomma", "MiFace",
    "Mirror", "MirrorGenetic", "PlgMi", "PlugAndPlay", "Ppdg", "QueriesSpentError",
    "Reconstructions", "RlbMi", "Vmi", "WeightReconstruction", "black_box", "check_fits", "control",
    "gather", "load_latents", "run_assigned", "run_attack", "write_reconstructions",
]  # fmt: skip

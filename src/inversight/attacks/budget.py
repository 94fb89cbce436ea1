"""Attacks within a number of queries: the same attack with less of everything."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from inversight.attacks.base import Attack
from inversight.attacks.lokt import Lokt

_DRAWN = ("searches", "candidates", "keep")
"""Settings of which no more can be had than there are samples in the pool, or episodes."""


def within(attack: Attack, queries: int, *, classes: int, used: int) -> Attack | None:
    """``attack`` cut down to ``queries`` images sent to the target for all ``classes`` together.

    used: what it sends when it is not cut. At most half of the queries go into the common pool. An
    attack that can stop early is told to; one that cannot is given as many candidates as the rest
    pays for. None where that is not one candidate a class, or the attack has no setting for it.
    """
    if queries >= used:
        return attack
    if not is_dataclass(attack):
        return None
    if isinstance(attack, Lokt):
        return replace(attack, images=queries)
    has = {field.name: getattr(attack, field.name) for field in fields(attack)}
    cut: dict[str, Any] = {}
    # What an agent measures its steps in is a pool that is not sent, nor are samples of a class.
    sends_pool = "pool" in has and not {"episodes", "transformations"} & has.keys()
    if sends_pool:
        cut["pool"] = max(1, min(has["pool"], queries // 2))
    left = queries - cut.get("pool", 0)
    if "most_queries" in has:
        cut["most_queries"] = queries
        most = cut["pool"] if sends_pool else left // classes
    elif "candidates" in has:
        each = (used - (has.get("pool", 0) if sends_pool else 0)) / has["candidates"]
        most = min(int(left / each), cut.get("pool", queries))
    else:
        return None
    if most < 1:
        return None
    # Where there are searches, it is they that start at samples, and a population is each one's own.
    drawn = _DRAWN if "searches" in has else (*_DRAWN, "population")
    cut |= {name: min(has[name], most) for name in drawn if name in has}
    try:
        fewer: Attack = replace(attack, **cut)
    except ValueError:  # below what the attack's own settings allow
        return None
    return fewer

"""Attacks within a number of queries: the same attack with less of everything."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from inversight.attacks.base import Attack
from inversight.priors.base import Prior

_DRAWN = ("searches", "candidates", "keep")
"""Settings of which no more can be had than there are samples in the pool, or episodes."""


def within(attack: Attack, queries: int, *, classes: int, used: int) -> Attack | None:
    """``attack`` cut down to ``queries`` images sent to the target for all ``classes`` together.

    used: what it sends when it is not cut. At most half of the queries go into what is sent for all
    classes together (:func:`_common`), or all where an attack sends nothing else. An attack that can
    stop early is told to; one that cannot is given as many candidates, and a search for distributions as
    many steps, as the rest pays for. None where that is not one candidate a class, or the attack has
    no setting for it.
    """
    if queries >= used:
        return attack
    if not is_dataclass(attack):
        return None
    has = {field.name: getattr(attack, field.name) for field in fields(attack)}
    common = _common(attack, has)
    each_class = "most_queries" in has or "candidates" in has
    sent = sum(common_queries(attack).values())
    share = min(sent, queries // 2 if each_class else queries)
    cut: dict[str, Any] = {name: max(1, has[name] * share // sent) for name in common}
    left = queries - sum(cut[name] * times for name, times in common.items())
    if "most_queries" in has:
        cut["most_queries"] = queries
        most = cut.get("pool", left // classes)
    elif "candidates" in has and used > sent:
        if "samples" in has:  # a distribution is searched whatever number is drawn from it
            cut["steps"] = max(1, int(left * has["steps"] / (used - sent)))
        most = min(int(left * has["candidates"] / (used - sent)), cut.get("pool", queries))
    elif not each_class and hasattr(attack, "common"):
        return replace(attack, **cut)
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


def fair_share(attack: Attack, prior: Prior, classes: int, *, of: int, pools: int = 1) -> Attack:
    """``attack`` with so many classes' share of the queries that it may send for all ``of`` them.

    What it plans for no class at all, its pool, is the same for each share and is sent ``pools`` times
    for all shares together; what is left is shared out by classes.
    """
    most = getattr(attack, "most_queries", None)
    if most is None or not is_dataclass(attack):
        return attack
    pool = min(most // pools, pool_queries(attack, prior))
    share = pool + (most - pools * pool) * classes // of
    fair: Attack = replace(attack, most_queries=max(1, share))
    return fair


def pool_queries(attack: Attack, prior: Prior) -> int:
    """Images that ``attack`` sends for no class in particular, as far as it says so."""
    plan = getattr(attack, "planned_queries", None)
    return 0 if plan is None else int(plan(prior, 0))


def common_queries(attack: Attack) -> dict[str, int]:
    """Images that ``attack`` sends for all classes together, by the setting that they are."""
    if not is_dataclass(attack):
        return {}
    has = {field.name: getattr(attack, field.name) for field in fields(attack)}
    return {name: has[name] * times for name, times in _common(attack, has).items()}


def _common(attack: Attack, has: dict[str, Any]) -> dict[str, int]:
    """Settings that are images sent for all classes together, and how often each is sent.

    The pool, once, unless the attack says otherwise by a property ``common``.
    """
    said: dict[str, int] | None = getattr(attack, "common", None)
    if said is not None:
        return said
    # What an agent measures its steps in is a pool that is not sent.
    return {"pool": 1} if "pool" in has and "episodes" not in has else {}

"""Attacks cut to a number of queries keep it, and find less with fewer queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inversight.attacks import Attack, C2fMi, CmaEs, Lomma, PlugAndPlay, RlbMi, run_attack
from inversight.attacks.queries import QueriesSpentError
from inversight.attacks.workload import Workload, cut_to
from inversight.core.seeding import generator
from inversight.priors.base import Prior
from tests.attacks.table import CASES
from tests.attacks.toy import LABELS, Nearest, OpenPrior, shortfall, toy_target
from tests.examples import SampleAttack

EVOLVED = CmaEs(pool=200, searches=8, population=6, generations=30, keep=5, crops=5)
ENDS: dict[str, Any] = {"pool": 200, "candidates": 20, "steps": 20, "keep": 5, "crops": 5}


def cut(attack: Attack, queries: int, used: int) -> Any:
    return cut_to(attack, queries, prior=OpenPrior(), classes=3, used=used)


@pytest.mark.parametrize("name", [name for name in CASES if name != "weight-reconstruction"])
def test_cut_attacks_keep_the_budget(name: str) -> None:
    if name == "vmi-flow":
        pytest.importorskip("zuko")
    case = CASES[name]
    used = case.run().queries
    assert used is not None and cut(case.attack, used, used) is case.attack
    sent = []
    for queries in (used // 2, used * 2 // 3, used - 1):
        module = case.module()
        how = cut_to(case.attack, queries, prior=case.prior, classes=3, used=used)
        found = case.run(how, module=module, limit=queries)
        assert found.queries == module.images <= queries and len(found) > 0
        sent.append(found.queries)
    assert sent == sorted(sent) and sent[-1] > used / 2


def test_more_queries_find_more() -> None:
    used, gaps = 4640, []
    for queries in (150, used // 3, used):
        how, target = cut(EVOLVED, queries, used), toy_target(Nearest())
        found = run_attack(how, target, OpenPrior(), LABELS, rng=generator(0), limit=queries)
        gaps.append(float(shortfall(found.images, found.labels).view(3, 5)[:, 0].mean()))
    assert gaps[0] > gaps[2] and gaps[1] < 0.5 * gaps[0]


class OwnSearch(CmaEs):
    """An own attack that does not state its limit; its classes share all of its work."""

    def workload(self, prior: Prior) -> Workload:
        return Workload(kept=5, batch_size=9, shared={"pool": self.pool}, limited=("keep",))


def test_own_attacks_keep_limits_and_settings() -> None:
    own, target = OwnSearch(pool=200, keep=5), toy_target(Nearest())
    assert cut(own, 100, 200) == replace(own, pool=100)
    with pytest.raises(QueriesSpentError):
        run_attack(replace(own, most_queries=9), target, OpenPrior(), LABELS, rng=generator(0))


def test_attacks_that_cannot_be_cut() -> None:
    assert cut(SampleAttack(), 10, 50) is None
    assert cut(SampleAttack(), 50, 50) == SampleAttack()
    lomma = Lomma(**ENDS, images=300, surrogates=1)
    less = cut(lomma, 350, 2 * 200 + 300 + 3 * 20 * 25)
    assert (less.pool, less.images) == (50, 75)
    assert replace(lomma, surrogates=0).workload(OpenPrior()).shared == {"pool": 400}
    # Two candidates of three classes, at 25 images each, do not fit into 100 beside the pool.
    assert cut(PlugAndPlay(**ENDS), 100, 200 + 3 * 20 * 25) is None
    assert cut(RlbMi(candidates=10, keep=5), 2, 1000) is None
    assert (
        cut(C2fMi(pool=200, population=30, keep=5), 3, 5000) is None
    )  # differences need two individuals

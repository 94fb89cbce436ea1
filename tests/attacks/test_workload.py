"""Attacks cut to a number of queries keep it, and find less with fewer queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inversight.attacks import (
    Attack,
    BrepMi,
    C2fMi,
    CmaEs,
    Lokt,
    Lomma,
    MiFace,
    MirrorGenetic,
    PlugAndPlay,
    QueriesSpentError,
    Reconstructions,
    RlbMi,
    run_attack,
)
from inversight.attacks.workload import cut_to
from inversight.core.seeding import generator
from inversight.settings import Training
from tests.attacks.toy import (
    CLASSES,
    LABELS,
    Nearest,
    NearestByLayer,
    OpenPrior,
    shortfall,
    toy_target,
)
from tests.examples import SampleAttack

TRAINING = Training(epochs=1, width=2, batch_size=64)
ENDS: dict[str, Any] = {"candidates": 20, "steps": 20, "keep": 5, "crops": 5}
EACH: dict[str, Attack] = {
    "plug-and-play": PlugAndPlay(pool=200, **ENDS),
    "lomma": Lomma(pool=200, **ENDS, images=300, surrogates=1, training=TRAINING),
    "mi-face": MiFace(**ENDS),
    "mirror-black-box": MirrorGenetic(
        pool=200, population=30, generations=30, candidates=10, keep=5, crops=5
    ),
    "cma-es": CmaEs(pool=200, searches=8, population=6, generations=30, keep=5, crops=5),
    "c2f-mi": C2fMi(pool=200, population=30, generations=30, keep=5, crops=5, hidden=8, epochs=1),
    "rlb-mi": RlbMi(
        pool=200, episodes=300, at_once=5, candidates=10, keep=5, crops=5, hidden=8, training_batch=64,
    ),
    "brep-mi": BrepMi(pool=200, searches=5, points=8, iterations=30, keep=5),
    "lokt": Lokt(
        images=2000, surrogates=1, training=TRAINING,
        white_box=PlugAndPlay(pool=20, candidates=5, steps=2, keep=5, crops=2),
    ),
}  # fmt: skip


def cut(attack: Attack, queries: int, used: int) -> Any:
    return cut_to(attack, queries, prior=OpenPrior(), classes=3, used=used)


def run(attack: Attack, module: Nearest, limit: int | None = None) -> Reconstructions:
    target = toy_target(module)
    return run_attack(attack, target, OpenPrior(), LABELS, rng=generator(0), limit=limit)


@pytest.mark.parametrize("name", EACH)
def test_cut_attacks_keep_the_budget(name: str) -> None:
    assert type(EACH[name]) is CLASSES[name]
    module = NearestByLayer()
    used = run(EACH[name], module).queries
    assert used is not None and cut(EACH[name], used, used) is EACH[name]
    sent = []
    for queries in (used // 8, used // 3, used - 1):
        module.images = 0
        found = run(cut(EACH[name], queries, used), module, limit=queries)
        assert found.queries == module.images <= queries and len(found) > 0
        sent.append(found.queries)
    assert sent == sorted(sent) and sent[-1] > used / 2


def test_more_queries_find_more() -> None:
    used, gaps = 4640, []
    for queries in (150, used // 3, used):
        found = run(cut(EACH["cma-es"], queries, used), Nearest(), limit=queries)
        gaps.append(float(shortfall(found.images, found.labels).view(3, 5)[:, 0].mean()))
    assert gaps[0] > gaps[2] and gaps[1] < 0.5 * gaps[0]


def test_attacks_that_cannot_be_cut() -> None:
    assert cut(SampleAttack(), 10, 50) is None
    assert cut(SampleAttack(), 50, 50) == SampleAttack()
    lomma = EACH["lomma"]
    assert isinstance(lomma, Lomma)
    less = cut(lomma, 350, 2 * 200 + 300 + 3 * 20 * 25)
    assert (less.pool, less.images) == (50, 75)
    assert replace(lomma, surrogates=0).workload(OpenPrior()).shared == {"pool": 400}
    # Two candidates of three classes, at 25 images each, do not fit into 100 beside the pool.
    assert cut(EACH["plug-and-play"], 100, 200 + 3 * 20 * 25) is None
    assert cut(EACH["rlb-mi"], 2, 1000) is None
    assert cut(EACH["c2f-mi"], 3, 5000) is None  # differences need two individuals


def test_the_limit_is_enforced() -> None:
    with pytest.raises(QueriesSpentError):
        run(cut(EACH["cma-es"], 100, 5000), Nearest(), limit=20)

"""Attacks cut down to a number of queries run within it, and find less with less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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
    RlbMi,
    run_attack,
)
from inversight.attacks.workload import cut_to
from inversight.core.seeding import generator
from inversight.models.target import Access
from inversight.settings import Training
from tests.attacks.toy import (
    CLASSES,
    LABELS,
    FlatPrior,
    Nearest,
    NearestByLayer,
    OpenPrior,
    surest_on_a_grid,
    toy_target,
)
from tests.examples import SampleAttack

EACH: dict[str, Attack] = {
    "plug-and-play": PlugAndPlay(pool=200, candidates=20, steps=20, keep=5, crops=5),
    "lomma": Lomma(
        pool=200,
        candidates=20,
        steps=20,
        keep=5,
        crops=5,
        images=300,
        surrogates=1,
        training=Training(epochs=1, width=2, batch_size=64),
    ),
    "mi-face": MiFace(candidates=20, steps=20, keep=5, crops=5),
    "mirror-black-box": MirrorGenetic(
        pool=200, population=30, generations=30, candidates=10, keep=5, crops=5
    ),
    "cma-es": CmaEs(pool=200, searches=8, population=6, generations=30, keep=5, crops=5),
    "c2f-mi": C2fMi(pool=200, population=30, generations=30, keep=5, crops=5, hidden=8, epochs=1),
    "rlb-mi": RlbMi(
        pool=200, episodes=300, candidates=10, keep=5, crops=5, hidden=8, training_batch=64
    ),
    "brep-mi": BrepMi(pool=200, searches=5, points=8, iterations=30, keep=5),
    "lokt": Lokt(
        images=2000,
        surrogates=1,
        training=Training(epochs=1, width=2, batch_size=64),
        white_box=PlugAndPlay(pool=20, candidates=5, steps=2, keep=5, crops=2),
    ),
}


@pytest.mark.parametrize("name", EACH)
def test_no_more_is_sent_than_the_budget(name: str) -> None:
    assert type(EACH[name]) is CLASSES[name]
    module = NearestByLayer()
    used = run_attack(EACH[name], toy_target(module), OpenPrior(), LABELS, rng=generator(0)).queries
    assert used is not None
    assert cut_to(EACH[name], used, prior=OpenPrior(), classes=3, used=used) is EACH[name]
    sent = []
    for queries in (used // 8, used // 3, used - 1):
        less = cut_to(EACH[name], queries, prior=OpenPrior(), classes=3, used=used)
        assert less is not None
        module.images = 0
        made = run_attack(
            less, toy_target(module), OpenPrior(), LABELS, rng=generator(0), limit=queries
        )
        assert made.queries == module.images <= queries and len(made) > 0
        sent.append(made.queries)
    assert sent == sorted(sent) and sent[-1] > used / 2


def test_more_queries_find_more() -> None:
    used = 4640
    target = toy_target(Nearest())
    blind = target.restricted(Access.SCORES)
    best = torch.tensor([surest_on_a_grid(blind, label)[1] for label in range(3)])
    gaps = []
    for queries in (150, used // 3, used):
        less = cut_to(EACH["cma-es"], queries, prior=OpenPrior(), classes=3, used=used)
        assert less is not None
        found = run_attack(less, target, FlatPrior(), LABELS, rng=generator(0), limit=queries)
        first = torch.stack([found.images[found.labels == label][0] for label in range(3)])
        gaps.append(float((best - blind(first).softmax(1).diagonal()).mean()))
    assert gaps[0] > gaps[2] and gaps[1] < 0.5 * gaps[0]


def test_what_cannot_be_cut_is_left_out() -> None:
    assert cut_to(SampleAttack(), 10, prior=OpenPrior(), classes=3, used=50) is None
    assert cut_to(SampleAttack(), 50, prior=OpenPrior(), classes=3, used=50) == SampleAttack()
    lomma = EACH["lomma"]
    assert isinstance(lomma, Lomma)
    less = cut_to(lomma, 350, prior=OpenPrior(), classes=3, used=2 * 200 + 300 + 3 * 20 * 25)
    assert isinstance(less, Lomma) and (less.pool, less.images) == (50, 75)
    assert replace(lomma, surrogates=0).workload(OpenPrior()).shared == {"pool": 400}
    # Two candidates of three classes, at 25 images each, do not fit into 100 beside the pool.
    assert (
        cut_to(EACH["plug-and-play"], 100, prior=OpenPrior(), classes=3, used=200 + 3 * 20 * 25)
        is None
    )
    assert cut_to(EACH["rlb-mi"], 2, prior=OpenPrior(), classes=3, used=1000) is None


def test_the_limit_holds_whatever_the_attack_does() -> None:
    less = cut_to(EACH["cma-es"], 100, prior=OpenPrior(), classes=3, used=5000)
    assert less is not None
    with pytest.raises(QueriesSpentError):
        run_attack(less, toy_target(Nearest()), FlatPrior(), LABELS, rng=generator(0), limit=20)

"""How fast are shadow models, and does the speed change what they show?

uv run python benchmarks/shadows.py            24 models on the digits, two processes, about six minutes
uv run python benchmarks/shadows.py --small    8 models, trained and attacked as 24 are

One audit of the digits without shadow models trains target, public network and prior. From there:

one by one   one process, one thread, one model after another: trained alone, the pool's images made anew for
             each, its reconstructions embedded together with all images of the experiment
ours         what an audit does: blocks of models trained as one network, one pool, two processes of one thread

Both use the same designs, seeds and settings. Ours includes the start of the second process. The growth with
models and with images is of ours on one process.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common import finish, parser
from inversight import audit
from inversight.core.console import Terminal
from inversight.core.progress import Progress, silent
from inversight.core.run import read_manifest, read_object
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.recipes import TrainingRecipe
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.pipeline.audit_shadows import recipe_of, shadow_job
from inversight.pipeline.exposure import log_distances
from inversight.pipeline.plan import Plan
from inversight.pipeline.score import scoring_embeddings
from inversight.pipeline.shadow_run import LocalRun
from inversight.pipeline.shadows import (
    Measured,
    ShadowAttack,
    ShadowJob,
    blocks_of,
    run_block,
)
from inversight.pipeline.train import PUBLIC_NETWORK, load_network
from inversight.priors import StylePrior
from inversight.priors.image_cache import ImageCache
from inversight.risk.exposure import exposure, membership_auc
from inversight.settings import resolve

SMALL: dict[str, Any] = {"prior": {"steps": 30}, "evaluator_training": {"epochs": 2}}
"""Settings that change no time that is compared."""
TINY: dict[str, Any] = {
    **SMALL,
    "target_training": {"epochs": 8},
    "public_training": {"epochs": 4},
    "attack": [
        {"class": "plug-and-play", "pool": 400, "candidates": 8, "keep": 4, "steps": 8, "crops": 4}
    ],
}


@dataclass(frozen=True)
class Alone:
    """The recipe of ``inner``, each model trained by itself."""

    inner: TrainingRecipe

    @property
    def description(self) -> str:
        return self.inner.description

    def check(self, images: ImageSet, *, device: torch.device) -> tuple[str, ...]:
        return ()

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        trained = train_classifier(
            images, training=replace(self.inner.training, validation=0.0),
            image_shape=self.inner.image_shape, rng=generator(seed), device=device,
            progress=progress,
        )  # fmt: skip
        return target_of(trained.classifier, "alone").to(device)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--models", type=int, help="default 24; small: 8; tiny: 4")
    options = arguments.parse_args()
    models = options.models or (4 if options.tiny else 8 if options.small else 24)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        changed = TINY if options.tiny else SMALL if options.small else {}
        job, attack = prepared(Path(folder), changed, options.seed)
        rows = compared(job, attack, models, Path(folder))
        grown = [] if options.small else growth(job, attack, Path(folder))
    slow, fast = rows
    figures = {
        "models": models,
        "one_by_one_over_ours": slow["seconds"] / fast["seconds"],
        "one_by_one_over_ours_one_process": slow["seconds"] / fast["seconds_one_process"],
    }
    keys = list(dict.fromkeys(key for row in (*rows, *grown) for key in row))
    table = [{key: row.get(key, "") for key in keys} for row in (*rows, *grown)]
    finish("Shadow models of the digits, seconds and what they show", figures, table, options)


def prepared(folder: Path, changed: dict[str, Any], seed: int) -> tuple[ShadowJob, ShadowAttack]:
    """Return the job and the attack of an audit of the digits."""
    given = {**changed, "shadows": 0, "seed": seed}
    adaptation = {"adaptation": {"steps": 0}}
    audit(**{**given, **adaptation}, out=folder / "run", reporter=Terminal())
    settings = resolve(read_manifest(folder / "run")["given"])
    plan = Plan.prepare(settings, Terminal())
    epochs = read_object(folder / "run/stages/target/facts.json")["epochs"]
    network = load_network(folder / "run/stages" / PUBLIC_NETWORK, plan.device)
    distance, _ = scoring_embeddings(
        settings.embedding, settings.features, size=plan.inputs.private.size, network=network,
        evaluator=None,
    )  # fmt: skip
    prior = StylePrior.load(folder / "run/stages/prior/prior.safetensors")
    [(name, attack)] = plan.attacks.items()
    job = replace(shadow_job(plan, recipe_of(plan, epochs)), pictures=False)
    return job, ShadowAttack(name, attack, prior, distance, settings.memory)


def compared(
    job: ShadowJob, attack: ShadowAttack, models: int, folder: Path
) -> list[dict[str, Any]]:
    """Time both ways block by block in turn, then ours on two processes; return what both find."""
    assert isinstance(job.recipe, TrainingRecipe)
    size = 2
    alone, whole = replace(job, recipe=Alone(job.recipe)), cached(attack)
    blocks = blocks_of(models // 2, size)
    slow = one_process = 0.0
    for block in blocks:
        begun = time.perf_counter()
        # A pair at a time, so that nothing is shared: each model's block is its own pair's half.
        for pair in blocks_of(models // 2, 1)[block.first : block.first + block.pairs]:
            run_block(alone, attack, pair, folder / "slow")
        slow += time.perf_counter() - begun
        begun = time.perf_counter()
        run_block(job, whole, block, folder / "fast")
        one_process += time.perf_counter() - begun
    begun = time.perf_counter()
    with LocalRun(job, folder / "two", blocks, workers=2, threads=1) as run:
        run.attack(whole)
        run.finish()
        two = time.perf_counter() - begun
    rows = []
    for way, place, step in (("one by one", "slow", 1), ("ours", "fast", size)):
        found = Measured.read(folder / place, models // 2, step)
        rows.append({"way": way, **outcome(job, found)})
    rows[0] |= {"seconds": slow, "seconds_one_process": slow}
    rows[1] |= {"seconds": two, "seconds_one_process": one_process}
    return rows


def cached(attack: ShadowAttack) -> ShadowAttack:
    """Return the attack with one pool for all models of a process, as an audit has it."""
    assert isinstance(attack.prior, StylePrior)
    return replace(attack, prior=replace(attack.prior, cache=ImageCache()))


def outcome(job: ShadowJob, found: Measured) -> dict[str, Any]:
    """Return what the models show."""
    result = exposure(
        log_distances(found), found.membership, job.images.labels, twins=job.twins,
        private=job.is_private,
    )  # fmt: skip
    inside, outside = found.accuracy()
    mean, auc = result.summary["exposure_mean"], result.summary["exposure_auc"]
    membership = membership_auc(found.losses, found.membership, private=job.is_private)
    return {
        "accuracy_in": inside,
        "accuracy_out": outside,
        "exposure_mean": mean.value,
        "exposure_low": mean.low,
        "exposure_high": mean.high,
        "exposure_auc": auc.value,
        "membership_auc": membership.value,
    }


def growth(job: ShadowJob, attack: ShadowAttack, folder: Path) -> list[dict[str, Any]]:
    """Return seconds of blocks of more models, and of more images, on one process."""
    rows: list[dict[str, Any]] = []
    for pairs in (1, 2, 4):
        begun = time.perf_counter()
        [block] = blocks_of(pairs, pairs)
        run_block(job, cached(attack), block, folder / f"pairs-{pairs}")
        seconds = time.perf_counter() - begun
        rows.append({"pairs_together": pairs, "seconds_a_model": seconds / (2 * pairs)})
    for share in (4, 2, 1):
        rows_kept = (
            torch.cat([(job.images.labels == y).nonzero().squeeze(1)[::share] for y in job.labels])
            .sort()
            .values
        )
        images = job.images.select(rows_kept)
        private = int((rows_kept < job.private).sum())
        fewer = replace(job, images=images, private=private, twins=torch.full((len(images),), -1))
        [block] = blocks_of(2, 2)
        begun = time.perf_counter()
        run_block(fewer, cached(attack), block, folder / f"images-{share}")
        seconds = time.perf_counter() - begun
        rows.append({"images": len(images), "seconds_a_model": seconds / 4})
    return rows


if __name__ == "__main__":
    main()

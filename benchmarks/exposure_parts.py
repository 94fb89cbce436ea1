"""The parts of benchmarks/exposure.py. Each yields arms: a name, and what computes the arm's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor

from exposure_data import third_set
from exposure_recipes import Defended, Elsewhere, Repeated, Stopped
from exposure_study import ADAPTED, FDR, PAIRS, Base, auc, chosen, figures_of, rounded
from inversight.core.config import build
from inversight.core.imaging import fit, to_float
from inversight.core.seeding import generator
from inversight.embeddings import Embedding, Workspace, image_pairs, named_embedding
from inversight.models.recipes import Recipe, TrainingRecipe
from inversight.pipeline.attack import build_attack
from inversight.pipeline.exposure import FLOOR, log_distances
from inversight.pipeline.shadows import ShadowAttack, blocks_of
from inversight.risk.design import draw_design
from inversight.risk.exposure import exposure
from inversight.risk.given import given_model
from inversight.risk.signals import SIGNALS
from inversight.settings import DEFENCES, resolve

Arm = tuple[str, Callable[[], dict[str, Any]]]
PLAIN = "plain"
"""Folder of shadow models with the audit's recipe and attack."""
PLANTED = 0.25
"""Planted effect on the logarithm of the distance, of a tenth of the private images."""
REPEATS = (1, 10, 50)
IN_NULL = IN_POWER = ("pixel distance, nearest", "pixel distance, mean of 3")
"""Statistics that these parts have beside the nearest."""
ATTACKS = ("plug-and-play", "mirror", "gmi")
COMPARED = {
    "plug-and-play": "white-box", "gmi": "white-box", "ppdg": "white-box", "cma-es": "scores",
    "brep-mi": "label",
}  # fmt: skip
"""Attacks of the part `strongest`, and the access that they need."""
CHOOSING = (0, 1, 2)
"""Seeds of the digits that choose the statistic of that part; the others are reported."""
COMPARED_BY = (
    "nearest",
    "mean of 3 nearest",
    "pixel distance, nearest",
    "pixel distance, mean of 3",
)
"""Statistics of the part `strongest`."""


@dataclass(frozen=True)
class Budget:
    """Numbers that --tiny makes smaller.

    models: of the parts other than `power`, which has ``most``. redraws: of the design in `null`.
    """

    most: int
    models: int
    redraws: int
    small: bool


def power(base: Base, budget: Budget) -> Iterator[Arm]:
    """Exposure of the same shadow models, from a few of them to all."""

    def arm(models: int) -> dict[str, Any]:
        found, seconds = base.measured(PLAIN, models, keep=True)
        logs, own = log_distances(found), log_distances(base.given)[0]
        labels = base.job.images.labels
        z = given_model(logs, found.membership, labels, own, base.private, twins=base.job.twins)
        return {
            **figures_of(base, found, models),
            "given_auc": z.auc,
            "given_p_value": z.p_value,
            "epochs": base.recipe.training.epochs,
            "seconds_a_model": seconds / models,
        }

    def otherwise(models: int, change: Change) -> dict[str, Any]:
        found, _ = base.measured(PLAIN, models, keep=True)
        return figures_of(base, found, models, _changed(base, PLAIN, models, change))

    for models in sorted({min(n, budget.most) for n in (8, 16, 24, 48)}):
        yield str(models), partial(arm, models)
        for name in IN_POWER:
            yield f"{models}, {name}", partial(otherwise, models, STATISTICS[name])


def predicts(base: Base, budget: Budget) -> Iterator[Arm]:
    """Rank correlation with exposure of what an audit knows of an image without shadow models."""
    yield "nearest", lambda: _correlations(base, budget.most, None)
    name = IN_POWER[-1]
    yield name, lambda: _correlations(base, budget.most, STATISTICS[name])


def _correlations(base: Base, models: int, change: Change | None) -> dict[str, Any]:
    found, _ = base.measured(PLAIN, models, keep=True)
    logs = log_distances(found) if change is None else _changed(base, PLAIN, models, change)
    private, samples = base.private, base.samples
    effect = base.exposure(found, logs).differences[:, private].numpy()
    value = effect.mean(0)
    halves = effect[0::2].mean(0), effect[1::2].mean(0)
    columns = {
        "DDCS, best": samples["ddcs_best"],
        "nearest distance, nearer": -samples["nearest_distance"],
        "p-value against the holdout, smaller": -samples["p_value"],
    } | {
        f"signal {name}, riskier": one.sign * samples[name].replace(np.inf, 1e9)
        for name, one in SIGNALS.items()
        if name in samples
    }
    inside = found.membership
    known = (
        torch.where(inside, torch.nan, found.losses),
        torch.where(inside, found.losses, torch.nan),
    )
    memorised = (known[0].nanmean(0) - known[1].nanmean(0))[private].numpy()
    typical = torch.where(inside, torch.nan, logs).nanmean(0)[private].numpy()
    rows = {name: _spearman(column.to_numpy(float), value) for name, column in columns.items()}
    rows["shadow models: loss without less loss with the image"] = _spearman(memorised, value)
    rows["shadow models: distance without the image, nearer"] = _spearman(-typical, value)
    rows["the other half of the pairs"] = _spearman(*halves)
    return rounded({"models": models, "images": int(private.sum()), "spearman": rows})


def _spearman(a: Any, b: Any) -> float | None:
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 4 or np.ptp(a[known]) == 0:
        return None
    return float(spearmanr(a[known], b[known]).statistic)


def repeated(base: Base, budget: Budget) -> Iterator[Arm]:
    """One private image of each class is repeated wherever it is in the training set."""
    rows = chosen(base.job.images, base.job.private, base.job.seed, "repeated")
    names = frozenset(base.job.images.ids[row] for row in rows)
    others = [row for row in range(base.job.private) if row not in rows]

    def arm(times: int, change: Change | None) -> dict[str, Any]:
        recipe, name = None, PLAIN
        if times > 1:
            own = base.recipe
            recipe = Repeated(own.training, own.image_shape, repeated=names, times=times)
            name = f"repeated-{times}"
        found, seconds = base.measured(name, budget.models, recipe=recipe, keep=True)
        logs = None if change is None else _changed(base, name, budget.models, change)
        result = base.exposure(found, logs, models=budget.models)
        columns, effect = result.per_sample, result.differences.mean(0)
        p = columns["exposure_p"]
        return {
            **figures_of(base, found, budget.models, logs),
            "repeated": len(rows),
            "recall": float(columns["exposed"][rows].double().mean()),
            "others_flagged": int(columns["exposed"][others].sum()),
            "auc_repeated": auc((-p[rows]).tolist(), (-p[others]).tolist()),
            "effect_repeated": float(effect[rows].mean()),
            "effect_others": float(effect[others].mean()),
            "seconds_a_model": seconds / budget.models,
        }

    for times in REPEATS[1:2] if budget.small else REPEATS:
        yield str(times), partial(arm, times, None)
        name = IN_POWER[-1]
        yield f"{times}, {name}", partial(arm, times, STATISTICS[name])


def null(base: Base, budget: Budget) -> Iterator[Arm]:
    """Models trained on a third set: their distances cannot depend on the membership that is drawn."""

    def arm(change: Change | None) -> dict[str, Any]:
        images = base.job.images
        third = third_set(images, base.plan.inputs.public, base.job.seed)
        recipe = Elsewhere.of(base.recipe, images, third)
        found, _ = base.measured("third", budget.models, recipe=recipe, keep=True)
        logs = (
            log_distances(found)
            if change is None
            else _changed(base, "third", budget.models, change)
        )
        drawn = figures_of(base, found, budget.models, logs)
        count = torch.zeros(3, dtype=torch.float64)
        for redraw in range(budget.redraws):
            design = draw_design(
                images.labels, base.job.units, pairs=budget.models // 2, seed=10_000 + redraw
            )
            one = _flagged(base, logs, design)
            rng = generator(redraw, "planted")
            planted = torch.zeros(len(images), dtype=torch.bool)
            planted[torch.randperm(base.job.private, generator=rng)[: base.job.private // 10]] = (
                True
            )
            two = _flagged(base, logs - PLANTED * (design & planted), design)
            wrong = (two & ~planted).sum() / two.sum().clamp_min(1)
            recall = (two & planted).sum() / planted.sum()
            count += torch.tensor([bool(one.any()), float(wrong), float(recall)])
        share, proportion, recall = (count / budget.redraws).tolist()
        return {
            **{
                k: drawn[k] for k in ("models", "flagged", "mean", "p_value", "auc", "accuracy_out")
            },
            "redraws": budget.redraws,
            "any_flag": share,
            "planted": PLANTED,
            "planted_false": proportion,
            "planted_recall": recall,
        }

    yield "nearest", partial(arm, None)
    if not budget.small:
        for name in IN_NULL:
            yield name, partial(arm, STATISTICS[name])


def _flagged(base: Base, logs: Tensor, design: Tensor) -> Tensor:
    result = exposure(
        logs, design, base.job.images.labels, base.job.images.groups, twins=base.job.twins,
        private=base.private, fdr=FDR, redraws=1,
    )  # fmt: skip
    return result.per_sample["exposed"]


def defences(base: Base, budget: Budget) -> Iterator[Arm]:
    """Shadow models trained with a defence, all their images protected."""

    def arm(name: str, make: MakeRecipe | None) -> dict[str, Any]:
        recipe, folder = None, PLAIN
        if make is not None:
            recipe, folder = make(base), f"defence-{name.replace(',', '').replace(' ', '-')}"
        found, seconds = base.measured(folder, budget.models, recipe=recipe, keep=recipe is None)
        figures = figures_of(base, found, budget.models)
        return {**figures, "seconds_a_model": seconds / budget.models}

    for name, make in list(DEFENCES_TRIED.items())[: 2 if budget.small else None]:
        yield name, partial(arm, name, make)


MakeRecipe = Callable[[Base], Recipe]


def _stopped(base: Base) -> Recipe:
    training = replace(base.settings.target_training, validation=0.2, patience=10)
    return Stopped(training, base.recipe.image_shape)


def _shorter(base: Base) -> Recipe:
    training = base.recipe.training
    epochs = max(1, training.epochs // 8)
    warmup = min(epochs, training.warmup_epochs)
    return TrainingRecipe(
        replace(training, epochs=epochs, warmup_epochs=warmup), base.recipe.image_shape
    )


def _defended(name: str, **values: Any) -> MakeRecipe:
    def make(base: Base) -> Recipe:
        defence = build({"class": name, **values}, DEFENCES, role="--defences")
        own, public = base.recipe, base.plan.inputs.public
        return Defended(defence, own.training, own.image_shape, public, base.parts.target)

    return make


DEFENCES_TRIED: dict[str, MakeRecipe | None] = {
    "none": None,
    "an eighth of the epochs": _shorter,
    "early stopping": _stopped,
    "augmentation": _defended("augmentation"),
    "dp-sgd, epsilon 8": _defended("dp-sgd", epsilon=8.0),
    "dp-sgd, epsilon 50": _defended("dp-sgd", epsilon=50.0),
}
"""Recipes by name, None for the audit's own."""


def statistics(base: Base, budget: Budget) -> Iterator[Arm]:
    """Other distances, and several reconstructions instead of the nearest, of the same attacks."""
    for name, change in list(STATISTICS.items())[: 2 if budget.small else None]:
        yield name, partial(_statistic, base, budget, change)


def attacks(base: Base, budget: Budget) -> Iterator[Arm]:
    """Attacks and arms of the adaptation on the same trained models, and larger attacks."""
    arms = [("plug-and-play", None), *((a, b) for a in ATTACKS for b in (None, *ADAPTED))]
    for attack, arm in dict.fromkeys(arms[:1] if budget.small else arms):
        yield (
            f"{attack}, {arm or 'unadapted'}",
            partial(_attacked, base, budget, {"class": attack}, arm),
        )
    if budget.small:
        return
    spec = next(iter(base.settings.attack))
    more = {k: 2 * spec[k] for k in ("candidates", "keep") if k in spec}
    yield "twice the candidates", partial(_attacked, base, budget, {**spec, **more}, None, "more")
    yield "two attack seeds, mean", partial(_two_seeds, base, budget)


def strongest(base: Base, budget: Budget) -> Iterator[Arm]:
    """Attacks by the access that they need, each with several statistics, on the same trained models."""

    def arm(attack: str, statistic: str) -> dict[str, Any]:
        built = _built(base, {"class": attack}, None)
        folder = f"strongest-{attack}"
        found, seconds = base.measured(folder, budget.models, attack=built, keep=True)
        logs = _changed(base, folder, budget.models, STATISTICS[statistic])
        figures = figures_of(base, found, budget.models, logs)
        return {**figures, "seconds_a_model": seconds / budget.models}

    for attack in list(COMPARED)[: 1 if budget.small else None]:
        for statistic in COMPARED_BY:
            yield f"{attack}, {statistic}", partial(arm, attack, statistic)


def _attacked(
    base: Base, budget: Budget, spec: dict[str, Any], arm: str | None, suffix: str = ""
) -> dict[str, Any]:
    if spec == {"class": "plug-and-play"} and arm is None:
        found, seconds = base.measured(PLAIN, budget.models, keep=True)
        return {
            **figures_of(base, found, budget.models),
            "seconds_a_model": seconds / budget.models,
        }
    attack = _built(base, spec, arm)
    folder = "-".join(part for part in ("attack", attack.name, arm or "unadapted", suffix) if part)
    found, seconds = base.measured(folder, budget.models, attack=attack)
    return {**figures_of(base, found, budget.models), "seconds_a_model": seconds / budget.models}


def _built(base: Base, spec: dict[str, Any], arm: str | None) -> ShadowAttack:
    """Return an attack with the budget of the preset."""
    settings = resolve(
        {"attack": [spec], "seed": base.job.seed}
        if base.settings.private is None
        else {"attack": [spec]}
    )
    name, built = build_attack(settings.attack[0])
    adaptation = None if arm is None else base.adaptations[arm]
    return replace(base.attack, name=name, attack=built, adaptation=adaptation)


def _two_seeds(base: Base, budget: Budget) -> dict[str, Any]:
    """Mean log distance over two attacks with different random numbers."""
    one, seconds = base.measured(PLAIN, budget.models, keep=True)
    again = replace(base.attack, name=f"{base.attack.name}/again")
    two, more = base.measured("attack-again", budget.models, attack=again)
    logs = (log_distances(one) + log_distances(two)) / 2
    trained = sum(
        float((base.work / "models" / f"{block.name}.seconds").read_text())
        for block in blocks_of(budget.models // 2, PAIRS)
    )
    figures = figures_of(base, one, budget.models, logs)
    return {**figures, "seconds_a_model": (seconds + more - trained) / budget.models}


Change = Callable[[Base, Tensor, Tensor], Tensor]
"""Log distances (N,) of a class's images from them and its reconstructions."""


def _statistic(base: Base, budget: Budget, change: Change) -> dict[str, Any]:
    """Other log distances to the reconstructions that were kept."""
    found, seconds = base.measured(PLAIN, budget.models, keep=True)
    figures = figures_of(base, found, budget.models, _changed(base, PLAIN, budget.models, change))
    return {**figures, "seconds_a_model": seconds / budget.models}


def _changed(base: Base, folder: str, models: int, change: Change) -> Tensor:
    """Return the (K, N) log distances that ``change`` gives for the kept reconstructions."""
    images, rows = base.job.images, []
    for block in blocks_of(models // 2, PAIRS):
        place = base.work / folder / f"kept-{block.name}"
        for number in range(2 * block.pairs):
            parts = load_file(place / f"reconstructions-{number}.safetensors")
            row = torch.full((len(images),), torch.nan, dtype=torch.float64)
            for label in images.labels.unique():
                mine = images.labels == label
                made = parts["images"][parts["labels"] == label]
                if len(made):
                    row[mine] = change(base, images.images[mine], made)
            rows.append(row)
    return torch.stack(rows)


def distances(base: Base, embedding: Embedding, real: Tensor, made: Tensor) -> Tensor:
    """Return (N, M) float64 distances of all pairs."""
    found = torch.full((len(real), len(made)), torch.nan, dtype=torch.float64)
    for tile in image_pairs(
        embedding, real, made, memory=base.settings.memory, workspace=Workspace(base.job.device)
    ):
        found[tile.left[:, None], tile.right[None]] = tile.distances.double()
    return found


def _nearest(count: int, embedding: str | None = None) -> Change:
    """Return the log of the mean distance to the ``count`` nearest reconstructions."""

    def change(base: Base, real: Tensor, made: Tensor) -> Tensor:
        by = base.attack.distance
        if embedding is not None:
            by = named_embedding(
                embedding, use="distance", role="--embedding", size=base.job.images.size,
                evaluator=base.parts.evaluator,
            )  # fmt: skip
        near = distances(base, by, real, made).sort(dim=1).values[:, :count]
        return near.mean(1).clamp_min(FLOOR).log()

    return change


def _mean_image(base: Base, real: Tensor, made: Tensor) -> Tensor:
    """Return the log of the squared distance to the mean of all reconstructions of the class."""
    size, channels = (real.shape[2], real.shape[3]), real.shape[1]
    mean = fit(to_float(made), size=size, channels=channels).double().mean(0)
    squares: Tensor = ((to_float(real).double() - mean) ** 2).flatten(1).sum(1)
    return squares.clamp_min(FLOOR).log()


STATISTICS: dict[str, Change] = {
    "nearest": _nearest(1),
    "mean of 3 nearest": _nearest(3),
    "mean of 5 nearest": _nearest(5),
    "mean of 10 nearest": _nearest(10),
    "mean of all": _nearest(1_000_000),
    "pixel distance, nearest": _nearest(1, "pixel"),
    "pixel distance, mean of 3": _nearest(3, "pixel"),
    "pixel distance, mean of 5": _nearest(5, "pixel"),
    "pixel distance, mean of all": _nearest(1_000_000, "pixel"),
    "pixel distance to the mean reconstruction": _mean_image,
    "evaluator distance, nearest": _nearest(1, "evaluator"),
    "evaluator distance, mean of 5": _nearest(5, "evaluator"),
}

PARTS: dict[str, Callable[[Base, Budget], Iterator[Arm]]] = {
    "power": power,
    "predicts": predicts,
    "repeated": repeated,
    "null": null,
    "defences": defences,
    "statistics": statistics,
    "attacks": attacks,
    "strongest": strongest,
}

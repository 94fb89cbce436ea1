"""``inversight triage``: rank private images by how much they are at risk, without an attack.

For a finished audit, compare the signals with what the audit measured. For a folder of private images
and a target, rank the images in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from inversight.core.console import Reporter
from inversight.core.device import pick_device
from inversight.core.errors import InputError, RunError
from inversight.core.run import atomic_folder, check_new_folder, names_behind, write_json
from inversight.core.seeding import generator
from inversight.models.class_order import LOW_ACCURACY, accuracy_line, low_accuracy
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.pipeline.inputs import read_folder
from inversight.pipeline.service import open_target
from inversight.pipeline.signals import signals_of, signals_table
from inversight.report.reading import read_mapping, read_table
from inversight.risk.signals import SIGNALS, signals
from inversight.risk.triage import agreement, cross_validated, expected_risk, learn, oriented
from inversight.risk.twins import find_twins
from inversight.scores.result import Summary

TABLE = "triage.parquet"
EXPECTED, LEARNED = "expected", "learned"
"""Names of the two predictors: from signals alone, and learned from attacked classes."""

MEASURED = ("nearest_distance", "ddcs_best")
"""Columns of the ledger with which predictors are compared."""

_SAME_LOSS = 1e-3
"""Largest difference, in nats, of an image's loss between machines with the same target."""


@dataclass(frozen=True)
class Triage:
    """A ranking of private images.

    table: one row for each private image, most at risk first: ``id``, ``label``, the predictors
    ``expected`` and, if there is an audit to learn from, ``learned`` (higher is more at risk), signals,
    ``twins`` and measures. agreement: for each of ``MEASURED`` and each predictor, Spearman's correlation
    (:func:`inversight.risk.triage.agreement`); empty without measures. measured_in: the run with the
    measures. notes: for the reader.
    """

    table: pd.DataFrame
    agreement: Mapping[str, Mapping[str, Summary]]
    measured_in: Path | None
    notes: tuple[str, ...]

    @property
    def best(self) -> dict[str, str]:
        """The signal with the largest correlation for each measure."""
        best = {}
        for measure, by in self.agreement.items():
            known = pd.Series(
                {k: by[k].value for k in by if k in SIGNALS}, dtype="float64"
            ).dropna()
            if len(known):
                best[measure] = str(known.idxmax())
        return best


def triage_run(run: Path, *, seed: int = 0) -> Triage:
    """Compare the signals of a finished audit with what it measured.

    What was learned is judged on classes left out of the learning, and is missing where there are too
    few classes for that.

    Raises:
        RunError: not a finished audit, or one without signals.
    """
    samples = _ledger(run)
    given = signals_of(samples)
    labels = samples["label"].astype(str).tolist()
    nearest = _column(samples, "nearest_distance")
    notes: list[str] = []
    predicted = {**oriented(given), EXPECTED: expected_risk(given)}
    try:
        predicted[LEARNED] = cross_validated(given, nearest, labels)
    except InputError as error:
        notes.append(f"Nothing was learned ({error}).")
    # A reconstruction is near if its distance is small or the score high; none in its class says nothing.
    near = {"nearest_distance": -nearest, "ddcs_best": _column(samples, "ddcs_best")}
    found = {}
    for name, values in near.items():
        known = values.masked_fill(nearest.isnan(), float("nan"))
        found[name] = agreement(predicted, known, labels, rng=generator(seed, "triage", name))
    columns = {name: predicted[name].numpy() for name in (EXPECTED, LEARNED) if name in predicted}
    return Triage(_ranked(samples, columns), found, run, tuple(notes))


def triage_private(
    private: Path,
    model: ModelSpec,
    *,
    checkpoints: Sequence[str] = (),
    learn_from: Path | None,
    device: str,
    reporter: Reporter,
) -> Triage:
    """Rank private images by signals of the target, in one forward pass, without an attack.

    ``checkpoints`` are specs of earlier states of the target's training, oldest first. ``learn_from``
    is a finished audit of some of the classes, of the same target and images; its distances are used to
    predict those of the other classes (:func:`inversight.risk.triage.learn`).
    Images of classes that were attacked come with what was measured.

    Raises:
        InputError: wrong input, or an audit that is not of these images and this target.
    """
    where = pick_device(device)
    samples = _ledger(learn_from) if learn_from is not None else None
    images = read_folder(private, "--private", reporter, size=model.size)
    target, _ = open_target(
        model, classes=images.classes, size=images.size, channels=images.channels, reporter=reporter
    )
    earlier = [
        load_target(
            replace(model, spec=c, role="--checkpoint"), classes=images.classes, size=images.size,
            channels=images.channels, warn=reporter.warn,
        )
        for c in checkpoints
    ]  # fmt: skip
    images = images.relabel(target.classes, role="--private")
    for checkpoint in earlier:
        if checkpoint.classes != target.classes:
            raise InputError(
                f"--checkpoint {checkpoint.spec}: has other classes than the target, or another "
                "order; give the order with --classes FILE"
            )
    found = signals(
        target.to(where), images, checkpoints=tuple(one.to(where) for one in earlier),
        progress=reporter.stage("signals"),
    )  # fmt: skip
    if not found.values:
        raise InputError(
            f"--target {model.spec}: gives labels alone, which have no signals without --checkpoint; "
            "give a model with scores or weights"
        )
    if "margin" in found.values:
        accuracy = float((found.values["margin"] > 0.0).double().mean())
        reporter.say(accuracy_line(accuracy))
        if accuracy < LOW_ACCURACY:
            reporter.warn(low_accuracy(target.to(where), images, accuracy))
    table = signals_table(found, images, find_twins(images, progress=reporter.stage("twins")))
    notes = [f"No {name}: {reason}." for name, reason in found.missing.items()]
    values = signals_of(table)
    columns = {EXPECTED: expected_risk(values).numpy()}
    measured: Mapping[str, Mapping[str, Summary]] = {}
    if learn_from is not None and samples is not None:
        table = _with_measured(table, samples, learn_from)
        labels = table["label"].astype(str).tolist()
        nearest = _column(table, "nearest_distance")
        fitted = learn(values, nearest, labels)
        columns[LEARNED] = fitted.risk.numpy()
        elsewhere = {*labels} - fitted.classes
        notes.append(
            f"Learned from {len(fitted.classes)} attacked classes, {len(elsewhere)} others are predicted; "
            "of the attacked ones go by nearest_distance. The correlations are the audit's own, of "
            "classes left out of the learning."
        )
        measured = triage_run(learn_from).agreement
    return Triage(_ranked(table, columns), measured, learn_from, tuple(notes))


def write_triage(found: Triage, out: Path) -> None:
    """Write ``triage.parquet`` and ``triage.json`` to a new folder, both or none.

    Raises:
        RunError: the folder holds something already or cannot be written.
    """
    check_new_folder(out, needed_bytes=10_000_000)
    facts = {
        "agreement": {
            measure: {name: one.as_json() for name, one in by.items()}
            for measure, by in found.agreement.items()
        },
        "best": found.best,
        "notes": list(found.notes),
    }
    with atomic_folder(out) as folder:
        found.table.to_parquet(folder / TABLE, index=False)
        write_json(folder / "triage.json", facts)


def _ledger(run: Path) -> pd.DataFrame:
    """Return the ledger of a finished audit, with signals."""
    if not read_mapping(run, "run.json").get("finished"):
        raise RunError(
            f"{run}: the run is not finished; continue it with inversight audit --resume {run}"
        )
    samples = read_table(run, "samples.parquet", ("id", "label", *MEASURED))
    if not any(name in samples for name in SIGNALS):
        raise RunError(
            f"{run}: its ledger has no signals, as after `inversight score`, which has no target, or "
            "where the target gives labels alone; name another audit"
        )
    return samples


def _column(table: pd.DataFrame, name: str) -> torch.Tensor:
    return torch.tensor(table[name].to_numpy(dtype="float64", na_value=np.nan))


def _ranked(table: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """Return ``table`` with predictors after ``id`` and ``label``, most at risk first."""
    first = ["id", "label"]
    by = LEARNED if LEARNED in columns else EXPECTED
    ranked = pd.concat([table[first].assign(**columns), table.drop(columns=first)], axis=1)
    return ranked.sort_values(
        [by, "id"], ascending=[False, True], na_position="last", ignore_index=True
    )


def _with_measured(table: pd.DataFrame, samples: pd.DataFrame, run: Path) -> pd.DataFrame:
    """Return ``table`` with the measures of the audit in ``run``, NaN for images of other classes.

    Raises:
        RunError: the audit's images are not among these, or were judged by another target.
    """
    names = names_behind(run)
    ids = samples["id"].map(lambda name: names.get(name, name))
    audited = samples.assign(id=ids).set_index("id")
    unknown = ids[~ids.isin(table["id"])]
    if len(unknown):
        raise RunError(
            f"--learn {run}: its image {unknown.iloc[0]} is not in --private; learn from an audit of the same "
            "folder"
        )
    if "loss" in table and "loss" in audited:
        here = table.set_index("id")["loss"].loc[ids]
        apart = (here - audited["loss"]).abs() > _SAME_LOSS * (1.0 + here.abs())
        if bool(apart.any()):
            raise RunError(
                f"--learn {run}: the loss of {apart.idxmax()} there is another than --target's here; "
                "learn from an audit of the same target (--target, --mean, --std and --size alike)"
            )
    return table.assign(
        **{name: audited[name].reindex(table["id"]).astype("float64").array for name in MEASURED}
    )

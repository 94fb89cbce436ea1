"""Logs of a run, read back with each tool's own reader and compared with what the run wrote."""

from __future__ import annotations

import io
import json
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from inversight import AuditResult, audit, resume
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError
from inversight.core.loggers import Followed
from inversight.core.progress import Figures
from inversight.data import load_images
from inversight.pipeline.logs import log_attack, log_results

NAMES = ("tensorboard", "mlflow", "wandb")


@pytest.fixture
def logged(audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditResult:
    """An audit with all three logs, of which the evaluator and the end are run here, the end twice."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    shutil.copytree(audited / "run", run)
    manifest = json.loads((run / "run.json").read_text())
    manifest["given"]["log"] = list(NAMES)
    (run / "run.json").write_text(json.dumps(manifest))
    shutil.rmtree(run / "stages" / "evaluator")
    resume(run)
    return resume(run)


def values_of(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        f"metrics/{key}" + ("" if part == "value" else f"_{part}"): metric[part]
        for key, metric in metrics.items()
        for part in ("value", "low", "high")
        if metric.get(part) is not None
    }


def first_pair(run: Path) -> np.ndarray:
    row = pd.read_parquet(run / "gallery.parquet").iloc[0]
    files = (row["private_png"], row["reconstruction_png"])
    return np.hstack([np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in files])


def wandb_history(file: Path) -> dict[str, Any]:
    """Return the last value of each key in an offline run's file, which is a log as LevelDB writes it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, history = file.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the last part of a record
            record = Record.FromString(parts)
            parts = b""
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                history[key] = json.loads(item.value_json)
    return history


def test_all_logs_hold_what_the_run_wrote_in_one_run_each(logged: AuditResult) -> None:
    logs, expected = logged.run / "logs", values_of(logged.metrics)
    pair = first_pair(logged.run)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs / "tensorboard"), {"images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [e.value for e in events.Scalars(tag)] for tag in tags["scalars"]}
    assert {k: v[-1] for k, v in scalars.items() if k[:8] == "metrics/"} == pytest.approx(expected)
    assert len(scalars["evaluator/loss"]) == 3 and len(scalars["plug-and-play/loss of a class"]) > 2
    assert {"plug-and-play/reconstruction", "pictures/largest exposure"} <= set(tags["images"])
    encoded = events.Images("pictures/nearest")[0].encoded_image_string
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded)).convert("L")), pair)

    from mlflow import MlflowClient

    client = MlflowClient((logs / "mlflow").resolve().as_uri())
    experiment = client.get_experiment_by_name("inversight")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    kept = {k: v for k, v in found.data.metrics.items() if k[:8] == "metrics/"}
    assert kept == pytest.approx(expected, rel=1e-12)
    losses = client.get_metric_history(found.info.run_id, "evaluator/loss")
    assert [one.step for one in losses] == [1, 2, 3]
    assert [one.value for one in losses] == pytest.approx(scalars["evaluator/loss"])
    shown = sorted((logs / "mlflow").rglob("pictures*nearest*.png"))
    assert any(np.array_equal(np.asarray(Image.open(f).convert("L")), pair) for f in shown)

    manifest = json.loads((logged.run / "run.json").read_text())
    files = sorted((logs / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {f.stem.removeprefix("run-") for f in files} == {manifest["log_id"]}
    history = wandb_history(files[0])
    kept = {k: v for k, v in history.items() if k[:8] == "metrics/" and k != "metrics/step"}
    assert kept == pytest.approx(expected, rel=1e-12)
    assert history["evaluator/loss"] == pytest.approx(losses[-1].value)
    assert list((files[0].parent / "files" / "media").rglob("nearest*.png"))


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inversight.core.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed: pip install 'inversight\[mlf"):
        audit(out=tmp_path / "run", log=("mlflow",))
    assert not list(tmp_path.iterdir())


@dataclass
class Kept:
    """A logger that keeps what it is given."""

    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    images: dict[str, torch.Tensor] = field(default_factory=dict)

    def scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def image(self, name: str, image: torch.Tensor, step: int) -> None:
        self.images.setdefault(name, image)

    def close(self) -> None: ...


@pytest.mark.parametrize("pictures", ["none", "blurred", "full"])
def test_pictures_are_logged_only_as_images_allows(audited: Path, pictures: Any) -> None:
    kept, run = Kept(), audited / "run"
    found = load_images(run / "reconstructions", role="--reconstructions")
    folder = run / "stages" / "attack-plug-and-play"
    log_attack(Followed(Quiet(), [kept]), "plug-and-play", folder, found, pictures)
    assert [name for name, _, _ in kept.scalars] == ["plug-and-play/loss of a class"] * 2
    assert bool(kept.images) == (pictures != "none")
    for image in kept.images.values():
        assert torch.equal(image, found.images[0]) == (pictures == "full")


def test_pictures_of_other_sizes_and_colours_are_logged_beside_each_other() -> None:
    def png(mode: str, size: int, value: Any) -> bytes:
        file = io.BytesIO()
        Image.new(mode, (size, size), value).save(file, format="PNG")
        return file.getvalue()

    private, made = png("L", 32, 200), png("RGB", 16, (10, 20, 30))
    data: Any = SimpleNamespace(
        metrics={}, exposure_gallery=(),
        gallery=(SimpleNamespace(private_png=private, reconstruction_png=made),),
    )  # fmt: skip
    log_results(Followed(Quiet()), data)  # nobody follows
    kept = Kept()
    log_results(Followed(Quiet(), [kept]), data)
    (shown,) = kept.images.values()
    assert shown.shape == (3, 32, 64) and bool((shown[:, :, :32] == 200).all())
    assert shown[:, 5, 40].tolist() == [10, 20, 30]


def test_figures_of_progress_are_logged_at_most_two_hundred_times() -> None:
    kept = Kept()
    progress = Followed(Quiet(), [kept]).stage("cma-es, 8 queries")
    for done in range(1, 1001):
        progress(done, 1000, Figures("loss", loss=1.0 / done))
        progress(done, 1000, "no figure")
    assert 190 <= len(kept.scalars) <= 201
    assert kept.scalars[-1] == ("cma-es- 8 queries/loss", 0.001, 1000)

"""Published weights: checked before they are read, never unpickled, kept unchanged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inversight.core.errors import WeightsError
from inversight.embeddings import weights
from inversight.embeddings.weights import KNOWN, PublishedWeights, folder, import_weights, status
from tests.draws import normal
from tests.priors.hostile_pickles import Hostile

FILE = "vgg16-397923af.pth"
STATE = {
    name: normal(4, 3).T  # not contiguous
    for name in (*KNOWN["vgg16"].examples, "classifier.0.bias")
}
Publish = Callable[[Any], Path]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights, empty, and no other cache in reach."""
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "kept"


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Save a value, or bytes as they are, as a file whose digest is the published one."""

    def save(value: Any, file: Path = tmp_path / FILE) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            file.write_bytes(value)
        else:
            torch.save(value, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        monkeypatch.setitem(weights.KNOWN, "vgg16", replace(KNOWN["vgg16"], digest=digest))
        return file

    return save


def refused(file: Path, message: str) -> None:
    """Check that the import fails in one line that names the file."""
    with pytest.raises(WeightsError, match=message) as caught:
        import_weights(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert not folder().exists()


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_missing_weights_say_where_to_get_them(known: PublishedWeights) -> None:
    assert known.file.endswith(f"-{known.digest}.pth")
    assert status(known.name) == "missing"
    with pytest.raises(WeightsError) as caught:
        weights.load_weights(known.name)
    text = str(caught.value)
    assert "\n" not in text and f"inversight weights import {known.file}" in text
    assert all(part in text for part in (known.used_by, known.url + known.file, "public or pixel"))


def test_rejects_missing_files_and_unknown_names(tmp_path: Path) -> None:
    refused(tmp_path / FILE, "no such file")
    other = tmp_path / "vgg16-397923ab.pth"
    other.write_bytes(b"x")
    refused(other, rf"{other}: expected one of .*did you mean {FILE}\?")


@pytest.mark.parametrize("digest_fits", [False, True])
def test_a_hostile_pickle_does_not_run(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, digest_fits: bool
) -> None:
    marker = tmp_path / "marker"
    file = publish({**STATE, "extra": Hostile(os.mkdir, str(marker))})
    found = KNOWN["vgg16"].digest
    if not digest_fits:
        monkeypatch.setitem(KNOWN, "vgg16", replace(KNOWN["vgg16"], digest="397923af"))
    wrong = f"begins with {found}, expected 397923af.*fetch it again"
    refused(file, "not loaded" if digest_fits else wrong)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the payload is a real one


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "named tensors, found list"),
        ({"features.0.weight": torch.zeros(1)}, r"has no features\.28\.weight"),
        (b"", "not a file of plain tensors"),
    ],
)
def test_rejects_what_is_not_named_tensors(publish: Publish, value: Any, message: str) -> None:
    refused(publish(value), message)


def test_imported_weights_load_unchanged(publish: Publish, kept: Path) -> None:
    file = publish(STATE)
    for _ in range(2):
        path = import_weights(file)
        assert path == kept / "vgg16.safetensors" and status("vgg16") == "ok"
    found = weights.load_weights("vgg16")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[k], STATE[k]) for k in STATE)
    assert sorted(p.name for p in kept.iterdir()) == ["vgg16.json", "vgg16.safetensors"]


def test_status_and_load_of_changed_and_damaged_files(publish: Publish) -> None:
    path = import_weights(publish(STATE))
    save_file({"features.0.weight": torch.zeros(1)}, path)
    assert status("vgg16") == "changed since it was imported"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match=r"damaged.*import"):
        weights.load_weights("vgg16")
    path.with_suffix(".json").write_text("{")
    assert status("vgg16") == "no checksum was kept; import it again"


def test_uses_torchs_own_cache_if_its_checksum_fits(tmp_path: Path, publish: Any) -> None:
    file = publish(STATE, tmp_path / "hub" / "hub" / "checkpoints" / FILE)
    assert weights.load_weights("vgg16").keys() == STATE.keys()
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match="not here"):
        weights.load_weights("vgg16")


def test_folder_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder() == tmp_path / "kept"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INVERSIGHT_WEIGHTS")
    assert folder() == tmp_path / "cache" / "inversight" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder() == tmp_path / "home" / ".cache" / "inversight" / "weights"

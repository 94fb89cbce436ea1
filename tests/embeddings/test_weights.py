"""Published weights: checked before they are read, never unpickled, kept as they came."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inversight.core.errors import WeightsError
from inversight.embeddings import weights
from inversight.embeddings.weights import (
    KNOWN,
    PublishedWeights,
    folder,
    import_weights,
    load_weights,
    status,
)

FILE = "vgg16-397923af.pth"


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights, empty, and no other cache in reach."""
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "kept"


def published(file: Path, value: Any, monkeypatch: pytest.MonkeyPatch, name: str = "vgg16") -> Path:
    """Save ``value`` as ``file`` and take its digest for the published one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file)
    known = KNOWN[name]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(
        weights.KNOWN,
        name,
        PublishedWeights(name, file.name, digest, known.url, known.used_by, known.examples),
    )
    return file


def state() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    names = (*KNOWN["vgg16"].examples, "classifier.0.bias")
    return {name: torch.randn(3, 4, generator=rng) for name in names}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_missing_weights_say_where_from_how_and_what_else(known: PublishedWeights) -> None:
    assert status(known.name) == "missing"
    with pytest.raises(WeightsError) as caught:
        load_weights(known.name)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        known.used_by,
        known.url + known.file,
        f"inversight weights import {known.file}",
        "public or pixel",
    ):
        assert part in text


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_digest_is_the_one_in_the_published_name(known: PublishedWeights) -> None:
    assert known.file.endswith(f"-{known.digest}.pth")


def test_a_missing_file_and_a_name_that_is_not_published(tmp_path: Path, kept: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        import_weights(tmp_path / FILE)
    other = tmp_path / "vgg16-397923ab.pth"
    other.write_bytes(b"x")
    with pytest.raises(WeightsError, match=rf"{other}: expected one of .*did you mean {FILE}\?"):
        import_weights(other)
    assert not kept.exists()


def test_a_wrong_checksum_is_refused(tmp_path: Path, kept: Path) -> None:
    file = tmp_path / FILE
    torch.save(state(), file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    with pytest.raises(
        WeightsError, match=f"begins with {found}, expected 397923af.*fetch it again"
    ):
        import_weights(file)
    assert not kept.exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("digest_fits", [False, True])
def test_a_hostile_pickle_does_not_run(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, digest_fits: bool
) -> None:
    file, marker = tmp_path / FILE, tmp_path / "marker"
    content = {**state(), "extra": Payload(marker)}
    if digest_fits:
        published(file, content, monkeypatch)
    else:
        torch.save(content, file)
    with pytest.raises(
        WeightsError, match="not loaded" if digest_fits else "begins with"
    ) as caught:
        import_weights(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert not marker.exists() and not kept.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the payload is a real one


def test_what_is_not_named_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published(tmp_path / FILE, [torch.zeros(1)], monkeypatch)
    with pytest.raises(WeightsError, match="named tensors, found list"):
        import_weights(file)
    published(file, {"features.0.weight": torch.zeros(1)}, monkeypatch)
    with pytest.raises(WeightsError, match=r"has no features\.28\.weight"):
        import_weights(file)
    published(file, {}, monkeypatch)
    file.write_bytes(b"")
    monkeypatch.setitem(
        weights.KNOWN,
        "vgg16",
        PublishedWeights("vgg16", FILE, hashlib.sha256(b"").hexdigest()[:8], "", "lpips-vgg", ()),
    )
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        import_weights(file)


def test_import_then_status_and_load(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = state()
    tensors["features.0.weight"] = tensors["features.0.weight"].T  # not contiguous
    file = published(tmp_path / FILE, tensors, monkeypatch)
    path = import_weights(file)
    assert path == kept / "vgg16.safetensors"
    assert status("vgg16") == "ok"
    found = load_weights("vgg16")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert sorted(p.name for p in kept.iterdir()) == ["vgg16.json", "vgg16.safetensors"]
    assert import_weights(file) == path and status("vgg16") == "ok"


def test_status_and_load_of_changed_and_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = import_weights(published(tmp_path / FILE, state(), monkeypatch))
    save_file({"features.0.weight": torch.zeros(1)}, path)
    assert status("vgg16") == "changed since it was imported"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match=r"damaged.*import"):
        load_weights("vgg16")
    path.with_suffix(".json").write_text("{")
    assert status("vgg16") == "no checksum was kept; import it again"


def test_torchs_own_cache_serves_if_its_checksum_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published(tmp_path / "hub" / "hub" / "checkpoints" / FILE, state(), monkeypatch)
    assert load_weights("vgg16").keys() == state().keys()
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match="not here"):
        load_weights("vgg16")


def test_where_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder() == tmp_path / "kept"
    monkeypatch.delenv("INVERSIGHT_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert folder() == tmp_path / "cache" / "inversight" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder() == tmp_path / "home" / ".cache" / "inversight" / "weights"

"""What ``uv build`` packs."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation import ROOT

PACKAGE = ROOT / "src" / "inversight"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".pgm")
DATA = (".npz", ".npy", ".parquet", ".safetensors", ".pt", ".pth", ".pkl", ".gz", ".zip")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sdist, and the wheel that is built from it."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([uv, "build", "-q", "--out-dir", folder, ROOT], check=True)
    yield folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(archive.read(metadata))
    expected = {
        f"inversight/{file.relative_to(PACKAGE).as_posix()}"
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert names == expected
    assert {"inversight/py.typed", "inversight/report/templates/words.toml"} <= names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plain = [r for r in facts.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert len(plain) == len(project["dependencies"])
    assert facts["Requires-Python"] == project["requires-python"]
    assert facts["License-Expression"] == project["license"]
    assert str(facts.get_payload()).startswith("# inversight")


def test_the_sdist_holds_sources_and_no_data(built: Path) -> None:
    """uv builds the wheel from it, so it is complete."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "examples/recipe.py"} <= names
    assert {"tests", "docs", "benchmarks"} <= {name.partition("/")[0] for name in names}
    pictures = {name for name in names if name.lower().endswith(PICTURES)}
    assert pictures and all(name.startswith("docs/") for name in pictures)
    assert not [n for n in names if n.lower().endswith(DATA) or n.startswith(("shared", "runs"))]
    assert not [n for n in names if n.startswith("docs/") and n.endswith(".json")]

"""What is loaded for what is asked: PyTorch takes seconds, which a help text is not worth."""

from __future__ import annotations

import subprocess
import sys

import pytest

import inversight

HEAVY = ("torch", "torchvision", "pandas", "scipy", "sklearn", "matplotlib", "timm")
"""Packages that take half a second and more."""


def loaded(code: str) -> set[str]:
    """Packages that a new interpreter has loaded after ``code``."""
    told = "import sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["audit", "--privat", "x"]])
def test_help_and_typing_errors_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['inversight', *{arguments}]\n"
        "from inversight.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert not loaded(code) & set(HEAVY)


def test_settings_load_no_pytorch() -> None:
    assert not loaded("import inversight.settings; inversight.settings.resolve({})") & set(HEAVY)


def test_an_audit_is_prepared_without_what_few_of_them_need() -> None:
    found = loaded("import inversight.pipeline.audit")
    assert "torch" in found and not found & {"torchvision", "sklearn", "timm", "cmaes"}


def test_the_package_gives_what_it_names() -> None:
    for name in inversight.__all__:
        assert getattr(inversight, name).__name__ == name
    assert set(inversight.__all__) <= set(dir(inversight))
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        inversight.audits  # noqa: B018

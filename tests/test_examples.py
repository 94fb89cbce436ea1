"""Everything in examples/ runs, and does what its comments say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inversight.data import load_digits
from inversight.models.recipes import load_recipe
from inversight.models.target import accuracy_on
from inversight.settings import Training

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def in_the_folder_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody works who has copied one of them."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_recipe() -> None:
    """It passes the trial of an audit without a warning, and learns digits that it was not trained on."""
    digits, cpu = load_digits(seed=0), torch.device("cpu")
    recipe = load_recipe("recipe:train", training=Training(), image_shape=(1, 8, 8))
    assert recipe.check(digits.private, device=cpu) == ()
    target = recipe.fit(digits.private, seed=0, device=cpu)
    assert digits.holdout is not None
    assert accuracy_on(target, digits.private) > 0.9 and accuracy_on(target, digits.holdout) > 0.6


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested

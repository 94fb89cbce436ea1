"""Fixtures of the tests of reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inversight.report import defences, exposure, page


@pytest.fixture(scope="session", autouse=True)
def drawn() -> Iterator[dict[str, Any]]:
    """Draw equal figures once a session, because most tests are about the text; return them."""
    found: dict[str, Any] = {}

    def reuse(draw: Callable[..., Any]) -> Callable[..., Any]:
        def figure(*values: Any) -> Any:
            key = f"{draw.__name__}{values}"
            if key not in found:
                found[key] = draw(*values)
            return found[key]

        return figure

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (page, "score_histogram"), (page, "distance_histogram"), (defences, "trade_off"),
            (exposure, "exposure_figure"),
        ):  # fmt: skip
            patch.setattr(module, name, reuse(getattr(module, name)))
        yield found

"""How tests check that something wrong is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inversight.core.errors import InputError


@contextmanager
def refused(*parts: str, error: type[Exception] = InputError) -> Iterator[None]:
    """Check that the block raises an ``error`` whose message is one line that holds each of ``parts``."""
    with pytest.raises(error) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text

"""Fixtures of the tests of the adaptation."""

from __future__ import annotations

from tests.priors.conftest import prior as prior

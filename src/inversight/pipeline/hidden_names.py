"""Names of images and classes as keyed hashes, for runs whose ledger is shown to others."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inversight.core.run import write_json

_FILE = "private-ids.json"


@contextmanager
def hidden_names(run: Path) -> Iterator[Callable[[str], str]]:
    """Names -> keyed hashes; the key and the names go to RUN/private-ids.json."""
    file = run / _FILE
    known = json.loads(file.read_text()) if file.is_file() else {"key": secrets.token_hex(16)}
    key = bytes.fromhex(known["key"])

    def hide(name: str) -> str:
        digest = hashlib.blake2b(name.encode(), key=key, digest_size=6).hexdigest()
        known[digest] = name
        return digest

    yield hide
    write_json(file, known)


def names_behind(run: Path) -> dict[str, str]:
    """Each hash that :func:`hidden_names` gave in this run -> the name, and "key" -> the key."""
    found: dict[str, str] = json.loads((run / _FILE).read_text())
    return found

"""Makes docstrings readable as pages: roles become links, and paragraphs of fields become lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([^`]+)`")
_NAME = re.compile(r"(?:^|(?<=[.;)] ))(\w+): ")


class Readable(griffe.Extension):
    """Rewrites each docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is None:
            return
        names = {p.name for p in obj.parameters} if obj.is_function else set(obj.members)
        parts = obj.docstring.value.split("\n\n")
        parts = [as_list(part, names) for part in parts]
        obj.docstring.value = _ROLE.sub(_link, "\n\n".join(parts))


def as_list(paragraph: str, names: set[str]) -> str:
    """Return a paragraph such as ``images: (N, C, H, W). labels: (N,).`` as a list.

    Any other paragraph is returned as it is. ``names``: fields or parameters, which begin an item.
    """
    text = " ".join(paragraph.split())
    starts = [found for found in _NAME.finditer(text) if found[1] in names]
    if not starts or starts[0].start() != 0:
        return paragraph
    ends = [found.start() for found in starts[1:]] + [len(text)]
    items = zip(starts, ends, strict=True)
    return "\n".join(f"- `{f[1]}`: {text[f.end() : end].strip()}" for f, end in items)


def _link(found: re.Match[str]) -> str:
    """Return a link to a name, where the site has it, or the name as code."""
    name = found[1]
    if "." not in name:
        return f"`{name}`"
    shown = name.rpartition(".")[2]
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'

"""What mkdocs cannot do by itself: pages made from the program, links out of docs/, a check of the site.

A page has a marker, ``<!-- generated: NAME -->``, which a function below replaces.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from inversight.cli.app import app
from inversight.core.config import annotation_parts, choices, is_settings, settings_fields
from inversight.report.words import METRICS, SAMPLE_COLUMNS
from inversight.settings import ARMS, AuditSettings, PriorTraining, attack_budgets, stage_budgets
from inversight.settings.presets import PRESETS

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.inversight")
_MARKER = re.compile(r"<!-- generated: (\w+) -->")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)\)")
_PAGES = {"CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Pages of files beside docs/."""


# Pages of examples, and links that leave docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file in examples/."""
    for path in sorted((ROOT / "examples").iterdir()):
        if path.stem == "run_notebooks":
            continue
        text = path.read_text(encoding="utf-8") if path.suffix in (".py", ".ipynb") else ""
        if path.suffix == ".py":
            code = f"# {path.name}\n\nFrom the folder `examples`.\n\n```python\n{text}```\n"
            files.append(File.generated(config, f"examples/{path.stem}.md", content=code))
        elif path.suffix == ".ipynb":
            shown, pictures = notebook_page(path.stem, json.loads(text))
            files.append(File.generated(config, f"examples/{path.stem}.md", content=shown))
            for name, data in pictures.items():
                files.append(File.generated(config, f"examples/{name}", content=data))
    return files


def notebook_page(stem: str, notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as Markdown, and its pictures by file name."""
    from base64 import b64decode

    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures)}.png"
                pictures[name] = b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the generated parts, and turn links to files outside of docs/ into links to pages."""
    markdown = _MARKER.sub(lambda found: _GENERATED[found[1]](), markdown)
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, path = found.groups()
        address = posixpath.normpath(posixpath.join("docs", folder, path))
        if "://" in path:
            return found[0]
        if address.startswith("docs/"):
            # [risk.md](risk.md), which says where to look in the repository, has the page's title here.
            named = text == posixpath.basename(path) and (ROOT / address).is_file()
            return f"[{_title(ROOT / address)}]({path})" if named else found[0]
        if not (ROOT / address).exists():
            LOG.warning("%s: there is no %s", page.file.src_uri, address)
        other = _PAGES.get(address)
        if address.startswith("examples/"):
            other = re.sub(r"\.(py|ipynb)$", ".md", address)
        # Other files of the repository have no page: their name is left.
        return text if other is None else f"[{text}]({posixpath.relpath(other, folder or '.')})"

    return _LINK.sub(link, markdown)


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def changelog() -> str:
    """Return CHANGELOG.md without its title, with its links as seen from docs/."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.partition("\n")[2].replace("](docs/", "](")


# The command line


def commands() -> str:
    """Return every command with its options."""
    return "\n".join(_command_parts(typer.main.get_command(app), "inversight"))


def _command_parts(command: Any, name: str) -> Iterator[str]:
    """Yield the lines about a command, or those about all commands of a group."""
    if hasattr(command, "commands"):
        for word, below in command.commands.items():
            yield from _command_parts(below, f"{name} {word}")
        return
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = " ".join(command.collect_usage_pieces(context))
    meaning = " ".join((command.help or "").split())
    yield f"## {name}\n\n{meaning}\n\n```text\n{name} {pieces}\n```\n"
    yield '<div class="options" markdown>\n\n| option | default | meaning |\n|---|---|---|'
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            yield _option_row(parameter, *record)
    yield "\n</div>\n"


def _option_row(parameter: Any, names: str, meaning: str) -> str:
    """Return the row of an option; its default is in brackets behind its meaning, or its field's."""
    meaning, _, more = meaning.partition("  [")
    default = re.search(r"default: ([^;\]]*)", more)
    field = settings_fields(AuditSettings).get(parameter.name)
    value = default[1] if default else ""
    if not value and field is not None and "--" in names:
        found = field.get_default(call_default_factory=True)
        value = "" if found is None or found is False or found == () else _plain(found)
    shown = f"`{value}`" if value else "required" if "required" in more else ""
    return _row(f"`{names}`", shown, meaning)


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    return str(value)


def _row(*cells: str) -> str:
    shown = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(shown)} |"


# The settings


def settings() -> str:
    """Return every setting of an audit with its type, its default and its meaning."""
    lines = ["## Of the audit\n", *_settings_table(AuditSettings)]
    for name, field in settings_fields(AuditSettings).items():
        if is_settings(field.annotation):
            default = field.get_default(call_default_factory=True)
            lines += [f"\n## {name}\n", f"{_text(field.description)}\n"]
            lines += _settings_table(field.annotation, default, prefix=f"{name}.")
    lines += ["\n## prior\n", "Of the style-based prior that the audit trains.\n"]
    lines += _settings_table(PriorTraining, prefix="prior.")
    return "\n".join(lines)


def _settings_table(cls: Any, instance: Any = None, prefix: str = "") -> list[str]:
    lines = ['<div class="options" markdown>\n', "| setting | default | meaning |", "|---|---|---|"]
    for name, field in settings_fields(cls).items():
        if is_settings(field.annotation):
            continue
        value = (
            getattr(instance, name)
            if instance is not None
            else field.get_default(call_default_factory=True)
        )
        shown = "none" if value is None or value in ((), "") else _plain(value)
        meaning = _text(field.description)
        known = [f"`{c}`" for c in choices(field) if c]
        if known and not all(c.strip("`") in meaning for c in known):
            meaning = f"{meaning} One of {', '.join(known)}."
        lines.append(
            _row(f"`{prefix}{name}`", f"`{shown}`", f"{meaning} *{_kind(field.annotation)}*")
        )
    return [*lines, "\n</div>"]


def _text(description: str | None) -> str:
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join((description or "").split()))


def _kind(annotation: Any) -> str:
    """Return a type in plain words."""
    words = {
        bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path",
        dict: "mapping",
    }  # fmt: skip
    parts = list(annotation_parts(annotation))
    found = [word for kind, word in words.items() if kind in parts]
    several = ", one or several" if tuple in parts else ""
    return " or ".join(found) + several


def presets() -> str:
    """Return what each preset sets, for images of one's own."""
    found = {p: dict(_flat(stage_budgets(p))) for p in PRESETS}
    for preset in PRESETS:
        for attack, budget in attack_budgets(preset).items():
            found[preset].update(_flat(budget, f"{attack}: "))
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    lines = [f"| setting | {' | '.join(PRESETS)} |", f"|---|{'---|' * len(PRESETS)}"]
    for name in names:
        lines.append(_row(f"`{name}`", *(_plain(found[p].get(name, "")) for p in PRESETS)))
    return "\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def arms() -> str:
    """Return the arms, their meanings and the access that they need."""
    lines = ["| arm | what guides the generator | least access |", "|---|---|---|"]
    lines += [_row(f"`{a.name}`", a.meaning, a.least_access) for a in ARMS.values()]
    return "\n".join(lines)


def columns() -> str:
    """Return the columns of samples.parquet."""
    lines = ["| column | type | there | meaning |", "|---|---|---|---|"]
    for name, column in SAMPLE_COLUMNS.items():
        meaning = f"{column.meaning}{_direction(column.worse)}"
        lines.append(_row(f"`{name}`", column.dtype, column.when, meaning))
    return "\n".join(lines)


def metrics() -> str:
    """Return the keys of metrics.json."""
    lines = ["| key | name in the report | meaning |", "|---|---|---|"]
    lines += [
        _row(f"`{key}`", word.name, f"{word.meaning}{_direction(word.worse)}")
        for key, word in METRICS.items()
    ]
    return "\n".join(lines)


def _direction(worse: str) -> str:
    return f" *Worse if {worse}.*" if worse else ""


_GENERATED: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (arms, changelog, columns, commands, metrics, presets, settings)
}


# The check of the built site


class _Loaded(HTMLParser):
    """Collects the addresses of what a page loads by itself; links that a reader follows are not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag != "a":
            self.found += [named[n] for n in ("src", "srcset", "data", "poster") if n in named]
        if tag == "link" and named.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(named.get("href", ""))
        self.found += re.findall(r"url\(([^)]*)\)", named.get("style", ""))


def on_post_build(config: MkDocsConfig) -> None:
    """Warn, and so fail a strict build, where a page or a style sheet loads something from a host."""
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        _warn_of_hosts(page.relative_to(site), parser.found)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        _warn_of_hosts(
            sheet.relative_to(site), re.findall(r"""(?:url\(|@import )["']?([^"')]*)""", text)
        )


def _warn_of_hosts(file: Path, addresses: list[str]) -> None:
    for address in addresses:
        if re.match(r"\s*(\w+:)?//", address):
            LOG.warning("%s loads %s, which is on another host", file, address)

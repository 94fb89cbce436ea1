"""The command line's entry point: the commands, and what wrong use and failures print."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from inversight.cli.audit import audit
from inversight.cli.defend import defend
from inversight.cli.expose import expose
from inversight.cli.launch import wait_passively
from inversight.cli.printing import complain
from inversight.cli.report import compare, report
from inversight.cli.score import score
from inversight.cli.stages import adapt, attack, prior_import, prior_train, train
from inversight.cli.triage import triage
from inversight.cli.weights import weights_check, weights_import, weights_list
from inversight.core.config import nearest
from inversight.core.errors import InversightError

_MEANING = "Which of your training images could an attacker reconstruct from your classifier?"
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of what a wrong command line raises; typer may carry its own copy of click."""


def _group(
    meaning: str, commands: dict[str, Callable[..., Any]], *, completion: bool = False
) -> typer.Typer:
    """Return a group of commands by their names; the outermost can install its shell completion."""
    group = typer.Typer(
        add_completion=completion, no_args_is_help=True, rich_markup_mode=None, help=meaning
    )
    for name, command in commands.items():
        group.command(name)(command)
    return group


app = _group(
    _MEANING,
    {
        "audit": audit, "train": train, "adapt": adapt, "attack": attack, "score": score,
        "expose": expose, "defend": defend, "triage": triage, "report": report, "compare": compare,
    },
    completion=True,
)  # fmt: skip
app.add_typer(
    _group(
        "Published weights of perceptual and Inception networks.",
        {"list": weights_list, "check": weights_check, "import": weights_import},
    ),
    name="weights",
)
app.add_typer(
    _group("Priors: generators of images.", {"train": prior_train, "import": prior_import}),
    name="prior",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"inversight {importlib.metadata.version('inversight')}")
        raise typer.Exit


@app.callback(help=_MEANING)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options that stand before a command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong input, 3 done and --fail-on holds."""
    wait_passively()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*(pkg_resources|lazily).*")
    try:
        code = typer.main.get_command(app).main(
            args=arguments, prog_name="inversight", standalone_mode=False
        )
    except typer.Abort:
        code = 130
    except Exception as error:
        code, text = _failure(error)
        if text is None:
            raise
        complain(text)
    sys.exit(code if isinstance(code, int) else 0)


def _failure(error: Exception) -> tuple[int, str | None]:
    """Return the exit code and the message of an error; no message for an unexpected one."""
    if isinstance(error, InversightError):
        return error.exit_code, str(error)
    if isinstance(error, _UsageError):
        return 2, _usage(error)
    from inversight.core.device import is_out_of_memory
    from inversight.core.run import is_disk_full

    if is_out_of_memory(error):
        return 1, "out of memory: lower --memory, or use a smaller --preset"
    if is_disk_full(error):
        return 1, "no room on the disk: make room, then run the same command again"
    return 1, None


def _usage(error: Any) -> str:
    """Return the message of a wrong command line in one line, with the nearest right name."""
    text = " ".join(error.format_message().split()) or "no command; try inversight --help"
    context = getattr(error, "ctx", None)
    if "o such option" in text and context is not None:
        known = [o for p in context.command.params for o in p.opts]
        return f"no such option {error.option_name}{nearest(error.option_name, known)}"
    if "o such command" in text and context is not None:
        word = text.split("'")[1]
        return f"no such command {word}{nearest(word, context.command.commands)}"
    return text

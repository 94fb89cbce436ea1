"""The command ``defend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running
from inversight.cli.options import assigned, setting_options
from inversight.core.config import nearest
from inversight.core.errors import ConfigError
from inversight.settings import DEFENCES


@setting_options("device", unset=True)
def defend(
    run: Annotated[Path, typer.Argument(help="A finished audit with a holdout.")],
    defence: Annotated[
        list[str] | None,
        typer.Option(help=f"Defence: {', '.join(DEFENCES)}, package.module:Class; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default RUN/defences.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each model; from 2 on there are intervals.")
    ] = 1,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack in addition to the audit's; repeatable. Without a black-box attack, cma-es "
            "is added."
        ),
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the private images that sample-level defences protect, nearest first; "
            "default: the flagged images, or a tenth if none is flagged."
        ),
    ] = None,
    accuracy_loss: Annotated[
        float, typer.Option(help="Loss of holdout accuracy that a recommended defence may cost.")
    ] = 0.02,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A defence's setting, as in --set mid.weight=0.01; repeatable."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that trains and audits the models: local, auto or HOST:PORT. Private images "
            "are sent to it."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Train defended models, attack each again, and compare their accuracy and what is reconstructed.

    If it is stopped, the same command continues.
    """
    from inversight.pipeline.defend import defend as run_defend
    from inversight.report.defences import render_defences_text

    specs = defence_specs(defence or [], assigned(set_))
    with running(out or run / "defences", "the same command again") as terminal:
        result = run_defend(
            run, specs, out=out, seeds=seeds, attacks=tuple(attack or ()), protect=protect,
            tolerance=accuracy_loss, ray=ray, reporter=terminal, **options,
        )  # fmt: skip
    typer.echo(f"{render_defences_text(result.found)}\n\nReport: {result.report}")


def defence_specs(names: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the defences with their ``settings``, a mapping for each defence's (class) name.

    Raises:
        ConfigError: settings of a defence that is not among ``names``.
    """
    known = [name.rpartition(":")[2] for name in names]
    for name, values in settings.items():
        if name not in known or not isinstance(values, dict):
            raise ConfigError(
                f"--set {name}: expected DEFENCE.SETTING=VALUE of a defence that is given with "
                f"--defence{nearest(name, known)}"
            )
    return [{"class": n, **settings.get(k, {})} for k, n in zip(known, names, strict=True)]

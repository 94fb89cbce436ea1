"""Single stages of an audit: ``train``, ``prior train``, ``prior import``, ``adapt`` and ``attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running, running_stage
from inversight.cli.options import MODEL, Network, SetOption, assigned, model_spec, setting_options
from inversight.settings import ATTACK_NAMES

Target = Annotated[str, typer.Option(help="The target, named as for audit.")]
Prior = Annotated[
    Path, typer.Option(help="What `inversight prior train`, `prior import` or `adapt` wrote.")
]
Watched = Annotated[
    str,
    typer.Option(
        help="Features of the Frechet distance that is reported during training: public (trains a "
        "small network on the public images first), inception, pixel, package.module:Class, or none."
    ),
]


@setting_options("private", "size", "seed", "device", required=["private"])
def train(
    out: Annotated[Path, typer.Option(help="Folder for the trained classifier.")],
    set_: SetOption = None,
    **options: Any,
) -> None:
    """Train a small classifier on a folder; --target OUT audits it."""
    from inversight.core.device import pick_device
    from inversight.pipeline.context import Context
    from inversight.pipeline.train import train as run

    private, seed, device = (options.pop(name) for name in ("private", "seed", "device"))
    with running() as terminal:
        context = Context(seed, pick_device(device), terminal)
        path, line = run(private, out, given=assigned(set_), context=context, **options)
    typer.echo(
        f"{line}\n{path}\naudit it with: inversight audit --target {out} --private {private}"
    )


@setting_options("public", "size", "seed", "device", required=["public"])
def prior_train(
    out: Annotated[Path, typer.Option(help="Folder for the prior.")],
    features: Watched = "public",
    network: Network = None,
    set_: SetOption = None,
    **options: Any,
) -> None:
    """Train a style-based prior on public images; OUT/samples and OUT/progress.json show progress.

    On several GPUs: accelerate launch -m inversight prior train ...
    """
    from inversight.pipeline.prior import train_prior

    with running_stage(options, out, "prior train again with the same --out") as context:
        path = train_prior(
            options.pop("public"), out, features=features, network=network, given=assigned(set_),
            context=context, **options,
        )  # fmt: skip
    if context.processes.main:
        typer.echo(str(path))


def prior_import(
    file: Annotated[Path, typer.Argument(help="Networks as StyleGAN2-ADA's code pickled them.")],
    out: Annotated[Path, typer.Option(help="Folder for the prior.")],
) -> None:
    """Import published StyleGAN2-ADA networks, running nothing that is in the file."""
    from inversight.pipeline.prior import import_prior

    path, line = import_prior(file, out)
    typer.echo(
        f"{line}\n{path}\nadapt it with: inversight adapt --prior {out} --target TARGET --public DIR"
    )


@setting_options(
    "public", "arm", "guidance_embedding", *MODEL, "preset", "seed", "device", required=["public"]
)
def adapt(
    prior: Prior,
    target: Target,
    out: Annotated[Path, typer.Option(help="Folder for the adapted prior.")],
    features: Watched = "public",
    network: Network = None,
    set_: SetOption = None,
    **options: Any,
) -> None:
    """Fine-tune a prior against a target; OUT/samples and OUT/progress.json show progress.

    On several GPUs: accelerate launch -m inversight adapt ...
    """
    from inversight.pipeline.adapt import adapt as run_adapt

    with running_stage(options, out, "adapt again with the same --out") as context:
        path = run_adapt(
            prior, options.pop("public"), out, model=model_spec(target, options), features=features,
            network=network, given=assigned(set_), context=context, **options,
        )  # fmt: skip
    if context.processes.main:
        typer.echo(str(path))


@setting_options(*MODEL, "limit", "preset", "seed", "device")
def attack(
    prior: Prior,
    target: Annotated[
        str,
        typer.Option(
            help="The target, named as for audit, or a service: endpoint:URL[?access=label]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the reconstructions.")],
    attack: Annotated[str, typer.Option(help=f"{', '.join(ATTACK_NAMES)}.")] = "plug-and-play",
    endpoint_header: Annotated[
        list[str] | None,
        typer.Option(
            help="For a service: NAME=VARIABLE sends the value of an environment variable as header "
            "NAME, as in Authorization=TOKEN; repeatable."
        ),
    ] = None,
    set_: SetOption = None,
    **options: Any,
) -> None:
    """Attack a target with a prior; `score` measures the reconstructions.

    On several GPUs: accelerate launch -m inversight attack ...
    """
    from inversight.pipeline.attack import attack as run_attack

    model = model_spec(target, options, headers=tuple(endpoint_header or ()))
    with running_stage(options) as context:
        path = run_attack(
            prior, out, model=model, attack=attack, given=assigned(set_), context=context, **options
        )
    if context.processes.main:
        typer.echo(
            f"{path}\nscore it with: inversight score --reconstructions {path} --private DIR"
        )

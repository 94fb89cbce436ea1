"""The command line: parses, builds, calls the library."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inversight.core.config import documented_yaml, merge, nearest, parse_assignment, read_yaml
from inversight.core.console import Terminal
from inversight.core.errors import ConfigError, InversightError
from inversight.settings import ARMS, ATTACKS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Which of your training images could an attacker reconstruct from your classifier?",
)
weights_app = typer.Typer(
    no_args_is_help=True, help="Published weights of perceptual and Inception networks."
)
prior_app = typer.Typer(no_args_is_help=True, help="Priors: generators of images.")
app.add_typer(weights_app, name="weights")
app.add_typer(prior_app, name="prior")

_SHOWN = 10
"""Images that triage prints."""
_PATHS = ("private", "holdout", "public", "classes")

Private = Annotated[
    Path | None,
    typer.Option(help="Folder of the target's training images, one subfolder a class."),
]
Holdout = Annotated[
    Path | None, typer.Option(help="Folder of images of the same classes, never trained on.")
]
Public = Annotated[
    Path | None, typer.Option(help="Folder of images an attacker has; classes optional.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Model under audit: timm:NAME?weights=FILE, package.module:factory?weights=FILE, "
        "what `inversight train` wrote, or a TorchScript / torch.export file."
    ),
]
Evaluator = Annotated[str | None, typer.Option(help="Independent classifier, named as a target.")]
Classes = Annotated[
    Path | None, typer.Option(help="File: the model's class names in output order, one a line.")
]
Mean = Annotated[str | None, typer.Option(help="Normalisation, 1 or 3 numbers: 0.5,0.5,0.5")]
Size = Annotated[int | None, typer.Option(help="The target's input size; images are resized.")]
Trust = Annotated[
    bool, typer.Option("--trust-target", help="Load a file that runs code when loaded.")
]
Preset = Annotated[str | None, typer.Option(help="quick, standard or thorough.")]
Seed = Annotated[int | None, typer.Option(help="All randomness derives from it.")]
Config = Annotated[Path | None, typer.Option(help="YAML file, as --print-config prints it.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/audit-DATE-TIME.")]
EmbeddingOption = Annotated[str | None, typer.Option(help="Distance that scores use.")]
Features = Annotated[
    str | None, typer.Option(help="Features of coverage, precision, recall, Frechet.")
]
Guidance = Annotated[str | None, typer.Option(help="Metric of the natural gradient.")]
Attacks = Annotated[
    list[str] | None,
    typer.Option(help=f"Attack to run: {', '.join(ATTACKS)} or package.module:Class; repeatable."),
]
ArmOption = Annotated[
    str | None, typer.Option(help=f"How the prior is adapted: {', '.join(ARMS)}.")
]
Images = Annotated[str | None, typer.Option(help="Pictures in the report: none, blurred, full.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting, as in --set prior.steps=500; repeatable."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")]
Limit = Annotated[int | None, typer.Option(help="Audit the first so many classes only.")]
Network = Annotated[
    Path | None,
    typer.Option(help="Public network that a run trained (RUN/stages/public-network)."),
]
Watched = Annotated[
    str,
    typer.Option(
        help="Features of the Frechet distance told on the way: public (trains a small network on "
        "the public images first), inception, pixel, package.module:Class; none: samples alone."
    ),
]
PriorOption = Annotated[
    Path,
    typer.Option(help="What `inversight prior train`, `prior import` or `adapt` wrote."),
]
PriorChoice = Annotated[
    str | None,
    typer.Option(
        help="Prior made before: what `inversight prior train`, `prior import` or `adapt` wrote, "
        "or package.module:Class; default: train one on the public images."
    ),
]
ModelOption = Annotated[str, typer.Option(help="The target, named as for audit.")]
Memory = Annotated[int | None, typer.Option(help="Bytes that features may take.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option(help="psnr, ssim or dists of each image and its nearest; repeatable."),
]


FailOn = Annotated[
    list[str] | None,
    typer.Option(help='Exit with 3 if this holds, as in "coverage>0.2"; repeatable.'),
]
Overlap = Annotated[bool, typer.Option("--allow-overlap", help="Go on although sets share images.")]
Rate = Annotated[
    float | None,
    typer.Option(help="Accepted share of false alarms among flagged images, as 0.1."),
]


def _given(
    options: dict[str, Any], config: Path | None, assignments: list[str] | None
) -> dict[str, Any]:
    """Flags over assignments over the file."""
    values = read_yaml(config) if config is not None else {}
    for text in assignments or []:
        values = merge(values, parse_assignment(text))
    flags = {name: value for name, value in options.items() if value is not None}
    unused = next((t for t in assignments or [] if t.startswith("prior.")), None)
    if "prior" in flags and unused is not None:
        raise ConfigError(
            f"--set {unused}: is a setting of the prior that an audit trains, and --prior "
            f"{flags['prior']} names one; leave one of the two out"
        )
    for name in ("mean", "std"):
        if isinstance(flags.get(name), str):
            flags[name] = _numbers(name, flags[name])
    return merge(values, flags)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--{name} {text}: expected numbers with commas between them") from None


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--{name} {text}: expected whole numbers with commas between them")
    return tuple(sorted({int(part) for part in parts}))


def _pairs(names: list[str] | None) -> tuple[Any, ...]:
    from inversight.settings import PAIR_MEASURES

    for name in names or ():
        if name not in PAIR_MEASURES:
            raise ConfigError(
                f"--pairs {name}: expected one of {', '.join(PAIR_MEASURES)}"
                f"{nearest(name, PAIR_MEASURES)}"
            )
    return tuple(dict.fromkeys(names)) if names else ("psnr",)


def _model(
    target: str, classes: Path | None, mean: str | None, std: str | None, size: int | None,
    trust: bool,
) -> Any:  # fmt: skip
    from inversight.models.spec import ModelSpec

    return ModelSpec(
        target,
        classes,
        None if mean is None else _numbers("mean", mean),
        None if std is None else _numbers("std", std),
        size,
        trust,
    )


@contextmanager
def _processes(device: str) -> Iterator[Any]:
    """The processes that this one was launched among, parted from in the end."""
    from inversight.core.processes import launched

    processes = launched(device)
    try:
        yield processes
    except InversightError as error:
        if processes.told and not processes.main:
            raise typer.Exit(error.exit_code) from error  # the main one says it for all
        raise
    # Not after an error: the others would wait for this one. Who launched them ends them.
    processes.close()


def _alone(command: str) -> None:
    """Refuse to be one of several processes, which would all write the same.

    Raises:
        ConfigError: this is one.
    """
    several = int(os.environ.get("WORLD_SIZE", "1"))
    if several > 1:
        raise ConfigError(
            f"{command} is the work of one process, and was launched as {several}; run it without "
            "accelerate launch, which prior train, adapt and attack can be given"
        )


@app.command()
def audit(
    private: Private = None,
    holdout: Holdout = None,
    public: Public = None,
    target: TargetOption = None,
    evaluator: Evaluator = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Mean = None,
    size: Size = None,
    trust_target: Trust = False,
    allow_overlap: Overlap = False,
    prior: PriorChoice = None,
    preset: Preset = None,
    seed: Seed = None,
    config: Config = None,
    out: Out = None,
    embedding: EmbeddingOption = None,
    features: Features = None,
    guidance_embedding: Guidance = None,
    attack: Attacks = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Risk against queries: run each attack again with 100,1000,... at most."),
    ] = None,
    arm: ArmOption = None,
    images: Images = None,
    hash_ids: Annotated[
        bool, typer.Option("--hash-ids", help="Hash file and class names in ledger and report.")
    ] = False,
    memory: Memory = None,
    pairs: Pairs = None,
    fdr: Rate = None,
    limit: Limit = None,
    device: Device = None,
    fail_on: FailOn = None,
    set_: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this stopped run.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with its meaning.")
    ] = False,
) -> None:
    """Audit a classifier; with no argument, a demonstration on handwritten digits."""
    options = dict(
        private=private, holdout=holdout, public=public, target=target, evaluator=evaluator,
        classes=classes, mean=mean, std=std, size=size, trust_target=trust_target or None,
        allow_overlap=allow_overlap or None, prior=prior, preset=preset, seed=seed,
        embedding=embedding,
        features=features, guidance_embedding=guidance_embedding,
        attack=list(attack) if attack else None, arm=arm, images=images,
        budget=None if budget is None else _whole_numbers("budget", budget),
        hash_ids=hash_ids or None, memory=memory,
        pairs=_pairs(pairs) if pairs else None, fdr=fdr, limit=limit, device=device,
        fail_on=tuple(fail_on) if fail_on else None,
    )  # fmt: skip
    _alone("audit")
    given = _given(options, config, set_)
    from inversight.pipeline import audit as run_audit
    from inversight.pipeline import default_folder
    from inversight.pipeline import resume as resume_run
    from inversight.settings import resolve

    if print_config:
        typer.echo(documented_yaml(resolve(given)))
        return
    terminal = Terminal()
    if resume is not None:
        if given or out is not None:
            raise ConfigError("--resume RUN takes its settings from the run; leave the others out")
        folder = resume
    else:
        folder = out or default_folder()
    with _Interruptible(folder), terminal.live():
        if resume is not None:
            result = resume_run(resume, reporter=terminal)
        else:
            result = run_audit(out=folder, reporter=terminal, **given)
    _finish(result)


def _finish(result: Any) -> None:
    """Print what was found; exit with 3 if a threshold of --fail-on holds."""
    _print_result(result)
    if result.exceeded:
        _complain(f"--fail-on: {', '.join(result.crossed)}")
        raise typer.Exit(3)


@app.command()
def train(
    private: Annotated[Path, typer.Option(help="Folder of training images.")],
    out: Annotated[Path, typer.Option(help="Folder for the trained classifier.")],
    size: Size = None,
    seed: Annotated[int, typer.Option(help="All randomness derives from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    set_: Set = None,
) -> None:
    """Train a small classifier on a folder; --target OUT audits it."""
    _alone("train")
    from inversight.pipeline.stages import train as run

    terminal = Terminal()
    with terminal.live():
        path, line = run(
            private, out, size=size, seed=seed, device=device, given=_given({}, None, set_),
            reporter=terminal,
        )  # fmt: skip
    typer.echo(
        f"{line}\n{path}\naudit it with: inversight audit --target {out} --private {private}"
    )


@prior_app.command("train")
def prior_train(
    public: Annotated[Path, typer.Option(help="Folder of public images.")],
    out: Annotated[Path, typer.Option(help="Folder for the prior.")],
    size: Size = None,
    features: Watched = "public",
    network: Network = None,
    seed: Annotated[int, typer.Option(help="All randomness derives from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    set_: Set = None,
) -> None:
    """Train a style-based prior on public images; OUT/samples and OUT/progress.json show how it goes.

    On several GPUs: accelerate launch -m inversight prior train ...
    """
    from inversight.pipeline.stages import train_prior_stage

    terminal = Terminal()
    with (
        _processes(device) as processes,
        _Interruptible(out, "prior train again with the same --out"),
        terminal.live(processes.main),
    ):
        path = train_prior_stage(
            public, out, size=size, features=features, network=network, seed=seed, device=device,
            given=_given({}, None, set_), reporter=terminal, processes=processes,
        )  # fmt: skip
    if processes.main:
        typer.echo(str(path))


@prior_app.command("import")
def prior_import(
    file: Annotated[Path, typer.Argument(help="Networks as StyleGAN2-ADA's code pickled them.")],
    out: Annotated[Path, typer.Option(help="Folder for the prior.")],
) -> None:
    """Import published StyleGAN2-ADA networks, running nothing that is in the file."""
    from inversight.pipeline.stages import import_prior_stage

    path, line = import_prior_stage(file, out)
    typer.echo(
        f"{line}\n{path}\nadapt it with: inversight adapt --prior {out} --target TARGET --public DIR"
    )


@app.command()
def adapt(
    prior: PriorOption,
    target: ModelOption,
    public: Annotated[Path, typer.Option(help="Folder of public images.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapted prior.")],
    arm: Annotated[str, typer.Option(help=f"How the prior is adapted: {', '.join(ARMS)}.")] = (
        "natural-gradient"
    ),
    guidance_embedding: Annotated[
        str, typer.Option(help="Metric of the natural gradient.")
    ] = "lpips-vgg",
    features: Watched = "public",
    network: Network = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Mean = None,
    size: Size = None,
    trust_target: Trust = False,
    preset: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "quick",
    seed: Annotated[int, typer.Option(help="All randomness derives from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    set_: Set = None,
) -> None:
    """Fine-tune a prior against a target; OUT/samples and OUT/progress.json show how it goes.

    On several GPUs: accelerate launch -m inversight adapt ...
    """
    from inversight.pipeline.stages import adapt_stage

    terminal = Terminal()
    with (
        _processes(device) as processes,
        _Interruptible(out, "adapt again with the same --out"),
        terminal.live(processes.main),
    ):
        path = adapt_stage(
            prior, public, out, model=_model(target, classes, mean, std, size, trust_target),
            arm=arm, guidance_embedding=guidance_embedding, features=features, network=network,
            preset=preset, seed=seed, device=device, given=_given({}, None, set_),
            reporter=terminal, processes=processes,
        )  # fmt: skip
    if processes.main:
        typer.echo(str(path))


@app.command()
def attack(
    prior: PriorOption,
    target: Annotated[
        str,
        typer.Option(
            help="The target, named as for audit, or a service: endpoint:URL[?access=label]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the reconstructions.")],
    attack: Annotated[
        str,
        typer.Option(help=f"{', '.join(ATTACKS)} or package.module:Class."),
    ] = "plug-and-play",
    classes: Classes = None,
    mean: Mean = None,
    std: Mean = None,
    size: Size = None,
    trust_target: Trust = False,
    endpoint_header: Annotated[
        list[str] | None,
        typer.Option(
            help="For a service: NAME=VARIABLE sends what the environment variable holds as header "
            "NAME, as in Authorization=TOKEN; repeatable."
        ),
    ] = None,
    limit: Limit = None,
    preset: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "quick",
    seed: Annotated[int, typer.Option(help="All randomness derives from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    set_: Set = None,
) -> None:
    """Attack a target with a prior; `score` measures what comes out.

    On several GPUs: accelerate launch -m inversight attack ...
    """
    from inversight.pipeline.stages import attack_stage

    terminal = Terminal()
    with _processes(device) as processes, terminal.live(processes.main):
        path = attack_stage(
            prior, out,
            model=replace(
                _model(target, classes, mean, std, size, trust_target),
                headers=tuple(endpoint_header or ()),
            ),
            attack=attack, limit=limit, preset=preset, seed=seed, device=device,
            given=_given({}, None, set_), reporter=terminal, processes=processes,
        )  # fmt: skip
    if processes.main:
        typer.echo(
            f"{path}\nscore it with: inversight score --reconstructions {path} --private DIR"
        )


@app.command()
def score(
    reconstructions: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of reconstructions, one subfolder a class; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    private: Annotated[Path | None, typer.Option(help="Folder of private images.")] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="A finished run: its private images, embeddings and reconstructions are taken "
            "over, and only the new reconstructions are compared."
        ),
    ] = None,
    holdout: Holdout = None,
    embedding: EmbeddingOption = None,
    features: Features = None,
    public: Public = None,
    evaluator: Evaluator = None,
    classes: Classes = None,
    trust_target: Trust = False,
    allow_overlap: Overlap = False,
    network: Network = None,
    size: Size = None,
    pairs: Pairs = None,
    fdr: Rate = None,
    fail_on: FailOn = None,
    memory: Annotated[int, typer.Option(help="Bytes that features may take.")] = 2 << 30,
    seed: Annotated[int, typer.Option(help="All randomness derives from it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    resume: Annotated[Path | None, typer.Option(help="Go on with this stopped scoring.")] = None,
) -> None:
    """Score any folders of reconstructions, whoever made them."""
    _alone("score")
    from inversight.pipeline.score_folders import Against, resume_scoring, score_folders
    from inversight.settings import DEFAULT_FDR

    if resume is not None:
        if reconstructions or out or private or reuse:
            raise ConfigError("--resume RUN takes everything from the run; leave the others out")
        terminal = Terminal()
        how = f"inversight score --resume {resume}"
        with _Interruptible(resume, how), terminal.live():
            result = resume_scoring(
                resume, device=device, reporter=terminal, fail_on=tuple(fail_on or ())
            )
        _finish(result)
        return
    if not reconstructions or out is None:
        missing = "--out" if reconstructions else "--reconstructions"
        raise ConfigError(f"{missing} is missing; see inversight score --help")
    named = dict(
        private=private, holdout=holdout, embedding=embedding, features=features, public=public,
        evaluator=evaluator, classes=classes, network=network, size=size, pairs=pairs,
    )  # fmt: skip
    if reuse is not None:
        twice = next((name for name, value in named.items() if value), None)
        if twice is not None:
            raise ConfigError(
                f"--reuse takes --{twice} from the run; leave it out, or score without --reuse"
            )
        against = Against.of_run(reuse)
        if trust_target:
            against = replace(against, trust=True)
    else:
        if private is None:
            raise ConfigError(
                "--private is missing: give the folder of private images, or --reuse RUN"
            )
        distance = embedding or "lpips-vgg"
        against = Against(
            private=private, holdout=holdout, embedding=distance,
            features=features or ("inception" if distance.startswith("lpips") else distance),
            public=public, network=network, evaluator=evaluator, classes=classes, size=size,
            trust=trust_target, pairs=_pairs(pairs), allow_overlap=allow_overlap,
        )  # fmt: skip
    terminal = Terminal()
    with _Interruptible(out, f"inversight score --resume {out}"), terminal.live():
        result = score_folders(
            against, reconstructions, out=out, reuse=reuse, memory=memory, seed=seed,
            fdr=DEFAULT_FDR if fdr is None else fdr, device=device, reporter=terminal,
            fail_on=tuple(fail_on or ()),
        )  # fmt: skip
    _finish(result)


@app.command()
def defend(
    run: Annotated[Path, typer.Argument(help="A finished audit with a holdout.")],
    defence: Annotated[
        list[str] | None,
        typer.Option(help="Name or package.module:Class; repeatable. See docs/defences.md."),
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
            help="Attack beside the audit's own; repeatable. Without a black-box one, "
            "cma-es is added."
        ),
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            help="Share of the private images that sample-level defences protect, most exposed "
            "first; default: the flagged ones, or a tenth where none is flagged."
        ),
    ] = None,
    accuracy_loss: Annotated[
        float, typer.Option(help="Loss of holdout accuracy that a recommended defence may cost.")
    ] = 0.02,
    device: Device = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A defence's setting, as in --set mid.weight=0.01; repeatable."),
    ] = None,
) -> None:
    """Train defended models, attack each of them anew, and compare what they cost and what they save.

    Stopped, the same command goes on.
    """
    _alone("defend")
    from inversight.pipeline.defend import defend as run_defend
    from inversight.report.defences import render_defences_text

    specs = _defences(list(defence or ()), list(set_ or ()))
    terminal = Terminal()
    with (
        _Interruptible(out or run / "defences", "the same command again"),
        terminal.live(),
    ):
        result = run_defend(
            run, specs, out=out, seeds=seeds, attacks=tuple(attack or ()), protect=protect,
            tolerance=accuracy_loss, device=device, reporter=terminal,
        )  # fmt: skip
    typer.echo(f"{render_defences_text(result.found)}\n\nReport: {result.report}")


def _defences(names: list[str], assignments: list[str]) -> list[str | dict[str, Any]]:
    """Defences with the settings that --set gives them."""
    settings: dict[str, Any] = {}
    for text in assignments:
        settings = merge(settings, parse_assignment(text))
    known = [name.rpartition(":")[2] for name in names]
    for name, values in settings.items():
        if name not in known or not isinstance(values, dict):
            raise ConfigError(
                f"--set {name}: expected DEFENCE.SETTING=VALUE of a defence that is given with "
                f"--defence{nearest(name, known)}"
            )
    return [
        {"class": name, **settings[short]} if short in settings else name
        for short, name in zip(known, names, strict=True)
    ]


@app.command()
def triage(
    run: Annotated[
        Path | None,
        typer.Argument(help="A finished audit: its signals against what it measured."),
    ] = None,
    private: Private = None,
    target: TargetOption = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Earlier state of the target's training, oldest first; repeatable."),
    ] = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Mean = None,
    size: Size = None,
    trust_target: Trust = False,
    learn: Annotated[
        Path | None,
        typer.Option(help="Audit of some of the classes (audit --limit N) to learn from."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for triage.parquet and triage.json.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Rank private images by how exposed they are likely to be, in seconds, without an attack."""
    from inversight.core.run import check_new_folder
    from inversight.pipeline.triage_stage import triage_private, triage_run, write_triage

    given = dict(
        private=private, target=target, checkpoint=checkpoint, classes=classes, mean=mean, std=std,
        size=size, trust_target=trust_target, learn=learn,
    )  # fmt: skip
    if run is not None:
        other = next((name for name, value in given.items() if value), None)
        if other is not None:
            option = other.replace("_", "-")
            raise ConfigError(f"triage RUN takes everything from the run; leave --{option} out")
    elif private is None or target is None or out is None:
        missing = "private" if private is None else "target" if target is None else "out"
        raise ConfigError(
            f"--{missing} is missing: give RUN, or --private DIR --target SPEC --out DIR"
        )
    if out is not None:
        check_new_folder(out, needed_bytes=10_000_000)
    if run is not None:
        found = triage_run(run)
    elif private is not None and target is not None:
        model = _model(target, classes, mean, std, size, trust_target)
        terminal = Terminal()
        with terminal.live():
            found = triage_private(
                private, model, checkpoints=checkpoint or (), learn_from=learn, device=device,
                reporter=terminal,
            )  # fmt: skip
    if out is not None:
        write_triage(found, out)
    _print_triage(found, out)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write RUN/report.html again from the run's tables, without pictures."""
    from inversight.pipeline.stages import report_again

    typer.echo(str(report_again(run)))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run folder.")],
) -> None:
    """Print two runs side by side."""
    from inversight.report import compare as compare_runs
    from inversight.report import render_text

    typer.echo(render_text(compare_runs(first, second)))


@weights_app.command("list")
def weights_list() -> None:
    """Which published weights there are, what uses them, and whether they are here."""
    from inversight.embeddings.weights import KNOWN, folder, status

    table = Table("name", "used by", "published file", "state", title=str(folder()))
    for known in KNOWN.values():
        table.add_row(known.name, known.used_by, known.file, status(known.name))
    Console().print(table)


@weights_app.command("check")
def weights_check() -> None:
    """Read every kept file again and compare its checksum; exit 2 if one is not as it was."""
    from inversight.core.errors import WeightsError
    from inversight.embeddings.weights import KNOWN, status

    for name in KNOWN:
        state = status(name)
        typer.echo(f"{name}: {state}")
        if state not in ("ok", "missing"):
            raise WeightsError(f"weights {name}: {state}; import them again")


@weights_app.command("import")
def weights_import(file: Annotated[Path, typer.Argument(help="The published file.")]) -> None:
    """Check a published weights file and keep it."""
    from inversight.embeddings.weights import import_weights

    typer.echo(str(import_weights(file)))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"inversight {importlib.metadata.version('inversight')}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which of your training images could an attacker reconstruct from your classifier?"""


class _Interruptible:
    """Ctrl-C and SIGTERM stop with one line that says how to go on."""

    def __init__(self, folder: Path, how: str | None = None) -> None:
        self.folder = folder
        self.how = how or f"inversight audit --resume {folder}"

    def __enter__(self) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        self.before = signal.signal(signal.SIGTERM, stop)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)
        if kind is KeyboardInterrupt:
            begun = any((self.folder / f).exists() for f in ("run.json", "training.json", "runs"))
            _complain(
                f"stopped; go on with: {self.how}"
                if begun
                else "stopped before anything was written"
            )
            raise SystemExit(130)


def _print_result(result: Any) -> None:
    console = Console(highlight=False)
    table = Table("metric", "value", "95 % interval", box=None, pad_edge=False)
    for key, found in result.metrics.items():
        if found["value"] is None:
            continue
        low, high = found.get("low"), found.get("high")
        interval = f"{low:.3g} to {high:.3g}" if low is not None and high is not None else ""
        name = key if not found.get("features") else f"{key} ({found['features']})"
        table.add_row(name, f"{found['value']:.4g}", interval)
    console.print(table)
    from inversight.core.run import read_manifest
    from inversight.report import summary

    console.print(f"\n{summary(result.metrics)}", markup=False, soft_wrap=True)

    _print_sets(console, result)
    manifest = read_manifest(result.run)
    queries = manifest.get("queries") or {}
    if queries:
        sent = ", ".join(f"{name} {count:,}" for name, count in queries.items())
        console.print(f"\nImages sent to the target: {sent}", markup=False, soft_wrap=True)
    stages = manifest.get("stages", [])
    if stages:
        took = ", ".join(f"{s['name']} {s['seconds']:.1f} s" for s in stages)
        console.print(f"\nStages: {took}", markup=False, soft_wrap=True)
    console.print("\nNearest to a reconstruction of their class:")
    for row in result.samples.head(3).itertuples():
        console.print(
            f"  {row.id}  distance {row.nearest_distance:.4g}  nearest {row.nearest_reconstruction}",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"\nReport: {result.report}", markup=False, soft_wrap=True)


def _print_triage(found: Any, out: Path | None) -> None:
    """Most exposed first, and how far signals agree with what was measured."""
    from inversight.pipeline.triage_stage import EXPECTED, LEARNED, TABLE
    from inversight.report.words import number, visible

    console = Console(highlight=False)
    keys = [k for k in (LEARNED, EXPECTED, "nearest_distance", "twins") if k in found.table]
    table = Table("image", "class", *keys, box=None, pad_edge=False)
    for row in found.table.head(_SHOWN).to_dict("records"):
        cells = [number(None if row[k] is None else row[k]) for k in keys]
        table.add_row(*(escape(visible(str(c))) for c in (row["id"], row["label"], *cells)))
    console.print("Most exposed as far as signals tell (higher is more exposed):")
    console.print(table)
    for measure, by in found.agreement.items():
        what = {"nearest_distance": "nearness (-nearest_distance)"}.get(measure, measure)
        console.print(f"\nSpearman correlation with {what}, {found.measured_in}:", markup=False)
        table = Table(
            "signal", "value", "95 % interval", "within classes", box=None, pad_edge=False
        )
        for name, one in by.items():
            interval = "" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"
            within = one.extra.get("within")
            table.add_row(
                name,
                "-" if one.value is None else f"{one.value:.2f}",
                interval,
                "" if within is None else f"{within:.2f}",
            )
        console.print(table)
        if measure in found.best:
            console.print(f"best single signal, here: {found.best[measure]}", markup=False)
    for note in found.notes:
        console.print(note, markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"\n{out / TABLE}", markup=False, soft_wrap=True)


def _print_sets(console: Console, result: Any) -> None:
    """Each set of reconstructions beside the others, where there are several."""
    from inversight.report.reading import read_mapping

    by_set = read_mapping(result.run, "metrics_by_set.json")
    if len(by_set) < 2:
        return
    nearest = result.samples["nearest_set"].value_counts()
    table = Table("reconstructions", "nearest of", box=None, pad_edge=False)
    keys = [k for k in ("ddcs_best", "covered", "coverage", "accuracy_top1") if k in result.metrics]
    for key in keys:
        table.add_column(key)
    for name, metrics in by_set.items():
        values = [metrics[key]["value"] for key in keys]
        images = f"{nearest.get(name, 0)} images"
        table.add_row(name, images, *("-" if v is None else f"{v:.4g}" for v in values))
    console.print()
    console.print(table)


def _complain(text: str) -> None:
    print(f"inversight: {' '.join(text.split())}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes as in the documentation: 0, 1, 2, 3."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*(pkg_resources|lazily).*")
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="inversight", standalone_mode=False)
    except InversightError as error:
        _complain(str(error))
        code = error.exit_code
    except (MemoryError, RuntimeError) as error:
        from inversight.core.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _complain("out of memory: lower --memory, or use a smaller --preset")
        code = 1
    except typer.Abort:
        code = 130
    except _UsageError as error:
        _complain(_usage(error))
        code = 2
    except Exception as error:
        from inversight.core.run import is_disk_full

        if not is_disk_full(error):
            raise
        _complain("no room on the disk: make room, then run the same command again")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of what a wrong command line raises; typer may carry its own copy of click."""


def _usage(error: Any) -> str:
    """The message in one line, with the nearest right name."""
    text = " ".join(error.format_message().split()) or "no command; try inversight --help"
    context = getattr(error, "ctx", None)
    if "o such option" in text and context is not None:
        known = [o for p in context.command.params for o in p.opts]
        return f"no such option {error.option_name}{nearest(error.option_name, known)}"
    if "o such command" in text and context is not None:
        word = text.split("'")[1]
        return f"no such command {word}{nearest(word, context.command.commands)}"
    return text

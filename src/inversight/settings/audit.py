"""The settings of an audit, and how they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qs

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from inversight.core.config import (
    IMPORT_PATH,
    Choice,
    Part,
    documented_yaml,
    from_mapping,
    merge,
    part,
    settings,
)
from inversight.core.errors import ConfigError
from inversight.settings.names import ARMS, BLACK_BOX, EMBEDDINGS, AccessName
from inversight.settings.presets import Preset, attack_budgets, stage_budgets, with_budget
from inversight.settings.stages import Adaptation, PriorTraining, Training, resolve_prior_training
from inversight.settings.strongest import ATTACK_NAMES, attack_part

Pictures = Literal["none", "blurred", "full"]

PairMeasure = Literal["psnr", "ssim", "dists"]
LoggerName = Literal["tensorboard", "mlflow", "wandb"]
PAIR_MEASURES: tuple[PairMeasure, ...] = get_args(PairMeasure)

DEFAULT_FDR = 0.1
"""Accepted rate of false discoveries among flagged images."""

MiB = 1024**2


def shadow_models(value: Any) -> Any:
    """Return a number of shadow models, or "auto", as it was given.

    Raises:
        ValueError: neither, or a number that pairs of models cannot make up.
    """
    if value == "auto":
        return value
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        raise ValueError("expected auto, 0, or an even number of at least 4")
    if int(text) not in (0, *range(4, 1 << 16, 2)):
        raise ValueError(
            "expected auto, 0, or an even number of at least 4, since models come in pairs that are "
            "trained on complementary halves"
        )
    return int(text)


def input_size(value: Any) -> int | tuple[int, int]:
    """Return N, or the height and width of HEIGHTxWIDTH or a pair.

    Raises:
        ValueError: neither, or out of range.
    """
    sides = value if isinstance(value, (list, tuple)) else str(value).lower().split("x")
    numbers = [int(side) for side in map(str, sides) if side.isascii() and side.isdigit()]
    if len(numbers) != len(sides) or len(numbers) > 2 or not all(8 <= n <= 1024 for n in numbers):
        raise ValueError(
            "expected N, such as 64, or HEIGHTxWIDTH, such as 112x96, of 8 to 1024 pixels"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


EmbeddingName = Annotated[str, Choice(dict.fromkeys((*EMBEDDINGS, IMPORT_PATH), ""))]
ImageSize = Annotated[int, Field(ge=8, le=1024)]


@settings
class AuditSettings:
    """All settings of an audit.

    Options of the command line take precedence over the file, and the file over the preset.
    """

    private: Path | None = None
    """Training images of the target: a folder with one subfolder for each class, or a CSV, Parquet, npz or IDX
    file, FILE:SPLIT for one of its splits. None: scikit-learn's digits are audited."""
    holdout: Path | None = None
    """Images of the same classes that the target was not trained on, given like private."""
    public: Path | None = None
    """Images that an attacker has, given like private; classes are optional."""
    data: Path | None = None
    """File or folder with splits inside, for what private, holdout and public do not give: train or private is
    private, test, t10k or holdout is the holdout, and val, valid, validation, dev or public is public."""
    splits: str | None = None
    """Other roles for the splits of data, as in private=train+extra,holdout=test,public=val."""
    target: str | None = None
    """The model under audit: a folder of transformers, timm or `inversight train`, timm:NAME?weights=FILE,
    torchvision:NAME?weights=FILE, package.module:factory?weights=FILE, a file of ONNX, TorchScript or
    torch.export, or a service, endpoint:URL[?access=label]. None: one is trained."""
    access: AccessName | None = None
    """What an attacker gets of the target: white-box, scores or label. None: all that it gives, which is
    scores of an ONNX file, and of a service what its address says. With less than white-box, the attack
    is by default cma-es (scores) or brep-mi (label), and the arm vanilla."""
    endpoint_header: tuple[str, ...] = ()
    """For a service: NAME=VARIABLE sends the value of an environment variable as header NAME, as in
    Authorization=TOKEN."""
    group_by: str | None = None
    """How images are grouped, such as by person or burst: a column of the table that lists them, a regular
    expression searched in the path below the folder, or FILE.csv[:COLUMN] with columns id and group. Images
    of a group count as one where independence matters. The name is what the group called group matches, else
    the first group, else the whole expression. None: near-duplicates count as one."""
    evaluator: str | None = None
    """The independent classifier that judges reconstructions, named like a target. None: one is
    trained."""
    classes: Path | None = None
    """File with the target's class names in the order of its outputs, one a line."""
    mean: tuple[float, ...] | None = None
    """Mean by which the target's input is normalised: 1 or 3 numbers, for images in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Standard deviation by which the target's input is normalised: 1 or 3 numbers."""
    size: Annotated[int | tuple[int, int], BeforeValidator(input_size)] | None = None
    """Height and width of the target's input, to which images are resized: N for squares (shorter side to N,
    centre cut out), or HEIGHTxWIDTH, whose images are worked on as squares of the longer side. None: the
    images' own."""
    trust_target: bool = False
    """Load a TorchScript or torch.export file, which can run any code."""
    frozen_until: str | None = None
    """Name of the target's last layer that training did not change, such as backbone or layer4. What comes
    behind it is a head that was trained on its features: the attack weight-reconstruction looks for them, and
    the embedding backbone compares them. None: found where parameters of the model need no gradient."""
    allow_overlap: bool = False
    """Continue although private, public or holdout images overlap, which invalidates the result."""
    preset: Preset = "quick"
    """Budget of all stages."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps."""
    limit: PositiveInt | None = None
    """Number of classes to audit, in order. None: all."""
    embedding: EmbeddingName = "lpips-vgg"
    """Distance of the scores."""
    features: EmbeddingName = "inception"
    """Features for coverage, density, precision, recall and the Frechet distance."""
    guidance_embedding: EmbeddingName = "lpips-vgg"
    """Metric of the natural gradient. An attacker must have it, so evaluator is refused."""
    arm: Annotated[str, Choice({arm.name: arm.meaning for arm in ARMS.values()})] = (
        "natural-gradient"
    )
    """What guides the fine-tuning of the prior against the target, beside the adversarial loss."""
    attack: Annotated[tuple[str | dict[str, Any], ...], Choice(dict.fromkeys(ATTACK_NAMES, ""))] = (
        "plug-and-play",
    )
    """Attacks to run. In a file an attack is a name or a mapping {class: NAME, setting: value}. strongest is
    the attack that did best in our measurements, by the target's access and the image size."""
    budget: Annotated[
        tuple[PositiveInt, ...], AfterValidator(lambda numbers: tuple(sorted(set(numbers))))
    ] = ()
    """Numbers of queries, as in 100,1000: each attack is run again with at most that many images sent to
    the target for all classes together. Each step of a white-box attack counts as well; budget.parquet
    has the results."""
    prior: str | dict[str, Any] = Field(default_factory=lambda: {"class": "style"})
    """The prior: style (trained on the public images), package.module:Class, or a folder or file that
    `inversight prior train`, `prior import` or `adapt` wrote. In a file also {class: NAME, setting:
    value}."""
    working_size: ImageSize = 32
    """Largest image size of networks that the audit trains, the prior included. Reconstructions have the
    size of the prior's images."""
    target_training: Training = Field(default_factory=Training)
    """Training of the target if none is given."""
    evaluator_training: Training = Field(default_factory=lambda: Training(architecture="vgg"))
    """Training of the evaluator if none is given."""
    public_training: Training = Field(default_factory=Training)
    """Training of the public network, which the embedding public uses."""
    adaptation: Adaptation = Field(default_factory=Adaptation)
    """Fine-tuning of the prior against the target."""
    shadows: Annotated[int | str, BeforeValidator(shadow_models)] = "auto"
    """Shadow models, an even number of at least 4: models that are trained on random halves of the private
    and holdout images and attacked alike, which shows what training on each image changed (exposure). 0:
    none. auto: by the preset (quick 16, standard 32, thorough 64), if the recipe is known and they take at
    most twice as long as the rest."""
    recipe: str | None = None
    """How the given target was trained, so that shadow models can be: package.module:train, a function
    train(dataset, *, classes, seed, device) of one's own that returns a torch.nn.Module, or
    timm:NAME[?weights=FILE], which is trained or fine-tuned with the settings of target_training. None: not
    known, if a target is given. A target that the audit trains is its own recipe."""
    shadow_pairs: PositiveInt = 2
    """Pairs of shadow models that are trained together, which saves time. Results are the same bits for the
    same number alone."""
    adapt_shadows: bool = False
    """Adapt the prior to each shadow model before its attack, as to the target."""
    exposure_embedding: Annotated[
        str | None, Choice(dict.fromkeys((*EMBEDDINGS, IMPORT_PATH), ""))
    ] = None
    """Distance by which exposure is measured. None: embedding."""
    exposure_nearest: PositiveInt = 3
    """Nearest reconstructions whose distances to an image are averaged for its exposure. More of them lower the
    noise, fewer see what only one reconstruction shows."""
    keep_shadows: bool = False
    """Keep the weights and all reconstructions of every shadow model in stages/shadows."""
    workers: PositiveInt | None = None
    """Processes that train and attack shadow models. None: one for each core on a CPU, one on a GPU. With ray:
    on every machine with as many cores as this one, or on every GPU."""
    threads: PositiveInt | None = None
    """Threads of the CPU, divided among the processes that train and attack shadow models. The last bits of
    results depend on it. None: for each stage the number that is fastest in a short trial, at most one for
    each core, or OMP_NUM_THREADS; --resume keeps the numbers."""
    ray: str | None = None
    """Ray cluster on which shadow models are trained and attacked: local (started on this machine), auto
    (the one that runs here), HOST:PORT or ray://HOST:PORT. Private images are sent to it. None: no Ray."""
    images: Pictures = "none"
    """Pictures in the report. Private images and reconstructions are blurred alike."""
    hash_ids: bool = False
    """Replace file and class names by hashes in the ledger and the report."""
    memory: Annotated[int, Field(ge=16 * MiB)] = 2048 * MiB
    """Bytes for features and distances, without the networks."""
    pairs: tuple[PairMeasure, ...] = ("psnr",)
    """Measures between each private image and its nearest reconstruction. Of these dists is slow."""
    fdr: Annotated[float, Field(gt=0.0, lt=1.0)] = DEFAULT_FDR
    """Accepted false discovery rate among flagged images; needs a holdout."""
    log: tuple[LoggerName, ...] = ()
    """Follow the run in tensorboard, mlflow or wandb, each of which needs the extra of its name. Everything
    is written below the run folder, unless MLFLOW_TRACKING_URI or WANDB_MODE says otherwise; pictures
    only as images allows."""
    fail_on: str | tuple[str, ...] | None = None
    """Exit with 3 if a condition on metrics.json holds, as in "coverage>0.2"."""

    @property
    def exposure_distance(self) -> str:
        """The name of the embedding by which exposure is measured."""
        return self.exposure_embedding or self.embedding


def resolve(given: dict[str, Any]) -> AuditSettings:
    """Return settings from what was given, on top of the preset, on top of the defaults.

    Raises:
        ConfigError: an unknown name, a value out of range, or settings that contradict each other.
    """
    preset = str(given.get("preset", "quick"))
    digits = given.get("private") is None and given.get("data") is None
    budget = merge({"prior": {"class": "style"}}, stage_budgets(preset, digits=digits))
    values = lay(budget, given)
    budgets = attack_budgets(preset, digits=digits)
    access = expected_access(values.get("target"), values.get("access"))
    usual = BLACK_BOX.get(access, ("plug-and-play",))[0]
    if access in BLACK_BOX and values.get("arm") is None:
        values["arm"] = "vanilla"
    specs = [{"class": usual, **spec} for spec in values.get("attack") or [{}]]
    values["attack"] = [with_budget(spec, budgets) for spec in specs]
    settings_ = from_mapping(AuditSettings, values)
    _check(settings_)
    return settings_


def expected_access(target: Any, given: Any = None) -> str:
    """Return the access that attackers get, as far as the target's name and ``given`` (--access) tell.

    A file is looked into only when it is loaded.
    """
    name, _, query = str(target or "").partition("?")
    if given is not None:
        return str(given)
    if name.startswith("endpoint:"):
        return parse_qs(query).get("access", ["scores"])[-1]
    return "scores" if name.lower().endswith(".onnx") else "white-box"


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the settings of ``over`` laid on top.

    Mappings are merged key by key. Settings of the prior are dropped where ``over`` names another one,
    and settings of attacks without a class (``attack: {steps: 5}``) change every attack.

    Raises:
        ConfigError: settings of the prior together with the path of a prior that exists.
    """
    merged, both = merge(base, over), (base, over)
    if "prior" in merged:
        merged["prior"] = _lay_prior(*(_prior_spec(given.get("prior", {})) for given in both))
    if "attack" in base and "attack" in over:
        merged["attack"] = _lay_attacks(*(_attack_specs(given["attack"]) for given in both))
    elif "attack" in merged:
        merged["attack"] = _attack_specs(merged["attack"])
    return merged


def _prior_spec(prior: Any) -> Any:
    """Return the mapping of a prior that is named by its class; others as they are."""
    if prior == "style" or (isinstance(prior, str) and ":" in prior and not Path(prior).exists()):
        return {"class": prior}
    return prior


def _lay_prior(base: Any, over: Any) -> Any:
    for path, values in ((base, over), (over, base)):
        if isinstance(path, str) and isinstance(values, dict) and values and "class" not in values:
            raise ConfigError(
                f"prior.{next(iter(values))}: is a setting of a prior that the audit trains, "
                f"but prior is {path}, which exists; leave one of the two out"
            )
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return base if over == {} else over
    same = base.get("class", over.get("class")) == over.get("class", base.get("class"))
    return merge(base, over) if same else over


def _attack_specs(attack: Any) -> list[dict[str, Any]]:
    """Return the attacks as mappings, whatever way they were given.

    Raises:
        ConfigError: none of the ways.
    """
    specs = attack if isinstance(attack, (list, tuple)) else [] if attack is None else [attack]
    if wrong := [spec for spec in specs if not isinstance(spec, (str, dict))]:
        raise ConfigError(f"attack: expected names, or mappings with a class, found {wrong[0]!r}")
    return [{"class": spec} if isinstance(spec, str) else dict(spec) for spec in specs]


def _lay_attacks(base: list[dict[str, Any]], over: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(over) == 1 and "class" not in over[0] and base:
        return [merge(spec, over[0]) for spec in base]
    if len(base) == 1 and "class" not in base[0]:
        return [merge(base[0], spec) for spec in over]
    return over


def documented(settings_: AuditSettings) -> str:
    """Return all settings as YAML with their meanings, those of the attacks and of the prior too.

    ``resolve`` makes the same settings of it again.

    Raises:
        ConfigError: settings of an attack or of the prior that it does not have.
    """
    parts: dict[str, Any] = {"attack": [attack_part(spec) for spec in settings_.attack]}
    training = prior_training(settings_)
    if training is not None:
        parts["prior"] = Part("style", PriorTraining, training)
    elif isinstance(settings_.prior, dict):
        parts["prior"] = part(settings_.prior, {}, role="prior")
    return documented_yaml(settings_, parts)


def prior_path(settings_: AuditSettings) -> Path | None:
    """Return the file or folder of an existing prior, None if the prior is trained or is a class."""
    spec = _prior_spec(settings_.prior)
    return Path(spec) if isinstance(spec, str) else None


def prior_training(settings_: AuditSettings) -> PriorTraining | None:
    """Return how the style-based prior is trained, None for another prior.

    Raises:
        ConfigError: a setting that it does not have.
    """
    spec = _prior_spec(settings_.prior)
    if isinstance(spec, str) or spec.get("class", "style") != "style":
        return None
    values = {name: value for name, value in spec.items() if name != "class"}
    return resolve_prior_training(values, size=settings_.working_size)


def check_guidance_embedding(name: str) -> None:
    """Refuse an embedding that an attacker cannot have.

    Raises:
        ConfigError: it is the evaluator's.
    """
    if name == "evaluator":
        raise ConfigError(
            "--guidance-embedding evaluator: has seen the private images, which an attacker has not; "
            "use public, pixel, lpips-vgg, lpips-alex or lpips-squeeze"
        )


def _check(settings_: AuditSettings) -> None:
    check_guidance_embedding(settings_.guidance_embedding)
    own = settings_.private is not None or settings_.data is not None
    if own and settings_.public is None and settings_.data is None:
        raise ConfigError(
            "--public is missing: give images of the same kind that an attacker could have"
        )
    if settings_.splits is not None and settings_.data is None:
        raise ConfigError(
            "--splits says which splits of --data are which; give --data FILE as well"
        )
    for name in ("holdout", "public", "group_by", "target", "size"):
        if not own and getattr(settings_, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} needs --private as well: without --private the audit "
                "is of the embedded digits"
            )
    if settings_.recipe is not None and settings_.target is None:
        raise ConfigError(
            "--recipe needs --target as well: without --target the audit trains the target itself, and "
            "shadow models like it"
        )
    readable = expected_access(settings_.target) == "white-box"
    if settings_.frozen_until is not None and not (settings_.target and readable):
        raise ConfigError(
            "--frozen-until: is for a --target whose layers can be read; give --target, or leave it out"
        )
    if settings_.endpoint_header and not (settings_.target or "").startswith("endpoint:"):
        raise ConfigError("--endpoint-header: is for a --target endpoint:URL; leave it out")
    for name in ("mean", "std"):
        value = getattr(settings_, name)
        if value is not None and len(value) not in (1, 3):
            raise ConfigError(f"--{name}: expected 1 or 3 numbers, found {len(value)}")
    if settings_.std is not None and min(settings_.std) <= 0:
        raise ConfigError("--std: expected numbers above 0")

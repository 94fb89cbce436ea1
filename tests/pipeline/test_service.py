"""`inversight attack` against a service: finished classes are kept, and the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inversight.attacks import load_latents
from inversight.core.seeding import generator
from inversight.priors import StylePrior, train_prior
from inversight.settings import PriorTraining
from tests.attacks.service import Answer, Service, good, labels, probabilities, serving
from tests.attacks.test_endpoint import status
from tests.command import CommandLine

CMA = (
    "--attack cma-es --set pool=40 --set searches=2 --set population=4 --set generations=3 "
    "--set keep=2 --set crops=2"
)
BREP = (
    "--attack brep-mi --set pool=20 --set pools=1 --set searches=2 --set points=3 "
    "--set iterations=2 --set keep=2"
)
LOKT = "--attack lokt --set images=60 --set surrogates=1"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator(0), dtype=torch.uint8)
    training = PriorTraining(steps=1, batch_size=4, width=2)
    train_prior(images, training=training, rng=generator(0)).save(file)
    return file


@pytest.fixture
def service(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    Path("prior.safetensors").symlink_to(prior)
    Path("classes.txt").write_text("left\nright\ndark\n")
    with serving(Service(probabilities)) as one:
        yield one


def target(service: Service, query: str = "") -> str:
    return f"--prior prior.safetensors --target endpoint:{service.url}?retries=1&pause=0.01{query}"


def attack(service: Service, settings: str, query: str = "") -> str:
    """Return the command line of an attack."""
    return f"attack {target(service, query)} --classes classes.txt --out out {settings}"


def names() -> list[str]:
    return sorted(p.relative_to("out").as_posix() for p in Path("out").rglob("*.png"))


def test_a_service_is_attacked_like_a_model(
    service: Service, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, pools = StylePrior._made, []

    def made(self: StylePrior, latents: Tensor) -> Tensor:
        pools.extend([latents] if len(latents) == 40 else [])
        return generate(self, latents)

    monkeypatch.setattr(StylePrior, "_made", made)
    out = cli.succeeds(attack(service, CMA))[0]
    assert "inversight score --reconstructions out/reconstructions" in out
    assert names() == [
        f"reconstructions/{c}/cma-es-000{i}.png" for c in ("dark", "left", "right") for i in (1, 2)
    ]
    found = load_latents(Path("out"))
    assert found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    # The probe before is not the attack's; the pool is generated and sent once.
    assert len(pools) == 1
    sent = json.loads(Path("out/facts.json").read_text())["queries"]
    assert sent == service.images - 1 <= 40 + 3 * 2 * (4 * 3 + 2)
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "attack.json", "facts.json", "latents.safetensors", "reconstructions"
    ]  # fmt: skip


def test_keeps_finished_classes_and_resumes_with_the_others(
    service: Service, cli: CommandLine
) -> None:
    command = attack(service, CMA)
    cli.succeeds(command)
    whole, requests = load_latents(Path("out")), len(service.requests)
    Path("out").rename("whole")

    service.requests.clear()
    service.answers = [probabilities] * (requests * 2 // 3)
    service.usual = status(503)
    message = cli.fails(command)
    assert message.startswith("inversight: --target endpoint:") and "status 503" in message
    assert "of 3 classes are finished and kept in out" in message
    kept = names()
    left = Path("out/reconstructions/right/cma-es-0009.png")  # as a stopped attempt leaves it
    left.parent.mkdir()
    left.touch()
    assert 2 <= len(kept) < 6 and not Path("out/latents.safetensors").exists()

    cli.refuses(f"{command} --seed 1", "an attack began there and --seed differed")
    service.usual = probabilities
    assert "of 3 classes are there already" in cli.succeeds(command)[1]
    assert set(kept) < set(names()) and len(names()) == 6
    for name, tensor in load_latents(Path("out")).items():
        assert torch.equal(tensor, whole[name])
    cli.refuses(command, "--out out: holds other files")


def test_a_limit_of_queries_holds_for_all_classes_together(
    service: Service, cli: CommandLine
) -> None:
    cli.succeeds(attack(service, CMA), "--set most_queries=70")
    assert len(names()) == 6 and 40 < service.images - 1 <= 70


def test_attacks_a_service_that_gives_labels_only(service: Service, cli: CommandLine) -> None:
    service.usual = labels
    err = cli.succeeds(
        attack(service, LOKT, "&access=label"),
        "--set training.epochs=1 --set training.width=2",
        "--set 'white_box={pool: 20, candidates: 2, keep: 2, steps: 1, crops: 1}'",
    )[1]
    assert service.images == 61 and len(names()) in (2, 4, 6)
    missing = 3 - len(names()) // 2
    assert ("found no sample of the prior in class" in err) == (missing > 0)


def everything_in(label: int) -> Callable[[Tensor], Answer]:
    return lambda images: good({"labels": [label] * len(images)})


def test_a_class_without_a_sample_is_left_out(service: Service, cli: CommandLine) -> None:
    service.usual = everything_in(0)
    err = cli.succeeds(attack(service, BREP, "&access=label"))[1]
    assert names() == [f"reconstructions/left/brep-mi-000{i}.png" for i in (1, 2)]
    assert load_latents(Path("out"))["labels"].tolist() == [0, 0]
    assert "found no sample of the prior in class right, dark" in err


@pytest.mark.parametrize("settings", [BREP, LOKT])
def test_fails_if_no_sample_is_in_any_class(
    service: Service, cli: CommandLine, settings: str
) -> None:
    service.usual = everything_in(2)
    for _ in range(2):
        message = cli.fails(attack(service, settings, "&access=label"), "--limit 2")
        assert "take a prior nearer to the" in message


def test_a_secret_is_sent_and_kept_nowhere(
    service: Service, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "Bearer s3cret")
    header = "--endpoint-header Authorization=SERVICE_TOKEN"
    out, err = cli.succeeds(attack(service, CMA), header)
    assert {one["Authorization"] for one in service.headers} == {"Bearer s3cret"}
    assert "s3cret" not in out + err
    files = [file for file in Path("out").rglob("*") if file.is_file()]
    assert files and not any(b"s3cret" in file.read_bytes() for file in files)


@pytest.mark.parametrize(
    ("settings", "query", "parts"),
    [
        (f"{CMA} --endpoint-header Authorization=NO_SUCH_VARIABLE", "",
         ("--endpoint-header Authorization", "NO_SUCH_VARIABLE is not set")),
        ("", "", ("PlugAndPlay needs white-box access", "gives scores only", "another --attack")),
        (f"{BREP} --mean 0.5", "", ("normalises images itself",)),
        (f"{CMA} --classes none.txt", "", ("none.txt", "cannot be read")),
        (CMA, "&access=label", ("CmaEs needs scores access",)),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    service: Service, cli: CommandLine, settings: str, query: str, parts: tuple[str, ...]
) -> None:
    service.usual = labels if query else probabilities
    cli.refuses(attack(service, settings, query), *parts)


def test_rejects_labels_where_scores_are_expected(service: Service, cli: CommandLine) -> None:
    service.usual = labels
    cli.refuses(attack(service, CMA), "add ?access=label")


def test_requires_class_names(service: Service, cli: CommandLine) -> None:
    cli.refuses(f"attack {target(service)} {CMA} --out out", "--classes FILE")


def test_other_commands_need_the_model_itself(service: Service, cli: CommandLine) -> None:
    message = "is a service, which only audit, attack and triage take"
    cli.refuses(f"adapt {target(service)} --public p --out out", message)

"""The adversarial game: its losses by hand, its average, guidance, exact resume, divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.priors.architecture import Architecture, architecture_of
from inversight.priors.game import Game, Microbatch
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from inversight.priors.training import run_game
from inversight.settings import PriorTraining
from tests.priors import golden
from tests.priors.fixed_guidance import FixedGuidance

SHAPE = (1, 8, 8)
PUBLISHED: dict[str, object] = {
    "mixing": 0.9,
    "path_length": 2.0,
    "path_length_interval": 2,
    "penalty_steps": True,
    "augment_filter": True,
    "ema_rampup": None,
    "noise": True,
}
"""What published configurations switch on, at a size that a test can afford."""


def tiny(**changes: object) -> PriorTraining:
    base: dict[str, object] = dict(
        steps=6, batch_size=4, width=2, z_dim=6, w_dim=5, r1_interval=2, ada_images=40.0
    )
    return PriorTraining(**(base | changes))  # type: ignore[arg-type]


def public(n: int = 20) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (n, *SHAPE), generator=rng).to(torch.uint8)


def fresh_game(training: PriorTraining) -> Game:
    game = Game(image_shape=SHAPE, training=training)
    initialise(game.generator, generator(1))
    initialise(game.discriminator, generator(2))
    game.average.load_state_dict(game.generator.state_dict())
    return game


def state(game: Game) -> dict[str, Tensor]:
    modules = {"g": game.generator, "a": game.average, "d": game.discriminator}
    return {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_average_carries_buffers_and_follows_the_published_ramp() -> None:
    game = fresh_game(tiny(ema_images=1000.0))
    before = [p.clone() for p in game.average.parameters()]
    real = public()[:4].float() / 127.5 - 1.0
    game.step([Microbatch(real, generator(3))])
    # After one step of 4 images the ramp allows a half-life of 0.2 images.
    keep = 0.5 ** (4 / 0.2)
    for old, new, mine in zip(
        before, game.generator.parameters(), game.average.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.data, keep * old + (1 - keep) * new.data)
    for mine, theirs in zip(game.average.buffers(), game.generator.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert float(game.average.mapping.w_avg.abs().max()) > 0


def test_optimisers_have_the_lazy_correction() -> None:
    game = fresh_game(tiny(r1_interval=16, learning_rate=2e-3))
    (g,), (d,) = game.optimise_g.param_groups, game.optimise_d.param_groups
    assert (g["lr"], g["betas"]) == (2e-3, (0.0, 0.99))
    assert d["lr"] == pytest.approx(2e-3 * 16 / 17)
    assert d["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_both_players_are_trained_and_neither_trains_the_other() -> None:
    game = fresh_game(tiny())
    before = state(game)
    real = public()[:4].float() / 127.5 - 1.0
    game._step_discriminators([Microbatch(real, generator(3))])
    middle = state(game)
    moved = {n for n in before if not torch.equal(before[n], middle[n])}
    assert moved and all(n.startswith("d.") for n in moved)
    game._step_generator([Microbatch(real, generator(4))], None)
    after = state(game)
    moved = {n for n in before if not torch.equal(middle[n], after[n])}
    assert moved and all(n.startswith("g.") for n in moved)


def test_guidance_of_nothing_is_no_guidance() -> None:
    plain, guided = fresh_game(tiny()), fresh_game(tiny())
    real = public()[:4].float() / 127.5 - 1.0
    plain.step([Microbatch(real, generator(3))])
    guided.step([Microbatch(real, generator(3))], FixedGuidance(torch.zeros_like))
    for (name, a), (_, b) in zip(state(plain).items(), state(guided).items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_guidance_sees_images_in_0_1_and_moves_them_against_its_gradient() -> None:
    darken = FixedGuidance(torch.ones_like, times=1.0)
    plain, guided = fresh_game(tiny()), fresh_game(tiny())
    data = public().float() / 127.5 - 1.0
    for i in range(20):
        plain.step([Microbatch(data[:4], generator(3, i))])
        guided.step([Microbatch(data[:4], generator(3, i))], darken)
    assert all(float(x.min()) >= 0.0 and float(x.max()) <= 1.0 for x in darken.seen)
    w = torch.randn(16, 5, generator=generator(9))
    with torch.no_grad():
        assert float(guided.generator(w).mean()) < float(plain.generator(w).mean()) - 0.05


def test_guidance_is_told_lengths_on_the_generators_parameters() -> None:
    """Against the gradients that backward leaves on the parameters, of either alone."""

    def length(times: float, *, gan: bool) -> tuple[float, tuple[float, float]]:
        game, puller = fresh_game(tiny()), FixedGuidance(torch.ones_like, times)
        if not gan:
            nn.init.zeros_(
                game.discriminator.b4.out.weight
            )  # the GAN's gradient on images vanishes
        kept: list[float] = []
        game.optimise_g.step = lambda: kept.append(  # type: ignore[method-assign,assignment]
            float(
                torch.stack(
                    [p.grad.norm() for p in game.generator.parameters() if p.grad is not None]
                ).norm()
            )
        )
        real = public()[:4].float() / 127.5 - 1.0
        game._step_generator([Microbatch(real, generator(4))], puller)
        return kept[0], puller.measured[0]

    gan_alone, (gan, _) = length(0.0, gan=True)
    assert gan_alone == pytest.approx(gan, rel=1e-4)
    pull_alone, (_, pull) = length(1.0, gan=False)
    assert pull_alone == pytest.approx(pull, rel=1e-4)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_game_goes_on_bit_by_bit(tmp_path: Path, stop: int, published: bool) -> None:
    training = tiny(**(PUBLISHED | {"images_at_once": 2} if published else {}))
    whole = Game(image_shape=SHAPE, training=training)
    log = run_game(whole, public(), steps=6, rng=generator(0), fresh=True)

    class Stop(Exception):
        pass

    def at(done: int, total: int, note: str = "") -> None:
        if done == stop:
            raise Stop

    broken = Game(image_shape=SHAPE, training=training)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        run_game(broken, public(), steps=6, rng=generator(0), fresh=True, progress=at)
    # The row of the step at which progress was told is in the log already.
    broken.save(file, {"log": log[:stop], "guidance": {}})
    resumed = Game(image_shape=SHAPE, training=training)
    again = run_game(resumed, public(), steps=6, rng=generator(0), fresh=True, checkpoint=file)
    assert_same(state(whole), state(resumed))
    assert again == log
    assert resumed.control.p == whole.control.p
    assert resumed.path_length.mean == whole.path_length.mean
    assert (whole.path_length.mean > 0) == published


def test_checkpoints_appear_in_time(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    present = []
    run_game(
        Game(image_shape=SHAPE, training=tiny(checkpoint_seconds=1e-6)),
        public(),
        steps=3,
        rng=generator(0),
        fresh=True,
        checkpoint=file,
        progress=lambda done, total, note="": present.append(file.is_file()),
    )
    assert present == [False, True, True]
    assert not list(tmp_path.glob("*.partial"))


class Poison(FixedGuidance):
    """Guidance that turns to NaN at a step; the loss of that step is still a number."""

    def __init__(self, at: int) -> None:
        super().__init__(self.poisoned)
        self.state["steps"] = 0.0
        self.at = at

    def poisoned(self, images: Tensor) -> Tensor:
        self.state["steps"] += 1
        return torch.full_like(images, float("nan") if self.state["steps"] >= self.at else 0.0)


@pytest.mark.parametrize(("seconds", "step"), [(1e-6, 4), (1e9, 5)])
def test_the_checkpoint_is_the_last_good_state(tmp_path: Path, seconds: float, step: int) -> None:
    """The NaN is in the networks after step 4: seen there if a checkpoint is due, else by the loss."""
    file = tmp_path / "checkpoint.safetensors"
    training = tiny(checkpoint_seconds=seconds)
    begun = Game(image_shape=SHAPE, training=training)
    run_game(begun, public(), steps=3, rng=generator(0), fresh=True, guidance=Poison(at=9))
    begun.save(file, {"log": [], "guidance": {"steps": 3.0}})
    game = Game(image_shape=SHAPE, training=training)
    words = rf"diverged at step {step} .*last good state is in .*checkpoint\.safetensors"
    with pytest.raises(StageError, match=words):
        run_game(game, public(), steps=6, rng=generator(0), checkpoint=file, guidance=Poison(at=4))
    good = Game(image_shape=SHAPE, training=training)
    good.load(file)
    assert good.is_finite and not game.is_finite
    assert_same(state(good), state(begun))


def test_a_prior_that_ends_in_nan_is_no_result() -> None:
    game = fresh_game(tiny())
    with pytest.raises(StageError, match=r"at step 2 .*NaN"):
        run_game(game, public(), steps=2, rng=generator(0), guidance=Poison(at=2))


def test_progress_tells_the_images_seen() -> None:
    told: list[str] = []
    game = Game(image_shape=SHAPE, training=tiny(batch_size=400))
    run_game(
        game, public(), steps=3, rng=generator(0), fresh=True,
        progress=lambda done, total, note="": told.append(note),
    )  # fmt: skip
    assert [note.split(" images, G ")[0] for note in told] == ["400", "800", "1.2k"]


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    training = tiny()
    game = fresh_game(training)
    nn.init.constant_(game.discriminator.b4.out.weight, float("nan"))
    with pytest.raises(StageError, match=r"lower prior\.learning_rate or raise prior\.r1"):
        run_game(game, public(), steps=2, rng=generator(0))


def test_the_game_learns_the_mean_of_the_data() -> None:
    """Images of two grey levels: after training the generator's images have those levels' mean."""
    data = torch.full((64, *SHAPE), 40, dtype=torch.uint8)
    data[32:] = 80
    training = tiny(batch_size=16, width=4, r1=1.0)
    game = Game(image_shape=SHAPE, training=training)
    run_game(game, data, steps=80, rng=generator(0), fresh=True)
    with torch.no_grad():
        w = game.average.mapping(torch.randn(64, 6, generator=generator(5)))
        levels = (game.average(w, noise="none") + 1) * 127.5
    assert abs(float(levels.mean()) - 60.0) < 25.0


def test_networks_follow_the_settings() -> None:
    architecture = architecture_of((3, 16, 16), tiny(width=3))
    g, d = Generator(architecture), Discriminator(architecture)
    assert g.synthesis.b4.const.shape == (12, 4, 4)
    assert d.b16.fromrgb.weight.shape == (3, 3, 1, 1)
    small = architecture_of((1, 64, 64), tiny(width=3))
    assert [small.width_at(r) for r in small.resolutions] == [24, 24, 12, 6, 3]
    paper = architecture_of((3, 256, 256), tiny(config="paper256"))
    assert (paper.w_dim, paper.mapping_depth, paper.resampling) == (512, 8, "fir")
    with pytest.raises(ConfigError, match="prior: size: expected a power of two, found 24"):
        architecture_of((3, 24, 24), tiny())


@pytest.mark.parametrize("row", golden.read()["small"], ids=["digits", "colour"])
def test_small_networks_and_their_draws_stay(row: dict[str, Any]) -> None:
    """Evidence gathered with small priors holds as long as the same seed gives the same networks."""
    architecture = architecture_of(tuple(row["image_shape"]), PriorTraining())
    g, d = Generator(architecture), Discriminator(architecture)
    initialise(g, generator(1, "generator"))
    initialise(d, generator(1, "discriminator"))
    for name, parameter in g.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(row["noise_strength"])
    with torch.no_grad():
        w = g.mapping(torch.randn(4, 64, generator=generator(2)))
        images = g(w, noise="const")
        logits = d(torch.randn(4, *row["image_shape"], generator=generator(3)))
    for found, expected in (
        (golden.pick(w, 12), row["w"]),
        (golden.pick(images, 24), row["images"]),
        (logits, row["logits"]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"resampling": "fir", "noise": False}, {"discriminator": "skip", "group": 2}]
)
def test_a_game_of_any_architecture(changes: dict[str, Any]) -> None:
    values = {"channel_base": 16, "z_dim": 7, "w_dim": 5, "channels": 1} | changes
    architecture = Architecture(size=8, **values)
    game = Game(image_shape=SHAPE, training=tiny(noise=True), architecture=architecture)
    log = run_game(game, public(), steps=3, rng=generator(0), fresh=True)
    assert len(log) == 3
    assert game.average.architecture == game.discriminator.architecture == architecture

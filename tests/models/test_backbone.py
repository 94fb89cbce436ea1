"""Where a frozen backbone ends, and the features that it gives its head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inversight.core.errors import TargetError
from inversight.core.seeding import generator
from inversight.embeddings import BackboneEmbedding
from inversight.models.backbone import features_of, frozen_layer, layers_after
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target

SHAPE = (1, 4, 4)


class Headed(nn.Module):
    """A frozen convolution, its means over positions, and a head of two layers."""

    def __init__(self, frozen: tuple[str, ...] = ("backbone",)) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(5))
        self.head = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits


def target(frozen_until: str | None = "backbone") -> Target:
    return Target(
        Headed().eval().requires_grad_(False), ("0", "1"), SHAPE, (0.5,), (0.5,), "own",
        frozen_until=frozen_until,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("frozen", "given", "expected"),
    [
        (("backbone",), None, "backbone.2"),
        (("backbone", "head.0"), None, "head.0"),
        (("backbone",), "backbone.0", "backbone.0"),
        ((), "backbone", "backbone"),
        ((), None, None),
        (("backbone", "head"), None, None),
        (("head",), None, None),
        (("backbone.0", "head.0"), None, None),
    ],
)
def test_the_backbone_ends_where_gradients_begin_or_at_the_layer_that_is_named(
    frozen: tuple[str, ...], given: str | None, expected: str | None
) -> None:
    module = Headed(frozen)
    found = frozen_layer(module, ModelSpec("own", frozen_until=given))
    assert found is (None if expected is None else module.get_submodule(expected))


def test_a_misspelt_layer_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(TargetError, match=r"own: has no layer backbon,.* backbone\?.*backbone\.0"):
        frozen_layer(Headed(), ModelSpec("own", frozen_until="backbon"))


def test_layers_behind_a_name_leave_out_what_is_inside_it() -> None:
    module = Headed()
    assert layers_after(module, "backbone") == list(module.head)
    assert layers_after(module, "backbone.1") == [module.backbone[2], *module.head]
    assert layers_after(module, None) == [*module.backbone, *module.head]


def test_features_are_what_the_head_gets_with_gradients_and_without_a_counted_query() -> None:
    sent: list[int] = []
    given = target()
    counting = Target(**{**vars(given), "before": sent.append})
    images = torch.rand(3, *SHAPE, generator=generator(0)).requires_grad_(True)
    module = given.module
    assert isinstance(module, Headed)
    expected = module.backbone((images - 0.5) / 0.5).mean((2, 3))
    found = features_of(counting, images)
    torch.testing.assert_close(found, expected)
    (mine,), (theirs,) = (torch.autograd.grad(one.sum(), images) for one in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert not sent
    (embedded,) = BackboneEmbedding("backbone", given)(images)
    torch.testing.assert_close(embedded, expected)


def test_a_backbone_without_a_head_has_no_features() -> None:
    with pytest.raises(TargetError, match="no linear layer comes behind head"):
        features_of(target("head"), torch.rand(1, *SHAPE))


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "backbone.2"), ("backbone.0", "backbone.0")]
)
def test_a_loaded_target_knows_its_backbone(given: str | None, expected: str) -> None:
    spec = ModelSpec("tests.models.test_backbone:Headed", frozen_until=given)
    found = load_target(spec, classes=("a", "b"), size=4, channels=1)
    assert found.frozen_until == expected

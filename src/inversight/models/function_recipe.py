"""A recipe that is the owner's own function ``train(dataset, *, classes, seed, device) -> nn.Module``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inversight.core.config import import_object
from inversight.core.errors import ConfigError, InputError, StageError, one_line
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.models.own_training import (
    TrainingImages,
    describe_failure,
    few_of_each_class,
    own_random_state,
)
from inversight.models.target import Target

SIGNATURE = "def train(dataset, *, classes, seed, device)"
"""What the owner's function looks like."""
_TRIED_IMAGES = 32
"""Images of the trial before a run."""


class _OwnCodeError(StageError):
    """The owner's function raised."""


@dataclass(frozen=True)
class FunctionRecipe:
    """Training by the function that ``spec``, ``package.module:train``, names.

    image_shape: (C, S, S) of the dataset's images and of the module's input. mean, std: normalisation of
    the module's input, one number or one for each channel; the dataset's images are not normalised.
    """

    spec: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def description(self) -> str:
        return f"{self.spec} on images of {self.image_shape[1]}x{self.image_shape[2]}"

    def function(self) -> Callable[..., Any]:
        """Import the function and check that it takes what it will be called with.

        Raises:
            ConfigError: it cannot be imported, is not callable or takes other arguments.
        """
        with redirect_stdout(sys.stderr):
            found: Any = import_object(self.spec, role="--recipe")
        if not callable(found):
            raise ConfigError(self._says(f"expected {SIGNATURE}, found {type(found).__name__}"))
        function: Callable[..., Any] = found
        try:
            signature = inspect.signature(function)
        except ValueError:  # a few built-in functions have none
            return function
        try:
            signature.bind(None, classes=None, seed=None, device=None)
        except TypeError as error:
            name = self.spec.rpartition(":")[2]
            given = ", ".join(signature.parameters)
            raise ConfigError(
                self._says(f"expected {SIGNATURE}, found {name}({given}): {one_line(error)}")
            ) from None
        return function

    def check(self, images: ImageSet, *, device: torch.device) -> tuple[str, ...]:
        """Train on a few images, and on all of ``images`` if that fails; return warnings.

        With few images, the function is called again with the same seed, and with another one.

        Raises:
            ConfigError: as :meth:`function`.
            InputError: as :meth:`fit`, or it returned the same module twice.
        """
        few = few_of_each_class(images, _TRIED_IMAGES)
        try:
            try:
                one = self.fit(few, seed=0, device=device)
            except _OwnCodeError as error:
                if len(few) == len(images):
                    raise
                # It may need more images, as to fill one batch. A mistake fails again.
                self.fit(images, seed=0, device=device)
                return (
                    f"{error}, with {len(few)} images but not with {len(images)}; so it was not tried "
                    "whether one seed gives the same weights twice",
                )
            return (*self._odd_outputs(one, few), *self._odd_seeds(one, few, device))
        except StageError as error:
            raise InputError(str(error)) from error

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        """Return what the function makes of ``images``, wrapped and checked as a loaded target is.

        The random states of torch, numpy and random are set before and restored afterwards. The
        function gets ``seed`` modulo 2**32, which all of them take. What it prints goes to stderr.

        Raises:
            ConfigError: as :meth:`function`.
            StageError: it raised, or returned something else than a classifier of ``images``.
        """
        function, seed = self.function(), seed % 2**32
        dataset = TrainingImages(images, self.image_shape)
        with own_random_state(seed, device):
            try:
                module = function(dataset, classes=images.classes, seed=seed, device=device)
            except (Exception, SystemExit) as error:  # a script may read the command line, and exit
                raise _OwnCodeError(self._says(describe_failure(error, function))) from error
        if not isinstance(module, nn.Module):
            holds = isinstance(module, (tuple, list)) and any(
                isinstance(part, nn.Module) for part in module
            )
            raise StageError(
                self._says(
                    f"expected to get a torch.nn.Module, found {type(module).__name__}"
                    + ("; return the module alone" if holds else "")
                )
            )
        target = Target(
            module.eval().requires_grad_(False).to(device), images.classes, self.image_shape,
            self.mean, self.std, self.spec,
        )  # fmt: skip
        wrong = fault_of(target, images)
        if wrong:
            raise StageError(self._says(f"the returned module {wrong}"))
        progress(1, 1)
        return target

    def _odd_outputs(self, target: Target, images: ImageSet) -> list[str]:
        """Return warnings of outputs that are possible but seldom meant."""
        x = images.floats().to(target.device)
        with torch.no_grad():
            one, other = target(x), target(x)
        found = []
        if not torch.equal(one, other):
            found.append(
                "the returned module's outputs change from call to call; does a dropout ignore eval mode?"
            )
        sums = one.sum(1)
        if bool((one >= 0).all()) and torch.allclose(sums, torch.ones_like(sums)):
            found.append("the returned module gives probabilities, as it seems; return logits")
        return [self._says(text) for text in found]

    def _odd_seeds(self, one: Target, images: ImageSet, device: torch.device) -> list[str]:
        """Train with the same seed as ``one`` (0) and with another; return warnings of what differs.

        Raises:
            StageError: the function failed, or returned a module that it had returned before.
        """
        state = {name: value.clone() for name, value in one.module.state_dict().items()}
        fresh = "; make a new module at each call"
        try:
            again = self.fit(images, seed=0, device=device)
        except _OwnCodeError as error:
            raise StageError(f"{error}, when called a second time{fresh}") from error
        if again.module is one.module or not _is_same(state, one.module):
            raise StageError(self._says(f"changed the module that it had returned before{fresh}"))
        if not _is_same(state, again.module):
            return [
                self._says(
                    "one seed gave two models, so the run cannot be repeated exactly; draw all that is "
                    "random from seed, and use nothing that an earlier call left, such as a checkpoint"
                )
            ]
        if _is_same(state, self.fit(images, seed=1, device=device).module):
            return [
                self._says(
                    "two seeds gave the same model; draw initial weights and batch order from seed, so "
                    "that pairs of shadow models differ by them too"
                )
            ]
        return []

    def _says(self, reason: str) -> str:
        return f"--recipe {self.spec}: {reason}"


def fault_of(target: Target, images: ImageSet) -> str | None:
    """Return what is wrong with a new model's logits of the first two of ``images``, None if nothing is."""
    two = images.select(torch.arange(min(2, len(images)))).floats().to(target.device)
    for x in (two, two[:1]):  # squeeze() takes too much away from one image
        x = x.detach().requires_grad_(True)
        shape = "x".join(map(str, target.image_shape))
        try:
            with torch.enable_grad():
                logits: object = target(x)
        except Exception as error:
            return f"failed on images of {shape} ({one_line(error)})"
        expected = (len(x), target.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            return f"gives {found} for images of {shape}; expected logits (images, classes) = {expected}"
        if not bool(logits.isfinite().all()):
            return "gives NaN or infinity; did its training diverge?"
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.square().sum(), x, allow_unused=True)
        if gradient is None:
            return "gives no gradient with respect to its input, which white-box attacks need"
    return None


def _is_same(state: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Return whether the module's tensors are those of ``state``."""
    other = module.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)

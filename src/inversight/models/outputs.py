"""What models answer, and how logits are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LEAST = torch.finfo(torch.float32).tiny
"""Lower bound of probabilities, so that their logarithms are finite."""
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class OutputForm:
    """Where logits are in an answer, and what its numbers are.

    part: name or number of the part, None: the answer itself. probabilities: numbers are probabilities.
    single: one number for two classes, that of the second.
    """

    part: str | int | None = None
    probabilities: bool = False
    single: bool = False

    def logits(self, answer: Any) -> Tensor:
        """Return logits (N, K), differentiably; log-probabilities are logits of the same probabilities."""
        values: Tensor = part_of(answer, self.part)
        if self.single:
            second = values.clamp(_LEAST, 1.0 - 2.0**-24).logit() if self.probabilities else values
            return torch.cat([torch.zeros_like(second), second], dim=1)
        return values.clamp_min(_LEAST).log() if self.probabilities else values

    def notes(self) -> list[str]:
        """Return what the user should know of the form, a sentence each."""
        found = []
        if self.part is not None and self.part != "logits":
            found.append(
                f"answers with several values; {_called(self.part)} is taken for its logits"
            )
        if self.single:
            number = "probability" if self.probabilities else "logit"
            found.append(f"has one output for two classes, taken for the {number} of the second")
        elif self.probabilities:
            found.append("gives probabilities; their logarithms are used as logits")
        return found


class LogitsOf(nn.Module):
    """A model whose answer is brought to logits (N, K)."""

    def __init__(self, module: nn.Module, form: OutputForm) -> None:
        super().__init__()
        self.module = module
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form.logits(self.module(x))


def _called(part: str | int) -> str:
    return f"value {part + 1}" if isinstance(part, int) else part


def part_of(answer: Any, part: str | int | None) -> Any:
    """Return the part of an answer by key, attribute or position."""
    if part is None:
        return answer
    if isinstance(part, int) or isinstance(answer, Mapping):
        return answer[part]
    return getattr(answer, part)


def find_part(answer: Any, images: int, num_classes: int | None) -> str | int | None:
    """Return which part of the answer to ``images`` images holds logits, None: the answer itself.

    ``logits``, else the first of shape (images, num_classes), else the first of two dimensions.

    Raises:
        ValueError: none does; names the parts.
    """
    if isinstance(answer, Tensor):
        return None
    parts: dict[str | int, Any] = {}
    if isinstance(answer, Mapping):
        parts = {key: value for key, value in answer.items() if isinstance(key, str)}
    elif isinstance(answer, (tuple, list)):
        parts = dict(enumerate(answer))
    if isinstance(getattr(answer, "logits", parts.get("logits")), Tensor):
        return "logits"
    fitting = [
        key
        for key, value in parts.items()
        if isinstance(value, Tensor) and value.dim() == 2 and len(value) == images
    ]
    exact = [key for key in fitting if parts[key].shape[1] == num_classes]
    if not fitting:
        shapes = [
            tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in parts.values()
        ]
        raise ValueError(f"{type(answer).__name__}{f' of {shapes}' if shapes else ''}")
    return (exact or fitting)[0]


def is_probability(values: Tensor) -> bool:
    """Return whether all rows of values (N, K) are probabilities: not negative, with the sum 1.

    Of one column: all lie in [0, 1].
    """
    if not bool((values >= 0.0).all()):
        return False
    if values.shape[1] == 1:
        return bool((values <= 1.0).all())
    return bool(((values.sum(1) - 1.0).abs() <= _SUM_TOLERANCE).all())

"""RLB-MI (Han et al., CVPR 2023): an agent that learns which latents please, by scores alone.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. An agent sees a random latent (the state), names another (the action), and is rewarded
for the target's confidence in the image of their mixture; it is taught by soft actor-critic (Haarnoja
et al. 2018). Constants are those of the published code. What differs from it, and why:

- As there, an episode has one step. Nothing follows it, so the critics learn the reward itself, and
  the copies of them that discounted rewards would need are left out.
- The entropy of an action is summed over its coordinates, as in soft actor-critic; the published code
  has their mean there, but still aims at minus their number.
- An actor is improved by the lower of both critics, as in soft actor-critic; there by one of them.
- The images of its own episodes are what a class's reconstructions are chosen from, so that none are
  sent beside them; the published code tries the agent once more after each.
- The agents of all classes are trained side by side, each by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.base import Reconstructions
from inversight.attacks.pool_space import PoolSpace
from inversight.attacks.queries import QueriesSpentError, admitted, check_queries
from inversight.attacks.selection import ScoreSearch, end_search, truncated
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Target
from inversight.priors.base import Prior

_LOG_DEVIATION = (-20.0, 2.0)
"""Range of an action's log standard deviation before it is squashed (published)."""


@settings
class RlbMi(ScoreSearch):
    """RLB-MI: one soft actor-critic a class, rewarded by the target's scores."""

    pool: PositiveInt = 1000
    """Latents sampled, not sent: coordinates are measured in their standard deviations."""
    truncation: Fraction = 1.0
    """Truncation of the pool towards the mean latent (paper: none, 1)."""
    episodes: PositiveInt = 40_000
    """Episodes of a class, each a state, an action and a reward (paper: 40,000)."""
    reach: PositiveFloat = 1.0
    """Largest coordinate of an action, in standard deviations (published: 1)."""
    diversity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the state in the mixture, the paper's alpha (published: 0, the action alone)."""
    state_weight: NonNegativeFloat = 2.0
    """Weight of log p_y of the mixture in the reward (paper: 2)."""
    action_weight: NonNegativeFloat = 2.0
    """Weight of log p_y of the action by itself (paper: 2)."""
    margin_weight: NonNegativeFloat = 8.0
    """Weight of log max(least, p_y - highest other p) of the mixture (paper: 8)."""
    least: PositiveFloat = 1e-7
    """Least margin in the reward (paper: 1e-7)."""
    hidden: PositiveInt = 256
    """Width of the two hidden layers of actors and critics (published: 256)."""
    learning_rate: PositiveFloat = 5e-4
    """Adam's step size for actors, critics and entropy weight (published: 5e-4)."""
    training_batch: PositiveInt = 256
    """Episodes remembered in a training step; training begins when there are so many (published: 256)."""
    at_once: PositiveInt = 1
    """Episodes between two training steps (published: 1)."""
    candidates: PositiveInt = 100
    """Best episodes of a class that the final selection tries with crops."""

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends for so many classes if nothing limits it."""
        each = 1 if self.diversity == 0 else 2
        return classes * (each * self.episodes + self.candidates * self.crops)

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if not self.keep <= self.candidates <= self.episodes:
            raise InputError(
                "RlbMi: expected keep <= candidates <= episodes, found "
                f"keep={self.keep}, candidates={self.candidates}, episodes={self.episodes}"
            )

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives labels alone, or the settings contradict each other.
            QueriesSpentError: ``most_queries`` does not even cover the candidates' episodes.
        """
        target, meter = admitted(self, target, prior, self.most_queries)
        seed = draw_seed(rng)
        pool = truncated(prior, self.truncation).sample(self.pool, rng=generator(seed, "pool"))
        space = PoolSpace(pool)
        rngs = [generator(seed, "agent", label) for label in labels.tolist()]
        agents = Agents(space.width, self, rngs)
        memory = _Memory.empty(len(labels), self.episodes, space.width)
        try:
            while memory.filled < self.episodes:
                count = min(self.at_once, self.episodes - memory.filled)
                shape = (count, space.width)
                states = torch.stack([torch.randn(shape, generator=own) for own in rngs])
                actions = agents.act(states)
                rewards, scores = self._rewards(
                    target, prior, labels, space, self._mixed(states, actions), self.reach * actions
                )
                memory.add(states, actions, rewards, scores)
                if memory.filled >= self.training_batch:
                    agents.learn(*memory.drawn(self.training_batch, rngs))
                progress(memory.filled, self.episodes + 1, f"episodes, {meter.used:,} queries")
        except QueriesSpentError:
            if memory.filled < self.candidates:
                raise
        states, actions, scores = memory.best(self.candidates)
        made = end_search(
            target,
            prior,
            labels,
            space.latents(self._mixed(states, actions), clip=False).view(
                len(labels), -1, *pool.shape[1:]
            ),
            scores,
            self.crop_draws,
            keep=self.keep,
            batch_size=self.batch_size,
            rng=generator(seed, "crops"),
        )
        total = self.episodes + 1
        progress(total, total, f"reconstructions selected, {meter.used:,} queries")
        return replace(made, queries=meter.used)

    def _mixed(self, states: Tensor, actions: Tensor) -> Tensor:
        """The points that states and actions make together."""
        return self.diversity * states + (1.0 - self.diversity) * self.reach * actions

    @torch.no_grad()
    def _rewards(
        self, target: Target, prior: Prior, labels: Tensor, space: PoolSpace, mixed: Tensor,
        actions: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rewards (L, n) and the mixtures' log confidences (L, n), of points (L, n, D)."""
        # Without a share of the state in it, the mixture is the action.
        points = mixed if self.diversity == 0 else torch.cat([mixed, actions])
        latents = space.latents(points, clip=False)
        check_queries(target, len(latents))
        answers = torch.cat(
            [target(prior(w)).log_softmax(1).cpu() for w in latents.split(self.batch_size)]
        )
        each = mixed.shape[1]
        wanted = labels.repeat_interleave(each)[:, None]
        mixture, action = answers[: len(wanted)], answers[-len(wanted) :]
        own = mixture.gather(1, wanted).squeeze(1)
        others = mixture.scatter(1, wanted, -math.inf).amax(1)
        margin = (own.exp() - others.exp()).clamp_min(self.least).log()
        by_itself = action.gather(1, wanted).squeeze(1)
        reward = (
            self.state_weight * own + self.action_weight * by_itself + self.margin_weight * margin
        )
        return reward.view(-1, each), own.view(-1, each)


@dataclass
class _Memory:
    """All episodes of all classes: states, actions (L, E, D); rewards, scores (L, E)."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    scores: Tensor
    filled: int = 0

    @classmethod
    def empty(cls, classes: int, episodes: int, width: int) -> _Memory:
        wide, flat = (classes, episodes, width), (classes, episodes)
        zeros = torch.zeros
        return cls(zeros(wide), zeros(wide), zeros(flat), zeros(flat))

    def add(self, states: Tensor, actions: Tensor, rewards: Tensor, scores: Tensor) -> None:
        """n more episodes of each class: (L, n, D), (L, n, D), (L, n), (L, n)."""
        kept = (self.states, self.actions, self.rewards, self.scores)
        for where, what in zip(kept, (states, actions, rewards, scores), strict=True):
            where[:, self.filled : self.filled + what.shape[1]] = what
        self.filled += states.shape[1]

    def drawn(self, count: int, rngs: list[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
        """States and actions (L, count, D) and rewards (L, count) of random episodes of each class."""
        rows = torch.stack([torch.randperm(self.filled, generator=r)[:count] for r in rngs])
        row = torch.arange(len(rngs))[:, None]
        return self.states[row, rows], self.actions[row, rows], self.rewards[row, rows]

    def best(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """States and actions (L, count, D) of each class's surest episodes, and scores (L, count)."""
        order = self.scores[:, : self.filled].argsort(dim=1, descending=True, stable=True)
        rows = order[:, :count]
        row = torch.arange(len(rows))[:, None]
        return self.states[row, rows], self.actions[row, rows], self.scores[row, rows]


class _Perceptrons(nn.Module):
    """One network a class, side by side: (L, n, inputs) -> (L, n, outputs)."""

    def __init__(self, sizes: tuple[int, ...], rngs: list[torch.Generator]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(sizes):
            limit = 1.0 / math.sqrt(a)
            drawn = [2.0 * torch.rand(a, b, generator=rng) - 1.0 for rng in rngs]
            self.weights.append(limit * torch.stack(drawn))
            self.biases.append(torch.zeros(len(rngs), 1, b))

    def forward(self, x: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if number == 0 else F.relu(x), weight)
        return x


class Agents:
    """One soft actor-critic a class, for episodes of one step. Losses are summed over classes, so
    that each agent's gradient is its own."""

    def __init__(self, width: int, how: RlbMi, rngs: list[torch.Generator]) -> None:
        self.rngs = rngs
        hidden = (how.hidden, how.hidden)
        self.actor = _Perceptrons((width, *hidden, 2 * width), rngs)
        self.critics = [_Perceptrons((2 * width, *hidden, 1), rngs) for _ in range(2)]
        self.log_weight = torch.zeros(len(rngs), 1, requires_grad=True)
        self.target_entropy = -float(width)
        critics = [p for critic in self.critics for p in critic.parameters()]
        self._optimisers = [
            torch.optim.Adam(parameters, lr=how.learning_rate)
            for parameters in (critics, list(self.actor.parameters()), [self.log_weight])
        ]

    def _sampled(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (L, n, D) in [-1, 1] drawn for states (L, n, D), and log densities (L, n)."""
        mean, log_deviation = self.actor(states).chunk(2, dim=2)
        log_deviation = log_deviation.clamp(*_LOG_DEVIATION)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=rng) for rng in self.rngs])
        before = mean + log_deviation.exp() * noise
        density = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2.0 * math.pi)
        # log(1 - tanh(x)^2), written so that it holds for large x.
        squashing = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        return before.tanh(), (density - squashing).sum(2)

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """Actions (L, n, D) for states (L, n, D)."""
        return self._sampled(states)[0]

    def learn(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """One step of critics, actors and entropy weights."""
        critics, actor, weight = self._optimisers
        seen = torch.cat([states, actions], dim=2)
        loss = sum(
            (0.5 * (critic(seen).squeeze(2) - rewards).square().mean(1)).sum()
            for critic in self.critics
        )
        self._step(critics, loss)
        own, density = self._sampled(states)
        tried = torch.cat([states, own], dim=2)
        value = torch.minimum(*(critic(tried).squeeze(2) for critic in self.critics))
        self._step(actor, (self.log_weight.detach().exp() * density - value).mean(1).sum())
        gap = (density.detach() + self.target_entropy).mean(1, keepdim=True)
        self._step(weight, -(self.log_weight * gap).sum())

    @staticmethod
    def _step(optimiser: torch.optim.Optimizer, loss: Tensor | int) -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.as_tensor(loss).backward()
        optimiser.step()

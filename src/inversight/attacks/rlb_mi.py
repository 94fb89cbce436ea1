"""RLB-MI (Han et al., CVPR 2023): an agent learns which latents raise the score, by scores alone.

Threat model: scores. The attacker sends images and reads probabilities, and has a prior trained on
public images. An agent observes a random latent (the state), chooses another (the action), and its reward
is the target's confidence in the image of their mixture. It is trained by soft actor-critic (Haarnoja
et al. 2018). Constants are those of the published code. Differences from it:

- As there, an episode has one step. Nothing follows it, so the critics learn the reward itself, and
  the copies of them that discounted rewards would need are omitted.
- The entropy of an action is summed over its coordinates, as in soft actor-critic; the published code
  has their mean there, but still aims at minus their number.
- An actor is improved by the lower of both critics, as in soft actor-critic; there by one of them.
- Reconstructions are selected from the images of the episodes, so that no others are sent; the published
  code tries the agent once more after each episode.
- The agents of all classes are trained side by side, each independently.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import PoolSpace
from inversight.attacks.score_search import ScoreSearch, Search
from inversight.attacks.workload import AgentWork, Workload
from inversight.core.config import Fraction, settings
from inversight.core.seeding import generator
from inversight.priors.base import Prior

_LOG_DEVIATION = (-20.0, 2.0)
"""Range of an action's log standard deviation before it is squashed (published)."""


@settings
class RlbMi(ScoreSearch):
    """RLB-MI: one soft actor-critic for each class, rewarded by the target's scores."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "candidates", "episodes")

    pool: PositiveInt = 1000
    """Latents sampled, not sent: coordinates are measured in their standard deviations."""
    truncation: Fraction = 1.0
    """Truncation of the pool towards the mean latent (paper: none, 1)."""
    episodes: PositiveInt = 40_000
    """Episodes of a class, each a state, an action and a reward (paper: 40,000)."""
    reach: PositiveFloat = 1.0
    """Largest coordinate of an action, in standard deviations (published: 1)."""
    diversity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Weight of the state in the mixture, the paper's alpha (published: 0, the action alone)."""
    state_weight: NonNegativeFloat = 2.0
    """Weight of log p_y of the mixture in the reward (paper: 2)."""
    action_weight: NonNegativeFloat = 2.0
    """Weight of log p_y of the action alone (paper: 2)."""
    margin_weight: NonNegativeFloat = 8.0
    """Weight of log max(least, p_y - highest other p) of the mixture (paper: 8)."""
    least: PositiveFloat = 1e-7
    """Least margin in the reward (paper: 1e-7)."""
    hidden: PositiveInt = 256
    """Width of the two hidden layers of actors and critics (published: 256)."""
    learning_rate: PositiveFloat = 5e-4
    """Adam's step size for actors, critics and entropy weight (published: 5e-4)."""
    training_batch: PositiveInt = 256
    """Remembered episodes in a training step; training starts when there are as many (published: 256)."""
    at_once: PositiveInt = 1
    """Episodes between two training steps (published: 1)."""
    candidates: PositiveInt = 100
    """Best episodes of a class that are tried with crops at the end."""

    def workload(self, prior: Prior) -> Workload:
        width = prior.sample(1, rng=generator(0)).numel()
        images = 1 if self.diversity == 0 else 2

        def train(classes: int, steps: int) -> None:
            agents = Agents(width, self, [generator(0, label) for label in range(classes)])
            x = torch.zeros(classes, self.training_batch, width)
            for _ in range(steps):
                agents.learn(x, x, x[:, :, 0])

        return replace(
            self.limited_workload(images * self.episodes + self.candidates * self.crops),
            shared={},  # the pool is not sent
            agents=AgentWork(self.episodes / self.at_once, train),
        )

    def begin(self, problem: Problem) -> Search:
        return _Episodes(self, problem)


class _Episodes(Search):
    """The agents, and all episodes of all classes."""

    selectable = False

    def __init__(self, attack: RlbMi, problem: Problem) -> None:
        super().__init__(problem, math.ceil(attack.episodes / attack.at_once))
        self.attack = attack
        self.space = PoolSpace(problem.sample(attack.pool, attack.truncation, "pool"))
        self.rngs = problem.rngs("agent")
        self.agents = Agents(self.space.width, attack, self.rngs)
        self.memory = _Memory(len(problem.labels), attack.episodes, self.space.width)

    def advance(self, step: int) -> bool:
        attack, memory = self.attack, self.memory
        shape = (min(attack.at_once, attack.episodes - memory.filled), self.space.width)
        states = torch.stack([torch.randn(shape, generator=rng) for rng in self.rngs])
        actions = self.agents.act(states)
        memory.add(states, actions, *self._rewards(states, actions))
        self.selectable = memory.filled >= attack.candidates
        if memory.filled >= attack.training_batch:
            order = [torch.randperm(memory.filled, generator=rng) for rng in self.rngs]
            self.agents.learn(*memory.take(torch.stack(order)[:, : attack.training_batch])[:3])
        return True

    def candidates(self) -> tuple[Tensor, Tensor]:
        known = self.memory.values[3][:, : self.memory.filled]
        rows = known.argsort(dim=1, descending=True, stable=True)[:, : self.attack.candidates]
        states, actions, _, scores = self.memory.take(rows)
        return self.space.latents(self._mixed(states, actions), clip=False), scores.flatten()

    def _mixed(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the mixtures of states and actions."""
        alpha = self.attack.diversity
        return alpha * states + (1.0 - alpha) * self.attack.reach * actions

    def _rewards(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return rewards (L, n) and the mixtures' log confidences (L, n) of n episodes a class."""
        attack, points = self.attack, self._mixed(states, actions)
        shape = points.shape[:2]
        if attack.diversity > 0:  # else the mixture is the action
            points = torch.cat([points, attack.reach * actions])
        answers = self.problem.log_probabilities(self.space.latents(points, clip=False))
        labels = self.problem.labels.repeat_interleave(shape[1])[:, None]
        mixture, action = answers[: len(labels)], answers[-len(labels) :]
        own = mixture.gather(1, labels).squeeze(1)
        others = mixture.scatter(1, labels, -math.inf).amax(1)
        margin = (own.exp() - others.exp()).clamp_min(attack.least).log()
        alone = action.gather(1, labels).squeeze(1)
        reward = attack.state_weight * own + attack.action_weight * alone
        reward = reward + attack.margin_weight * margin
        return reward.view(shape), own.view(shape)


class _Memory:
    """States and actions (L, E, D), rewards and scores (L, E) of all episodes of all classes."""

    def __init__(self, classes: int, episodes: int, width: int) -> None:
        shapes = ((classes, episodes, width),) * 2 + ((classes, episodes),) * 2
        self.values = [torch.zeros(shape) for shape in shapes]
        self.filled = 0

    def add(self, *values: Tensor) -> None:
        """Add states, actions, rewards and scores of n episodes of each class."""
        for stored, new in zip(self.values, values, strict=True):
            stored[:, self.filled : self.filled + new.shape[1]] = new
        self.filled += values[0].shape[1]

    def take(self, rows: Tensor) -> list[Tensor]:
        """Return states, actions, rewards and scores of the episodes ``rows`` (L, n) of each class."""
        return [stored[torch.arange(len(rows))[:, None], rows] for stored in self.values]


class _Perceptrons(nn.Module):
    """One network for each class, side by side: (L, n, inputs) -> (L, n, outputs)."""

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
    """One soft actor-critic for each class, for episodes of one step.

    Losses are summed over classes, so that each agent's gradient is its own.
    """

    def __init__(self, width: int, attack: RlbMi, rngs: list[torch.Generator]) -> None:
        self.rngs = rngs
        hidden = (attack.hidden, attack.hidden)
        self.actor = _Perceptrons((width, *hidden, 2 * width), rngs)
        self.critics = nn.ModuleList(_Perceptrons((2 * width, *hidden, 1), rngs) for _ in range(2))
        self.log_weight = torch.zeros(len(rngs), 1, requires_grad=True)
        self.target_entropy = -float(width)
        parts = self.critics.parameters(), self.actor.parameters(), [self.log_weight]
        self._optimisers = [torch.optim.Adam(part, lr=attack.learning_rate) for part in parts]

    def _sampled(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions (L, n, D) in [-1, 1] for states (L, n, D); return log densities (L, n) too."""
        mean, log_deviation = self.actor(states).chunk(2, dim=2)
        log_deviation = log_deviation.clamp(*_LOG_DEVIATION)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=rng) for rng in self.rngs])
        before = mean + log_deviation.exp() * noise
        density = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2.0 * math.pi)
        # log(1 - tanh(x)^2) in a form that is stable for large x.
        squashing = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        return before.tanh(), (density - squashing).sum(2)

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """Draw actions (L, n, D) for states (L, n, D)."""
        return self._sampled(states)[0]

    def learn(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Take one training step of critics, actors and entropy weights."""
        critics, actor, weight = self._optimisers
        seen = torch.cat([states, actions], dim=2)
        errors = [critic(seen).squeeze(2) - rewards for critic in self.critics]
        self._step(critics, sum((0.5 * error.square().mean(1)).sum() for error in errors))
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

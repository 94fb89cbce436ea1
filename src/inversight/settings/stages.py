"""Settings of the stages that train: classifiers, the prior, and its adaptation to the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from inversight.core.config import Fraction, from_mapping, settings
from inversight.settings.published import PublishedName, published_training

ClassifierArchitecture = Literal["resnet", "vgg"]


@settings
class Training:
    """How a classifier is trained."""

    architecture: ClassifierArchitecture = "resnet"
    """Network family: resnet (residual blocks) or vgg (plain convolutions)."""
    width: PositiveInt = 16
    """Channels of the first layer; each stage doubles them."""
    epochs: PositiveInt = 60
    """Most passes over the training images; early stopping may end sooner."""
    most_steps: PositiveInt = 6000
    """Most steps in all; large sets get fewer epochs (but at least one)."""
    batch_size: PositiveInt = 16
    """Images a step; small, because small private sets need the steps."""
    optimiser: Literal["sgd", "adamw"] = "adamw"
    """sgd (Nesterov momentum) or adamw."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, reached after the warm-up, then cosine decay to 0 (paper: SGD 0.1)."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of sgd (paper: 0.9)."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay (paper: 5e-4)."""
    warmup_epochs: NonNegativeInt = 5
    """Epochs of linear warm-up (paper: 5)."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """cross-entropy, or focal loss (Lin et al. 2017; the paper's targets, gamma 2)."""
    gamma: NonNegativeFloat = 2.0
    """Focusing parameter of the focal loss."""
    flip: bool = True
    """Augment by mirroring; switch off where left and right matter, as for digits."""
    shift: Fraction = 0.1
    """Augment by random shifts of up to this share of the image size, with as much scaling."""
    rotation: NonNegativeFloat = 8.0
    """Augment by random rotation of up to this many degrees."""
    validation: Fraction = 0.2
    """Share of each class kept for early stopping (never the holdout); 0 trains to the last epoch."""
    patience: PositiveInt = 20
    """Epochs without a better validation loss before training stops."""

    def epochs_for(self, images: int) -> int:
        """Most epochs over so many training images: ``epochs``, or what ``most_steps`` allow."""
        steps_per_epoch = math.ceil(images / self.batch_size)
        return max(1, min(self.epochs, self.most_steps // steps_per_epoch))


@settings
class PriorTraining:
    """The style-based prior and how it is trained on the public images."""

    steps: PositiveInt = 2000
    """Steps of the adversarial game (one step of discriminator and generator each)."""
    batch_size: PositiveInt = 32
    """Images a step, on all processes together."""
    images_at_once: PositiveInt | None = None
    """Images that a process works on at once; the gradients of these shares of a batch add up. None:
    all that fall to a process. Lower it if memory runs out."""
    config: Literal["small", "auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"] = (
        "small"
    )
    """Networks: small, for small images on a CPU, or those of a published configuration, which sets
    width, z_dim, w_dim and mapping_depth itself, and what of the training is not given."""
    width: PositiveInt = 16
    """Feature channels of small at full size; doubled at each halving, at most eightfold."""
    z_dim: PositiveInt = 64
    """Dimensions of small's normal latent z (published: 512)."""
    w_dim: PositiveInt = 64
    """Dimensions of small's intermediate latent w, in which attacks search (published: 512)."""
    mapping_depth: PositiveInt = 2
    """Layers of small's mapping network."""
    learning_rate: PositiveFloat = 2e-3
    """Adam's step size (paper: 2e-3)."""
    r1: NonNegativeFloat = 2.0
    """Weight gamma of the R1 penalty; too low and small images collapse (paper: 10)."""
    r1_interval: PositiveInt = 16
    """Steps from one R1 penalty to the next (paper: 16)."""
    path_length: NonNegativeFloat = 0.0
    """Weight of the path-length penalty; 0: none (paper: 2)."""
    path_length_interval: PositiveInt = 4
    """Steps from one path-length penalty to the next (paper: 4)."""
    penalty_steps: bool = False
    """Each penalty takes a step of its own, as published, instead of joining the step that it falls
    on, which is cheaper."""
    mixing: Fraction = 0.0
    """Probability that a batch's later layers get another latent than its earlier ones (paper: 0.9)."""
    ema_images: PositiveFloat = 5000.0
    """Half-life of the generator's moving average, in images (paper: 10,000)."""
    ema_rampup: PositiveFloat | None = 0.05
    """Longest half-life as a share of the images seen so far, so that early averages soon forget the
    untrained generator; None: no such bound (published: 0.05 or None, None on a trained prior)."""
    ada_target: Fraction = 0.6
    """Mean sign of the discriminator on real images that augmentation aims at (paper: 0.6)."""
    ada_images: PositiveFloat = 50000.0
    """Images in which the augmentation probability may go from 0 to 1."""
    augment_filter: bool = False
    """Augment through a wavelet's low-pass filter, as published: slower, but it does not blur, R1 sees
    images before their augmentation, and grey images are inverted as colour images are."""
    noise: bool = False
    """Add learnt amounts of noise to the features; attacks cannot search it, so off by default."""
    mirror: bool = True
    """Augment with mirroring and quarter turns; switch off for images like digits."""
    checkpoint_seconds: PositiveFloat = 30.0
    """Time from one checkpoint to the next."""
    watch_images: PositiveInt | None = None
    """Images from one look at samples (grid, Frechet distance) to the next; None: a tenth of all."""


@settings
class Adaptation:
    """How the prior is fine-tuned against the target."""

    steps: NonNegativeInt = 1000
    """Steps of the adversarial game, with or without guidance; 0: the prior is used as it is."""
    batch_size: PositiveInt | None = None
    """Images a step, on all processes together; none: as many as the prior's own training had."""
    images_at_once: PositiveInt | None = None
    """Images that a process works on at once, a divisor of those it has in a step; none: as in the
    prior's own training. Lower it if memory runs out."""
    weight: NonNegativeFloat | None = None
    """Length of each guiding gradient on the generator's parameters, relative to the GAN's; with
    scale absolute, lambda_h on the sum over the batch (paper: 1); 0 is no guidance, which is vanilla
    where the target has no other part. None: the arm's own, 0.3, for statistics 1, projected,
    diverse and conditional 3 (for what the latter two add, half of it)."""
    scale: Literal["relative", "absolute"] = "relative"
    """What weight is relative to: the GAN's gradient, or nothing, as published."""
    learning_rate_factor: PositiveFloat = 0.5
    """Learning rate relative to the prior's own training."""
    preconditioner: Literal["damped", "eigen"] = "damped"
    """Natural gradient: damped inverse of the whole metric, or of its top eigenspace, as published."""
    damping: PositiveFloat = 0.1
    """Damped: damping of the metric's inverse, relative to its largest eigenvalue."""
    iterations: PositiveInt = 3
    """Damped: products with the metric for each natural gradient."""
    rank: PositiveInt = 20
    """Eigen: dimensions of the eigenspace (paper: 20)."""
    pivots: NonNegativeInt = 0
    """Public images of each class, those that the target is surest of, whose latents are searched for at
    the end; attacks that begin with a pool of samples begin with these too. About as many as an attack
    keeps of a class; 0: none."""
    pivots_surer_than: Fraction = 0.5
    """Share of as many samples of the prior, those that the target is surest of for the class, that it has
    to be as sure of such an image as; there may be no pivots then. 0: however unsure it is."""
    pivots_steps: PositiveInt = 100
    """Steps of that search."""
    pivots_tuning: NonNegativeInt = 0
    """Steps at most in which the generator is tuned after that, to draw these images better at their
    latents, say 4000; 0, or where pivots_surer_than leaves less than half of them: it stays as it is."""
    pivots_missed: NonNegativeFloat = 0.1
    """The tuning never begins where no more of these images is missed, in variances of the public
    images."""
    pivots_left: NonNegativeFloat = 0.03
    """Once begun, the tuning ends where no more than this is missed."""
    pivots_learning_rate: PositiveFloat = 5e-3
    """Adam's step size of the tuning (paper, of a large network to one image: 3e-4)."""
    guided_images: PositiveInt = 32
    """Images of each batch that the natural gradient is computed for."""
    projected_learning_rate: PositiveFloat = 5e-4
    """Projected, diverse, conditional: Adam's step size of the discriminator that sees the target's maps."""
    conditional_top: NonNegativeInt | None = None
    """Conditional: public images of each class, those that the target is surest of; none: as many as
    there are for each class, at least 30; 0: all that it takes for the class, at least 30."""
    pseudo_labels_top: PositiveInt = 30
    """Pseudo-labels: public images of each class, those that the target is surest of (paper: 30)."""
    pseudo_labels_alpha: NonNegativeFloat = 0.2
    """Pseudo-labels, scale absolute: weight of the max-margin loss (paper: 0.2); 0: none at any scale."""
    pseudo_labels_mirror: bool = True
    """Pseudo-labels: mirror half of what the target is shown; switch off for images like digits."""
    target_aware_entropy: NonNegativeFloat = 1e-4
    """Target-aware, scale absolute: weight lambda_h of the entropy of the discriminator's classes
    (paper: 1e-4); 0: none at any scale."""

    @property
    def keeps_prior(self) -> bool:
        """Whether there is nothing to do: the prior is used as it is."""
        return self.steps == 0 and self.pivots == 0

    def training_settings(self, training: PriorTraining) -> PriorTraining:
        """How the game goes on with a prior that ``training`` made."""
        return replace(
            training,
            batch_size=self.batch_size or training.batch_size,
            images_at_once=self.images_at_once or training.images_at_once,
        )


def resolve_prior_training(values: Mapping[str, Any], *, size: int, gpus: int = 1) -> PriorTraining:
    """Settings from what was given, on top of what the configuration it names was published with.

    ``size`` of the images and ``gpus`` matter to ``auto`` alone.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    config = values.get("config", "small")
    published = config != "small" and config in get_args(PublishedName)
    base = published_training(config, size=size, gpus=gpus) if published else {}
    return from_mapping(PriorTraining, {**base, **values}, where="prior: ")

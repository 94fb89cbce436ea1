"""Settings of the stages that train: classifiers, the prior, and its fine-tuning against the target."""

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
    """Training of a classifier."""

    architecture: ClassifierArchitecture = "resnet"
    """Network: resnet (residual blocks) or vgg (plain convolutions)."""
    width: PositiveInt = 16
    """Channels of the first stage; each further stage doubles them."""
    epochs: PositiveInt = 60
    """Largest number of epochs; early stopping may end training before."""
    most_steps: PositiveInt = 6000
    """Largest number of steps; large sets get fewer epochs, but at least one."""
    batch_size: PositiveInt = 16
    """Images per step. Small by default, because small private sets need the steps."""
    optimiser: Literal["sgd", "adamw"] = "adamw"
    """Optimiser: sgd with Nesterov momentum, or adamw."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate after the warm-up; it then decays to 0 by a cosine (paper: SGD 0.1)."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of sgd (paper: 0.9)."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay (paper: 5e-4)."""
    warmup_epochs: NonNegativeInt = 5
    """Epochs of linear warm-up (paper: 5)."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """Loss: cross-entropy, or focal (Lin et al. 2017), which the paper's targets have, with gamma 2."""
    gamma: NonNegativeFloat = 2.0
    """Focusing parameter of the focal loss."""
    flip: bool = True
    """Augment by horizontal flips. Switch off where left and right matter, as for digits."""
    shift: Fraction = 0.1
    """Augment by random shifts and scaling of up to this fraction of the image size."""
    rotation: NonNegativeFloat = 8.0
    """Augment by random rotations of up to this many degrees."""
    validation: Fraction = 0.2
    """Fraction of each class used for early stopping, never the holdout; 0: train to the last epoch."""
    patience: PositiveInt = 20
    """Epochs without a lower validation loss after which training stops."""

    def epochs_for(self, images: int) -> int:
        """Return the number of epochs for ``images`` training images, limited by ``most_steps``."""
        steps_per_epoch = math.ceil(images / self.batch_size)
        return max(1, min(self.epochs, self.most_steps // steps_per_epoch))


@settings
class PriorTraining:
    """The style-based prior and its training on the public images."""

    steps: PositiveInt = 2000
    """Training steps, each one step of the discriminator and one of the generator."""
    batch_size: PositiveInt = 32
    """Images per step, on all processes together."""
    images_at_once: PositiveInt | None = None
    """Images of a batch that a process computes at once, adding up gradients. None: all of its images.
    Lower it if memory runs out."""
    config: Literal["small", "auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"] = (
        "small"
    )
    """Networks: small, for small images on a CPU, or those of a published configuration. A published
    configuration replaces width, z_dim, w_dim and mapping_depth, and changes the defaults of the
    training."""
    width: PositiveInt = 16
    """Feature channels of small at full resolution; doubled at each halving, up to eight times as many."""
    z_dim: PositiveInt = 64
    """Dimensions of small's normal latent z (published: 512)."""
    w_dim: PositiveInt = 64
    """Dimensions of small's intermediate latent w, which attacks optimise (published: 512)."""
    mapping_depth: PositiveInt = 2
    """Layers of small's mapping network."""
    learning_rate: PositiveFloat = 2e-3
    """Adam's step size (paper: 2e-3)."""
    r1: NonNegativeFloat = 2.0
    """Weight gamma of the R1 penalty; if it is too low, small images collapse (paper: 10)."""
    r1_interval: PositiveInt = 16
    """Steps from one R1 penalty to the next (paper: 16)."""
    path_length: NonNegativeFloat = 0.0
    """Weight of the path-length penalty; 0 disables it (paper: 2)."""
    path_length_interval: PositiveInt = 4
    """Steps from one path-length penalty to the next (paper: 4)."""
    penalty_steps: bool = False
    """Take a separate step for each penalty, as published, instead of adding it to the step at which it
    is due, which is cheaper."""
    new_latents: bool = False
    """Draw new latents for the generator's step, as published, instead of using the images that the
    discriminator's step judged, which is cheaper. Several processes and smaller parts (images_at_once)
    always draw new ones."""
    mixing: Fraction = 0.0
    """Probability of style mixing: later layers get another latent than earlier ones (paper: 0.9)."""
    ema_images: PositiveFloat = 5000.0
    """Half-life of the generator's moving average, in images (paper: 10,000)."""
    ema_rampup: PositiveFloat | None = 0.05
    """Longest half-life as a fraction of the images seen so far, so that the average soon forgets the
    untrained generator. None: no limit (published: 0.05 or None; None for a trained prior)."""
    ada_target: Fraction = 0.6
    """Target of the adaptive augmentation: mean sign of the discriminator's logits on real images
    (paper: 0.6)."""
    ada_images: PositiveFloat = 50000.0
    """Images after which the augmentation probability can have changed from 0 to 1."""
    augment_filter: bool = False
    """Augment with a wavelet's low-pass filter, as published. It is slower and does not blur; the R1
    penalty applies to images before augmentation, and grey images are inverted like colour images."""
    noise: bool = False
    """Add noise with learnt strengths to the features. Off by default, since attacks cannot optimise
    it."""
    mirror: bool = True
    """Augment by horizontal flips and quarter turns. Switch off for images like digits."""
    checkpoint_seconds: PositiveFloat = 30.0
    """Seconds between checkpoints."""
    watch_images: PositiveInt | None = None
    """Images between evaluations of samples (grid, Frechet distance). None: a tenth of the training."""


@settings
class Adaptation:
    """Fine-tuning of the prior against the target."""

    steps: NonNegativeInt = 1000
    """Training steps, with or without guidance; 0: the prior is not changed."""
    batch_size: PositiveInt | None = None
    """Images per step, on all processes together. None: as in the prior's training."""
    images_at_once: PositiveInt | None = None
    """Images of a batch that a process computes at once; a divisor of its images per step. None: as in
    the prior's training. Lower it if memory runs out."""
    weight: NonNegativeFloat | None = None
    """Weight of the guidance. With scale relative, the norm of each guiding gradient on the generator's
    parameters relative to the GAN's; with scale absolute, lambda_h, the factor of the sum over the batch
    (paper: 1). 0: no guidance. None: the arm's default, 0.3 for most arms, 1 for statistics, and 3 for
    projected, diverse and conditional (the term that the last two add has half of it)."""
    scale: Literal["relative", "absolute"] = "relative"
    """Whether the weight is relative to the GAN's gradient, or absolute as published."""
    uniform_latents: bool = False
    """Draw the latents z of generated images uniformly from [0, 1), as the published code does in the
    fine-tuning. Attacks draw them from a normal distribution in either case, as it does too."""
    augmented_guidance: bool = False
    """Show the target the generated images after the adaptive augmentation of the discriminator, as the
    published code does, instead of the images themselves."""
    learning_rate_factor: PositiveFloat = 0.5
    """Learning rate relative to the prior's training."""
    ema_fraction: PositiveFloat | None = 0.1
    """Longest half-life of the generator's moving average, as a fraction of the adaptation's images, so that
    the average forgets the generator before the adaptation: at 0.1 at most a thousandth of its weight is
    left on it (published: 10,000 of 300,000 images, 0.03). None: no limit but the prior's half-life."""
    preconditioner: Literal["damped", "eigen"] = "damped"
    """Natural gradient: damped inverse of the whole metric, or inverse in its top eigenspace, as
    published."""
    damping: PositiveFloat = 0.1
    """Damped: damping, relative to the metric's largest eigenvalue."""
    iterations: PositiveInt = 3
    """Damped: products with the metric per natural gradient."""
    rank: PositiveInt = 20
    """Eigen: dimension of the eigenspace (paper: 20)."""
    pivots: NonNegativeInt = 0
    """Pivots: number of public images of each class, those with the target's highest confidence, that
    are inverted to latents at the end. Attacks that start from a pool of samples start from these latents
    too. Use about as many as an attack keeps for a class; 0: none."""
    pivots_surer_than: Fraction = 0.5
    """Use a public image only if the target is at least as confident in it as in this fraction of the top
    prior samples of its class, so there may be no pivots; 0 disables the filter."""
    pivots_steps: PositiveInt = 100
    """Optimisation steps of each inversion."""
    pivots_tuning: NonNegativeInt = 0
    """Largest number of steps of pivotal tuning, which then fits the generator to these images at their
    latents, for example 4000; 0: none. There is none either if pivots_surer_than leaves less than half of
    the images."""
    pivots_missed: NonNegativeFloat = 0.1
    """Tune only if the reconstruction error of these images is larger than this, as a fraction of the
    public images' variance."""
    pivots_left: NonNegativeFloat = 0.03
    """Stop tuning when the reconstruction error is no larger than this."""
    pivots_learning_rate: PositiveFloat = 5e-3
    """Adam's step size of pivotal tuning (paper, for one image and a large network: 3e-4)."""
    guided_images: PositiveInt = 32
    """Images of each batch for which the natural gradient is computed."""
    projected_learning_rate: PositiveFloat = 5e-4
    """Projected, diverse, conditional: Adam's step size of the discriminator of the target's feature
    maps."""
    conditional_top: NonNegativeInt | None = None
    """Conditional: number of public images of each class, those with the target's highest confidence.
    None: all images divided by classes; 0: all images that the target predicts to be of the class. Both
    at least 30."""
    pseudo_labels_top: PositiveInt = 30
    """Pseudo-labels: number of public images of each class, those with the target's highest confidence
    (paper: 30)."""
    pseudo_labels_alpha: NonNegativeFloat = 0.2
    """Pseudo-labels, scale absolute: weight of the max-margin loss (paper: 0.2); 0 disables the loss,
    whatever the scale."""
    pseudo_labels_mirror: bool = True
    """Pseudo-labels: flip half of the images that the target sees. Switch off for images like digits."""
    target_aware_entropy: NonNegativeFloat = 1e-4
    """Target-aware, scale absolute: weight lambda_h of the entropy of the discriminator's classes
    (paper: 1e-4); 0 disables the term, whatever the scale."""

    @property
    def keeps_prior(self) -> bool:
        """Whether the prior stays as it is."""
        return self.steps == 0 and self.pivots == 0

    def training_settings(self, training: PriorTraining) -> PriorTraining:
        """Return the settings of fine-tuning a prior that was trained with ``training``."""
        batch_size = self.batch_size or training.batch_size
        half_life = training.ema_images
        if self.ema_fraction is not None and self.steps > 0:
            half_life = min(half_life, self.ema_fraction * self.steps * batch_size)
        return replace(
            training,
            batch_size=batch_size,
            images_at_once=self.images_at_once or training.images_at_once,
            ema_images=half_life,
        )


def resolve_prior_training(values: Mapping[str, Any], *, size: int, gpus: int = 1) -> PriorTraining:
    """Return the given settings on top of those of the published configuration that they name.

    The images' ``size`` and ``gpus`` matter for ``auto`` only.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    config = values.get("config", "small")
    published = config != "small" and config in get_args(PublishedName)
    base = published_training(config, size=size, gpus=gpus) if published else {}
    return from_mapping(PriorTraining, {**base, **values}, where="prior: ")

"""One training step, the same function for one device and for many."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from handtailor_jax.data.augmentation import augment
from handtailor_jax.data.sample import Batch, labelled_batch
from handtailor_jax.hand_module.losses import Term, weighted_mean
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.synthetic.dataset import SyntheticAssets, render_batch, sample_key
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.custom import NOTHING, Custom
from handtailor_jax.training.objective import Loss, objective
from handtailor_jax.training.prediction import predict, sampled_poses
from handtailor_jax.training.sources import rendering
from handtailor_jax.training.state import (
    DEVICES,
    Arrays,
    Network,
    TrainState,
    create_network,
    create_optimizer,
    first_copy,
    learning_rate,
    moving_average,
)
from handtailor_jax.types import HandEstimate, pytree

_AT_ONCE = 64  # images rendered together; one takes about 65 MB at 256 pixels


@pytree
class Losses:
    """The objective and its parts over the samples of all devices."""

    total: Float[Array, ""]
    """The objective."""
    terms: tuple[Term, ...]
    """The terms, in the order of `objective`."""
    keypoint_error: Term
    """Distance of the keypoints from the true ones, in crop sides; of weight 0 in stage "ik"."""


@pytree
class StepMetrics:
    """Metrics of a step, equal on all devices."""

    losses: Losses
    gradient_norm: Float[Array, ""]
    """Global norm of the gradients before clipping."""
    learning_rate: Float[Array, ""]


Samples = Batch | Array | None
"""Input of a step: images, from host memory or rendered; in stage "ik", recorded finger poses or None."""


def sample_keys(seed: int, step: Int[Array, ""], samples: Int[Array, "n"]) -> Key[Array, "n"]:
    """Return the random key of each sample of a step, which does not depend on the number of devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)


def train_step(
    state: TrainState,
    batch: Samples,
    samples: Int[Array, "n"],
    hand: HandModel,
    *,
    network: Network,
    config: TrainingConfig,
    losses: Sequence[tuple[float, Loss]] = (),
) -> tuple[TrainState, StepMetrics]:
    """Take one step on the samples of one device; runs under the mapped axis `DEVICES`.

    Args:
        state: The state, the same on all devices.
        batch: Images of this device before augmentation; in stage "ik", where the step samples poses, recorded finger
            poses (n, 15, 3) or None.
        samples: Positions of this device's samples in the whole batch.
        hand: The right hand model.
        network: Structure of the network.
        config: Configuration of the run.
        losses: Losses in addition to those of the configuration.
    """
    keys = sample_keys(config.seed, state.step, samples)
    of_part = functools.partial(_gradients, state, hand=hand, network=network, config=config, others=losses)
    parts = config.optimizer.accumulate
    if parts == 1:
        gradients, statistics, found = of_part(state.statistics, batch, keys)
    else:
        pieces = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (batch, keys))

        def one(statistics: Arrays, piece: Any) -> tuple[Arrays, tuple[Arrays, Losses]]:
            gradients, statistics, found = of_part(statistics, *piece)
            return statistics, (gradients, found)

        statistics, (gradients, found) = jax.lax.scan(one, state.statistics, pieces)
        gradients, found = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), (gradients, found))

    return _update(state, gradients, statistics, found, config)


def _update(
    state: TrainState, gradients: Arrays, statistics: Arrays, losses: Losses, config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    """Apply the optimiser. After a loss or gradient that is not finite, this step and all later ones change nothing."""
    norm = optax.tree.norm(gradients)
    # After the first failure every gradient is replaced by NaN, so that the optimiser ignores all later steps too.
    sound = jnp.isfinite(losses.total) & jnp.isfinite(norm) & (state.optimizer.total_notfinite == 0)
    gradients = jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.nan), gradients)
    optimizer = create_optimizer(config.optimizer, config.steps)
    # Optax relies on implicit promotion, which users of JAX, and the tests, may forbid.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        rate = jnp.asarray(learning_rate(config.optimizer, config.steps)(state.step), norm.dtype)
    params, done = optax.apply_updates(state.params, updates), state.step + 1
    new = {
        "step": done,
        "statistics": statistics,
        "average_params": moving_average(state.average_params, params, done, config.optimizer),
        "average_statistics": moving_average(state.average_statistics, statistics, done, config.optimizer),
    }
    # `apply_if_finite` already keeps the parameters.
    held = {name: getattr(state, name) for name in new}
    new = jax.tree.map(functools.partial(jnp.where, sound), new, held)
    state = dataclasses.replace(state, params=params, optimizer=optimizer_state, **new)
    return state, StepMetrics(losses, norm, rate)


def _gradients(
    state: TrainState,
    statistics: Arrays,
    batch: Samples,
    keys: Key[Array, "batch"],
    *,
    hand: HandModel,
    network: Network,
    config: TrainingConfig,
    others: Sequence[tuple[float, Loss]],
) -> tuple[Arrays, Arrays, Losses]:
    """Return the gradients over all devices, the new statistics and the losses."""
    noise_keys = jax.vmap(lambda key: jax.random.fold_in(key, 7))(keys)
    if not isinstance(batch, Batch):
        crops = sampled_poses(hand, keys, config.betas_std, batch)
    else:
        # Without the barrier, XLA of jax 0.12 fuses the resampling into the network and compiles for minutes.
        crops = jax.lax.optimization_barrier(augment(batch, keys, config.augmentation, config.module.image_size))

    def loss(params: Arrays) -> tuple[Array, tuple[Arrays, Losses]]:
        module = network.module(params, state.frozen, statistics)
        prediction = predict(module, hand, crops, noise_keys, config)
        weighted = objective(config, others)
        terms = tuple(term(prediction.batch, prediction) for _, term in weighted)
        error = keypoint_error(crops, prediction.estimate)
        everywhere, error = jax.lax.psum(jax.lax.stop_gradient((terms, error)), DEVICES)
        # The total is this device's share of every mean, so the totals and the gradients of all devices add up.
        total = jnp.zeros((), hand.dtype)
        for (weight, _), own, whole in zip(weighted, terms, everywhere, strict=True):
            total = total + weight * own.total / jnp.maximum(whole.weight, 1e-6)
        return total, (network.split(module)[2], Losses(total, everywhere, error))

    gradients, (new_statistics, losses) = jax.grad(loss, has_aux=True)(state.params)
    # One vector takes one message between the devices instead of one for every array.
    vector, unravel = ravel_pytree((gradients, losses.total))
    gradients, total = unravel(jax.lax.psum(vector, DEVICES))
    return gradients, new_statistics, Losses(total, losses.terms, losses.keypoint_error)


def keypoint_error(batch: Batch, estimate: HandEstimate | None) -> Term:
    """Return the mean distance of the keypoints inside the crops from the true ones, in crop sides."""
    if estimate is None:
        return Term(jnp.zeros(()), jnp.zeros(()))
    side = batch.image.shape[-2]
    difference = jax.lax.stop_gradient(estimate.keypoints_2d) - batch.keypoints_2d
    inside = jnp.all((batch.keypoints_2d > 0.0) & (batch.keypoints_2d < side - 1.0), axis=-1)
    distance = jnp.sqrt(jnp.sum(jnp.square(difference), axis=-1)) / side
    return weighted_mean(distance, jnp.where(inside, batch.keypoint_weight, 0.0))


def mean_metrics(
    steps: list[StepMetrics], config: TrainingConfig, others: Sequence[tuple[float, Loss]] = ()
) -> dict[str, float]:
    """Return the means of several steps' metrics by name."""
    found = first_copy(steps)
    values = {"loss": float(np.mean([each.losses.total for each in found]))}
    for number, (_, loss) in enumerate(objective(config, others)):
        values[f"loss/{loss.__name__}"] = _mean([each.losses.terms[number] for each in found])
    if config.stage != "ik":
        values["train/keypoints_percent_of_crop"] = 100.0 * _mean([each.losses.keypoint_error for each in found])
    values["gradient_norm"] = float(np.mean([each.gradient_norm for each in found]))
    values["learning_rate"] = float(found[-1].learning_rate)
    return values


def _mean(terms: list[Term]) -> float:
    weight = float(sum(term.weight for term in terms))
    return float(sum(term.total for term in terms)) / weight if weight > 0.0 else 0.0


@functools.lru_cache(maxsize=8)
def compile_step(
    config: TrainingConfig, devices: tuple[jax.Device, ...], custom: Custom = NOTHING
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Return the step over all devices: every argument has a leading axis of local devices."""
    network = create_network(config, custom.network)
    step = functools.partial(train_step, network=network, config=config, losses=custom.losses)
    return on_devices(step, devices, donate_argnums=(0,))


def compile_rendering(config: TrainingConfig, devices: tuple[jax.Device, ...]) -> Callable[..., Batch]:
    """Return a function that renders a step's samples: (assets, step, samples), each with a leading axis of devices."""

    def render(assets: SyntheticAssets, step: Int[Array, ""], samples: Int[Array, "n"]) -> Batch:
        keys = jax.vmap(lambda index: sample_key(config.seed, "train", index))(step * config.batch + samples)
        # Needs an accelerator, whose memory fits more images than a processor's caches.
        sample = render_batch(assets, keys, dataclasses.replace(rendering(config.data), images_at_once=_AT_ONCE))
        fields = ("image", "keypoints_2d", "joints", "pose", "betas")
        return labelled_batch(intrinsics=sample.camera.matrix, **{name: getattr(sample, name) for name in fields})

    return on_devices(render, devices)


def on_devices(function: Callable[..., Any], devices: tuple[jax.Device, ...], **options: Any) -> Any:
    """Return a function over the mapped axis `DEVICES`; several processes always use all devices."""
    return jax.pmap(function, DEVICES, devices=None if jax.process_count() > 1 else devices, **options)

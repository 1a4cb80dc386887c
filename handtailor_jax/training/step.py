"""One training step, for one device or many."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from handtailor_jax.data.augmentation import augment
from handtailor_jax.data.sample import Batch
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.synthetic.dataset import SyntheticAssets, SyntheticConfig, render_batch, sample_key
from handtailor_jax.synthetic.poses import sample_betas, sample_pose
from handtailor_jax.training.config import TrainingConfig
from handtailor_jax.training.objective import Losses, Term, image_losses, objective, pose_losses
from handtailor_jax.training.state import (
    DEVICES,
    Arrays,
    Network,
    TrainState,
    create_network,
    create_optimizer,
    learning_rate,
)
from handtailor_jax.types import HandEstimate, pytree


@pytree
class Sums:
    """What one pass over samples reports, over all devices."""

    loss: Float[Array, ""]
    """The objective."""
    losses: Losses
    """Its terms."""
    keypoint_error: Term
    """Distance of keypoints in pictures, shares of the crop's side."""


@pytree
class StepMetrics:
    """What a step reports, equal on all devices."""

    sums: Sums
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    learning_rate: Float[Array, ""]


def sample_keys(seed: int, step: Int[Array, ""], samples: Int[Array, "n"]) -> Key[Array, "n"]:
    """The random key of each sample of a step, the same on however many devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)


def train_step(
    state: TrainState,
    batch: Batch | None,
    samples: Int[Array, "n"],
    hand: HandModel,
    *,
    network: Network,
    config: TrainingConfig,
) -> tuple[TrainState, StepMetrics]:
    """One step on one device's samples; runs under a mapped axis `DEVICES`.

    Args:
        state: the same on all devices.
        batch: this device's pictures before augmentation; None in stage "ik", where poses are sampled here.
        samples: numbers of this device's samples in the whole batch.
        hand: right hand model.
        network: structure of the network.
        config: of the run.
    """
    keys = sample_keys(config.seed, state.step, samples)
    params, frozen = network.params.arrays(state.params), network.frozen.arrays(state.frozen)
    found = functools.partial(_gradients, params, frozen, hand=hand, network=network, config=config)
    parts = config.optimizer.accumulate
    if parts == 1:
        gradients, statistics, sums = found(state.statistics, batch, keys)
    else:
        pieces = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (batch, keys))

        def part(carry: Any, piece: tuple[Batch | None, Key[Array, "part"]]) -> tuple[Any, None]:
            gradients, statistics, sums = found(carry[1], *piece)
            return (_add(carry[0], gradients), statistics, _add(carry[2], sums)), None

        shapes = jax.eval_shape(lambda: found(state.statistics, *jax.tree.map(lambda leaf: leaf[0], pieces)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (gradients, statistics, sums), _ = jax.lax.scan(part, (zeros[0], state.statistics, zeros[2]), pieces)
        gradients = gradients / parts
        sums = dataclasses.replace(sums, loss=sums.loss / parts)
    loss = sums.loss

    # Optax counts on implicit promotion, which some of its users, and the tests, forbid.
    with jax.numpy_dtype_promotion("standard"):
        directions, optimizer_state = create_optimizer(config.optimizer).update(gradients, state.optimizer)
        rate = jnp.asarray(learning_rate(config.optimizer, config.steps)(state.step), loss.dtype)
    kernel = jnp.arange(state.params.size) < network.params.kernels
    decayed = jnp.where(kernel, config.optimizer.weight_decay * state.params, 0.0)
    params = state.params - rate * (directions + decayed)
    norm = jnp.sqrt(jnp.sum(jnp.square(gradients)))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.failed < 0)
    done = state.step + 1
    # Early on an average over many steps would mostly be the random start.
    taken = done.astype(loss.dtype)
    decay = jnp.minimum(config.optimizer.average, (1.0 + taken) / (10.0 + taken))
    new = TrainState(
        step=done,
        params=params,
        frozen=state.frozen,
        statistics=statistics,
        optimizer=optimizer_state,
        average_params=decay * state.average_params + (1.0 - decay) * params,
        average_statistics=decay * state.average_statistics + (1.0 - decay) * statistics,
        failed=state.failed,
    )
    kept = dataclasses.replace(state, failed=jnp.where(state.failed < 0, state.step, state.failed))
    state = jax.tree.map(functools.partial(jnp.where, finite), new, kept)
    return state, StepMetrics(sums, norm, rate)


def _gradients(
    params: Arrays,
    frozen: Arrays,
    statistics: Float[Array, "running"],
    batch: Batch | None,
    keys: Key[Array, "batch"],
    *,
    hand: HandModel,
    network: Network,
    config: TrainingConfig,
) -> tuple[Float[Array, "trained"], Float[Array, "running"], Sums]:
    """Gradients over all devices, new statistics, and what there is to report."""
    noise_keys = jax.vmap(lambda key: jax.random.fold_in(key, 7))(keys)
    crops = None if batch is None else augment(batch, keys, config.augmentation, config.module.image_size)

    def of(params: Arrays) -> tuple[Array, tuple[Array, Sums]]:
        module = network.module(params | frozen | network.statistics.arrays(statistics), training=True)
        if crops is None:
            pose, betas = sampled_poses(hand, keys, config)
            terms = pose_losses(module, hand, pose, betas, noise_keys, config)
            error = Term(jnp.zeros(()), jnp.zeros(()))
        else:
            terms, estimate = image_losses(module, hand, crops, noise_keys, config)
            error = keypoint_error(estimate, crops, config)
        everywhere, error = jax.lax.psum(jax.lax.stop_gradient((terms, error)), DEVICES)
        loss = objective(terms, config.loss, everywhere)
        values = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(module))}
        return loss, (network.statistics.vector(values), Sums(loss, everywhere, error))

    gradients, (new_statistics, sums) = jax.grad(of, has_aux=True)(params)
    gradient, loss = jax.lax.psum((network.params.vector(gradients), sums.loss), DEVICES)
    return gradient, new_statistics, dataclasses.replace(sums, loss=loss)


def sampled_poses(hand: HandModel, keys: Key[Array, "batch"], config: TrainingConfig) -> tuple[Array, Array]:
    """Poses and shapes for IKNet, one a key."""

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        return sample_pose(hand, first, config.data.poses), sample_betas(hand, second, config.data.poses)

    return jax.vmap(one)(keys)


def keypoint_error(estimate: HandEstimate, batch: Batch, config: TrainingConfig) -> Term:
    """Distance of the keypoints inside the pictures from the truth, shares of the crop's side."""
    difference = jax.lax.stop_gradient(estimate.keypoints_2d) - batch.keypoints_2d
    distance = jnp.sqrt(jnp.sum(jnp.square(difference), axis=-1)) / config.module.image_size
    inside = jnp.all((batch.keypoints_2d > 0.0) & (batch.keypoints_2d < config.module.image_size - 1.0), axis=-1)
    weight = jnp.where(inside, batch.keypoint_weight, 0.0)
    return Term(jnp.sum(distance * weight), jnp.sum(weight))


@functools.lru_cache(maxsize=8)
def compile_step(
    config: TrainingConfig, devices: tuple[jax.Device, ...]
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The step over all devices: every argument has a leading axis of local devices."""
    step = functools.partial(train_step, network=create_network(config), config=config)
    return jax.pmap(step, axis_name=DEVICES, donate_argnums=(0,), devices=_named_devices(devices))


def compile_rendering(
    config: TrainingConfig, synthetic: SyntheticConfig, devices: tuple[jax.Device, ...]
) -> Callable[..., Batch]:
    """Renders a step's samples: (assets, step, samples), each with a leading axis of local devices."""

    def render(assets: SyntheticAssets, step: Int[Array, ""], samples: Int[Array, "n"]) -> Batch:
        number = step * config.batch + samples
        keys = jax.vmap(lambda index: sample_key(config.seed, "train", index))(number)
        sample = render_batch(assets, keys, synthetic)
        count, dtype = samples.shape[0], sample.joints.dtype
        return Batch(
            image=sample.image,
            keypoints_2d=sample.keypoints_2d,
            keypoint_weight=jnp.ones((count, 21), dtype),
            intrinsics=sample.camera.matrix,
            joints=sample.joints,
            pose=sample.pose,
            betas=sample.betas,
            has_joints=jnp.ones(count, dtype),
            has_3d=jnp.ones(count, dtype),
            has_intrinsics=jnp.ones(count, dtype),
        )

    return jax.pmap(render, axis_name=DEVICES, devices=_named_devices(devices))


def _named_devices(devices: tuple[jax.Device, ...]) -> tuple[jax.Device, ...] | None:
    # Several processes always work on all of their devices together.
    return None if jax.process_count() > 1 else devices


def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)

"""Train your own Flax network through the tailor: python examples/04_train_through_the_tailor.py.

The network proposes a pose from noisy keypoints, the tailor fits it to the keypoints, and the loss compares the meshes.
"""

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

import handtailor_jax as ht

UPRIGHT = jnp.asarray([1.2, 1.2, -1.2])  # fingers up, palm toward the camera


class PoseNetwork(nnx.Module):
    """A network that proposes the rotations of 16 joints from 21 keypoints in pixels."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden, self.head = nnx.Linear(42, 128, rngs=rngs), nnx.Linear(128, 48, rngs=rngs)

    def __call__(self, keypoints):
        features = jax.nn.relu(self.hidden((keypoints - keypoints[9:10]).reshape(-1) / 100.0))
        return (0.1 * self.head(features)).reshape(16, 3).at[0].add(UPRIGHT)


def sample(hand, key):
    """Return the noisy keypoints and the vertices of a random hand."""
    first, second = jax.random.split(key)
    pose = (0.25 * jax.random.normal(first, (16, 3))).at[0].add(UPRIGHT)
    truth = ht.HandParameters(pose, jnp.zeros(10), jnp.ones(()), jnp.asarray([0.0, 0.0, 0.5]))
    points, camera = ht.camera_keypoints(hand, truth), ht.Camera.perspective(600.0, 600.0, 160.0, 160.0)
    pixels = points[:, :2] / points[:, 2:] * 600.0 + 160.0 + 2.0 * jax.random.normal(second, (21, 2))
    return ht.Observation(pixels, jnp.ones(21), camera), ht.camera_mesh(hand, truth).vertices


def main(steps: int = 200, batch: int = 32) -> None:
    """Train, and print the mean error of the fitted vertices at each step."""
    hand, config, network = ht.embedded_hand(), ht.TailorConfig.default(), PoseNetwork(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(3e-3), wrt=nnx.Param)

    def error(network, key):
        seen, vertices = sample(hand, key)
        start = ht.initialize(hand, network(seen.keypoints_2d), jnp.zeros(10), seen, root_depth=jnp.asarray(0.5))
        fitted = ht.tailor(hand, start, seen, config)
        return 1e3 * jnp.mean(jnp.linalg.norm(ht.camera_mesh(hand, fitted).vertices - vertices, axis=-1))

    @nnx.jit
    def step(network, optimizer, keys):
        loss, gradients = nnx.value_and_grad(lambda n: jnp.mean(jax.vmap(error, (None, 0))(n, keys)))(network)
        optimizer.update(network, gradients)
        return loss

    for number, keys in enumerate(jax.random.split(jax.random.key(0), (steps, batch))):
        print(f"step {number}: {step(network, optimizer, keys):.2f} mm")


if __name__ == "__main__":
    tyro.cli(main)

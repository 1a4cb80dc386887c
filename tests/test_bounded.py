"""The tailor stays finite and bounded from any finite start, as in the first steps of a training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.tailor import PRESETS, TailorConfig, initialize, tailor
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Camera, Observation

COUNT = 250  # default, paper and official also passed once with 10,000, which takes minutes for each


def random_starts(seed, count):
    """Outputs of untrained networks: any pose and shape, depths down to -2 m, keypoints that coincide or nearly do."""
    rng = np.random.default_rng(seed)

    def choose(*choices):
        return np.stack(choices)[rng.integers(len(choices), size=count), np.arange(count)].astype(np.float32)

    center, spread = rng.uniform(0.0, 256.0, (count, 1, 2)), rng.normal(size=(count, 21, 2))
    uniform, normal = rng.uniform(size=(count, 21)), rng.normal(size=count)
    return {
        "pose": choose(*(scale * rng.normal(size=(count, 16, 3)) for scale in (0.0, 0.01, 1.0, 3.0))),
        "betas": choose(*(scale * rng.normal(size=(count, 10)) for scale in (0.0, 1.0, 5.0))),
        "keypoints": choose(*(center + scale * spread for scale in (0.0, 1e-4, 0.1, 30.0, 300.0))),
        "root_depth": choose(0.0 * normal, normal, 0.5 + 0.1 * normal, np.exp(3.0 * normal)),
        "bone": choose(np.full(count, 0.09), np.exp(normal - 2.4), np.full(count, 1e-4)),
        "confidence": choose(np.ones_like(uniform), uniform, uniform**4, 0.0 * uniform),
        "focal": choose(np.full(count, 300.0), np.exp(1.0 + rng.uniform(4.0, 7.0, count))),
        "perspectivity": choose(np.zeros(count), np.ones(count), np.ones(count)),
    }


def compiled(preset):
    """Return the program of the fitted keypoints, metres, and of the gradients of their root mean square."""

    def loss(network, confidence, focal, perspectivity, hand):
        metric = perspectivity > 0.5
        linear = jnp.where(metric, focal, 1.0) * jnp.eye(2)
        seen = Observation(network["keypoints"], confidence, Camera(linear, jnp.full(2, 128.0), perspectivity))
        lengths = {name: network[name] for name in ("root_depth", "bone")}
        start = initialize(hand, network["pose"], network["betas"], seen, **lengths, scale=preset.scale)
        points = camera_keypoints(hand, tailor(hand, start, seen, preset)) * jnp.where(metric, 1.0, 1e-3)
        return jnp.sqrt(jnp.mean(jnp.square(points)) + 1e-12), points

    gradient = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(jax.vmap(gradient, in_axes=(0, 0, 0, 0, None)))


OTHERS = ("network", "landmarks", "paper", "official", "plug_in")


@pytest.mark.parametrize("name", ["default", *OTHERS])
@pytest.mark.slow
def test_any_start_is_bounded(hand, name):
    """Values and gradients, float32."""
    run = compiled((PRESETS | {"plug_in": TailorConfig.plug_in})[name]())
    inputs = random_starts(0, COUNT)
    others = [inputs.pop(name) for name in ("confidence", "focal", "perspectivity")]
    (_, points), gradients = jax.device_get(run(inputs, *others, hand))
    assert np.abs(points).max() < 2e3
    for gradient in gradients.values():
        # Adam's first step is the gradient's sign, which is steep where the gradient vanishes.
        assert np.abs(gradient).max() < (1e10 if name == "official" else 1e6)


def test_a_start_behind_the_camera_is_bounded(hand):
    """A start that was not made by `initialize`, for which the tailor holds the depth itself."""
    preset = TailorConfig.default()

    @jax.jit
    def fitted(keypoints, hand):
        seen = Observation(keypoints, jnp.ones(21), Camera.perspective(300.0, 300.0, 128.0, 128.0))
        start = initialize(hand, jnp.zeros((16, 3)), jnp.zeros(10), seen, root_depth=jnp.asarray(0.5))
        behind = start.translation.at[2].set(-1.0)
        return tailor(hand, start.__class__(start.pose, start.betas, start.scale, behind), seen, preset).translation

    translation = fitted(jnp.full((21, 2), 100.0), hand)
    assert 0.05 <= translation[2] <= 50.0

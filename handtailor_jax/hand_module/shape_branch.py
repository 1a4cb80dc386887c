"""The shape branch: bone length, root depth and betas from the last stack's encoding."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.layers import MLP, Bottleneck, max_pool_3
from handtailor_jax.skeleton import NUM_BETAS


class ShapeBranch(nnx.Module):
    """Levels of a pool and bottlenecks, whose last map is averaged to one feature vector, and a regressor."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        channels = [config.channels] + [config.shape_channels] * (config.shape_levels * config.shape_blocks)
        blocks = [Bottleneck(a, b, config, rngs=rngs) for a, b in itertools.pairwise(channels)]
        per_level = config.shape_blocks
        self.levels = nnx.List(
            [nnx.List(blocks[i : i + per_level]) for i in range(0, config.shape_levels * per_level, per_level)]
        )
        self.regressor = MLP(config.shape_channels, config.shape_hidden, 2 + NUM_BETAS, config, rngs=rngs)

    def maps(self, encoding: Float[Array, "batch rows columns channels"]) -> list[Array]:
        """Return the feature maps of every level, largest first."""
        maps = []
        for level in self.levels:
            encoding = max_pool_3(encoding)
            for bottleneck in level:
                encoding = bottleneck(encoding)
            maps.append(encoding)
        return maps

    def __call__(
        self, encoding: Float[Array, "batch rows columns channels"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch 12"]]:
        """Return the feature vector and the shape vector: bone length, root depth (neither decoded yet) and betas."""
        features = jnp.mean(self.maps(encoding)[-1], axis=(1, 2))
        return features, self.regressor(features)

"""From the image to heatmaps, depth maps and shape: three stems, stacked hourglasses and the shape branch."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from handtailor_jax.detector.landmark_network import HandLandmarkConfig, HandLandmarkNetwork, Landmarks, by_crop
from handtailor_jax.detector.layers import max_pool_2
from handtailor_jax.geometry.heatmaps import gaussian_heatmaps
from handtailor_jax.hand_module.config import HandModuleConfig
from handtailor_jax.hand_module.layers import (
    MLP,
    Block,
    Bottleneck,
    convolution,
    head,
    linear,
    max_pool_3,
    space_to_depth,
    upsample_2,
)
from handtailor_jax.skeleton import NUM_BETAS, NUM_KEYPOINTS
from handtailor_jax.types import pytree


class StridedStem(nnx.Module):
    """The released network's stem: 7 x 7 convolution with stride 2, bottleneck, pool, two bottlenecks."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        width, channels = config.stem_channels, config.channels
        self.embed = Block(convolution(3, width, 7, config, stride=2, rngs=rngs), config, rngs=rngs)
        self.fine = Bottleneck(width, channels // 2, config, rngs=rngs)
        self.coarse = nnx.List([Bottleneck(n, channels, config, rngs=rngs) for n in (channels // 2, channels)])

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows columns channels"]:
        """Return feature maps of a quarter of the image's size."""
        x = max_pool_2(self.fine(self.embed(x)))
        for bottleneck in self.coarse:
            x = bottleneck(x)
        return x


class PatchStem(nnx.Module):
    """A stem for CPUs: 3 x 3 convolution over 4 x 4 patches, bottleneck. No map is larger than the hourglass's."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.embed = Block(convolution(4 * 4 * 3, config.channels, 3, config, rngs=rngs), config, rngs=rngs)
        self.bottleneck = Bottleneck(config.channels, config.channels, config, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows columns channels"]:
        """Return feature maps of a quarter of the image's size."""
        return self.bottleneck(self.embed(space_to_depth(x, 4)))


class LandmarkStem(nnx.Module):
    """The pretrained hand landmark network: its maps, merged from the smallest upwards, and the keypoints it finds."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        self.network = HandLandmarkNetwork(HandLandmarkConfig(config.image_size), rngs=rngs)
        self.map_size = config.map_size
        channels, widths = config.channels, self.network.config.widths[1:]
        self.merge = nnx.List([linear(width, channels, config, rngs=rngs) for width in widths])
        self.drawn = linear(NUM_KEYPOINTS, channels, config, rngs=rngs)
        self.numbers = linear(6 * NUM_KEYPOINTS, channels, config, rngs=rngs)
        self.bottleneck = Bottleneck(channels, channels, config, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows columns channels"]:
        """Return feature maps of an eighth of the image's size."""
        maps, landmarks = by_crop(self._maps_and_landmarks, x + 0.5)
        *larger, merged = (merge(a) for merge, a in zip(self.merge, maps, strict=True))
        for each in reversed(larger):
            merged = each + (merged if merged.shape == each.shape else upsample_2(merged))
        half = 0.5 * x.shape[1]
        index = jnp.clip(landmarks.crop[..., :2], -half, 3.0 * half) / (x.shape[1] / self.map_size)
        drawn = gaussian_heatmaps(index, (self.map_size, self.map_size), 1.0)
        # Both are scaled to the order of 1.
        numbers = jnp.concatenate([landmarks.crop / half - 1.0, 10.0 * landmarks.world], axis=-1)
        numbers = self.numbers(jnp.clip(numbers, -3.0, 3.0).reshape(x.shape[0], -1))
        return self.bottleneck(merged + self.drawn(drawn) + numbers[:, None, None])

    def _maps_and_landmarks(self, crops: Float[Array, "batch size size 3"]) -> tuple[list[Array], Landmarks]:
        maps = self.network.maps(crops)
        return maps[1:], self.network.heads(maps[-1])


STEMS = {"strided": StridedStem, "patches": PatchStem, "landmarks": LandmarkStem}
"""Stems by their names in the configuration."""


class Hourglass(nnx.Module):
    """A network that halves the map `config.depth` times and doubles it again, with a skip connection at every size."""

    def __init__(self, config: HandModuleConfig, *, rngs: nnx.Rngs):
        def bottlenecks() -> list[Bottleneck]:  # one per map size, from the innermost
            return [Bottleneck(config.channels, config.channels, config, rngs=rngs) for _ in range(config.depth)]

        self.across, self.down, self.up = nnx.List(bottlenecks()), nnx.List(bottlenecks()), nnx.List(bottlenecks())
        self.innermost = Bottleneck(config.channels, config.channels, config, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Return features of the same shape, each computed from the whole map."""
        return self._level(len(self.across) - 1, x)

    def _level(self, i: int, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        low = self.down[i](max_pool_2(x))
        low = self._level(i - 1, low) if i else self.innermost(low)
        return self.across[i](x) + upsample_2(self.up[i](low))


@pytree
class StackOutput:
    """Maps and features computed by one stack."""

    hourglass: Float[Array, "batch rows columns channels"]
    """Output of the hourglass."""
    residual: Float[Array, "batch rows columns channels"]
    """Output of the bottleneck after the hourglass."""
    heatmap_logits: Float[Array, "batch rows columns 21"]
    """Heatmaps before their sigmoid or softmax."""
    depth_maps: Float[Array, "batch rows columns 21"] | None
    """Depth maps; None in 2D stacks."""
    encoding: Float[Array, "batch rows columns channels"]
    """Features and maps merged: the input of the next stack."""


class Stack(nnx.Module):
    """An hourglass, a head that computes maps from its features, and a layer that merges both for the next stack."""

    def __init__(self, config: HandModuleConfig, *, depth_maps: bool, rngs: nnx.Rngs):
        channels = config.channels
        maps = 2 * NUM_KEYPOINTS if depth_maps else NUM_KEYPOINTS
        self.hourglass = Hourglass(config, rngs=rngs)
        self.residual = Bottleneck(channels, channels, config, rngs=rngs)
        self.head = head(channels, maps, config, rngs=rngs)
        self.merge = Block(linear(channels + maps, channels, config, bias=False, rngs=rngs), config, rngs=rngs)
        self.depth_maps = depth_maps
        self.depths_in_unit_interval = config.decoding != "corrected"

    def __call__(self, x: Float[Array, "batch rows columns channels"]) -> StackOutput:
        """Compute maps and features from features."""
        hourglass = self.hourglass(x)
        residual = self.residual(hourglass)
        maps = self.head(residual)
        logits, depths = maps[..., :NUM_KEYPOINTS], maps[..., NUM_KEYPOINTS:]
        if self.depths_in_unit_interval:
            depths = nnx.sigmoid(depths)
        encoding = self.merge(jnp.concatenate([residual, nnx.sigmoid(logits), depths], axis=-1))
        return StackOutput(hourglass, residual, logits, depths if self.depth_maps else None, encoding)


class ShapeBranch(nnx.Module):
    """Levels of one pool and some bottlenecks, the mean of the last map as a feature vector, and a regressor."""

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

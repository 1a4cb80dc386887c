"""Random numbers for programs that make hundreds of random choices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Draws:
    """Stream of random numbers that depends on a key only.

    All numbers are drawn at once and handed out in order, because every generator in a program is slow to compile. A
    stream exists only while a function is traced, so it is not a pytree.
    """

    def __init__(self, key: Key[Array, "*pair"], dtype: Any, uniforms: int = 256, normals: int = 256) -> None:
        # A pair of keys, one for uniform and one for normal numbers, is taken as it is.
        uniform, normal = jax.random.split(key) if key.ndim == 0 else key
        self._streams = jax.random.uniform(uniform, (uniforms,), dtype), jax.random.normal(normal, (normals,), dtype)
        self._used = [0, 0]

    def uniform(self, *shape: int) -> Float[Array, "*shape"]:
        """Draw numbers uniform on [0, 1)."""
        return self._next(0, shape)

    def normal(self, *shape: int) -> Float[Array, "*shape"]:
        """Draw standard normal numbers."""
        return self._next(1, shape)

    def _next(self, kind: int, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        stream, start = self._streams[kind], self._used[kind]
        end = self._used[kind] = start + math.prod(shape)
        if end > stream.shape[0]:
            raise ValueError(f"{end} random numbers are needed and {stream.shape[0]} were drawn")
        return jax.lax.slice(stream, (start,), (end,)).reshape(shape)

    def between(self, low: float, high: float, *shape: int) -> Float[Array, "*shape"]:
        """Draw numbers uniform on [low, high)."""
        return low + (high - low) * self.uniform(*shape)

    def chance(self, share: float) -> Float[Array, ""]:
        """Draw 1 with probability `share`, otherwise 0."""
        draw = self.uniform()
        return (draw < share).astype(draw.dtype)

    def direction(self) -> Float[Array, "3"]:
        """Draw a unit vector uniform on the sphere."""
        vector = self.normal(3)
        return vector / jnp.sqrt(jnp.sum(vector * vector) + 1e-12)

    def choice(self, count: int) -> Any:
        """Draw an integer uniform on 0 ... count - 1."""
        return jnp.minimum((self.uniform() * count).astype(jnp.int32), count - 1)

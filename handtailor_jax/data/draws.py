"""Random numbers handed out in pieces, so that a program with hundreds of random choices holds two generators."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Draws:
    """A stream of random numbers that follows from a key alone.

    Everything is drawn at once and handed out in order: every generator in a program is slow to compile. Lives only
    while a function is traced, so it is no pytree.
    """

    def __init__(self, key: PRNGKeyArray, dtype: Any, uniforms: int = 256, normals: int = 256) -> None:
        uniform, normal = jax.random.split(key)
        self._uniforms = jax.random.uniform(uniform, (uniforms,), dtype)
        self._normals = jax.random.normal(normal, (normals,), dtype)
        self._uniforms_used = self._normals_used = 0

    def uniform(self, *shape: int) -> Float[Array, "*shape"]:
        """Numbers uniform on [0, 1)."""
        start = self._uniforms_used
        self._uniforms_used += math.prod(shape)
        return _piece(self._uniforms, start, shape)

    def normal(self, *shape: int) -> Float[Array, "*shape"]:
        """Standard normal numbers."""
        start = self._normals_used
        self._normals_used += math.prod(shape)
        return _piece(self._normals, start, shape)

    def between(self, low: float, high: float, *shape: int) -> Float[Array, "*shape"]:
        """Numbers uniform on [low, high)."""
        return low + (high - low) * self.uniform(*shape)

    def chance(self, share: float) -> Float[Array, ""]:
        """1 with probability `share`, else 0."""
        draw = self.uniform()
        return (draw < share).astype(draw.dtype)

    def direction(self) -> Float[Array, "3"]:
        """A unit vector uniform on the sphere."""
        vector = self.normal(3)
        return vector / jnp.sqrt(jnp.sum(vector * vector) + 1e-12)

    def choice(self, count: int) -> Any:
        """An integer uniform on 0 ... count - 1."""
        return jnp.minimum((self.uniform() * count).astype(jnp.int32), count - 1)


def _piece(stream: Float[Array, "n"], start: int, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """The next numbers of a stream.

    Raises:
        ValueError: if it has not that many left, which is a mistake in the program.
    """
    end = start + math.prod(shape)
    if end > stream.shape[0]:
        raise ValueError(f"{end} random numbers are needed and {stream.shape[0]} were drawn")
    return jax.lax.slice(stream, (start,), (end,)).reshape(shape)

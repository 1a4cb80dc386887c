"""The tile walk of the rasterisers: for every pixel, the item (a face, an edge) with the lowest score.

The bounding box of an item touches a few small square tiles of the image. The (item, tile) pairs of all items form one
list, which is walked in chunks of fixed size: every pair scores the pixels of its tile, and a scatter-min merges the
scores into a buffer with one row per tile. A second walk finds the lowest item with the best score. The work follows
the covered area, the memory is the image plus one chunk, and the result does not depend on the order of execution.
`vmap` joins the items of all images into one list, because a loop per image would run as long as the slowest image.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

_NO_ITEM = 2**31 - 1  # index of no item during a walk, and the largest number of (item, tile) pairs

Score = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


def tile_grid(height: int, width: int) -> tuple[int, int, int]:
    """Return the side of a tile in pixels, and the number of rows and columns of tiles."""
    # Measured on a CPU with a hand of 3200 faces, which grow with the image: a side of 8 wastes arithmetic on small
    # images, 4 needs too many scatters on large ones, and single pixels take ten times as long.
    side = 4 if min(height, width) <= 320 else 8
    return side, math.ceil(height / side), math.ceil(width / side)


def join_images(walk: Callable[..., Array], height: int, width: int, *arguments: Array) -> Array:
    """Call a walk in such a way that `vmap` appends images to its leading axis.

    Args:
        walk: Maps arguments with a leading image axis, and `height` and `width`, to indices (images, height, width).
        height: Image height in pixels.
        width: Image width in pixels.
        arguments: Arrays (images, ...); the second axis of the first one counts items.

    Raises:
        ValueError: If the (item, tile) pairs of one image could exceed 32 bits.
    """
    tiles, items = math.prod(tile_grid(height, width)[1:]), arguments[0].shape[1]
    if tiles * items > _NO_ITEM:
        raise ValueError(f"{items} faces or edges in {height} x {width} pixels are too many: render a smaller image")
    call = jax.custom_batching.custom_vmap(partial(walk, height=height, width=width))

    @call.def_vmap
    def joined(axis_size: int, batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        whole = [
            x if own else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, own in zip(arguments, batched, strict=True)
        ]

        def several(whole: list[Array]) -> Array:
            lead = whole[0].shape[:2]
            flat = [x.reshape(-1, *x.shape[2:]) for x in whole]
            return join_images(walk, height, width, *flat).reshape(*lead, height, width)

        # As many images at once as 32 bits can count, even if every item touched all tiles of its image.
        at_once = max(1, _NO_ITEM // (tiles * items * whole[0].shape[1]))
        if axis_size <= at_once:
            return several(whole), True
        one = lambda leaves: several([x[None] for x in leaves])[0]  # noqa: E731
        return jax.lax.map(one, whole, batch_size=at_once if at_once > 1 else None), True

    return call(*arguments)


def nearest_item(
    low: Array, high: Array, listed: Array, score: Score, images: int, height: int, width: int, chunk: int
) -> Int[Array, "images height width"]:
    """Find the item with the lowest score at every pixel, -1 without one. Of tied items the first one is taken.

    Args:
        low: Upper left corners (items, 2) of the items' boxes, pixels (u, v); equally many items per image.
        high: Lower right corners (items, 2) of the boxes.
        listed: Whether an item takes part, (items,).
        score: Maps item, image, tile row, tile column and tile number of a chunk of pairs to scores (pairs, pixels of a
            tile; inf: no candidate) and to the tolerance within which scores tie.
        images: Number of images, whose items follow each other.
        height: Image height in pixels.
        width: Image width in pixels.
        chunk: Pairs per step, whose pixels should fit into the processor's cache.

    Returns:
        Indices that count from 0 in each image.
    """
    side, rows, columns = tile_grid(height, width)
    shape = (images * rows * columns, side * side)
    pairs, steps = _pairs(low, high, listed, images, height, width, chunk)

    def best(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, buffer = carry
        some = pairs(step)
        return step + 1, buffer.at[some[-1]].min(score(*some)[0], mode="drop")

    # A compiler may round a score differently in each walk: hence a tolerance instead of equality, which also lets
    # coinciding surfaces tie.
    def first(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        step, index = carry
        some = pairs(step)
        scores, tolerance = score(*some)
        lowest = buffer.at[some[-1]].get(mode="fill", fill_value=0.0)
        candidate = jnp.where((scores < jnp.inf) & (scores <= lowest + tolerance), some[0][:, None], _NO_ITEM)
        return step + 1, index.at[some[-1]].min(candidate, mode="drop")

    unfinished = lambda carry: carry[0] < steps  # noqa: E731
    zero = jnp.zeros((), jnp.int32)
    buffer = jax.lax.while_loop(unfinished, best, (zero, jnp.full(shape, jnp.inf, low.dtype)))[1]
    index = jax.lax.while_loop(unfinished, first, (zero, jnp.full(shape, _NO_ITEM, jnp.int32)))[1]
    index = index.reshape(images, rows, columns, side, side).transpose(0, 1, 3, 2, 4)
    index = index.reshape(images, rows * side, columns * side)[:, :height, :width]
    first_item = jnp.arange(images, dtype=jnp.int32)[:, None, None] * (low.shape[0] // images)
    return jnp.where(index == _NO_ITEM, -1, index - first_item)


def _pairs(
    low: Array, high: Array, listed: Array, images: int, height: int, width: int, chunk: int
) -> tuple[Callable[[Array], tuple[Array, ...]], Array]:
    """Return a function from a step to item, image, row, column and tile of its pairs, and the number of steps.

    Pairs beyond the end of the list have a tile out of range.
    """
    side, rows, columns = tile_grid(height, width)
    items, tiles = low.shape[0], rows * columns
    last = jnp.asarray([width - 1, height - 1], low.dtype)[None]
    first_pixel, last_pixel = jnp.clip(jnp.ceil(low), 0.0, last), jnp.clip(jnp.floor(high), 0.0, last)
    listed = listed & ((high >= 0) & (low <= last) & (first_pixel <= last_pixel)).all(axis=-1)
    first_tile, last_tile = (
        jnp.where(listed[:, None], pixel, 0.0).astype(jnp.int32) // side for pixel in (first_pixel, last_pixel)
    )
    extent = last_tile - first_tile + 1
    count = jnp.where(listed, extent[:, 0] * extent[:, 1], 0)
    end = jnp.cumsum(count)
    total = end[-1]
    number = jnp.arange(items, dtype=jnp.int32)
    image = number // (items // images)
    table = jnp.concatenate([(end - count)[:, None], image[:, None], first_tile, extent[:, :1]], axis=-1)
    # Items without tiles leave the list: a chunk of pairs never touches more items than it has pairs.
    chunk = min(chunk, 256 * math.ceil(items / 64))
    place = jnp.where(count > 0, jnp.cumsum((count > 0).astype(jnp.int32)) - 1, items + chunk)
    order = jnp.zeros(items + chunk, jnp.int32).at[place].set(number, mode="drop")
    begin = jnp.full(items + chunk, _NO_ITEM, jnp.int32).at[place].set(end - count, mode="drop")

    def pairs(step: Array) -> tuple[Array, ...]:
        pair = step * chunk + jnp.arange(chunk, dtype=jnp.int32)
        first = jnp.searchsorted(begin, step * chunk, side="right").astype(jnp.int32) - 1
        begins = jax.lax.dynamic_slice(begin, (first,), (chunk,)) - step * chunk
        starts = jnp.zeros(chunk, jnp.int32).at[jnp.where(begins > 0, begins, chunk)].add(1, mode="drop")
        item = order[first + jnp.cumsum(starts)]
        row_of = table[item]
        local, image, across = pair - row_of[:, 0], row_of[:, 1], row_of[:, 4]
        column, row = row_of[:, 2] + local % across, row_of[:, 3] + local // across
        tile = jnp.where(pair < total, image * tiles + row * columns + column, images * tiles)
        return item, image, row, column, tile

    return pairs, (total + chunk - 1) // chunk

"""Backgrounds in linear RGB: procedural walls, rooms, people and foliage, or parts of photographs.

A room is a list of flat shapes, each with two colours and a pattern. Foliage and the like are noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from handtailor_jax.data.draws import Draws
from handtailor_jax.render.shading import to_linear
from handtailor_jax.types import pytree

_FURNITURE, _CLUTTER = 13, 5
# Parts of a person: centre x and y, half width and half height in face sizes, kind of shape.
# fmt: off
_PERSON = (
    (0.0, 1.75, 0.95, 1.15, 1.0), (0.0, 0.55, 0.2, 0.35, 1.0), (0.0, -0.12, 0.42, 0.55, 0.0),
    (0.0, 0.05, 0.35, 0.48, 0.0), (-0.14, 0.0, 0.07, 0.03, 0.0), (0.14, 0.0, 0.07, 0.03, 0.0),
    (0.0, 0.3, 0.13, 0.035, 0.0),
)
# fmt: on

Image = Float[Array, "height width 3"]


def resampling(size: int, count: int) -> np.ndarray:
    """Return weights (size, count) that enlarge `count` samples to `size` pixels, smoothly."""
    at = (np.arange(size) + 0.5) * count / size - 0.5
    low = np.clip(np.floor(at).astype(int), 0, count - 1)
    high = np.clip(low + 1, 0, count - 1)
    t = np.clip(at - low, 0.0, 1.0)
    t = t * t * (3.0 - 2.0 * t)
    eye = np.eye(count)
    return ((1.0 - t)[:, None] * eye[low] + t[:, None] * eye[high]).astype(np.float32)


def noise_field(key: PRNGKeyArray, size: int, dtype: jnp.dtype, octaves: tuple[int, ...] = (3, 7, 16, 36, 80)) -> Image:
    """Return three planes of cloudy noise, mean 0, about from -1 to 1; coarse octaves are stronger."""
    counts = [min(n, size) for n in octaves]
    values = jax.random.normal(key, (3, sum(n * n for n in counts)), dtype)
    total, start = jnp.zeros((3, size, size), dtype), 0
    for octave, n in enumerate(counts):
        grid = values[:, start : start + n * n].reshape(3, n, n)
        start += n * n
        weights = jnp.asarray(resampling(size, n), dtype)
        total = total + 0.6**octave * jnp.einsum("ua,cab,vb->cuv", weights, grid, weights)
    return total.transpose(1, 2, 0)


def procedural_background(key: PRNGKeyArray, size: int, dtype: jnp.dtype) -> Image:
    """Draw a plain wall, a room, a room with a person, foliage, or clouds of noise."""
    own, noise_key = jax.random.split(key)
    draws = Draws(own, dtype, uniforms=512)
    clouds = noise_field(noise_key, size, dtype)
    kind = draws.uniform()
    plain, foliage, cloudy = kind < 0.34, (kind >= 0.34) & (kind < 0.42), (kind >= 0.42) & (kind < 0.52)
    room, person = kind >= 0.52, kind >= 0.70

    at = (jnp.arange(size, dtype=dtype) + 0.5) * (2.0 / size) - 1.0
    x, y = jnp.broadcast_to(at[None, :], (size, size)), jnp.broadcast_to(at[:, None], (size, size))

    # The wall is lit from one side.
    wall = _wall_color(draws)
    slope = draws.between(-0.35, 0.35, 2)
    light = 1.0 + slope[0] * x + slope[1] * y
    light = light * (1.0 - draws.between(0.0, 0.35) * (x * x + y * y))
    texture = draws.between(0.0, 0.06) * clouds[..., :1]
    clouds = jax.lax.optimization_barrier(clouds)
    base = wall[None, None] * jnp.maximum(light[..., None] * (1.0 + texture), 0.02)

    shapes = _sample_shapes(draws, room, person)
    index = _cover(shapes, x, y)
    colored = _paint(shapes, index, x, y, clouds)
    scene = jnp.where((index >= 0)[..., None], colored, base)

    # Leaves: light and dark follow fine noise, and the sky is visible where coarse noise is high.
    leaf = jnp.asarray([0.16, 0.26, 0.07], dtype) * jnp.exp(0.25 * draws.normal(3))
    shade = jnp.exp(1.6 * clouds[..., 1:2] + 0.5 * clouds[..., 2:])
    sky = draws.between(0.6, 1.2) * jnp.asarray([0.9, 0.96, 1.0], dtype)
    leaves = jnp.where(clouds[..., :1] > draws.between(0.5, 1.6), sky[None, None], leaf[None, None] * shade)
    # Cloth, stone, blurred lights: two colours mixed by noise, with a little separate noise per channel.
    first, second = muted_colors(draws, 2)
    mix = jnp.clip(0.5 + 0.6 * clouds[..., :1] + 0.12 * clouds, 0.0, 1.0)
    cloth = first[None, None] + (second - first)[None, None] * mix
    image = jnp.where(plain, base, scene)
    image = jnp.where(foliage, leaves, image)
    image = jnp.where(cloudy, cloth, image)
    return jax.lax.optimization_barrier(jnp.clip(image, 0.0, 2.0))


def photo_background(
    key: PRNGKeyArray, photographs: UInt8[Array, "photographs h w 3"], size: int, dtype: jnp.dtype
) -> Image:
    """Cut a random square out of one of the photographs (sRGB), mirrored half of the time."""
    draws = Draws(key, dtype)
    count, height, width = photographs.shape[:3]
    which = draws.choice(count)
    side = min(height, width) * draws.between(0.35, 1.0)
    left, top = draws.uniform() * (width - side), draws.uniform() * (height - side)
    step = (jnp.arange(size, dtype=dtype) + 0.5) / size
    columns = left + side * jnp.where(draws.uniform() < 0.5, step, 1.0 - step) - 0.5
    rows = top + side * step - 0.5

    def ends(at: Array, last: int) -> tuple[Array, Array, Array]:
        low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, last)
        return low, jnp.clip(low + 1, 0, last), jnp.clip(at - low.astype(dtype), 0.0, 1.0)

    c0, c1, tc = ends(columns, width - 1)
    r0, r1, tr = ends(rows, height - 1)
    flat = photographs.reshape(-1, 3)

    def at(rows: Array, columns: Array) -> Array:
        index = (which * height + rows[:, None]) * width + columns[None, :]
        return flat[index].astype(dtype) / 255.0

    tr, tc = tr[:, None, None], tc[None, :, None]
    upper = at(r0, c0) * (1.0 - tc) + at(r0, c1) * tc
    lower = at(r1, c0) * (1.0 - tc) + at(r1, c1) * tc
    return to_linear(upper * (1.0 - tr) + lower * tr)


def muted_colors(draws: Draws, count: int) -> Float[Array, "count 3"]:
    """Draw colours of any brightness, most of them of low saturation."""
    loud = draws.uniform(count, 1) ** 2.2
    return draws.between(0.02, 0.85, count, 1) ** 1.4 * (1.0 - loud * draws.uniform(count, 3))


def _wall_color(draws: Draws) -> Float[Array, "3"]:
    """Draw mostly white and grey walls, sometimes coloured or dark ones."""
    value = jnp.where(draws.uniform() < 0.7, draws.between(0.35, 1.05), draws.between(0.02, 0.5))
    saturation = jnp.where(draws.uniform() < 0.7, draws.between(0.0, 0.18), draws.between(0.1, 0.8))
    warm = jnp.asarray([0.0, 0.06, 0.16], value.dtype) * draws.between(-0.3, 1.0)
    return value * (1.0 - saturation * draws.uniform(3)) * (1.0 - warm)


@pytree
class Shapes:
    """Flat shapes in an image that reaches from -1 to 1; later shapes cover earlier ones."""

    center: Float[Array, "n 2"]
    turn: Float[Array, "n"]  # radians
    half: Float[Array, "n 2"]  # half width and half height
    kind: Float[Array, "n"]  # 0 ellipse, 1 rounded, 2 box
    present: Float[Array, "n"]  # 1 if the shape exists, else 0
    color: Float[Array, "n 3"]
    second: Float[Array, "n 3"]  # second colour of the pattern
    pattern: Float[Array, "n"]
    """0 none, 1 stripes, 2 checks, 3 clouds, 4 columns of random shades (books), 5 a grid of random shades (tiles)."""
    frequency: Float[Array, "n"]
    contrast: Float[Array, "n"]  # of the pattern, 0 to 1


def _sample_shapes(draws: Draws, room: Array, person: Array) -> Shapes:
    """Draw furniture, a person, another limb and clutter, in this order."""
    room, person = (x.astype(draws.uniform().dtype) for x in (room, person))
    groups = (_furniture(draws, room), _person(draws, room * person), _limb_and_clutter(draws, room))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)


def _furniture(draws: Draws, room: Array) -> Shapes:
    """Draw tables, doors, windows, shelves, screens and frames on the wall, large ones first, in few colours."""
    n = _FURNITURE
    scale = jnp.asarray(np.exp(-0.15 * np.arange(n)).astype(np.float32), room.dtype)
    palette = muted_colors(draws, 4)
    color = palette[(4.0 * draws.uniform(n)).astype(jnp.int32)] * draws.between(0.5, 1.3, n)[:, None]
    window = draws.uniform(n) < 0.2
    color = jnp.where(window[:, None], draws.between(0.7, 1.6, n)[:, None], color)
    return Shapes(
        center=draws.between(-1.2, 1.2, n, 2),
        turn=0.12 * draws.normal() + 0.06 * (draws.uniform(n) - 0.5),  # the camera is not quite level
        half=scale[:, None] * draws.between(0.06, 0.9, n, 2),
        kind=jnp.full((n,), 2.0, room.dtype),
        present=room * (draws.uniform(n) < 0.8).astype(room.dtype),
        color=color,
        second=color * draws.between(0.3, 1.6, n)[:, None],
        pattern=jnp.floor(draws.between(0.0, 6.0, n)),
        frequency=jnp.exp(draws.between(1.6, 4.3, n)),
        contrast=draws.uniform(n),
    )


def _person(draws: Draws, present: Array) -> Shapes:
    """Draw torso in patterned cloth, neck, hair, face, eyes and mouth."""
    dtype = present.dtype
    table = jnp.asarray(_PERSON, dtype)
    n = len(_PERSON)
    size = draws.between(0.35, 0.75)
    head = jnp.stack([draws.between(-1.1, 1.1), draws.between(-0.9, 0.2)])
    cloth = draws.between(0.01, 0.7, 2)[:, None] ** 1.3 * (1.0 - draws.uniform() * draws.uniform(2, 3))
    skin = _far_skin(draws)
    hair = 0.06 * draws.uniform(3) * jnp.asarray([1.6, 1.0, 0.7], dtype)
    color = jnp.stack([cloth[0], skin, hair, skin, 0.15 * skin, 0.15 * skin, 0.55 * skin])
    second = jnp.stack([cloth[1], 0.75 * skin, hair, 0.75 * skin, skin, skin, skin])
    pattern = jnp.asarray([0.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0], dtype).at[0].set(jnp.floor(draws.between(0.0, 3.0)))
    return Shapes(
        center=head[None] + size * table[:, :2],
        turn=jnp.broadcast_to(0.15 * draws.normal(), (n,)),
        half=size * table[:, 2:4],
        kind=table[:, 4],
        present=jnp.broadcast_to(present, (n,)),
        color=color,
        second=second,
        pattern=pattern,
        frequency=jnp.full((n,), 1.0, dtype).at[0].set(draws.between(15.0, 60.0)),
        contrast=jnp.full((n,), 0.5, dtype).at[0].set(draws.uniform()),
    )


def _far_skin(draws: Draws) -> Float[Array, "3"]:
    """Draw the colour of a distant person's skin."""
    shade = draws.uniform()
    density = jnp.asarray([0.15, 0.5, 0.75], shade.dtype) + shade * jnp.asarray([1.9, 2.5, 2.9], shade.dtype)
    return jnp.exp(-density) * draws.between(0.5, 1.3)


def _limb_and_clutter(draws: Draws, room: Array) -> Shapes:
    """Draw a rounded bar in the colour of skin, as a limb of another person, then small objects anywhere."""
    n = 1 + _CLUTTER
    dtype = room.dtype
    thick = draws.between(0.05, 0.16)
    limb = jnp.stack([thick, thick * draws.between(1.5, 6.0)])
    color = jnp.concatenate([_far_skin(draws)[None], muted_colors(draws, _CLUTTER)])
    share = jnp.asarray([0.3] + [0.35] * _CLUTTER, dtype)
    return Shapes(
        center=draws.between(-1.2, 1.2, n, 2),
        turn=draws.between(-1.6, 1.6, n),
        half=jnp.concatenate([limb[None], draws.between(0.02, 0.25, _CLUTTER, 2)]),
        kind=jnp.floor(draws.between(0.0, 3.0, n)).at[0].set(1.0),
        present=room * (draws.uniform(n) < share).astype(dtype),
        color=color,
        second=color * draws.between(0.3, 1.0, n)[:, None],
        pattern=jnp.floor(draws.between(0.0, 4.0, n)).at[0].set(3.0),
        frequency=draws.between(10.0, 60.0, n),
        contrast=draws.uniform(n),
    )


def _cover(shapes: Shapes, x: Array, y: Array) -> Int[Array, "height width"]:
    """Return the visible shape at each pixel, -1 for none."""

    def add(index: Array, numbered: tuple[Array, Shapes]) -> tuple[Array, None]:
        number, shape = numbered
        a, b = _local(x - shape.center[0], y - shape.center[1], jnp.cos(shape.turn), jnp.sin(shape.turn))
        a2, b2 = (a / shape.half[0]) ** 2, (b / shape.half[1]) ** 2
        rounded = jnp.where(shape.kind > 0.5, a2 * a2 + b2 * b2, a2 + b2)
        extent = jnp.where(shape.kind > 1.5, jnp.maximum(a2, b2), rounded)
        return jnp.where((extent < 1.0) & (shape.present > 0), number, index), None

    numbers = jnp.arange(shapes.turn.shape[0], dtype=jnp.int32)
    return jax.lax.scan(add, jnp.full(x.shape, -1, jnp.int32), (numbers, shapes))[0]


def _scrambled(number: Int[Array, "height width"]) -> Float[Array, "height width"]:
    """Hash whole numbers to numbers from 0 to 1."""
    bits = number.astype(jnp.uint32) * np.uint32(2654435761)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(2246822519)
    return ((bits ^ (bits >> np.uint32(13))) >> np.uint32(16)).astype(jnp.float32) / 65535.0


def _local(dx: Array, dy: Array, cosine: Array, sine: Array) -> tuple[Array, Array]:
    return cosine * dx + sine * dy, cosine * dy - sine * dx


def _paint(shapes: Shapes, index: Int[Array, "height width"], x: Array, y: Array, clouds: Image) -> Image:
    """Return the colours of the visible shapes."""
    k = jax.lax.optimization_barrier(jnp.maximum(index, 0))
    cosine, sine = jnp.cos(shapes.turn), jnp.sin(shapes.turn)
    a, b = _local(x - shapes.center[:, 0][k], y - shapes.center[:, 1][k], cosine[k], sine[k])
    frequency, pattern = shapes.frequency[k] / 6.3, shapes.pattern[k]
    stripes = bands(frequency * a)
    checks = 0.5 * (stripes + bands(frequency * b))
    cloudy = jnp.clip(0.5 + 0.5 * clouds[..., 0], 0.0, 1.0)
    blend = jnp.where(pattern < 0.5, 0.0, jnp.where(pattern < 1.5, stripes, jnp.where(pattern < 2.5, checks, cloudy)))
    column, row = jnp.floor(frequency * a).astype(jnp.int32), jnp.floor(frequency * b).astype(jnp.int32)
    some = _scrambled(column + jnp.where(pattern > 4.5, 1009 * row, 0) + 7919 * k).astype(x.dtype)
    blend = jnp.where(pattern > 3.5, some, blend) * shapes.contrast[k]
    # Objects are lit from above and a little uneven.
    light = jnp.clip(1.0 - 0.25 * b / jnp.maximum(shapes.half[:, 1][k], 0.05) + 0.12 * clouds[..., 1], 0.4, 1.6)
    planes = [light * (shapes.color[:, c][k] + blend * (shapes.second[:, c] - shapes.color[:, c])[k]) for c in range(3)]
    return jnp.stack(planes, axis=-1)


def bands(x: Array) -> Array:
    """Return a wave of period 1 that is 0 or 1, with soft edges."""
    return jnp.clip(12.0 * jnp.abs(x - jnp.floor(x) - 0.5) - 2.5, 0.0, 1.0)

"""How the scene looks: skin, nails, cloth and things under random light, in linear RGB.

Pictures are kept as separate planes (height, width), one per quantity: XLA then looks values up and shades in one pass,
where an array of records would be gathered first (measured on a CPU: eight times slower).
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.data.draws import Draws
from handtailor_jax.geometry.cameras import project
from handtailor_jax.render.rasterise import Fragments, rasterise
from handtailor_jax.render.shading import ambient_openness
from handtailor_jax.synthetic.backgrounds import bands, muted_color
from handtailor_jax.synthetic.scene import BAND, CLOTH, SKIN, SceneTopology, smooth_surface
from handtailor_jax.synthetic.skin import CHANNELS
from handtailor_jax.types import Camera, pytree

_SHADOW_SIZE = 128
# Optical density of skin in R, G, B: without pigment, per unit of melanin, per unit of blood.
_BASE, _MELANIN, _BLOOD = (0.06, 0.26, 0.46), (1.95, 2.65, 3.15), (0.05, 0.46, 0.33)
# Light bleeds through skin past the edge of a shadow, red farthest.
_WRAP = (0.34, 0.17, 0.12)

Plane = Float[Array, "height width"]

T = TypeVar("T")


def apart(values: T) -> T:
    """The same values, computed once: keeps the compiler from computing them anew in every place that uses them."""
    return jax.lax.optimization_barrier(values)


@pytree
class Surface:
    """What every pixel of the (supersampled) picture sees; 0 where it sees nothing."""

    face: Int[Array, "height width"]
    """Index of the face, -1 for none."""
    material: Int[Array, "height width"]
    """Material of the face; -1 for none."""
    depth: Plane
    """Camera z, metres; inf for none."""
    points: tuple[Plane, Plane, Plane]
    """The point seen, metres, camera frame."""
    normals: tuple[Plane, Plane, Plane]
    """Smooth unit normals, turned toward the camera."""
    chart: tuple[Plane, Plane]
    """Chart coordinates, see `SceneTopology.uv`."""


def see(vertices: Float[Array, "vertices 3"], topology: SceneTopology, camera: Camera, size: int) -> Surface:
    """The nearest point of the scene's smooth mesh at every pixel centre of a square picture."""
    faces = topology.smooth_faces
    vertices, normals = apart(smooth_surface(vertices, topology))
    face = apart(rasterise(vertices, faces, camera, size, size).face_index)
    seen = face >= 0
    index = jnp.maximum(face, 0)

    pixels = project(camera, vertices)
    inverse = 1.0 / jnp.maximum(vertices[:, 2], 1e-4)
    columns = jnp.arange(size).astype(vertices.dtype)[None, :]
    rows = jnp.arange(size).astype(vertices.dtype)[:, None]
    corner = [faces[:, k] for k in range(3)]
    tables = apart([[pixels[c, 0], pixels[c, 1], inverse[c]] for c in corner])
    u = [table[0][index] - columns for table in tables]
    v = [table[1][index] - rows for table in tables]
    weights = [
        jnp.maximum((u[k - 2] * v[k - 1] - v[k - 2] * u[k - 1]) * s, 0.0) * tables[k][2][index]
        for s in [jnp.sign((u[1] - u[0]) * (v[2] - v[0]) - (v[1] - v[0]) * (u[2] - u[0]))]
        for k in range(3)
    ]
    total = weights[0] + weights[1] + weights[2]
    weights = [jnp.where(total > 0, w / jnp.where(total > 0, total, 1.0), 1.0 / 3.0) for w in weights]
    index, weights = apart((index, weights))

    def at_pixels(values: Float[Array, "vertices"]) -> Plane:
        corners = apart([values[c] for c in corner])
        a, b, c = (weights[k] * corners[k][index] for k in range(3))
        return a + b + c

    x, y, z = (at_pixels(vertices[:, i]) for i in range(3))
    nx, ny, nz = (at_pixels(normals[:, i]) for i in range(3))
    length = jnp.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    away = jnp.where(nx * x + ny * y + nz * z > 0.25 * length * z, -1.0, 1.0) / length
    chart_u, chart_v = (
        weights[0] * corners[0][index] + weights[1] * corners[1][index] + weights[2] * corners[2][index]
        for corners in (topology.uv[:3], topology.uv[3:])
    )
    surface = Surface(
        face=face,
        material=jnp.where(seen, topology.material[index], -1),
        depth=jnp.where(seen, z, jnp.inf),
        points=(x, y, z),
        normals=(nx * away, ny * away, nz * away),
        chart=(chart_u, chart_v),
    )
    return apart(surface)


@pytree
class Light:
    """One key light that throws shadows, one fill light, and light from all around that is stronger from one side."""

    key: Float[Array, "3"]
    """Unit vector toward the key light, camera frame."""
    fill: Float[Array, "3"]
    """Unit vector toward the fill light."""
    up: Float[Array, "3"]
    """Where the ambient light is strongest."""
    colors: Float[Array, "4 3"]
    """RGB of key, fill, ambient from `up`, ambient from the other side."""
    softness: Float[Array, ""]
    """Radius of the key light's shadow edge, in texels of the shadow map."""


def _tint(draws: Draws, spread: float) -> Float[Array, "3"]:
    """A colour of light between warm and cool with a trace of green or magenta, of luminance about 1."""
    warm, green = spread * draws.normal(), 0.25 * spread * draws.normal()
    zero = jnp.zeros_like(warm)
    return jnp.exp(jnp.stack([warm, green, -1.25 * warm]) + jnp.stack([zero, green, zero]))


def sample_light(draws: Draws) -> Light:
    """Daylight, lamps, a flash at the camera or a window behind the hand."""
    dtype = draws.uniform().dtype
    kind = draws.uniform()
    toward_camera = jnp.asarray([0.0, -0.1, -1.0], dtype)
    above = jnp.asarray([0.0, -1.0, -0.6], dtype)
    behind = jnp.asarray([0.0, -0.5, 0.8], dtype)
    center = jnp.where(kind < 0.25, toward_camera, jnp.where(kind < 0.85, above, behind))
    spread = jnp.where(kind < 0.25, 0.25, jnp.where(kind < 0.85, 0.75, 0.5))
    key = center + spread * draws.normal(3)
    fill = jnp.asarray([0.0, -0.2, -0.5], dtype) + 0.8 * draws.normal(3)
    up = jnp.asarray([0.0, -1.0, -0.3], dtype) + 0.6 * draws.normal(3)
    key, fill, up = (x / jnp.sqrt(jnp.sum(x * x) + 1e-9) for x in (key, fill, up))
    strength = jnp.exp(jnp.stack([draws.between(-1.2, 0.8), draws.between(-2.5, -0.7)]))
    ambient = jnp.exp(draws.between(-1.3, -0.2))
    floor = ambient * draws.between(0.35, 1.0)
    colors = jnp.stack(
        [
            strength[0] * _tint(draws, 0.10),
            strength[1] * _tint(draws, 0.14),
            ambient * _tint(draws, 0.10),
            floor * _tint(draws, 0.12),
        ]
    )
    return Light(key=key, fill=fill, up=up, colors=colors, softness=draws.between(0.6, 4.0))


def key_visibility(
    surface: Surface, vertices: Float[Array, "vertices 3"], topology: SceneTopology, light: Light, center: Array
) -> Plane:
    """How much of the key light reaches each pixel past the rest of the scene, 0 to 1, by a shadow map."""
    dtype = vertices.dtype
    helper = jnp.where(
        jnp.abs(light.key[1]) < 0.9, jnp.asarray([0.0, 1.0, 0.0], dtype), jnp.asarray([1.0, 0.0, 0.0], dtype)
    )
    right = jnp.cross(helper, light.key)
    right = right / jnp.sqrt(jnp.sum(right * right))
    down = jnp.cross(light.key, right)
    frame = jnp.stack([right, down, -light.key])
    seen_from_light = (vertices - center[None]) @ frame.T
    scale = 0.5 * _SHADOW_SIZE / 0.16  # the map covers 32 cm around the middle of the hand
    camera = Camera(
        linear=scale * jnp.eye(2, dtype=dtype),
        center=jnp.full((2,), 0.5 * (_SHADOW_SIZE - 1), dtype),
        perspectivity=jnp.zeros((), dtype),
    )
    nearest = rasterise(seen_from_light, topology.faces, camera, _SHADOW_SIZE, _SHADOW_SIZE).depth.reshape(-1)
    x, y, z = (surface.points[i] - center[i] for i in range(3))
    a, b, c = (row[0] * x + row[1] * y + row[2] * z for row in frame)
    nx, ny, nz = surface.normals
    facing = nx * light.key[0] + ny * light.key[1] + nz * light.key[2]
    limit = c - 0.0025 - 0.003 * (1.0 - jnp.clip(facing, 0.0, 1.0))
    a, b = (scale * x + 0.5 * (_SHADOW_SIZE - 1) for x in (a, b))
    a, b, limit, nearest = apart((a, b, limit, nearest))
    # A ring of looks turned by a pattern of pixels: a soft edge of few looks, smoothed when the picture is reduced.
    size = surface.depth.shape[0]
    pattern = (jnp.arange(size)[:, None] % 2) * 2 + jnp.arange(size)[None, :] % 2
    turn = pattern.astype(dtype) * (math.pi / 10.0)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    lit = jnp.zeros_like(a)
    looks = 5
    for look in range(looks):
        angle, radius = 2.0 * math.pi * look / looks, math.sqrt((look + 0.5) / looks)
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        column = jnp.round(a + light.softness * (dx * cos - dy * sin)).astype(jnp.int32)
        row = jnp.round(b + light.softness * (dx * sin + dy * cos)).astype(jnp.int32)
        inside = (column >= 0) & (column < _SHADOW_SIZE) & (row >= 0) & (row < _SHADOW_SIZE)
        depth = nearest[jnp.where(inside, row * _SHADOW_SIZE + column, 0)]
        lit = lit + jnp.where(inside & (depth < limit), 0.0, 1.0)
    return apart(lit / looks)


@pytree
class Look:
    """Random choices about skin, nails, cloth and things."""

    melanin: Float[Array, ""]
    blood: Float[Array, ""]
    hue: Float[Array, "3"]
    """Small factors on the skin's colour."""
    marks: Float[Array, "10"]
    """Weights of creases, knuckles, blood marks, veins, fine and coarse mottling, relief, palm's paleness, gloss,
    roughness."""
    polish: Float[Array, "4"]
    """RGB of nail polish and how much of it covers the nail."""
    cloth: Float[Array, "3 3"]
    """Two colours of cloth, then frequency along, frequency around and contrast of its pattern."""
    things: Float[Array, "3 3"]
    """Colours of band, held thing and foreground thing."""
    gloss: Float[Array, "3"]
    """Gloss of band, held thing and foreground thing."""


def sample_look(draws: Draws) -> Look:
    """Skin from very light to very dark, palms lighter than backs, nails with or without polish."""
    melanin = draws.between(0.0, 1.0) ** 1.25
    yellow = draws.uniform() ** 1.5 * jnp.asarray([0.0, 0.06, 0.42], melanin.dtype)
    hue = jnp.exp(0.04 * draws.normal(3) - yellow)
    low = jnp.asarray([0.15, 0.1, 0.3, 0.0, 0.02, 0.03, 0.3, 0.25, 0.3, 0.0], hue.dtype)
    high = jnp.asarray([0.9, 1.0, 1.0, 0.8, 0.07, 0.10, 1.5, 0.6, 1.6, 1.0], hue.dtype)
    marks = low + (high - low) * draws.uniform(10)
    color = draws.uniform(3) ** 1.5
    polish = jnp.concatenate([color, jnp.stack([draws.chance(0.12)])])
    cloth = _fabric_colors(draws)
    pattern = jnp.stack([jnp.exp(draws.between(2.3, 4.8)), jnp.floor(draws.between(2.0, 14.0)), draws.uniform() ** 2])
    things = muted_color(draws, 3)
    return Look(
        melanin=melanin,
        blood=draws.between(0.1, 0.9),
        hue=hue,
        marks=marks,
        polish=polish,
        cloth=jnp.concatenate([cloth, pattern[None]]),
        things=things,
        gloss=draws.uniform(3) ** 2,
    )


def _fabric_colors(draws: Draws) -> Float[Array, "2 3"]:
    """Two colours that go together: greys, blues and muted colours more often than loud ones."""
    value = draws.between(0.02, 0.8, 2) ** 1.3
    loud = draws.uniform() ** 1.5
    colors = draws.uniform(2, 3)
    return value[:, None] * (1.0 - loud * (1.0 - colors))


def skin_color(melanin: Plane, blood: Plane, channel: int) -> Plane:
    """Reflectance of skin in one channel (0 R, 1 G, 2 B), by Beer's law on its two pigments."""
    return jnp.exp(-(_BASE[channel] + _MELANIN[channel] * melanin + _BLOOD[channel] * blood))


def shade(
    surface: Surface,
    chart: Float[Array, "channels chart chart"],
    look: Look,
    light: Light,
    visible: Plane,
    openness: Plane,
    camera: Camera,
) -> tuple[Plane, Plane, Plane]:
    """Linear RGB of every pixel."""
    material = surface.material
    skin = material == SKIN
    melanin, blood, dark, nail, palm, height = _pigments(surface, skin, chart, look)
    u, v = surface.chart
    along, around, contrast = look.cloth[2]
    stripes, checks = bands(along * v), bands(around * u)
    pattern = contrast * jnp.where(around > 8.0, stripes, 0.5 * (stripes + checks))
    height = jnp.where(material == CLOTH, 0.2 * _wave(8.0 * along * v) * _wave(90.0 * u), height)
    nx, ny, nz = apart(_bump(surface, 0.001 * height, camera))
    px, py, pz = surface.points
    distance = jnp.sqrt(px * px + py * py + pz * pz + 1e-9)
    ex, ey, ez = -px / distance, -py / distance, -pz / distance
    thing = jnp.clip(material - BAND, 0, 2)
    glossy = jnp.where(skin | (material == CLOTH), 0.0, look.gloss[thing])

    def toward(direction: Float[Array, "3"]) -> Plane:
        return nx * direction[0] + ny * direction[1] + nz * direction[2]

    key_cos, fill_cos = toward(light.key), toward(light.fill)
    hemisphere = 0.5 + 0.5 * toward(light.up)
    grazing = (1.0 - jnp.clip(nx * ex + ny * ey + nz * ez, 0.0, 1.0)) ** 5
    gloss, roughness = look.marks[8], look.marks[9]
    exponent = jnp.where(skin, 10.0 + 34.0 * (1.0 - roughness) + 60.0 * nail, 6.0 + 90.0 * glossy)
    strength = jnp.where(
        skin, gloss * (0.028 + 0.05 * nail) * (1.0 - 0.4 * palm), jnp.where(material == CLOTH, 0.004, 0.12 * glossy)
    )
    strength = strength * (exponent + 8.0) * (1.0 / 8.0) * (1.0 + 12.0 * grazing)

    def gleam(direction: Float[Array, "3"], cosine: Plane) -> Plane:
        hx, hy, hz = ex + direction[0], ey + direction[1], ez + direction[2]
        half = (nx * hx + ny * hy + nz * hz) / jnp.sqrt(hx * hx + hy * hy + hz * hz + 1e-9)
        half = jnp.clip(half, 0.0, 1.0)
        # Schlick's rational stand-in for half ** exponent.
        return half / (exponent - exponent * half + half) * jnp.clip(cosine * 4.0, 0.0, 1.0) * strength

    key_gleam, fill_gleam = gleam(light.key, key_cos) * visible, gleam(light.fill, fill_cos) * openness
    covered = look.polish[3] * smooth(0.2, 0.5, nail)
    shared = apart((key_cos, fill_cos, hemisphere, grazing, key_gleam, fill_gleam, covered, pattern))
    key_cos, fill_cos, hemisphere, grazing, key_gleam, fill_gleam, covered, pattern = shared
    colors = []
    for c in range(3):
        reflect = skin_color(melanin, blood, c) * look.hue[c] * dark
        reflect = reflect + covered * (look.polish[c] - reflect)
        cloth = look.cloth[0, c] + pattern * (look.cloth[1, c] - look.cloth[0, c])
        reflect = jnp.where(skin, reflect, jnp.where(material == CLOTH, cloth, look.things[:, c][thing]))
        wrap = jnp.where(skin, _WRAP[c], 0.05)
        key = jnp.maximum((key_cos + wrap) / (1.0 + wrap), 0.0)
        fill = jnp.maximum((fill_cos + wrap) / (1.0 + wrap), 0.0)
        # Shadow edges on skin are red, and so is the light in folds, which has met skin before.
        through = visible + jnp.where(skin, (0.35, 0.09, 0.035)[c], 0.0) * visible * (1.0 - visible)
        open_ = openness + (1.0 - openness) * jnp.where(skin, (0.25, 0.08, 0.05)[c], 0.0)
        ambient = light.colors[3, c] + hemisphere * (light.colors[2, c] - light.colors[3, c])
        diffuse = (ambient + light.colors[1, c] * fill) * open_
        diffuse = diffuse + light.colors[0, c] * key * through * (0.6 + 0.4 * open_)
        shine = light.colors[0, c] * key_gleam + light.colors[1, c] * fill_gleam + 0.1 * ambient * grazing * open_
        colors.append(jnp.where(surface.face >= 0, reflect * diffuse + shine, 0.0))
    return apart((colors[0], colors[1], colors[2]))


def _pigments(
    surface: Surface, skin: Bool[Array, "height width"], chart: Float[Array, "channels chart chart"], look: Look
) -> tuple[Plane, Plane, Plane, Plane, Plane, Plane]:
    """Melanin, blood, darkening of creases, nail, palm and height (millimetres), from the chart and a sample's look."""
    texels = chart.shape[-1]
    u, v = surface.chart
    flat = chart.reshape(chart.shape[0], -1)
    column, row = (jnp.clip(x * texels - 0.5, 0.0, texels - 1.001) for x in (u, v))
    left, top = jnp.floor(column), jnp.floor(row)
    right, down = column - left, row - top
    texel = jnp.where(skin, (top * texels + left).astype(jnp.int32), 0)
    # The four texels around, as steps from the upper left one, and their weights.
    steps = (0, 1, texels, texels + 1)
    on_skin = skin.astype(u.dtype)
    texel, weights = apart(
        (texel, [on_skin * a * b for b in (1.0 - down, down) for a in (1.0 - right, right)]),
    )

    def mark(channel: str) -> Plane:
        plane = flat[CHANNELS.index(channel)]
        a, b, c, d = (weight * plane[texel + step] for step, weight in zip(steps, weights, strict=True))
        return a + b + c + d

    crease_, knuckle_, blood_, vein_, fine_, coarse_, relief_, pale_ = (look.marks[i] for i in range(8))
    palm, nail, vein = mark("palm"), mark("nail"), mark("vein")
    crease, cuticle = crease_ * mark("crease"), mark("cuticle")
    uneven = fine_ * mark("fine") + coarse_ * mark("coarse")
    melanin = look.melanin * (1.0 - (1.0 - pale_) * palm * jnp.clip(0.35 + look.melanin, 0.0, 1.0))
    melanin = melanin * (1.0 + 0.5 * uneven + 0.45 * knuckle_ * mark("knuckle") + 0.35 * crease) + 0.05 * crease
    melanin = melanin * (1.0 - 0.45 * nail) + 0.02 * vein_ * vein
    blood = look.blood + 0.55 * blood_ * mark("blood") + 0.16 * palm + 1.6 * uneven
    blood = blood + 0.55 * crease + 0.35 * cuticle - 0.3 * vein_ * vein + 0.15 * nail
    blood = jnp.maximum(blood - 0.55 * smooth(0.8, 1.0, nail), -0.25)
    dark = 1.0 - 0.28 * crease - 0.2 * cuticle
    return apart((melanin, blood, dark, nail, palm, relief_ * mark("relief")))


def _wave(x: Plane) -> Plane:
    """A triangle wave of period 1 from -1 to 1."""
    return 4.0 * jnp.abs(x - jnp.floor(x) - 0.5) - 1.0


def _bump(surface: Surface, height: Plane, camera: Camera) -> tuple[Plane, Plane, Plane]:
    """Normals turned by the slope of `height` (metres) along the surface."""
    nx, ny, nz = surface.normals
    _, _, z = surface.points
    face, depth = surface.material, surface.depth

    def slope(axis: int) -> Plane:
        after, before = jnp.roll(height, -1, axis), jnp.roll(height, 1, axis)
        flat = (jnp.roll(face, -1, axis) == face) & (jnp.roll(face, 1, axis) == face)
        near = jnp.abs(jnp.roll(depth, -1, axis) - jnp.roll(depth, 1, axis)) < 0.006
        return jnp.where(flat & near, 0.5 * (after - before), 0.0)

    # A pixel covers z / f metres across the line of sight; along a tilted surface more, so slopes flatten there.
    pixels_x, pixels_y = camera.linear[0, 0] / z, camera.linear[1, 1] / z
    gx, gy = slope(1) * pixels_x, slope(0) * pixels_y
    gx, gy = jnp.clip(gx, -0.8, 0.8), jnp.clip(gy, -0.8, 0.8)
    tilt = jnp.clip(-nz, 0.0, 1.0)
    bx, by, bz = nx - gx * tilt, ny - gy * tilt, nz
    length = jnp.sqrt(bx * bx + by * by + bz * bz + 1e-12)
    return bx / length, by / length, bz / length


def openness_of(surface: Surface, camera: Camera) -> Plane:
    """Ambient occlusion from the depth of every second pixel, at every pixel."""
    depth = surface.depth[::2, ::2]
    face = surface.face[::2, ::2]
    fragments = Fragments(face_index=face, barycentrics=jnp.zeros((*depth.shape, 3), depth.dtype), depth=depth)
    half = Camera(linear=0.5 * camera.linear, center=0.5 * camera.center, perspectivity=camera.perspectivity)
    coarse = apart(ambient_openness(fragments, half, 0.07))
    open_ = jnp.repeat(jnp.repeat(coarse, 2, axis=0), 2, axis=1)
    return apart((2.0 * open_ - 1.0) * 0.85 + 0.15)


def smooth(low: float, high: float, x: Plane) -> Plane:
    """0 below `low`, 1 above `high`, smooth between."""
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)

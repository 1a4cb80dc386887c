"""Appearance of the scene: skin, nails, cloth and objects under random light, in linear RGB."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.data.draws import Draws
from handtailor_jax.render.shading import ambient_openness
from handtailor_jax.synthetic.backgrounds import bands, muted_colors
from handtailor_jax.synthetic.marks import smooth_step
from handtailor_jax.synthetic.skin import CHANNELS
from handtailor_jax.synthetic.surface import BAND, SKIN, SLEEVE, Plane, Planes3, Surface, once
from handtailor_jax.types import Camera, pytree

# Optical density of skin in R, G, B: without pigment, per unit of melanin, per unit of blood.
_BASE, _MELANIN, _BLOOD = (0.06, 0.26, 0.46), (1.95, 2.65, 3.15), (0.05, 0.46, 0.33)
# R, G, B of light that scatters through skin: past the terminator, at the edge of a cast shadow, in folds.
_WRAP, _SHADOW_BLEED, _FOLD_BLEED = (0.34, 0.17, 0.12), (0.35, 0.09, 0.035), (0.25, 0.08, 0.05)


@pytree
class Light:
    """Key light that casts shadows, fill light, and ambient light stronger from `up`: unit vectors, camera frame."""

    key: Float[Array, "3"]
    fill: Float[Array, "3"]
    up: Float[Array, "3"]
    colors: Float[Array, "4 3"]  # RGB of key, fill, ambient from `up`, ambient from the other side
    softness: Float[Array, ""]  # radius of the shadow edge in texels of the shadow map


def _tint(draws: Draws, spread: float) -> Float[Array, "3"]:
    """Draw a colour of light between warm and cool with a trace of green or magenta, of luminance about 1."""
    warm, green = spread * draws.normal(), 0.25 * spread * draws.normal()
    zero = jnp.zeros_like(warm)
    return jnp.exp(jnp.stack([warm, green, -1.25 * warm]) + jnp.stack([zero, green, zero]))


def sample_light(draws: Draws) -> Light:
    """Draw daylight or lamps, a flash at the camera, or a window behind the hand."""
    draws.uniform()  # unused; without it all samples of the frozen test split would change
    kind = draws.uniform()
    toward_camera, above, behind = (
        jnp.asarray(x, kind.dtype) for x in ([0.0, -0.1, -1.0], [0.0, -1.0, -0.6], [0.0, -0.5, 0.8])
    )
    center = jnp.where(kind < 0.25, toward_camera, jnp.where(kind < 0.85, above, behind))
    spread = jnp.where(kind < 0.25, 0.25, jnp.where(kind < 0.85, 0.75, 0.5))
    key = center + spread * draws.normal(3)
    fill = jnp.asarray([0.0, -0.2, -0.5], kind.dtype) + 0.8 * draws.normal(3)
    up = jnp.asarray([0.0, -1.0, -0.3], kind.dtype) + 0.6 * draws.normal(3)
    key, fill, up = (x / jnp.sqrt(jnp.sum(x * x) + 1e-9) for x in (key, fill, up))
    strength = jnp.exp(jnp.stack([draws.between(-1.2, 0.8), draws.between(-2.5, -0.7)]))
    ambient = jnp.exp(draws.between(-1.3, -0.2))
    floor = ambient * draws.between(0.35, 1.0)
    strengths = ((strength[0], 0.10), (strength[1], 0.14), (ambient, 0.10), (floor, 0.12))
    colors = jnp.stack([value * _tint(draws, tint_spread) for value, tint_spread in strengths])
    return Light(key=key, fill=fill, up=up, colors=colors, softness=draws.between(0.6, 4.0))


@pytree
class Materials:
    """Random choices about skin, nails, cloth and objects."""

    melanin: Float[Array, ""]
    blood: Float[Array, ""]
    hue: Float[Array, "3"]  # small factors on the skin's colour
    marks: Float[Array, "8"]
    """Weights of creases, knuckles, blood marks, veins, fine and coarse mottling, relief, paleness of the palm."""
    gloss: Float[Array, "2"]  # gloss and roughness of the skin
    polish: Float[Array, "4"]  # RGB of nail polish, and 1 if the nails have polish, else 0
    cloth: Float[Array, "2 3"]  # two colours of the sleeve
    pattern: Float[Array, "3"]  # frequency along, frequency around and contrast of the sleeve's pattern
    objects: Float[Array, "3 3"]  # colours of band, held object and foreground object
    object_gloss: Float[Array, "3"]  # gloss of band, held object and foreground object


def sample_materials(draws: Draws) -> Materials:
    """Draw skin from very light to very dark, palms lighter than backs, nails with or without polish."""
    melanin = draws.between(0.0, 1.0) ** 1.25
    yellow = draws.uniform() ** 1.5 * jnp.asarray([0.0, 0.06, 0.42], melanin.dtype)
    hue = jnp.exp(0.04 * draws.normal(3) - yellow)
    low = jnp.asarray([0.15, 0.1, 0.3, 0.0, 0.02, 0.03, 0.3, 0.25, 0.3, 0.0], hue.dtype)
    high = jnp.asarray([0.9, 1.0, 1.0, 0.8, 0.07, 0.10, 1.5, 0.6, 1.6, 1.0], hue.dtype)
    marks = low + (high - low) * draws.uniform(10)
    color = draws.uniform(3) ** 1.5
    polish = jnp.concatenate([color, jnp.stack([draws.chance(0.12)])])
    # Greys and muted colours of cloth are more frequent than saturated ones.
    value = draws.between(0.02, 0.8, 2) ** 1.3
    loud = draws.uniform() ** 1.5
    cloth = value[:, None] * (1.0 - loud * (1.0 - draws.uniform(2, 3)))
    pattern = jnp.stack([jnp.exp(draws.between(2.3, 4.8)), jnp.floor(draws.between(2.0, 14.0)), draws.uniform() ** 2])
    objects = muted_colors(draws, 3)
    blood, object_gloss = draws.between(0.1, 0.9), draws.uniform(3) ** 2
    return Materials(melanin, blood, hue, marks[:8], marks[8:], polish, cloth, pattern, objects, object_gloss)


def shade(
    surface: Surface,
    chart: Float[Array, "channels chart chart"],
    materials: Materials,
    light: Light,
    visible: Plane,
    openness: Plane,
    camera: Camera,
) -> Planes3:
    """Compute linear RGB of every pixel of the supersampled image, 0 without a surface.

    `visible` and `openness` are the shares of the key light and of the ambient light that reach each pixel.
    """
    skin, cloth = surface.material == SKIN, surface.material == SLEEVE
    melanin, blood, dark, nail, palm, height = _pigments(surface, chart, materials)
    u, v = surface.chart
    along, around, contrast = materials.pattern
    stripes, checks = bands(along * v), bands(around * u)
    pattern = contrast * jnp.where(around > 8.0, stripes, 0.5 * (stripes + checks))
    height = jnp.where(cloth, 0.2 * _wave(8.0 * along * v) * _wave(90.0 * u), height)
    normals = once(_bumped_normals(surface, 0.001 * height, camera))
    kind = jnp.clip(surface.material - BAND, 0, 2)
    cosines, gleams, grazing = _reflection(surface, normals, materials, light, nail, palm, kind)
    covered = materials.polish[3] * smooth_step(0.2, 0.5, nail)
    key_gleam, fill_gleam = gleams[0] * visible, gleams[1] * openness
    shared = once((*cosines, grazing, key_gleam, fill_gleam, covered, pattern))
    key_cos, fill_cos, up_cos, grazing, key_gleam, fill_gleam, covered, pattern = shared
    colors = []
    for c in range(3):
        density = _BASE[c] + _MELANIN[c] * melanin + _BLOOD[c] * blood  # Beer's law on the two pigments
        albedo = jnp.exp(-density) * materials.hue[c] * dark
        albedo = albedo + covered * (materials.polish[c] - albedo)
        cloth_albedo = materials.cloth[0, c] + pattern * (materials.cloth[1, c] - materials.cloth[0, c])
        albedo = jnp.where(skin, albedo, jnp.where(cloth, cloth_albedo, materials.objects[:, c][kind]))
        wrap = jnp.where(skin, _WRAP[c], 0.05)
        key = jnp.maximum((key_cos + wrap) / (1.0 + wrap), 0.0)
        fill = jnp.maximum((fill_cos + wrap) / (1.0 + wrap), 0.0)
        through = visible + jnp.where(skin, _SHADOW_BLEED[c], 0.0) * visible * (1.0 - visible)
        open_ = openness + (1.0 - openness) * jnp.where(skin, _FOLD_BLEED[c], 0.0)
        ambient = light.colors[3, c] + up_cos * (light.colors[2, c] - light.colors[3, c])
        diffuse = (ambient + light.colors[1, c] * fill) * open_
        diffuse = diffuse + light.colors[0, c] * key * through * (0.6 + 0.4 * open_)
        shine = light.colors[0, c] * key_gleam + light.colors[1, c] * fill_gleam + 0.1 * ambient * grazing * open_
        colors.append(jnp.where(surface.face >= 0, albedo * diffuse + shine, 0.0))
    return once((colors[0], colors[1], colors[2]))


def _reflection(
    surface: Surface, normals: Planes3, materials: Materials, light: Light, nail: Plane, palm: Plane, kind: Array
) -> tuple[Planes3, tuple[Plane, Plane], Plane]:
    """Return cosines to key light, fill light and up (0 to 1), specular reflection of both lights, and grazing."""
    nx, ny, nz = normals
    px, py, pz = surface.points
    distance = jnp.sqrt(px * px + py * py + pz * pz + 1e-9)
    ex, ey, ez = -px / distance, -py / distance, -pz / distance
    skin, cloth = surface.material == SKIN, surface.material == SLEEVE
    glossy = jnp.where(skin | cloth, 0.0, materials.object_gloss[kind])

    def cosine(direction: Float[Array, "3"]) -> Plane:
        return nx * direction[0] + ny * direction[1] + nz * direction[2]

    cosines = cosine(light.key), cosine(light.fill), 0.5 + 0.5 * cosine(light.up)
    grazing = (1.0 - jnp.clip(nx * ex + ny * ey + nz * ez, 0.0, 1.0)) ** 5
    gloss, roughness = materials.gloss
    exponent = jnp.where(skin, 10.0 + 34.0 * (1.0 - roughness) + 60.0 * nail, 6.0 + 90.0 * glossy)
    of_skin = gloss * (0.028 + 0.05 * nail) * (1.0 - 0.4 * palm)
    strength = jnp.where(skin, of_skin, jnp.where(cloth, 0.004, 0.12 * glossy))
    strength = strength * (exponent + 8.0) * (1.0 / 8.0) * (1.0 + 12.0 * grazing)

    def gleam(direction: Float[Array, "3"], cosine: Plane) -> Plane:
        hx, hy, hz = ex + direction[0], ey + direction[1], ez + direction[2]
        half = (nx * hx + ny * hy + nz * hz) / jnp.sqrt(hx * hx + hy * hy + hz * hz + 1e-9)
        half = jnp.clip(half, 0.0, 1.0)
        # Schlick's rational approximation of half ** exponent.
        return half / (exponent - exponent * half + half) * jnp.clip(cosine * 4.0, 0.0, 1.0) * strength

    return cosines, (gleam(light.key, cosines[0]), gleam(light.fill, cosines[1])), grazing


def _pigments(
    surface: Surface, chart: Float[Array, "channels chart chart"], materials: Materials
) -> tuple[Plane, Plane, Plane, Plane, Plane, Plane]:
    """Return melanin, blood, darkening of creases, nail, palm and height (millimetres) from the chart."""
    skin = surface.material == SKIN
    texels = chart.shape[-1]
    u, v = surface.chart
    flat = chart.reshape(chart.shape[0], -1)
    column, row = (jnp.clip(x * texels - 0.5, 0.0, texels - 1.001) for x in (u, v))
    left, top = jnp.floor(column), jnp.floor(row)
    right, down = column - left, row - top
    texel = jnp.where(skin, (top * texels + left).astype(jnp.int32), 0)
    # The four texels around, as steps from the upper left one, and their bilinear weights.
    steps = (0, 1, texels, texels + 1)
    on_skin = skin.astype(u.dtype)
    texel, weights = once((texel, [on_skin * a * b for b in (1.0 - down, down) for a in (1.0 - right, right)]))

    def mark(channel: str) -> Plane:
        plane = flat[CHANNELS.index(channel)]
        a, b, c, d = (weight * plane[texel + step] for step, weight in zip(steps, weights, strict=True))
        return a + b + c + d

    crease_, knuckle_, blood_, vein_, fine_, coarse_, relief_, pale_ = materials.marks
    palm, nail, vein = mark("palm"), mark("nail"), mark("vein")
    crease, cuticle = crease_ * mark("crease"), mark("cuticle")
    uneven = fine_ * mark("fine") + coarse_ * mark("coarse")
    melanin = materials.melanin * (1.0 - (1.0 - pale_) * palm * jnp.clip(0.35 + materials.melanin, 0.0, 1.0))
    melanin = melanin * (1.0 + 0.5 * uneven + 0.45 * knuckle_ * mark("knuckle") + 0.35 * crease) + 0.05 * crease
    melanin = melanin * (1.0 - 0.45 * nail) + 0.02 * vein_ * vein
    blood = materials.blood + 0.55 * blood_ * mark("blood") + 0.16 * palm + 1.6 * uneven
    blood = blood + 0.55 * crease + 0.35 * cuticle - 0.3 * vein_ * vein + 0.15 * nail
    blood = jnp.maximum(blood - 0.55 * smooth_step(0.8, 1.0, nail), -0.25)
    dark = 1.0 - 0.28 * crease - 0.2 * cuticle
    return once((melanin, blood, dark, nail, palm, relief_ * mark("relief")))


def _wave(x: Plane) -> Plane:
    """Return a triangle wave of period 1 from -1 to 1."""
    return 4.0 * jnp.abs(x - jnp.floor(x) - 0.5) - 1.0


def _bumped_normals(surface: Surface, height: Plane, camera: Camera) -> Planes3:
    """Return the normals turned by the slope of `height` (metres) along the surface."""
    nx, ny, nz = surface.normals
    material, depth = surface.material, surface.depth

    def slope(axis: int) -> Plane:
        after, before = jnp.roll(height, -1, axis), jnp.roll(height, 1, axis)
        flat = (jnp.roll(material, -1, axis) == material) & (jnp.roll(material, 1, axis) == material)
        near = jnp.abs(jnp.roll(depth, -1, axis) - jnp.roll(depth, 1, axis)) < 0.006
        return jnp.where(flat & near, 0.5 * (after - before), 0.0)

    # A pixel covers z / f metres across the line of sight and more along a tilted surface, so slopes are reduced there.
    z = surface.points[2]
    gx, gy = slope(1) * (camera.linear[0, 0] / z), slope(0) * (camera.linear[1, 1] / z)
    gx, gy = jnp.clip(gx, -0.8, 0.8), jnp.clip(gy, -0.8, 0.8)
    tilt = jnp.clip(-nz, 0.0, 1.0)
    bx, by, bz = nx - gx * tilt, ny - gy * tilt, nz
    length = jnp.sqrt(bx * bx + by * by + bz * bz + 1e-12)
    return bx / length, by / length, bz / length


def openness_of(surface: Surface, camera: Camera) -> Plane:
    """Estimate the share of the ambient light that reaches each pixel from the depth of every second pixel."""
    half = Camera(linear=0.5 * camera.linear, center=0.5 * camera.center, perspectivity=camera.perspectivity)
    coarse = once(ambient_openness(surface.depth[::2, ::2], half, 0.07))
    open_ = jnp.repeat(jnp.repeat(coarse, 2, axis=0), 2, axis=1)
    return once((2.0 * open_ - 1.0) * 0.85 + 0.15)

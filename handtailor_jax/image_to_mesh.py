"""One hand from an image and a box, as one function of arrays: crop, hand module and tailor in one graph."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from handtailor_jax.detector.landmark_network import HandLandmarkNetwork
from handtailor_jax.detector.regions import SURE, from_box, from_landmarks, square_region, to_image
from handtailor_jax.errors import InputError, checked_array, numbers
from handtailor_jax.geometry.cameras import as_camera, crop_affine, inverse_affine, transform_pixels
from handtailor_jax.hand_module.hand_module import HandModule, LandmarkHandModule
from handtailor_jax.images import as_rgb, check_box, whole
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.pipeline import Preset, estimate_views, fitting_config, precision_of, recover
from handtailor_jax.tailor.placement import with_floats
from handtailor_jax.types import Camera, Hand, HandEstimate, Region, View


def recover_hand(
    module: HandModule | LandmarkHandModule,
    hand: HandModel,
    image: Any,
    camera: Any = None,
    box: Any = None,
    *,
    right: Any = None,
    config: Preset = "auto",
) -> Hand:
    """Recover one hand from an image, as a function of arrays: for `jax.jit`, `jax.vmap`, `jax.grad` and `nnx.jit`.

    Gradients reach the pixels, the weights, the camera and the box. Shapes and types are always checked, values only
    if they are not traced. `HandTailor` also finds the hands, and takes other kinds of images.

    Args:
        module: Hand module in evaluation mode, from `load_weights` or ``HandTailor.load().module``.
        hand: Hand model that the module was trained with.
        image: (H, W, 3) RGB image, uint8, or floats of 0 to 1.
        camera: `Camera` or intrinsic matrix (3, 3) of the image, pixels; None for weak perspective.
        box: (4,) Box (x, y, w, h) around the hand, pixels, or a `Region`, such as the `region` of a recovered hand;
            None for the whole image. A landmark network, alone or as a stem, searches a box: it tries four rotations,
            and four of half the size unless the presence is above 0.95; the crop is the region around the keypoints
            in the best one. A `Region` is cropped as it is; other stems ignore its rotation and do not search.
        right: Prior probability of a right hand: 1 or 0 if the side is known; 0.5 if None, which other stems take for
            a right hand.
        config: Energy and solver of the tailor.

    Returns:
        The hand, without a batch axis; its `proposed` is the hand before the tailor.

    Raises:
        InputError: If an argument is invalid; the message names it.
    """
    config, dtype = fitting_config(module, config), precision_of(module)
    if not isinstance(hand, HandModel):
        raise InputError(f"hand is a {type(hand).__name__}: give a hand model, such as embedded_hand()")
    hand = hand if hand.side == "right" else hand.mirrored()
    pixels = _levels(image, dtype)
    where = _where(module, pixels, box, dtype)
    view, estimate = _look(module, pixels, where, _camera(camera, dtype), _prior(right, dtype))
    found = recover(hand, estimate, view.camera, view.to_crop, module.image_size, config)
    found = dataclasses.replace(found, region=view.region)
    return jax.tree.map(lambda leaf: leaf[0], found)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _prior(right: Any, dtype: jnp.dtype) -> Float[Array, ""]:
    if right is None:
        return jnp.asarray(0.5, dtype)
    if not _is_traced(right) and not (np.ndim(numbers("right", right)) == 0 and 0.0 <= right <= 1.0):
        raise InputError(f"right is {right}: give the probability of a right hand, 0 to 1")
    if jnp.shape(right) != ():
        raise InputError(f"right has shape {jnp.shape(right)}: give one number, several with jax.vmap")
    return jnp.asarray(right, dtype)


def _levels(image: Any, dtype: jnp.dtype) -> Float[Array, "height width 3"]:
    """Return the values of an image from 0 to 255."""
    if not _is_traced(image) and getattr(image, "ndim", 3) == 3:
        rgb = as_rgb(image)
        image = rgb if np.asarray(image).dtype == np.uint16 else image
    image = jnp.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"image has shape {image.shape}: give one RGB image (H, W, 3), and several with jax.vmap")
    if jnp.issubdtype(image.dtype, jnp.floating):
        return 255.0 * image.astype(dtype)
    if image.dtype != jnp.uint8:
        raise InputError(f"image has type {image.dtype}: give uint8 values, or floats of 0 to 1")
    return image.astype(dtype)


def _camera(camera: Any, dtype: jnp.dtype) -> Camera:
    """Return one camera of arrays."""
    batched = isinstance(camera, Camera) and jnp.shape(camera.linear) != (2, 2)
    if camera is None:
        camera = as_camera(None)
    elif not _is_traced(camera) and not batched and getattr(camera, "shape", (4,)) in ((3, 3), (4,)):
        as_camera(camera)  # checks it, in float32
    if not isinstance(camera, Camera):
        if isinstance(camera, Mapping) and {"fx", "fy", "cx", "cy"} <= set(camera):
            camera = [camera[name] for name in ("fx", "fy", "cx", "cy")]
        camera = jnp.asarray(camera)
        if camera.shape == (4,):
            camera = Camera.perspective(*camera)
        elif camera.shape == (3, 3):
            camera = Camera.from_matrix(camera)
        else:
            raise InputError(f"camera has shape {camera.shape}: give a matrix (3, 3), fx fy cx cy, or a Camera")
    shapes = [jnp.shape(leaf) for leaf in (camera.linear, camera.center, camera.perspectivity)]
    if shapes != [(2, 2), (2,), ()]:
        raise InputError(f"camera.linear has shape {shapes[0]}: give one camera, several with jax.vmap")
    return with_floats(dtype, camera)


def _where(
    module: HandModule | LandmarkHandModule, image: Float[Array, "height width 3"], box: Any, dtype: jnp.dtype
) -> tuple[Region, Region | None]:
    """Return the region of a box, and its rotations in two sizes, which a landmark network tries first, or None."""
    if isinstance(box, Region):
        for name, shape in (("center", (2,)), ("side", ()), ("rotation", ())):
            if jnp.shape(getattr(box, name)) != shape:
                given = jnp.shape(getattr(box, name))
                raise InputError(f"box.{name} has shape {given}: give one region, several with jax.vmap")
        if not _is_traced(box):
            check_box([*np.asarray(box.center) - 0.5 * box.side, box.side, box.side], image)
            checked_array("box.rotation", np.asarray(box.rotation), ())
        return with_floats(dtype, box), None
    if not _is_traced(box):
        box = whole(image) if box is None else check_box(box, image)
    box = jnp.asarray(box, dtype)
    if box.shape != (4,):
        raise InputError(f"box has shape {box.shape}: give four numbers x y w h, and several boxes with jax.vmap")
    if module.landmark_network is None:
        return square_region(box), None
    sizes = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *turns) for turns in from_box(box)]
    turns: Region = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sizes)
    return jax.tree.map(lambda leaf: leaf[0, 0], turns), turns


def _look(
    module: HandModule | LandmarkHandModule,
    image: Float[Array, "height width 3"],
    where: tuple[Region, Region | None],
    camera: Camera,
    right: Float[Array, ""],
) -> tuple[View, HandEstimate]:
    """Return a batch of one view, of the region or around the keypoints in the best rotation, and its estimate."""
    size, network, (region, turns) = module.image_size, module.landmark_network, where

    def look(region: Region) -> tuple[View, HandEstimate]:
        if network is not None:
            affine = to_image(region, size)
            crop, to_crop = crop_turned(image, affine, size), inverse_affine(affine)
        else:
            crop = crop_upright(image, region.center, region.side, size)
            to_crop = crop_affine(region.center - 0.5, region.side, size)
        view = jax.tree.map(lambda leaf: leaf[None], View(crop, to_crop, region, camera, right))
        return view, estimate_views(module, view)

    if turns is None or network is None:
        return look(region)

    def glance(network: HandLandmarkNetwork, image: Array, region: Region) -> tuple[Float[Array, ""], Region]:
        affine = to_image(region, size)
        landmarks = network(crop_turned(image, affine, size)[None].astype(precision_of(module)) / 255.0)
        return landmarks.presence[0], from_landmarks(transform_pixels(affine, landmarks.crop[0, :, :2]))

    # The choice of the best rotation has no gradient, so they are compared without; the region in it has one.
    graph, weights = nnx.split(network)
    fixed, pixels, places = jax.lax.stop_gradient((weights, image, turns))

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        i, presence, _ = state
        return (i < turns.side.size) & ((i % turns.side.shape[1] > 0) | (presence <= SURE))

    def compare(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, presence, best = state
        seen, _ = glance(nnx.merge(graph, fixed), pixels, _turn(places, i))
        return i + 1, jnp.maximum(seen, presence), jnp.where(seen > presence, i, best)

    first = jnp.asarray(0)
    _, _, best = jax.lax.while_loop(goes_on, compare, (first, jnp.asarray(-1.0, image.dtype), first))
    return look(glance(network, image, _turn(turns, best))[1])


def _turn(turns: Region, number: Int[Array, ""]) -> Region:
    """Return a rotation of a box by its number; they are numbered size by size."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[number], turns)


def crop_upright(
    image: Float[Array, "height width 3"], center: Float[Array, "2"], side: Float[Array, ""], size: int
) -> Float[Array, "size size 3"]:
    """Crop an upright square as `images.crop_square` does: averages over areas when shrinking, bilinear when enlarging.

    `center` and `side` are in pixels of the image; x and y are 0 at its left and upper edge. Pixels outside of the
    image are mid-grey.
    """
    columns, rows = (_shares(center[i] - 0.5 * side, side, size, image.shape[1 - i]) for i in (0, 1))
    inside = rows.sum(axis=1)[:, None] * columns.sum(axis=1)[None]
    return jnp.einsum("iy,yxc,jx->ijc", rows, image, columns) + 128.0 * (1.0 - inside)[..., None]


def _shares(first: Float[Array, ""], side: Float[Array, ""], size: int, length: int) -> Float[Array, "size length"]:
    """Return the share of each of `length` pixels in each of the `size` cells of an interval.

    Cells are at least one pixel wide; where they overlap, when enlarging, the shares interpolate linearly.
    """
    step = side / size
    middle = first + step * (jnp.arange(size, dtype=side.dtype) + 0.5)
    half, edges = 0.5 * jnp.maximum(step, 1.0), jnp.arange(length + 1, dtype=side.dtype)[None]
    upper = jnp.minimum((middle + half)[:, None], edges[:, 1:])
    lower = jnp.maximum((middle - half)[:, None], edges[:, :-1])
    return jnp.maximum(upper - lower, 0.0) / (2.0 * half)


def crop_turned(
    image: Float[Array, "height width 3"], to_image: Float[Array, "2 3"], size: int
) -> Float[Array, "size size 3"]:
    """Crop a rotated square as `detector.regions.cut` does: bilinear, without antialiasing, with a repeated border.

    `to_image` is the affine map from the crop's pixels to the image's.
    """
    v, u = jnp.indices((size, size), dtype=image.dtype).reshape(2, -1)
    points = transform_pixels(to_image, jnp.stack([u, v], axis=-1))
    sample = functools.partial(map_coordinates, coordinates=[points[:, 1], points[:, 0]], order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).reshape(size, size, 3)

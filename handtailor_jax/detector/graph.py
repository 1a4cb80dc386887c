"""The detector as functions of arrays, which jit and differentiate: palms, their regions, landmarks.

    palms   = find_palms(palm_detector, letterbox, square)       # where palms are
    regions = from_palm(palms)                                   # rotated squares around whole hands
    hands   = recognise(landmark_network, crops, regions)        # keypoints, side, presence

`detect` is all of it in one program.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.detector.crops import sample
from handtailor_jax.detector.landmark_network import HandLandmarkNetwork
from handtailor_jax.detector.palm_detector import PalmDetector
from handtailor_jax.detector.palms import Palms, decode, suppress
from handtailor_jax.detector.regions import (
    from_landmarks,
    from_palm,
    keypoints_to_image,
    palms_to_image,
    upright,
    world_to_camera,
)
from handtailor_jax.types import Numbers, Region, pytree


@pytree
class Hands:
    """Hands estimated in a batch of regions. Pixels are those of the image."""

    keypoints_2d: Float[Numbers, "batch 21 2"]
    """Keypoints (u, v), pixels, canonical order."""
    joints_3d: Float[Numbers, "batch 21 3"]
    """World landmarks in camera axes, metres; the origin is near the finger MCPs and the hand's size is a guess."""
    presence: Float[Numbers, "batch"]
    """Probability that the region shows a hand."""
    right: Float[Numbers, "batch"]
    """Probability that it is a right hand, in an image that is not mirrored."""
    region: Region
    """The region that the network saw."""
    next_region: Region
    """The region around the keypoints, for a further pass or for the next frame of a video."""


def find_palms(
    network: PalmDetector,
    images: Float[Array, "batch size size 3"],
    regions: Region,
    threshold: Float[Array, ""] | float,
) -> Palms:
    """Find palms in crops of unrotated regions.

    Args:
        network: the palm detector.
        images: the crops, RGB from 0 to 1.
        regions: of the crops, one each.
        threshold: score from which a candidate counts.

    Returns:
        `palms.MAX_PALMS` palms of each crop, in pixels of the image; entries with score 0 are empty.
    """
    logits, boxes = network(images)
    found = jax.vmap(lambda candidates: suppress(candidates, threshold))(decode(logits, boxes, network.config))
    return palms_to_image(found, regions)


def recognise(network: HandLandmarkNetwork, crops: Float[Array, "batch size size 3"], regions: Region) -> Hands:
    """Estimate the hand in each region from its crop, RGB from 0 to 1."""
    landmarks = network(crops)
    keypoints = keypoints_to_image(landmarks, regions, network.config.image_size)
    return Hands(
        keypoints_2d=keypoints,
        joints_3d=world_to_camera(landmarks, regions),
        presence=landmarks.presence,
        right=landmarks.right,
        region=regions,
        next_region=from_landmarks(keypoints),
    )


def detect(
    palm_detector: PalmDetector,
    landmark_network: HandLandmarkNetwork,
    image: Float[Array, "h w 3"],
    count: int,
    threshold: Float[Array, ""] | float = 0.3,
) -> Hands:
    """Find hands in one program, differentiable from the keypoints to the pixels of the image.

    Args:
        palm_detector: finds the regions.
        landmark_network: estimates the hands in them.
        image: RGB from 0 to 1.
        count: number of regions, by falling score of their palms.
        threshold: palm score; hands of palms below it have presence 0.
    """
    height, width = image.shape[:2]
    square = jax.tree.map(lambda leaf: leaf[None], upright(jnp.asarray([0.0, 0.0, width, height], image.dtype)))
    size = palm_detector.config.image_size
    inside = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))  # `sample` repeats the edge, which must be black
    shifted = dataclasses.replace(square, center=square.center + 1.0)
    letterbox = jax.vmap(lambda region: sample(inside, region, size))(shifted)
    palms = jax.tree.map(lambda leaf: leaf[0, :count], find_palms(palm_detector, letterbox, square, threshold))
    regions = from_palm(palms)
    crops = jax.vmap(lambda region: sample(image, region, landmark_network.config.image_size))(regions)
    hands = recognise(landmark_network, crops, regions)
    return dataclasses.replace(hands, presence=jnp.where(palms.score > 0.0, hands.presence, 0.0))

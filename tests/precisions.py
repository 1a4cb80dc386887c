"""Calls the public functions with 64-bit types enabled; run by tests/test_precision.py in a process of its own.

Types that do not fit are found while tracing, so every preset and network is traced with hands of both types, and each
is compiled and run with one of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import handtailor_jax as ht
from handtailor_jax.cli import EXAMPLES
from handtailor_jax.images import read_image

DETECTIONS = {each.id: each for each in ht.read_detections(EXAMPLES)}


def finite(name, tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)), name
    print(name, flush=True)


def fits(hand):
    """With a given pose and by search, of this side and the other; the search of one type is traced only."""
    known, other = DETECTIONS["fist"], DETECTIONS["pinch"]
    finite("refined", ht.fit(known.keypoints_2d, side="right", camera=known.camera, pose=known.pose, hand=hand))
    quick = ht.SearchConfig(survivors=2)
    if hand.dtype == np.float32:
        found = ht.fit(other.keypoints_2d, side="left", convention="mediapipe", hand=hand, search_config=quick)
        finite("searched", found.vertices)
    else:
        seen = ht.Observation(other.keypoints_2d, np.ones(21, np.float32), ht.Camera.weak_perspective())
        run = functools.partial(ht.search, config=ht.TailorConfig.keypoints_only(), search_config=quick)
        assert jax.eval_shape(run, hand, seen).vertices.dtype == hand.dtype


def tailored(hand, dtype):
    """Arguments of either type, as a user has them."""
    known = DETECTIONS["fist"]
    camera = ht.Camera.from_matrix(jnp.asarray(known.camera, dtype))
    seen = ht.Observation(jnp.asarray(known.keypoints_2d), jnp.ones(21, dtype), camera)
    depth = jnp.asarray(0.5, dtype)

    @functools.partial(jax.jit, static_argnames="config")
    def run(hand, pose, seen, config):
        start = ht.initialize(hand, pose, jnp.zeros(10, dtype), seen, root_depth=depth)
        return ht.tailor(hand, start, seen, config)

    pose = jnp.asarray(known.pose)
    for preset in ht.PRESETS.values():
        traced = jax.eval_shape(functools.partial(run, config=preset()), hand, pose, seen)
        assert {leaf.dtype for leaf in jax.tree.leaves(traced)} == {hand.dtype}
    fitted = run(hand, pose, seen, (ht.TailorConfig.default if hand.dtype == np.float32 else ht.TailorConfig.paper)())
    finite("tailored", jax.jit(ht.camera_mesh)(hand, fitted))
    finite("keypoints", jax.jit(ht.camera_keypoints)(hand, fitted))
    start = jax.jit(ht.place_proposal)(hand, jnp.asarray(known.pose), jnp.zeros(10, dtype), seen)
    many = jax.tree.map(lambda leaf: leaf[None], (start, seen))
    assert jax.eval_shape(ht.tailor_batch, hand, *many).pose.dtype == hand.dtype


def recovered(hand):
    """The networks keep their own precision."""
    known = DETECTIONS["open"]
    image = read_image(known.image)
    box = np.asarray([45.0, 20.0, 235.0, 245.0])
    for network, runs in (("hourglass", hand.dtype == np.float64), ("landmarks", hand.dtype == np.float32)):
        tailor = ht.HandTailor(ht.HandTailor.load(network=network).module, hand)
        given = tailor.module, hand, image, np.asarray(known.camera, np.float64), box
        traced = jax.eval_shape(ht.recover_hand, *given)
        assert traced.vertices.dtype == hand.dtype
        if runs:
            finite(f"all hands by {network}", [each.vertices for each in tailor(image)])


if __name__ == "__main__":
    assert jax.config.jax_enable_x64
    for dtype in (np.float32, np.float64):
        model = ht.embedded_hand(dtype=dtype)
        tailored(model, jnp.float64 if dtype == np.float32 else jnp.float32)
        fits(model)
        recovered(model)

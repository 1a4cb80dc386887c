"""All hands of an image and of a video with the landmark network, on the packaged examples."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handtailor_jax
from handtailor_jax import hand_tailor
from handtailor_jax.detections import read_detections
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import as_camera, project
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mano.loading import embedded_hand
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.video.track import HandVideo, VideoConfig

EXAMPLES = {
    each.id: each
    for each in read_detections(Path(handtailor_jax.__file__).parent / "assets" / "examples" / "hands.json")
}


@pytest.fixture(scope="module")
def tailor():
    """One hand at a time, so that one program is compiled; test_pipeline.py has several at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_tailor, "_MOST_AT_ONCE", 1)
        yield HandTailor.load()


def example(name):
    return read_image(EXAMPLES[name].image)


def beside(*images):
    """Images of one size side by side."""
    return np.ascontiguousarray(np.concatenate(images, axis=1))


def shares(hand, keypoints, shift=0.0):
    """Distance of the reprojected mesh's keypoints from others, in hand sizes."""
    distance = np.linalg.norm(hand.keypoints_2d - np.asarray([shift, 0.0]) - keypoints, axis=1)
    return distance.mean() / hand_size(np.asarray(keypoints))


def test_all_hands_of_an_image(tailor):
    """Two examples side by side: both hands, their sides, and meshes that sit on them."""
    names = ("open", "ok_left")
    hands = tailor(beside(*map(example, names)))
    assert [hand.presence for hand in hands] == sorted((hand.presence for hand in hands), reverse=True)
    by_place = sorted(hands, key=lambda hand: hand.keypoints_2d[:, 0].mean())
    assert [hand.side for hand in by_place] == ["right", "left"]
    for i, (hand, name) in enumerate(zip(by_place, names, strict=True)):
        assert shares(hand, EXAMPLES[name].keypoints_2d, 320.0 * i) < 0.06
        assert hand.reprojection_after < 0.015 * hand_size(hand.keypoints_2d)
        assert hand.side_probability > 0.9
        assert hand.convention == "mediapipe"
        # The landmarks are those of the parameters, on a hand model of this side.
        model = embedded_hand(hand.side)
        points = camera_keypoints(model, jax.tree.map(jnp.asarray, hand.parameters), load_convention("mediapipe"))
        np.testing.assert_allclose(project(as_camera(None), points), hand.keypoints_2d, atol=0.05)
        np.testing.assert_array_equal(hand.faces, model.faces)
    assert len(tailor(beside(*map(example, names)), hands=1)) == 1


def test_a_mirrored_image_shows_the_mirrored_hand(tailor):
    """The network is not exactly symmetrical, the rest of the graph is."""
    image = example("ok_left")
    (left,), (right,) = tailor(image), tailor(np.ascontiguousarray(image[:, ::-1]))
    assert (left.side, right.side) == ("left", "right")
    size = hand_size(left.keypoints_2d)
    assert np.abs(left.keypoints_2d - (right.keypoints_2d * [-1, 1] + [319, 0])).max() < 0.08 * size


def test_the_side_is_overruled_and_cameras_are_used(tailor):
    image, camera = example("open"), EXAMPLES["open"].camera
    (found,) = tailor(image, camera, side="left")
    assert (found.side, found.side_probability) == ("left", pytest.approx(1.0))
    (hand,) = tailor(image, camera)
    assert hand.perspective
    assert 0.3 < hand.parameters.translation[2] < 0.55  # metres; it is 0.4, and the size of the hand is not known
    assert hand.reprojection_after < hand.reprojection_before


@pytest.mark.slow
def test_a_known_length_makes_depths_metric(tailor):
    """Images and videos: every hand has the length, at the depth where its image stays the same."""
    image, camera = example("open"), {"fx": 400, "fy": 400, "cx": 160, "cy": 160}
    sized = copy.copy(tailor)
    sized.hand_length = 0.15
    (free,), (found,), (frame,) = (
        tailor(image, camera),
        sized(image, camera),
        HandVideo(sized, camera=camera)(image, 0.0),
    )
    for hand in (found, found.proposed, frame):
        flat = tailor.hand.shape(jnp.asarray(hand.parameters.betas)).length
        assert hand.parameters.scale * flat == pytest.approx(0.15, rel=1e-4)
    np.testing.assert_allclose(found.keypoints_2d, free.keypoints_2d, atol=1e-2)
    factor = found.joints[0, 2] / free.joints[0, 2]
    np.testing.assert_allclose(found.vertices, free.vertices * factor, atol=1e-4)
    with pytest.raises(InputError, match="hand_length is given without camera"):
        sized(image)
    with pytest.raises(InputError, match=r"hand_length .* is 180.0: give 0.03 to 0.5"):
        HandTailor(tailor.module, hand_length=180.0)


def test_one_hand_in_a_box(tailor):
    """The palm detector misses `point`; in a box the hand is found, whatever its rotation, and so is one that fills the
    image."""
    image, keypoints = example("point"), np.asarray(EXAMPLES["point"].keypoints_2d)
    low, high = keypoints.min(axis=0), keypoints.max(axis=0)
    hand = tailor.one(image, box=(*low, *(high - low)))
    assert hand.side == "right"
    assert shares(hand, keypoints) < 0.2
    assert tailor(image, thorough=False) == []
    (alone,) = tailor(image)
    assert alone.side == "right"
    assert shares(alone, keypoints) < 0.2
    assert tailor.one(np.full_like(image, 90), box=(40, 40, 200, 200)) is None
    assert tailor(np.full_like(image, 90)) == []


def test_a_video_of_two_hands(tailor):
    """Each keeps its number and its side, also when it is hidden for some frames."""
    both = beside(example("open"), example("ok_left"))
    hidden = both.copy()
    hidden[:, :320] = 90
    video = HandVideo(tailor, config=VideoConfig(smooth=False))
    frames = [both] * 3 + [hidden] * 2 + [both] * 6
    seen = [video(frame, i / 30.0) for i, frame in enumerate(frames)]
    tracks = [{hand.track: hand.side for hand in hands} for hands in seen]
    whole = tracks[0]
    assert sorted(whole) == [0, 1]
    assert sorted(whole.values()) == ["left", "right"]
    left = next(number for number, side in whole.items() if side == "left")
    assert tracks[1] == tracks[2] == tracks[-1] == whole
    assert tracks[3] == tracks[4] == {left: "left"}
    for hands in seen:
        for hand in hands:
            shift = 320.0 if hand.side == "left" else 0.0
            name = "ok_left" if hand.side == "left" else "open"
            assert shares(hand, EXAMPLES[name].keypoints_2d, shift) < 0.07


def test_a_track_that_jumps_is_not_smoothed_across_the_gap(tailor):
    """The mesh would lie between both places."""
    image, grey = example("open"), np.full_like(example("open"), 90)
    video = HandVideo(tailor)
    for i in range(4):
        video(beside(image, grey), i / 30.0)
    (track,) = video._tracks
    track.region = dataclasses.replace(track.region, center=track.region.center + np.float32([320.0, 0.0]))
    (hand,) = video(beside(grey, image), 4 / 30.0)
    assert hand.track == 0
    assert shares(hand, EXAMPLES["open"].keypoints_2d, 320.0) < 0.07


@pytest.mark.slow
def test_images_of_any_size(tailor):
    for size in ((1, 320), (320, 1), (30, 30), (1, 1)):
        assert tailor(np.full((*size, 3), 128, np.uint8), thorough=True) == []

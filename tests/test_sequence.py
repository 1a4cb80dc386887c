"""`fit_sequence` and `handtailor fit` with times: one hand through time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handtailor_jax as ht
from handtailor_jax import cli
from handtailor_jax.detections import detection, read_detections
from handtailor_jax.errors import InputError, InputWarning
from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.tailor.placement import camera_keypoints, flat_length
from handtailor_jax.types import HandParameters
from handtailor_jax.video.sequence import fit_frames
from handtailor_jax.video.smoothing import smooth_video

CAMERA = (600.0, 600.0, 320.0, 240.0)
RATE = 30.0
keypoints_of = jax.jit(jax.vmap(camera_keypoints, (None, 0)))


def seen(hand, poses, places, noise, seed):
    """Joints (metres) of a hand through time, and its keypoints with noise as a share of the hand size."""
    count = len(places)
    track = HandParameters(
        jnp.asarray(poses, jnp.float32),
        jnp.full((count, 10), 0.5, jnp.float32),
        jnp.ones(count, jnp.float32),
        jnp.asarray(places, jnp.float32),
    )
    joints = np.asarray(keypoints_of(hand, track))
    pixels = joints[..., :2] / joints[..., 2:] * CAMERA[:2] + np.asarray(CAMERA[2:])
    size = float(hand_size(pixels).mean())
    rng = np.random.default_rng(seed)
    return joints, pixels + rng.normal(0.0, noise * size / 2**0.5, pixels.shape)


# The palm faces the camera, fingers up and bent a little.
POSE = np.zeros((16, 3))
POSE[0] = [0.8, -1.5, -1.4]
POSE[1:13:3, 2] = POSE[2:13:3, 2] = 0.35


@pytest.fixture(scope="module")
def still(hand):
    frames = 40
    return seen(hand, np.tile(POSE, (frames, 1, 1)), np.tile([0.02, -0.01, 0.5], (frames, 1)), 0.01, 3)[1]


@pytest.fixture(scope="module")
def moving(hand):
    """A hand that moves at 0.4 m/s, turns and closes its fingers."""
    frames = 36
    times = np.arange(frames) / RATE
    poses = np.tile(POSE, (frames, 1, 1))
    poses[:, 1:13, 2] += 0.4 * times[:, None]
    places = np.stack([-0.2 + 0.4 * times, 0.05 - 0.1 * times, 0.5 + 0.1 * times], axis=-1)
    return times, *seen(hand, poses, places, 0.005, 4)


@pytest.fixture(scope="module")
def fitted(moving):
    times, _, keypoints = moving
    return ht.fit_sequence(keypoints, times, camera=CAMERA)


@pytest.mark.slow
def test_a_still_hand_does_not_wander(hand, still):
    """With keypoints off by 1 % of its size: at most 3 mm in depth and 0.3 mm in length."""
    times = np.arange(len(still)) / RATE
    alone = [ht.fit(each, camera=CAMERA) for each in still]
    together = ht.fit_sequence(still, times, camera=CAMERA)

    def wander(hands):
        depth = np.ptp([each.parameters.translation[2] for each in hands])
        flat = np.ptp([float(flat_length(hand, each.parameters.betas)) for each in hands])
        posed = np.ptp([np.linalg.norm(each.joints[12] - each.joints[0]) for each in hands])
        return 1e3 * np.asarray([depth, flat, posed])

    assert (wander(alone) > [10.0, 3.0, 2.0]).all()
    assert (wander(together) < [3.0, 0.01, 0.3]).all()


@pytest.mark.slow
def test_a_still_hand_without_intrinsics_keeps_its_size(still):
    together = ht.fit_sequence(still, np.arange(len(still)) / RATE)
    scales = np.asarray([each.parameters.scale for each in together])
    assert np.ptp(scales) < 0.004 * scales.mean()
    assert not together[0].perspective


@pytest.mark.slow
def test_a_moving_hand_does_not_lag(moving, fitted):
    _, truth, keypoints = moving
    alone = np.stack([ht.fit(each, camera=CAMERA).joints for each in keypoints])
    found = np.stack([each.joints for each in fitted])

    def jitter(joints):
        return np.sqrt(np.mean(np.diff(joints - truth, 2, axis=0) ** 2))

    assert jitter(alone) > 5.0 * jitter(found)
    # Frames by which the root is behind, along its path in the image plane.
    path = truth[:, 9, :2] - truth[0, 9, :2]
    step = np.linalg.norm(np.diff(path, axis=0), axis=-1).mean()
    along = path[-1] / np.linalg.norm(path[-1])
    ahead = (found[:, 9, :2] / found[:, 9, 2:] * truth[:, 9, 2:] - truth[:, 9, :2]) @ along / step
    assert abs(ahead[5:-5].mean()) < 0.3


def test_frames_without_the_hand_are_predicted(moving, fitted):
    """From both sides in short gaps; at the ends and in long gaps there is no hand."""
    times, _, keypoints = moving
    confidence = np.ones((len(times), 21))
    hidden = [0, 10, 11, 12, 13, len(times) - 1]
    confidence[hidden] = 0.0
    unknown = np.array(keypoints)
    unknown[hidden] = np.nan
    later = np.where(np.arange(len(times)) < 20, times, times + 5.0)
    with pytest.raises(InputError, match="times has 36"):
        ht.fit_sequence(unknown[:-1], later, confidence=confidence, camera=CAMERA)
    found = ht.fit_sequence(unknown, later, confidence=confidence, camera=CAMERA)
    assert [i for i, each in enumerate(found) if each is None] == [0, len(times) - 1]
    for i in hidden[1:-1]:
        assert not found[i].confidence.any()
        assert found[i].finite
        np.testing.assert_allclose(
            found[i].keypoints_2d, fitted[i].keypoints_2d, atol=12.0
        )  # pixels; it moves 16 a frame
    betas = np.stack([each.parameters.betas for each in found if each is not None])
    assert (betas == betas[0]).all()


def test_the_order_of_frames_does_not_matter(moving, fitted, rng):
    times, _, keypoints = moving
    frames = [detection(k, time=t, camera=CAMERA) for k, t in zip(keypoints, times, strict=True)]
    order = rng.permutation(len(frames))
    found = fit_frames([frames[i] for i in order])
    for i, each in zip(order, found, strict=True):
        np.testing.assert_allclose(each.joints, fitted[i].joints, atol=1e-6)


def test_left_hands_are_mirrored(moving, fitted):
    times, _, keypoints = moving
    mirrored = keypoints * [-1.0, 1.0] + [639.0, 0.0]
    camera = (600.0, 600.0, 639.0 - 320.0, 240.0)
    found = ht.fit_sequence(mirrored[:12], times[:12], side="left", camera=camera)
    right = ht.fit_sequence(keypoints[:12], times[:12], camera=CAMERA)
    for each, other in zip(found, right, strict=True):
        assert each.side == "left"
        np.testing.assert_allclose(each.joints * [-1.0, 1.0, 1.0], other.joints, atol=2e-4)


def test_hands_of_a_video_are_smoothed_track_by_track(hand, moving, fitted):
    """A track has one shape; frames that do not show it stay without it."""
    times, truth, keypoints = moving
    alone = [ht.fit(each, camera=CAMERA) for each in keypoints[:16]]
    frames = [[] if i == 7 else [jax.tree.map(lambda x: x, each)] for i, each in enumerate(alone)]
    frames = [[each.__class__(**{**vars(each), "track": 3}) for each in hands] for hands in frames]
    found = smooth_video(hand, frames, times[:16].tolist())
    assert [[each.track for each in hands] for hands in found] == [[3]] * 7 + [[]] + [[3]] * 8
    betas = np.stack([each.parameters.betas for hands in found for each in hands])
    assert (betas == betas[0]).all()
    left, before = (
        np.stack([each.joints for hands in some for each in hands]) - np.delete(truth[:16], 7, axis=0)
        for some in (found, frames)
    )
    assert np.mean(np.diff(left, 2, axis=0) ** 2) < 0.2 * np.mean(np.diff(before, 2, axis=0) ** 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"times": [0.0, 0.1, 0.1]}, "times goes from 0.1 to 0.1 at frame 2: give rising times"),
        ({"times": [0.0, 0.2, 0.1]}, "times goes from 0.2 to 0.1 at frame 2: give rising times"),
        ({"times": [0.0, np.nan, 0.1]}, "times holds NaN"),
        ({"times": [0.0, 0.1]}, "keypoints_2d has 3 frames and times has 2: give one for each frame"),
        ({"times": []}, "keypoints_2d has 3 frames and times has 0"),
        ({"times": 0.1}, "times is '0.1': give a time in seconds for each frame"),
        ({"keypoints_2d": None}, "keypoints_2d has no frames and times has"),
        ({"times": ["a", "b", "c"]}, "times must hold numbers only"),
        ({"confidence": np.ones((2, 21))}, "confidence has 2 frames and times has 3"),
        ({"confidence": np.full((3, 21), 2.0)}, "frame 0: confidence has values outside 0 to 1"),
        ({"confidence": np.zeros((3, 21))}, "no frame shows a hand"),
        ({"side": "both"}, "frame 0: side is 'both'"),
        ({"pose": np.zeros((16, 3))}, "pose does not apply to a sequence: leave it out"),
        ({"hand_length": 0.17}, "frame 0: hand_length is given without camera"),
    ],
)
def test_unusable_sequences(still, change, reason):
    given = {"keypoints_2d": still[:3], "times": [0.0, 0.1, 0.2], **change}
    with pytest.raises(InputError) as error:
        ht.fit_sequence(given.pop("keypoints_2d"), given.pop("times"), **given)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


def test_a_time_belongs_to_a_sequence(still):
    with pytest.raises(InputError, match="time is given for a single hand: use fit_sequence"):
        ht.fit(still[0], time=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def entries(keypoints, times, **more):
    return [
        {"id": f"{more.get('side', 'right')}{i}", "time": float(time), "keypoints_2d": each.tolist(), **more}
        for i, (each, time) in enumerate(zip(keypoints, times, strict=True))
    ]


@pytest.mark.slow
def test_fit_with_times(moving, tmp_path, capsys):
    """Two hands in one file, in any order; one frame is predicted, the last does not show the hand."""
    times, _, keypoints = moving
    camera = dict(zip(("fx", "fy", "cx", "cy"), CAMERA, strict=True))
    right = entries(keypoints[:8], times[:8], camera=camera)
    left = entries(keypoints[:6] * [-1.0, 1.0] + [639.0, 0.0], 1.6e9 + times[:6], side="left")
    right[4]["confidence"] = right[7]["confidence"] = [0.0] * 21
    path = tmp_path / "moving.json"
    path.write_text(json.dumps([*right[::-1], *left]))
    cli.main(["fit", str(path), "--out", str(tmp_path / "out")])
    assert "13 hands written to" in (printed := capsys.readouterr().out)
    assert "1 frames do not show the hand" in printed
    results = {each.stem: json.loads(each.read_text()) for each in (tmp_path / "out").glob("*.json")}
    assert set(results) == {each["id"] for each in (*right[:7], *left)}
    assert [results[f"right{i}"]["time"] for i in range(7)] == times[:7].tolist()
    assert [results[f"right{i}"]["seen"] for i in range(7)] == [i != 4 for i in range(7)]
    for side in ("right", "left"):
        assert len({str(found["betas"]) for found in results.values() if found["side"] == side}) == 1
    assert {each.name for each in (tmp_path / "out").glob("*.png")} >= {"sheet.png", "right4_overlay.png"}
    # Results are inputs.
    assert read_detections(tmp_path / "out" / "right0.json")[0].time == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time": 0.0}, "a and b are both at 0 s: give each frame its own time, and number the hands of one side"),
        ({"time": None}, "entry 1 has no time, but others have: give all or none"),
        ({"time": "soon"}, "entry 1: time must hold numbers only"),
        ({"time": [0.1]}, "entry 1: time must be one number, not 1 numbers"),
        ({"time": float("inf")}, "entry 1: time holds NaN, infinite"),
        ({"track": 1.5}, "entry 1: track is 1.5: number the hands of a side 0, 1, 2"),
        ({"camera": [600, 600, 320, 240]}, "a and b differ in camera: give the same in all frames of a hand"),
        ({"confidence": [0.0] * 21, "track": 2}, "no frame shows a hand: give at least 6 keypoints"),
    ],
)
def test_unusable_times_in_a_file(still, tmp_path, capsys, change, reason):
    path = tmp_path / "hands.json"
    given = [{"id": name, "time": time, "keypoints_2d": still[0].tolist()} for name, time in (("a", 0.0), ("b", 0.1))]
    given[1] |= change
    path.write_text(json.dumps(given))
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", str(path), "--out", str(tmp_path / "out"), "--no-overlay"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"handtailor: error: {path}: {reason}")
    assert not (tmp_path / "out").exists()


def test_frames_far_apart_are_doubted(still):
    with pytest.warns(InputWarning, match=r"the frames are 33 s apart, too far to be smoothed: give times in seconds"):
        ht.fit_sequence(still[:3], [0.0, 33.0, 66.0], camera=CAMERA)

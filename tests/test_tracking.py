"""Smoothing and box tracking on simulated motion."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handtailor_jax.detector import squares
from handtailor_jax.detector.regions import square_region
from handtailor_jax.geometry.boxes import square_around
from handtailor_jax.geometry.cameras import as_camera
from handtailor_jax.geometry.rotations import (
    angle_between,
    axis_angle_from_matrix,
    matrix_from_axis_angle,
)
from handtailor_jax.hand_tailor import Found, HourglassFinder
from handtailor_jax.tailor.placement import camera_keypoints
from handtailor_jax.types import Hand, HandParameters
from handtailor_jax.video.smoothing import (
    HandSmoother,
    OneEuroConfig,
    OneEuroFilter,
    SmoothingConfig,
    rotation_filter,
)

RATE = 30.0
FRAMES = 240
TIMES = np.arange(FRAMES) / RATE


def motion(rng, channels, size, frequency):
    """Smooth signals (FRAMES, channels) of about that amplitude and frequency (Hz)."""
    phases = rng.uniform(0.0, 2.0 * np.pi, (3, channels))
    waves = [
        np.sin(2.0 * np.pi * frequency * f * TIMES[:, None] + p) for f, p in zip((0.6, 1, 1.3), phases, strict=True)
    ]
    return size / 2.0 * np.sum(waves, axis=0)


def jitter(signal):
    return np.sqrt(np.mean(np.diff(signal, 2, axis=0) ** 2))


def lag(truth, signal):
    """Frames by which the truth has to be delayed to be most like the signal."""
    frames = np.arange(FRAMES)

    def error(delay):
        delayed = np.stack([np.interp(frames - delay, frames, channel) for channel in truth.T], axis=-1)
        return np.mean((signal - delayed)[10:] ** 2)

    delays = np.arange(0.0, 5.0, 0.05)
    return delays[np.argmin([error(delay) for delay in delays])]


def run(smooth, signal):
    return np.stack([smooth(value, time) for value, time in zip(signal, TIMES, strict=True)])


def test_one_pole_is_the_published_filter(rng):
    signal = motion(rng, 1, 1.0, 1.0)[:, 0] + rng.normal(0.0, 0.05, FRAMES)
    got = run(OneEuroFilter(OneEuroConfig(1.2, 0.7, 0.9, poles=1)), signal[:, None])[:, 0]

    def share(cutoff):
        tau = 1.0 / (2.0 * np.pi * cutoff)
        return 1.0 / (1.0 + tau * RATE)

    smoothed, slope, wanted = signal[0], 0.0, [signal[0]]
    for before, value in itertools.pairwise(signal):
        slope += share(0.9) * ((value - before) * RATE - slope)
        smoothed += share(1.2 + 0.7 * abs(slope)) * (value - smoothed)
        wanted.append(smoothed)
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("frequency", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("rate", [15.0, 30.0, 60.0])
def test_jitter_falls_threefold_with_a_lag_of_a_frame(rng, frequency, rate):
    truth = motion(rng, 12, 0.5, frequency).reshape(FRAMES, 4, 3)
    noisy = truth + rng.normal(0.0, 0.05, truth.shape)
    smooth = OneEuroFilter(SmoothingConfig.at(rate).pose)
    got = np.stack([smooth(value, frame / rate) for frame, value in enumerate(noisy)])
    assert jitter(noisy) / jitter(got) > 3.0
    assert lag(truth.reshape(FRAMES, -1), got.reshape(FRAMES, -1)) <= 1.05


def test_vectors_are_smoothed_each_by_its_own_speed(rng):
    truth = motion(rng, 6, 1.0, 0.5).reshape(FRAMES, 2, 3) * [[1.0], [0.01]]
    config = OneEuroConfig(1.0, 5.0)
    together = run(OneEuroFilter(config), truth)
    apart = np.stack([run(OneEuroFilter(config), truth[:, i]) for i in range(2)], axis=1)
    np.testing.assert_array_equal(together, apart)
    fast, slow = (lag(truth[:, i], together[:, i]) for i in range(2))
    assert fast < 1.0 < slow


def test_the_unit_scales_the_speed(rng):
    signal = motion(rng, 2, 1.0, 0.5)
    metres, pixels = OneEuroFilter(OneEuroConfig(1.0, 5.0)), OneEuroFilter(OneEuroConfig(1.0, 5.0))
    for value, time in zip(signal, TIMES, strict=True):
        np.testing.assert_allclose(pixels(2000.0 * value, time, unit=2000.0) / 2000.0, metres(value, time), atol=1e-12)


def test_a_gap_lets_the_filter_catch_up():
    smooth = OneEuroFilter(OneEuroConfig(1.0, 0.0))
    smooth(np.zeros(1), 0.0)
    soon = OneEuroFilter(OneEuroConfig(1.0, 0.0))
    soon(np.zeros(1), 0.0)
    assert smooth(np.ones(1), 10.0)[0] > 0.9 > 0.2 > soon(np.ones(1), 1.0 / RATE)[0]


def test_time_has_to_rise():
    smooth = OneEuroFilter(OneEuroConfig(1.0, 0.0))
    smooth(np.zeros(1), 1.0)
    for time in (1.0, 0.5, np.nan):
        with pytest.raises(ValueError, match="time has to rise"):
            smooth(np.zeros(1), time)


# ---------------------------------------------------------------------------------------------------------------------
# Rotations


def test_rotations_do_not_depend_on_their_vectors(rng):
    """Axis-angle vectors a whole turn apart are the same rotation, and may alternate."""
    noisy = motion(rng, 3, 2.0, 0.5) + rng.normal(0.0, 0.05, (FRAMES, 3))
    config = SmoothingConfig.at(RATE).pose
    got = run(rotation_filter(config), noisy[:, None])[:, 0]
    angle = np.linalg.norm(noisy, axis=-1, keepdims=True)
    turned = noisy + rng.choice([-1.0, 0.0, 1.0], (FRAMES, 1)) * 2.0 * np.pi * noisy / angle
    other = run(rotation_filter(config), turned[:, None])[:, 0]
    apart = (Rotation.from_rotvec(got).inv() * Rotation.from_rotvec(other)).magnitude()
    np.testing.assert_allclose(apart, 0.0, atol=1e-9)


def test_a_turn_through_pi_is_followed(rng):
    """Where axis-angle vectors jump from pi to -pi a filter of their components would spin the hand."""
    angles = 1.5 * np.pi * np.arange(FRAMES) / FRAMES
    truth = matrix_from_axis_angle(jnp.asarray(angles[:, None] * [[0.0, 0.6, 0.8]], jnp.float32))
    wrapped = np.asarray(axis_angle_from_matrix(truth))
    assert np.abs(np.diff(wrapped, axis=0)).max() > 3.0, "the input does jump"
    smooth = HandSmoother(True, SmoothingConfig.at(RATE))
    got = []
    for vector, time in zip(wrapped, TIMES, strict=True):
        pose = jnp.zeros((16, 3)).at[0].set(jnp.asarray(vector))
        got.append(smooth(parameters(pose, [0.0, 0.0, 0.5], 1.0), time).pose[0])
    error = angle_between(matrix_from_axis_angle(jnp.stack(got)), truth)
    assert float(error.max()) < 0.05


def parameters(pose, translation, scale):
    return HandParameters(
        pose=jnp.asarray(pose, jnp.float32),
        betas=jnp.zeros(10),
        scale=jnp.asarray(scale, jnp.float32),
        translation=jnp.asarray(translation, jnp.float32),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Whole hands


@pytest.mark.parametrize("perspective", [True, False])
def test_the_joints_of_a_hand_tremble_less_and_do_not_lag(hand, rng, perspective):
    pose = 0.3 + motion(rng, 48, 0.3, 0.5).reshape(FRAMES, 16, 3)
    place = motion(rng, 3, 1.0, 0.4) * [0.1, 0.1, 0.05] + [0.0, 0.0, 0.6]
    seen = rng.normal(0.0, 1.0, (FRAMES, 3)) * 0.002
    noisy_pose = pose + rng.normal(0.0, 0.03, pose.shape)
    noisy_place = (place + seen) * np.exp(rng.normal(0.0, 0.02, (FRAMES, 1)))  # depth errs along the viewing ray
    pixels = 1000.0
    if not perspective:
        place, noisy_place = pixels * place * [1, 1, 0], pixels * noisy_place * [1, 1, 0]
    scale = 1.0 if perspective else pixels
    smooth = HandSmoother(perspective, SmoothingConfig.at(RATE))
    before, truth = (
        [parameters(*each, scale) for each in zip(*both, strict=True)]
        for both in ((noisy_pose, noisy_place), (pose, place))
    )
    after = [smooth(each, time) for each, time in zip(before, TIMES, strict=True)]

    def joints(track):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *track)
        return np.asarray(jax.vmap(camera_keypoints, (None, 0))(hand, stacked)).reshape(FRAMES, -1)

    truth, before, after = joints(truth), joints(before), joints(after)
    assert jitter(before) / jitter(after) > 3.0
    assert lag(truth, after) <= 1.0


def test_shape_and_first_frame_are_kept():
    smooth = HandSmoother(True, SmoothingConfig.at(RATE))
    first = dataclasses.replace(parameters(np.full((16, 3), 0.2), [0.1, -0.1, 0.5], 1.02), betas=jnp.ones(10))
    got = smooth(first, 0.0)
    for field in dataclasses.fields(HandParameters):
        np.testing.assert_allclose(getattr(got, field.name), getattr(first, field.name), atol=1e-6)
        assert getattr(got, field.name).dtype == jnp.float32


@pytest.mark.parametrize("perspective", [True, False])
def test_a_failed_fit_does_no_lasting_harm(perspective):
    smooth = HandSmoother(perspective, SmoothingConfig.at(RATE))
    good = parameters(np.full((16, 3), 0.2), [0.1, -0.1, 0.5], 1.02)
    smooth(good, 0.0)
    assert not np.isfinite(smooth(parameters(np.full((16, 3), np.nan), [0.1, 0.0, 0.5], 1.0), 0.03).pose).any()
    odd = (([0.1, 0.0, -0.5], 1.0), ([0.1, 0.0, 0.0], 1.0), ([0.1, 0.0, 0.5], -3.0), ([0.0, 0.0, 0.0], 0.0))
    for frame, (translation, scale) in enumerate(odd):
        got = smooth(parameters(np.full((16, 3), 0.2), translation, scale), 0.1 + frame / RATE)
        assert np.isfinite(got.translation).all()
        assert np.isfinite(got.scale)
    for frame in range(60):
        got = smooth(good, 1.0 + frame / RATE)
    for field in dataclasses.fields(HandParameters):
        np.testing.assert_allclose(getattr(got, field.name), getattr(good, field.name), atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Boxes

HAND = np.random.default_rng(5).uniform(-50.0, 50.0, (21, 2))
HAND[:2] = [[-50.0, -50.0], [50.0, 30.0]]
MIDDLE = np.asarray([320.0, 240.0])
SURE, UNSURE = np.full(21, 0.9), np.full(21, 0.1)


def seen_hand(points, sure, region):
    """A result of which only what the hourglass finder reads is real."""
    number = np.float32(0.0)
    hand = Hand(
        left=np.asarray(False),
        camera=as_camera(None),
        parameters=HandParameters(np.zeros((16, 3)), np.zeros(10), number, np.zeros(3)),
        vertices=np.zeros((1, 3)),
        faces=np.zeros((1, 3), int),
        joints=np.zeros((21, 3)),
        landmarks=np.zeros((21, 3)),
        keypoints_2d=np.asarray(points, np.float32),
        detected_keypoints_2d=np.asarray(points, np.float32),
        confidence=sure,
        reprojection_before=number,
        reprojection_after=number,
        region=region,
    )
    return Found(hand, region)


def perfect(center, zoom=1.0, sure=SURE):
    """A network that sees the hand where the square holds all of it, and nonsense elsewhere."""
    points = HAND * zoom + center

    def look(regions):
        found = []
        for region in regions:
            low = np.asarray(region.center) - 0.5 * region.side
            inside = (points > low).all() and (points < low + region.side).all()
            nonsense = np.asarray(region.center) + 0.2 * HAND
            found.append(seen_hand(points, sure, region) if inside else seen_hand(nonsense, UNSURE, region))
        return found

    return look


IMAGE = np.zeros((480, 640, 3), np.uint8)


def find(look, known=()):
    return HourglassFinder(256).all(IMAGE, look, None, known)


def test_the_square_is_around_the_keypoints():
    x, y, w, h = square_around(HAND, 1.5)
    assert w == h == pytest.approx(150.0)
    assert (x + 0.5 * w - 0.5, y + 0.5 * h - 0.5) == pytest.approx((0.0, 0.5 * (HAND[:, 1].min() + HAND[:, 1].max())))


def test_a_moving_and_growing_hand_is_followed():
    box = squares.first_square(640, 480)
    for frame in range(120):
        center = np.asarray([320.0 + 200.0 * np.sin(frame / 15.0), 240.0 + 100.0 * np.cos(frame / 10.0)])
        zoom = 1.0 + 0.5 * np.sin(frame / 25.0)
        x, y, w, h = box
        assert w == h
        low, high = (HAND * zoom + center).min(axis=0), (HAND * zoom + center).max(axis=0)
        assert (low > [x, y]).all()
        assert (high < [x + w, y + h]).all()
        box = squares.next_square(box, HAND * zoom + center)


def test_the_box_trembles_less_than_the_keypoints(rng):
    boxes = [squares.first_square(640, 480)]
    for _ in range(100):
        points = HAND + MIDDLE + rng.normal(0.0, 3.0, HAND.shape)
        boxes.append(squares.next_square(boxes[-1], points))
    raw = 2.0 * 3.0  # a margin of two doubles the noise of the outermost keypoints
    assert np.std(np.asarray(boxes)[20:, 2]) < raw
    np.testing.assert_allclose(np.mean(boxes[20:], axis=0), square_around(HAND + MIDDLE, 2.0), atol=15.0)


@pytest.mark.parametrize(
    ("points", "sure"),
    [
        (HAND + MIDDLE, np.full(21, 0.2)),
        (HAND + MIDDLE * [-0.3, 1.0], SURE),
        (HAND + MIDDLE * [1.0, 2.1], SURE),
        (HAND * 0.05 + MIDDLE, SURE),
        (np.full((21, 2), np.nan), SURE),
        (HAND + MIDDLE, np.full(21, np.nan)),
    ],
    ids=["unsure", "left of the image", "below the image", "collapsed", "no numbers", "no confidence"],
)
def test_a_hand_is_lost(points, sure):
    assert squares.hand_score(HAND + MIDDLE, SURE, 250.0, 640, 480) == pytest.approx(0.9)
    assert squares.hand_score(points, sure, 250.0, 640, 480) < squares.KEEP


def test_a_search_looks_at_the_whole_then_at_a_grid_then_closer():
    """It takes more confidence than following: `ACQUIRE` is above `KEEP`."""
    assert squares.KEEP < 0.4 < squares.ACQUIRE
    assert find(perfect(MIDDLE, sure=np.full(21, 0.4))) == []
    looked = []

    def counted(center, zoom):
        def look(regions):
            looked.extend(float(region.side) for region in regions)
            return perfect(center, zoom)(regions)

        return look

    (found,) = find(counted(np.asarray([320.0, 240.0]), 1.0))
    assert looked == [640.0, pytest.approx(1.45 * np.ptp(HAND, axis=0).max(), abs=0.1)]
    assert found.hand.box[2] == pytest.approx(looked[-1])
    assert find(counted(np.asarray([5000.0, 0.0]), 1.0)) == []
    assert len(looked) == 2 + 1 + len(squares.scan_squares(640, 480))
    assert find(perfect(MIDDLE), known=[square_region(squares.first_square(640, 480))]) == []


def test_the_most_confident_square_is_taken():
    grid = squares.scan_squares(640, 480)
    chosen = square_region(grid[7])

    def look(regions):
        sure = [
            0.8 if region.side == chosen.side and (region.center == chosen.center).all() else 0.6 for region in regions
        ]
        if regions[0].side == 640.0:
            sure = [0.1]
        return [
            seen_hand(HAND + region.center, np.full(21, s), region) for region, s in zip(regions, sure, strict=True)
        ]

    (found,) = find(look)
    low = np.asarray(found.hand.box[:2])
    assert (low < chosen.center).all()
    assert (chosen.center < low + found.hand.box[2]).all()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1920, 1080), (480, 640), (100, 100), (1, 1), (400, 100)])
def test_the_grid_covers_the_image_with_overlap(width, height):
    boxes = np.asarray(squares.scan_squares(width, height))
    assert (boxes[:, 2] == boxes[:, 3]).all()
    assert (boxes[:, :2] >= -1e-9).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.asarray([width, height]) + 1e-9).all()
    assert boxes[0, 2] == min(width, height)
    # Whatever is at most half as large as a box of the last level lies wholly within one.
    side = 0.25 * min(width, height)
    small = boxes[boxes[:, 2] < min(width, height)]
    for corner in np.random.default_rng(0).uniform(0.0, 1.0, (50, 2)) * (np.asarray([width, height]) - side):
        fits = (small[:, :2] <= corner + 1e-9) & (corner + side <= small[:, :2] + small[:, 2:] + 1e-9)
        assert fits.all(axis=1).any()


def test_a_narrow_image_has_few_squares():
    """They are larger than the image is high, and cover its length."""
    boxes = np.asarray(squares.scan_squares(1000, 30))
    assert len(boxes) <= 40
    assert boxes[:, 0].min() <= 0.0
    assert (boxes[:, 0] + boxes[:, 2]).max() >= 1000.0
    assert (boxes[:, 1] <= 0.0).all()
    assert (boxes[:, 1] + boxes[:, 3] >= 30.0).all()

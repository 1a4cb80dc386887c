"""Smoothing and box tracking on simulated motion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handtailor_jax import finders
from handtailor_jax.detector.detector import answered
from handtailor_jax.detector.regions import scan_squares, square_region
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
from handtailor_jax.video.filters import Filters, smoothed
from handtailor_jax.video.smoothing import HandSmoother, smooth_track

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


def measured(signal, times, noise=None):
    """A signal (frames, channels) as the value of one group, in the form of the filters."""
    values = np.zeros((len(signal), 1, 4))
    values[:, 0, : signal.shape[1]] = signal
    noise = np.ones(len(signal)) if noise is None else noise
    return list(zip(times, values, noise[:, None], strict=True))


def causal(signal, times=TIMES, noise=None):
    filters, found = Filters(np.asarray([float(signal.shape[1])]), np.asarray([EXPECTED])), []
    for time, value, variance in measured(signal, times, noise):
        filters.advance(time)
        filters.update(value, variance)
        found.append(filters.estimate(filters.score())[0][0, : signal.shape[1], 0])
    return np.stack(found)


def offline(signal, times=TIMES, noise=None):
    width = np.asarray([float(signal.shape[1])])
    found = smoothed(measured(signal, times, noise), width, np.asarray([EXPECTED]))
    return np.stack(found)[:, 0, : signal.shape[1]]


NOISE, EXPECTED = 0.03, 0.2
FORMS = {"causal": causal, "offline": offline}


@pytest.mark.parametrize("width", [1, 4])
def test_what_is_still_does_not_wander(rng, width):
    noisy = rng.normal(0.0, NOISE, (FRAMES, width))
    after = offline(noisy)
    assert np.ptp(after, axis=0).max() < 0.15 * NOISE
    assert np.abs(after).max() < 0.25 * NOISE
    # Forward, the mean of few frames has to move at first.
    assert np.ptp(causal(noisy)[FRAMES // 2 :], axis=0).max() < 0.5 * NOISE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frequency", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("rate", [15.0, 30.0, 60.0])
def test_what_moves_is_nearer_and_does_not_lag(rng, form, frequency, rate):
    times = np.arange(FRAMES) / rate
    truth = motion(rng, 4, 0.5, frequency * RATE / rate)
    noisy = truth + rng.normal(0.0, NOISE, truth.shape)
    after = FORMS[form](noisy, times)
    # The fewer frames there are in a second, the less they tell about each other.
    error, calmer = (0.98, 1.0) if form == "causal" else (0.75, 1.8)
    if rate > 40.0 * frequency:
        error, calmer = (0.85, 2.0) if form == "causal" else (0.55, 8.0)
    assert np.sqrt(np.mean((after - truth)[10:] ** 2)) < error * NOISE
    assert jitter(noisy) / jitter(after) > calmer
    assert lag(truth, after) <= (0.75 if form == "causal" else 0.1)


@pytest.mark.parametrize(("form", "most"), [("causal", 1.0), ("offline", 0.05)])
@pytest.mark.parametrize("speed", [0.05, 0.3, 3.0])
def test_a_constant_velocity_has_no_lag(rng, form, most, speed):
    """In frames; a slow movement may lag where it is far below the noise."""
    truth = speed * TIMES[:, None] * np.ones(4)
    after = FORMS[form](truth + rng.normal(0.0, NOISE, truth.shape))
    behind = np.mean((truth - after)[30:-30]) / (speed / RATE)
    allowed = max(most, 0.15 * NOISE * RATE / speed)
    assert abs(behind) < allowed


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_that_is_far_off_counts_little(rng, form):
    noisy = rng.normal(0.0, NOISE, (FRAMES, 4))
    odd = rng.permutation(FRAMES)[:12]
    noisy[odd] += 30.0 * NOISE * rng.choice([-1.0, 1.0], (12, 4))
    after = FORMS[form](noisy)
    assert np.abs(after[60:]).max() < 0.6 * NOISE


@pytest.mark.parametrize("form", FORMS)
def test_a_hand_that_stops_is_still_again(rng, form):
    """It moves from 2 to 3 seconds; jitter before and after it is that of a still hand."""
    truth = np.clip(TIMES - 2.0, 0.0, 1.0)[:, None] * np.ones(4)
    after = FORMS[form](truth + rng.normal(0.0, NOISE, truth.shape))
    assert np.abs(after - truth)[:50].mean() < 0.6 * NOISE
    assert np.abs(after - truth)[60:90].mean() < 1.2 * NOISE
    assert np.abs(after - truth)[150:].mean() < 0.35 * NOISE


@pytest.mark.parametrize("form", FORMS)
def test_uncertain_measurements_count_less(rng, form):
    """Every second frame has ten times the noise, and says so."""
    scale = np.where(np.arange(FRAMES) % 2, 10.0, 1.0)
    noisy = NOISE * scale[:, None] * rng.normal(0.0, 1.0, (FRAMES, 4))
    told, untold = (FORMS[form](noisy, noise=noise) for noise in (scale**2, None))
    assert np.std(told[60:]) < 0.85 * np.std(untold[60:])


@pytest.mark.parametrize("frames", [6, 8, 60])
@pytest.mark.parametrize("metres", [lambda times: 0.3 * times, lambda times: 0.06 * np.sin(6.0 * np.pi * times)])
def test_fast_movement_is_followed(frames, metres):
    """A short clip and a wave of 3 Hz are not noise: the hand stays within 8 mm of them."""
    times = np.arange(frames) / 30.0
    start = HandParameters(
        pose=np.zeros((16, 3), np.float32),
        betas=np.zeros(10, np.float32),
        scale=np.float32(1000.0),
        translation=np.zeros(3),
    )
    track = [dataclasses.replace(start, translation=np.asarray([1000.0 * x, 0.0, 0.0])) for x in metres(times)]
    found = [each.translation[0] for each in smooth_track(track, times.tolist(), perspective=False)]
    np.testing.assert_allclose(found, 1000.0 * metres(times), atol=8.0)


def test_unknown_frames_are_predicted_from_both_sides(rng):
    truth = motion(rng, 4, 0.5, 0.4)
    track = measured(truth + rng.normal(0.0, 0.1 * NOISE, truth.shape), TIMES)
    hidden = [
        (time, None, noise) if 100 <= i < 110 else (time, value, noise) for i, (time, value, noise) in enumerate(track)
    ]
    found = np.stack(smoothed(hidden, np.asarray([4.0]), np.asarray([EXPECTED])))[:, 0]
    assert np.abs(found - truth).max() < 0.03
    straight = np.linspace(truth[99], truth[110], 12)[1:-1]
    assert np.abs(found - truth)[100:110].mean() < np.abs(straight - truth[100:110]).mean()


def test_the_expected_noise_hardly_matters(rng, monkeypatch):
    noisy = motion(rng, 2, 0.5, 0.5) + rng.normal(0.0, NOISE, (FRAMES, 2))
    expected = offline(noisy)
    monkeypatch.setitem(globals(), "EXPECTED", 0.05)
    assert np.sqrt(np.mean((offline(noisy) - expected) ** 2)) < 0.2 * NOISE


def test_time_has_to_rise():
    for time in (1.0, 0.5, np.nan):
        filters = Filters(np.ones(1), np.ones(1))
        filters.advance(1.0)
        with pytest.raises(ValueError, match="it must rise"):
            filters.advance(time)


# ---------------------------------------------------------------------------------------------------------------------
# Rotations


def turned_poses(angles, axis=(0.0, 0.6, 0.8)):
    truth = matrix_from_axis_angle(jnp.asarray(angles[:, None] * [axis], jnp.float32))
    return truth, np.asarray(axis_angle_from_matrix(truth))


def both(perspective, track):
    """The track, smoothed live and as a whole."""
    smooth, times = HandSmoother(perspective), TIMES.tolist()
    live = [smooth(each, time) for each, time in zip(track, times, strict=True)]
    return live, smooth_track(track, times, perspective)


def test_a_turn_through_pi_is_followed():
    """Where axis-angle vectors jump from pi to -pi a filter of their components would spin the hand."""
    truth, wrapped = turned_poses(1.5 * np.pi * np.arange(FRAMES) / FRAMES)
    assert np.abs(np.diff(wrapped, axis=0)).max() > 3.0, "the input does jump"
    track = [parameters(jnp.zeros((16, 3)).at[0].set(jnp.asarray(each)), [0.0, 0.0, 0.5], 1.0) for each in wrapped]
    for smooth in both(True, track):
        error = angle_between(matrix_from_axis_angle(jnp.stack([each.pose[0] for each in smooth])), truth)
        assert float(error.max()) < 0.1  # at first, when it may as well be noise
        assert float(error[20:].max()) < 0.02


@pytest.mark.parametrize("speed", [1.0, 5.0])
def test_a_constant_turn_has_no_lag(rng, speed):
    """A hand that turns at some radians per second is where it should be, in the mean over the frames."""
    angles = speed * TIMES
    track = []
    for each in Rotation.from_rotvec(angles[:, None] * [0.0, 0.6, 0.8]):
        noisy = each * Rotation.from_rotvec(rng.normal(0.0, 0.05, 3))
        pose = jnp.zeros((16, 3)).at[0].set(jnp.asarray(noisy.as_rotvec()))
        track.append(parameters(pose, [0.0, 0.0, 0.5], 1.0))
    for smooth, most in zip(both(True, track), (0.5, 0.1), strict=True):
        found = Rotation.from_rotvec(np.stack([each.pose[0] for each in smooth]))
        behind = (found.inv() * Rotation.from_rotvec(angles[:, None] * [0.0, 0.6, 0.8])).as_rotvec() @ [0.0, 0.6, 0.8]
        assert abs(np.mean(behind[20:-20])) < most * speed / RATE


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
@pytest.mark.slow
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
    before, truth = (
        [parameters(*each, scale) for each in zip(*tracks, strict=True)]
        for tracks in ((noisy_pose, noisy_place), (pose, place))
    )

    def joints(track):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *track)
        return np.asarray(jax.vmap(camera_keypoints, (None, 0))(hand, stacked)).reshape(FRAMES, -1)

    (live, whole), truth, before = map(joints, both(perspective, before)), joints(truth), joints(before)
    assert jitter(before) / jitter(live) > 2.0
    assert jitter(before) / jitter(whole) > 6.0
    assert lag(truth, live) <= 0.6
    assert lag(truth, whole) <= 0.1
    errors = [np.sqrt(np.mean((each - truth) ** 2)) for each in (before, live, whole)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.6 * errors[0]


def test_shape_and_first_frame_are_kept():
    first = dataclasses.replace(parameters(np.full((16, 3), 0.2), [0.1, -0.1, 0.5], 1.02), betas=jnp.ones(10))
    for got in (HandSmoother(True)(first, 0.0), smooth_track([first], [0.0], True)[0]):
        for field in dataclasses.fields(HandParameters):
            np.testing.assert_allclose(getattr(got, field.name), getattr(first, field.name), atol=1e-6)
            assert getattr(got, field.name).dtype == jnp.float32


@pytest.mark.parametrize("perspective", [True, False])
def test_a_failed_fit_does_no_lasting_harm(perspective):
    smooth = HandSmoother(perspective)
    good = parameters(np.full((16, 3), 0.2), [0.1, -0.1, 0.5], 1.02)
    track = [good, parameters(np.full((16, 3), np.nan), [0.1, 0.0, 0.5], 1.0)]
    odd = (([0.1, 0.0, -0.5], 1.0), ([0.1, 0.0, 0.0], 1.0), ([0.1, 0.0, 0.5], -3.0), ([0.0, 0.0, 0.0], 0.0))
    track += [parameters(np.full((16, 3), 0.2), *each) for each in odd]
    track += [good] * 60
    times = (np.arange(len(track)) / RATE).tolist()
    live = [smooth(each, time) for each, time in zip(track, times, strict=True)]
    for got in (live, smooth_track(track, times, perspective)):
        for field in dataclasses.fields(HandParameters):
            np.testing.assert_allclose(getattr(got[-1], field.name), getattr(good, field.name), atol=2e-3)


def test_long_gaps_are_left_and_short_ones_are_filled():
    good = parameters(np.full((16, 3), 0.2), [0.1, -0.1, 0.5], 1.0)
    times = [*(np.arange(10) / RATE).tolist(), *(2.0 + np.arange(10) / RATE).tolist()]
    track = [good] * 20
    track[0] = track[4] = track[5] = track[9] = track[19] = None
    found = smooth_track(track, times, True)
    assert [i for i, each in enumerate(found) if each is None] == [0, 9, 19]
    np.testing.assert_allclose(found[4].translation, good.translation, atol=1e-5)
    assert smooth_track([None, None], [0.0, 1.0], True) == [None, None]


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
    return answered(HourglassFinder(256).searching(IMAGE, None, None, 1, known), look)


def test_the_square_is_around_the_keypoints():
    x, y, w, h = square_around(HAND, 1.5)
    assert w == h == pytest.approx(150.0)
    assert (x + 0.5 * w - 0.5, y + 0.5 * h - 0.5) == pytest.approx((0.0, 0.5 * (HAND[:, 1].min() + HAND[:, 1].max())))


def test_a_moving_and_growing_hand_is_followed():
    box = (0.0, -80.0, 640.0, 640.0)
    for frame in range(120):
        center = np.asarray([320.0 + 200.0 * np.sin(frame / 15.0), 240.0 + 100.0 * np.cos(frame / 10.0)])
        zoom = 1.0 + 0.5 * np.sin(frame / 25.0)
        x, y, w, h = box
        assert w == h
        low, high = (HAND * zoom + center).min(axis=0), (HAND * zoom + center).max(axis=0)
        assert (low > [x, y]).all()
        assert (high < [x + w, y + h]).all()
        box = finders.next_square(box, HAND * zoom + center)


def test_the_box_trembles_less_than_the_keypoints(rng):
    boxes = [(0.0, -80.0, 640.0, 640.0)]
    for _ in range(100):
        points = HAND + MIDDLE + rng.normal(0.0, 3.0, HAND.shape)
        boxes.append(finders.next_square(boxes[-1], points))
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
    assert finders.hand_score(HAND + MIDDLE, SURE, 250.0, 640, 480) == pytest.approx(0.9)
    assert finders.hand_score(points, sure, 250.0, 640, 480) < finders.KEEP


def test_a_search_looks_at_the_whole_then_at_a_grid_then_closer():
    """It takes more confidence than following: `ACQUIRE` is above `KEEP`."""
    assert finders.KEEP < 0.4 < finders.ACQUIRE
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
    assert len(looked) == 2 + 1 + len(scan_squares(640, 480))
    assert find(perfect(MIDDLE), known=[square_region((0.0, -80.0, 640.0, 640.0))]) == []


def test_the_most_confident_square_is_taken():
    grid = scan_squares(640, 480)
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
    boxes = np.asarray(scan_squares(width, height))
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
    boxes = np.asarray(scan_squares(1000, 30))
    assert len(boxes) <= 40
    assert boxes[:, 0].min() <= 0.0
    assert (boxes[:, 0] + boxes[:, 2]).max() >= 1000.0
    assert (boxes[:, 1] <= 0.0).all()
    assert (boxes[:, 1] + boxes[:, 3] >= 30.0).all()

"""`handtailor view`: results on a page, its controls and its time line, and a webcam's hands in real time."""

import contextlib
import fractions
import json
import os
import shutil
import socket
import sys
import threading
import time

import av
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax import cli
from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import as_camera, project
from handtailor_jax.hand_tailor import HandTailor
from handtailor_jax.images import read_image
from handtailor_jax.results import to_json
from handtailor_jax.skeleton import FINGER_JOINTS, FINGERS
from handtailor_jax.tailor.placement import describe
from handtailor_jax.types import HandParameters, Observation
from handtailor_jax.video.files import video_writer
from handtailor_jax.view import live
from handtailor_jax.view.recorded import read_result, read_results

pytest.importorskip("viser", reason="the page needs viser: pip install '.[view]'")

from handtailor_jax.view.page import Page, Viewpoint, whole_image
from handtailor_jax.view.player import Player, _Media

WIDTH, HEIGHT = 320, 240
INTRINSICS = [300.0, 310.0, 150.0, 130.0]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


@pytest.fixture(scope="module")
def described(hand):
    """Returns a hand of either kind of camera that points upward, its palm toward the camera."""
    run = jax.jit(describe)

    def described(intrinsics=None, shift=0.0):
        pose = np.zeros((16, 3), np.float32)
        pose[0] = cv2.Rodrigues(np.asarray([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float))[0][:, 0]
        scale, place = (900.0, (160.0 + shift, 120.0, 0.0)) if intrinsics is None else (1.0, (0.02 + shift, 0.0, 0.5))
        placed = HandParameters(pose, np.zeros(10, np.float32), np.float32(scale), np.asarray(place, np.float32))
        seen = Observation(jnp.zeros((21, 2)), jnp.ones(21), as_camera(intrinsics))
        return jax.device_get(run(hand, placed, seen))

    return described


def grey(level):
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


@pytest.fixture(scope="module")
def folder(described, tmp_path_factory):
    """Results of an image with two hands, of keypoints with a camera and without an image, and of a video."""
    folder = tmp_path_factory.mktemp("results")
    cv2.imwrite(str(folder / "photo.png"), grey(90))
    hands = [to_json(described()), to_json(described(shift=60.0))]
    (folder / "photo.json").write_text(json.dumps({"hands": hands, "image_size": [WIDTH, HEIGHT]}))
    (folder / "points.json").write_text(json.dumps(to_json(described(INTRINSICS))))
    with video_writer(folder / "clip.mp4", 10.0) as write, (folder / "clip.jsonl").open("w") as lines:
        for i in range(8):
            write(grey(20 + 25 * i), i / 10.0)
            content = [] if i == 7 else [{"track": 3, **to_json(described(shift=4.0 * i))}]
            lines.write(json.dumps({"frame": i, "time": i / 10.0, "hands": content}) + "\n")
    return folder


@pytest.fixture
def page():
    page = Page(port=0)
    yield page
    page.close()


@pytest.fixture
def player(page, folder, hand):
    player = Player(page, read_results([str(folder)]), hand)
    yield player
    player.close()


def controls(page):
    """The page's controls by their names; a finger's have its name before theirs."""
    found = {}

    def walk(handles, prefix):
        for handle in handles:
            name = getattr(handle, "label", "")
            if hasattr(handle, "_children"):
                walk(handle._children.values(), f"{name} " if name in FINGERS else "")
            elif name:
                found[prefix + name] = handle

    walk(page.server.gui._container_handle_from_uuid["root"]._children.values(), "")
    return found


def vertices(page):
    return {name: np.array(handle.vertices) for name, handle in page.meshes.items() if handle.visible}


# ---------------------------------------------------------------------------------------------------------------------
# Results


@pytest.mark.parametrize("intrinsics", [None, INTRINSICS])
def test_hands_lie_over_their_image(described, intrinsics):
    """From the origin of the scene, a point is before the pixel to which its camera projects it."""
    shown = described(intrinsics)
    viewpoint = Viewpoint.of(shown.camera, whole_image(grey(0)))
    points = viewpoint.points(shown.vertices)
    middle, width, height = viewpoint.plane(2.0 * float(points[:, 2].max()))
    on_plane = points[:, :2] * (middle[2] / points[:, 2:])
    pixels = (on_plane - middle[:2]) / (width / WIDTH, height / HEIGHT) + ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    # Without intrinsics, perspective is nearly none.
    wanted = project(*jax.tree.map(jnp.asarray, (shown.camera, shown.vertices)))
    np.testing.assert_allclose(pixels, wanted, atol=1e-2 if intrinsics else 2.5)


def test_results_are_read_as_they_were_written(folder, described):
    clip, photo, points = read_results([str(folder)])
    assert [clip.media, photo.media, points.media] == [folder / "clip.mp4", folder / "photo.png", None]
    assert [frame.time for frame in clip.frames] == pytest.approx([i / 10.0 for i in range(8)])
    assert [[hand.name for hand in frame.hands] for frame in clip.frames] == [["hand_3_right"]] * 7 + [[]]
    assert [hand.name for hand in photo.frames[0].hands] == ["hand_0_right", "hand_1_right"]
    assert points.camera.perspectivity
    wanted = described(INTRINSICS).parameters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), points.frames[0].hands[0].parameters, wanted)
    assert read_result(folder / "points.json", folder / "photo.png").media == folder / "photo.png"


def test_the_image_that_a_result_names(folder, described, tmp_path):
    content = {"hands": [to_json(described())], "image": os.path.relpath(folder / "photo.png", tmp_path)}
    (tmp_path / "photo.json").write_text(json.dumps(content))
    assert read_result(tmp_path / "photo.json").media.samefile(folder / "photo.png")
    (tmp_path / "photo.json").write_text(json.dumps(content | {"image": "gone\0.png"}))
    assert read_result(tmp_path / "photo.json").media is None


def test_a_folder_with_another_file_is_shown_without_it(folder, tmp_path, capsys, monkeypatch, recwarn):
    class Shown(Exception):
        pass

    def show(page, results, hand):
        raise Shown([result.path.name for result in results])

    monkeypatch.setattr("handtailor_jax.view.player.Player", show)
    shutil.copy(folder / "points.json", tmp_path)
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(Shown, match=r"points\.json"):
        cli.View(results=(str(tmp_path),), port=0)()
    assert "notes.json" in str(recwarn[0].message)
    with pytest.raises(InputError, match=r"notes\.json"):
        cli.View(results=(str(tmp_path / "notes.json"),), port=0)()
    (tmp_path / "points.json").unlink()
    with pytest.raises(InputError, match="holds no results"):
        cli.View(results=(str(tmp_path),), port=0)()


def test_sliders_bend_a_finger_and_change_the_shape(page, player, hand):
    control = controls(page)
    control["name"].value = "photo"
    player.show()
    before = vertices(page)
    assert sorted(before) == ["hand_0_right", "hand_1_right"]
    control["move"].value = "hand_1_right"
    control["index PIP bend"].value = 60
    player.show()
    after = vertices(page)
    np.testing.assert_array_equal(after["hand_0_right"], before["hand_0_right"])
    moved = np.linalg.norm(after["hand_1_right"] - before["hand_1_right"], axis=1) > 0.02
    (_, pip, dip) = FINGER_JOINTS[FINGERS.index("index")]
    follows = np.asarray(hand.skin.weights)[:, [pip, dip]].sum(axis=1)
    assert 20 < moved.sum() < 200
    assert follows[moved].min() > 0.3
    # The palm looks at the camera, so that a bent finger comes nearer.
    assert (after["hand_1_right"] - before["hand_1_right"])[moved, 2].mean() < 0.0
    control["move"].value = "all hands"
    control["beta 0"].value = 2.0
    player.show()
    assert np.abs(vertices(page)["hand_0_right"] - before["hand_0_right"]).max() > 1e-3
    # Another result is shown as it is.
    control["name"].value = "points"
    player.show()
    assert control["index PIP bend"].value == control["beta 0"].value == 0


def test_time_line(page, player):
    control = controls(page)
    control["name"].value = "clip"
    player.show()
    assert control["frame"].visible
    assert control["frame"].max == 7
    places = []
    for frame in (0, 5, 2, 6, 1):
        control["frame"].value = frame
        player.show()
        assert abs(int(page._image.image.mean()) - (20 + 25 * frame)) <= 3
        places.append(vertices(page)["hand_3_right"][:, 0].mean())
    np.testing.assert_allclose(np.subtract(places, places[0]), 4.0 / HEIGHT * np.asarray([0, 5, 2, 6, 1]), atol=1e-3)
    control["frame"].value = 7
    player.show()
    assert vertices(page) == {}
    # It plays by the clock, from where it is, in a loop.
    control["frame"].value = 6
    control["play"].value = True
    seen = set()
    end = time.monotonic() + 20.0
    while len(seen) < 4 and time.monotonic() < end:
        player.run(0.05)
        seen.add(control["frame"].value)
    assert len(seen) == 4


def test_places_of_the_image(page, player):
    control = controls(page)
    control["name"].value = "photo"
    player.show()
    behind = np.asarray(page._image.position)
    assert behind[2] > max(mesh[:, 2].max() for mesh in vertices(page).values())
    control["image"].value = "beside the hands"
    player.show()
    right_edge = page._image.position[0] + page._image.render_width / 2
    assert right_edge < min(mesh[:, 0].min() for mesh in vertices(page).values())
    control["image"].value = "hidden"
    control["opacity of hands"].value = 0.5
    player.show()
    assert not page._image.visible
    assert page.meshes["hand_0_right"].opacity == 0.5


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_frames_of_a_video_in_any_order(tmp_path, suffix):
    """With several key frames, and, in .ts, a first frame that is not at 0."""
    path = tmp_path / f"video.{suffix}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "5", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 90_000)
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 5 * i, np.uint8))
            frame.pts, frame.time_base = 9000 * i + 18_000, fractions.Fraction(1, 90_000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with contextlib.closing(_Media(path)) as media:
        for i in (0, 1, 30, 29, 3, 39, 0, 12, 13, 38):
            media.seek(round(i / 10.0, 6))
            assert abs(float(media.image.mean()) - (20 + 5 * i)) < 2.5, i


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.fixture
def refused(capfd):
    """Runs `view` on what must be refused; returns the line on stderr without its beginning."""

    def refused(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["view", *map(str, arguments)])
        printed = capfd.readouterr()
        assert end.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("handtailor: error: ")
        assert printed.err.count("\n") == 1, printed.err
        return printed.err.removeprefix("handtailor: error: ").rstrip("\n")

    return refused


def test_nothing_or_both_to_show(refused, folder):
    assert refused().startswith("nothing to show: name results")
    assert refused(folder, "--live", "0").startswith("nothing to show")
    assert "--media does not apply with --live" in refused("--live", "0", "--media", folder)
    assert "apply with --live only" in refused(folder, "--hands", "1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "is not a result: give a .json or .jsonl file that handtailor predict or fit wrote"),
        ('{"keypoints_2d": [[1, 2]]}', "has a hand without side or pose"),
        ('{"side": "right", "pose": [1, 2]}', "pose must be 16 x 3 numbers"),
        ('{"hands": 3}', "is not a result"),
        ("{", "is not complete JSON"),
    ],
)
def test_files_that_are_no_results(refused, tmp_path, content, reason):
    path = tmp_path / "other.json"
    path.write_text(content)
    assert refused(path).startswith(f"{path}: {reason}")


def test_lines_that_are_no_frames(refused, tmp_path, folder):
    path = tmp_path / "clip.jsonl"
    first = (folder / "clip.jsonl").read_text().splitlines()[0]
    path.write_text(f"{first}\n{first[:500]}\n")
    assert refused(path).startswith(f"{path}: line 2 is not JSON")
    path.write_text(f"{first}\n{first}\n")
    assert refused(path).startswith(f"{path}: the times of its frames do not rise")
    path.write_text("")
    assert refused(path).startswith(f"{path}: the file is empty")


def test_things_that_are_not_there(refused, folder, tmp_path):
    assert refused(tmp_path / "none.json").startswith(f"{tmp_path / 'none.json'}: no such file")
    assert refused(tmp_path).startswith(f"{tmp_path}: holds no results")
    assert refused(folder, "--media", tmp_path / "none.png").startswith(f"{tmp_path / 'none.png'}: no such file")
    assert refused("--live", "97") == "webcam 97: does not answer: connect it or choose another number"
    assert "give the number of a webcam, or a video" in refused("--live", folder / "photo.png")


def test_another_hand_model(refused, folder, mano_path):
    reason = "was made with another hand model: give that one as --hand"
    assert refused(folder / "photo.json", "--hand", mano_path, "--port", 0) == f"{folder / 'photo.json'}: {reason}"


def test_addresses_that_cannot_be_used(refused, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(folder, "--port", port)
    assert line.startswith(f"127.0.0.1:{port}: no page can be served here (Address already in use")
    assert refused(folder, "--port", "70000") == "--port is 70000: give 0 to 65535"
    assert "no page can be served here" in refused(folder, "--host", "no.such.host.invalid")


def test_without_viser(refused, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    line = refused(folder)
    assert line.startswith("the page needs viser")
    assert line.endswith("pip install '.[view]' in this project's folder")


# ---------------------------------------------------------------------------------------------------------------------
# Live


def test_the_latest_frame_wins(folder):
    """A slow reader gets fewer frames, each of them new; the file begins again at its end."""
    source = live.LatestFrame(folder / "clip.mp4")
    arrivals, ages = [], []
    for _ in range(7):  # for twice the length of the clip
        time.sleep(0.25)
        image, arrival = source.take(10.0)
        assert image.shape == (HEIGHT, WIDTH, 3)
        arrivals.append(arrival)
        ages.append(time.monotonic() - arrival)
    source.close()
    assert np.diff(arrivals).min() > 0.0
    assert np.diff(arrivals).mean() > 0.15  # frames arrive every 0.1 s
    assert np.median(ages) < 0.3
    assert not source._thread.is_alive()


def test_live_shows_what_is_followed(page, described, folder, monkeypatch):
    class Follow:
        def __init__(self, *_, **__):
            self.frames = 0

        def __call__(self, image, time):
            assert image.shape == (HEIGHT, WIDTH, 3)
            self.frames += 1
            return [described(shift=float(self.frames))]

    monkeypatch.setattr(live, "HandVideo", Follow)
    monkeypatch.setattr(live, "_compile", lambda *_: None)
    shown = live.Live(page, HandTailor.__new__(HandTailor))
    source = live.LatestFrame(folder / "clip.mp4")
    assert "getting ready" in shown._text.content
    while shown._follow.frames < 2:
        shown.run(source, 0.1)
    assert "frames/s, latency" in shown._text.content  # at once: slow machines show a frame a second
    while shown._follow.frames < 12:
        shown.run(source, 0.1)
    source.close()
    assert list(vertices(page)) == ["hand_0_right"]
    assert 2.0 < shown.rate < 12.0
    assert 0.0 < shown.latency < 1.0
    assert "frames/s, latency" in shown._text.content
    assert "1 hand" in shown._text.content


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture
def browser(monkeypatch):
    """A headless Chromium."""
    monkeypatch.setenv("UV_USE_IO_URING", "0")  # with it, Playwright's driver never stops on some kernels
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the system's package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def picture(tab):
    image = cv2.imdecode(np.frombuffer(tab.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return image[150:750, 50:900].astype(int)  # without the panel and the notice about WebGL in software


def settled(tab, old=None):
    """Waits for a picture that no longer changes, and, where there is an old one, is another."""
    last = picture(tab)
    for _ in range(240):  # minutes, on a busy machine without a graphics card
        time.sleep(0.5)
        now = picture(tab)
        if (now == last).all() and now.std() > 1.0 and (old is None or (now != old).any()):
            return now
        last = now
    raise AssertionError("the picture does not settle")


@pytest.mark.slow
def test_a_slider_in_the_browser_moves_the_mesh(page, player, browser):
    controls(page)["name"].value = "photo"
    player.show()
    before = vertices(page)
    running = threading.Event()

    def run():
        while not running.is_set():
            player.run(0.1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        addresses = []
        tab.on("request", lambda request: addresses.append(request.url))
        tab.goto(page.address)
        first = settled(tab)
        tab.get_by_text("middle", exact=True).click()
        slider = tab.get_by_role("slider").nth(2)  # after opacity and MCP
        box = slider.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 35, box["y"] + box["height"] / 2, steps=4)
        tab.mouse.up()
        second = settled(tab, first)
    finally:
        running.set()
        thread.join()
    assert controls(page)["middle PIP bend"].value > 20
    moved = np.linalg.norm(vertices(page)["hand_0_right"] - before["hand_0_right"], axis=1)
    assert moved.max() > 0.02
    assert (moved == 0.0).any()
    changed = np.abs(second - first).max(axis=-1) > 20
    assert 200 < changed.sum() < 0.2 * changed.size
    assert all(address.startswith((page.address, f"blob:{page.address}")) for address in addresses)


@pytest.mark.slow
def test_live_in_the_browser(page, browser, tmp_path):
    """With the networks: two hands that move."""
    image = read_image(cli.EXAMPLES.parent / "greeting.jpg")
    with video_writer(tmp_path / "clip.mp4", 15.0) as write:
        for i in range(30):
            write(np.roll(image, round(8.0 * np.sin(0.2 * i)), axis=0), i / 15.0)
    shown = live.Live(page, HandTailor.load())
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.goto(page.address)
    source = live.LatestFrame(tmp_path / "clip.mp4")
    while shown.rate == 0.0:  # the speed is benchmarks/live.py's
        shown.run(source, 5.0)
    first = settled(tab)
    assert sorted(vertices(page)) == ["hand_0_left", "hand_1_right"]
    assert "2 hands" in tab.get_by_text("frames/s, latency").text_content()

    def moves():
        shown.run(source, 1.0)
        return (np.abs(picture(tab) - first).max(axis=-1) > 20).sum() > 200

    assert any(moves() for _ in range(20))
    source.close()

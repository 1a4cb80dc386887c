"""Draw the example images that come with the package and write simulated detections of their hands.

    python tools/make_examples.py            # handtailor_jax/assets/examples: hands.json and ten images

The images are renderings of the embedded hand, so their ground truth is exact and they have the licence of the package.
`hands.json` is an input file of `handtailor fit`; its entries show the fields camera, confidence, joints_3d, pose,
betas and convention. The output depends on the seed alone.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from handtailor_jax.geometry.boxes import hand_size
from handtailor_jax.geometry.cameras import project
from handtailor_jax.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mano.loading import embedded_arrays, embedded_hand
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.skeleton import KEYPOINTS, ROOT
from handtailor_jax.synthetic.poses import gestures
from handtailor_jax.tailor.placement import camera_keypoints, camera_mesh
from handtailor_jax.types import Camera, HandParameters, Side

SIZE = 320
KEYPOINT_NOISE = 0.01  # standard deviation per axis, as a share of the hand size
POSE_NOISE = 0.15  # radians
JOINT_NOISE = 0.004  # metres

REGION_COLORS = ((0.61, 0.345, 0.25), (0.56, 0.32, 0.22), (0.74, 0.47, 0.39))
"""Linear RGB of the embedded hand's face regions: 0 palm, 1 back, 2 nails."""

# Fingers up, palm toward the camera, a right hand's thumb on the right. Columns: x, y, z of the rest frame.
UPRIGHT = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

Color = tuple[float, float, float]

# Linear RGB of palm, back and nails.
SKINS: dict[str, tuple[Color, Color, Color]] = {
    "fair": ((0.70, 0.43, 0.335), (0.67, 0.42, 0.32), (0.78, 0.52, 0.45)),
    "warm": ((0.60, 0.345, 0.245), (0.54, 0.305, 0.205), (0.70, 0.45, 0.37)),
    "olive": ((0.50, 0.285, 0.185), (0.41, 0.225, 0.135), (0.58, 0.37, 0.29)),
    "brown": ((0.36, 0.195, 0.13), (0.215, 0.105, 0.06), (0.44, 0.27, 0.21)),
    "dark": ((0.255, 0.135, 0.09), (0.105, 0.049, 0.028), (0.30, 0.18, 0.145)),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image and the fields of its detection."""

    id: str
    gesture: str
    turn: tuple[float, float, float]
    """Degrees about the camera's y (positive shows more of the right side), x and z axes."""
    skin: str
    sleeve: Color
    wall: tuple[Color, Color]
    """sRGB of the background at the upper left and lower right."""
    betas: tuple[float, ...] = ()
    side: Side = "right"
    distance: float = 0.5
    """Distance to the root joint in metres."""
    fill: float = 0.72
    """Hand size as a share of the image side."""
    shift: tuple[float, float] = (0.0, -14.0)
    """Centre of the keypoints' box in pixels from the centre of the image."""
    stretch: float = 1.0
    """fx / fy."""
    principal: tuple[float, float] = (0.0, 0.0)
    """Principal point in pixels from the centre of the image."""
    convention: str = "mano"
    optional: frozenset[str] = frozenset()
    """Optional fields of the detection: camera, confidence, joints_3d, pose."""


SCENES = (
    Scene(
        "open", "spread", (-14, 8, 6), "warm", (0.05, 0.10, 0.20),
        wall=((0.80, 0.84, 0.86), (0.55, 0.62, 0.68)), betas=(0.6, 0.3),
        # 2D keypoints alone do not tell whether a straight hand leans toward the camera or away from it.
        distance=0.4, optional=frozenset({"camera", "joints_3d"}),
    ),
    Scene(
        "point", "point", (-62, 8, -52), "fair", (0.35, 0.06, 0.06),
        wall=((0.72, 0.76, 0.68), (0.44, 0.52, 0.46)), betas=(-0.4, 0.8, 0.5),
        shift=(-12.0, 4.0), fill=0.74,
    ),
    Scene(
        "peace", "peace", (22, -6, -9), "brown", (0.42, 0.40, 0.36),
        wall=((0.92, 0.86, 0.76), (0.74, 0.62, 0.50)), betas=(-0.8, 0.9, -0.6),
        distance=0.42, stretch=1.03, principal=(9.0, -6.0), optional=frozenset({"camera"}),
    ),
    Scene(
        "ok_left", "ok", (-30, 4, 8), "olive", (0.03, 0.15, 0.12),
        wall=((0.84, 0.80, 0.86), (0.58, 0.54, 0.66)), betas=(0.2, -0.5, 0.8),
        side="left", distance=0.55, optional=frozenset({"camera"}),
    ),
    Scene(
        "thumbs_up", "thumbs_up", (-24, 4, -96), "dark", (0.50, 0.24, 0.03),
        wall=((0.78, 0.86, 0.92), (0.50, 0.60, 0.72)), betas=(1.0, 0.2),
        fill=0.66, shift=(-10.0, 2.0), optional=frozenset({"camera", "confidence"}),
    ),
    Scene(
        "fist", "fist", (-42, 10, 8), "fair", (0.08, 0.08, 0.09),
        wall=((0.86, 0.78, 0.74), (0.62, 0.50, 0.47)), betas=(0.9, -0.4, 0.7),
        distance=0.38, fill=0.56, shift=(0.0, -16.0), optional=frozenset({"camera", "pose"}),
    ),
    Scene(
        "grasp", "grasp", (64, 12, 62), "warm", (0.16, 0.18, 0.05),
        wall=((0.70, 0.74, 0.78), (0.40, 0.44, 0.50)), betas=(-1.2, -0.3, -0.5),
        fill=0.66, shift=(10.0, 0.0), optional=frozenset({"joints_3d"}),
    ),
    Scene(
        "pinch", "pinch", (48, -8, 14), "olive", (0.25, 0.05, 0.18),
        wall=((0.90, 0.90, 0.84), (0.66, 0.68, 0.60)), betas=(0.0, 1.1, -0.4),
        distance=0.6, convention="mediapipe",
    ),
)  # fmt: skip


PAIRS = (
    (
        Scene(
            "greeting_right", "spread", (-14, 6, -8), "dark", (0.30, 0.09, 0.05), wall=SCENES[3].wall,
            betas=(0.8, -0.2), fill=0.62, shift=(-100.0, -8.0),
        ),
        Scene(
            "greeting_left", "spread", (14, 4, 12), "dark", (0.30, 0.09, 0.05), wall=SCENES[3].wall,
            betas=(0.8, -0.2), side="left", fill=0.58, shift=(104.0, -4.0),
        ),
    ),
    (
        Scene(
            "talk_left", "ok", (-30, 4, 8), "warm", (0.06, 0.12, 0.16), wall=SCENES[0].wall,
            betas=(-0.6, 0.4), side="left", fill=0.56, shift=(96.0, 10.0),
        ),
        Scene(
            "talk_right", "spread", (-30, 4, 24), "warm", (0.06, 0.12, 0.16), wall=SCENES[0].wall,
            betas=(-0.6, 0.4), fill=0.6, shift=(-88.0, -4.0),
        ),
    ),
)  # fmt: skip
"""Two hands of one person in one image, the distant one first; they have no common camera."""

PAIR_WIDTH = 480


def region_colors(
    num_vertices: int,
    faces: jnp.ndarray,
    regions: jnp.ndarray,
    colors: Sequence[tuple[float, float, float]] = REGION_COLORS,
) -> jnp.ndarray:
    """Return linear RGB (V, 3) of the vertices: the mean colour of the adjacent faces, which softens borders.

    Args:
        num_vertices: Number of vertices.
        faces: (F, 3) vertex indices.
        regions: (F,) region of each face, an index into `colors`.
        colors: Linear RGB of each region.
    """
    per_face = jnp.asarray(colors, jnp.float32)[regions]
    total = jnp.zeros((num_vertices, 4), jnp.float32)
    ones = jnp.ones((faces.shape[0], 1), jnp.float32)
    corners = jnp.repeat(jnp.concatenate([per_face, ones], axis=-1), 3, axis=0)
    total = total.at[faces.reshape(-1)].add(corners, mode="drop")
    return total[:, :3] / jnp.maximum(total[:, 3:], 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    assets = Path(__file__).parents[1] / "handtailor_jax" / "assets"
    parser.add_argument("--out", type=Path, default=assets / "examples")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, scenes in enumerate([*((scene,) for scene in SCENES), *PAIRS]):
        image, found = make_example(scenes, np.random.default_rng([arguments.seed, number]))
        done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert done
        (arguments.out / found[0]["image"]).write_bytes(data.tobytes())
        entries += found
    lines = ",\n".join(" " + json.dumps(entry) for entry in entries)
    (arguments.out / "hands.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def make_example(scenes: tuple[Scene, ...], rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the image, uint8 RGB, and the entries of its hands in the JSON file."""
    width = SIZE if len(scenes) == 1 else PAIR_WIDTH
    placed = [(scene, *place(embedded_hand(scene.side), scene, width)) for scene in scenes]
    image = draw(placed, width, rng)
    name = f"{scenes[0].id.split('_')[0] if len(scenes) > 1 else scenes[0].id}.jpg"
    return image, [{**simulated_detection(*each, rng), "image": name} for each in placed]


def simulated_detection(
    scene: Scene, camera: Camera, truth: HandParameters, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the entry of a hand in the JSON file."""
    hand = embedded_hand(scene.side)

    landmarks = camera_keypoints(hand, truth, load_convention(scene.convention))
    pixels = np.asarray(project(camera, landmarks), np.float64)
    noise = KEYPOINT_NOISE * hand_size(pixels) * rng.normal(size=(21, 2))
    confidence = np.ones(21)
    if "confidence" in scene.optional:  # low confidence and larger errors at the curled fingertips
        for name in ("index_tip", "middle_tip", "ring_tip", "little_tip"):
            confidence[KEYPOINTS.index(name)] = 0.4
        noise *= 1.0 / np.sqrt(confidence)[:, None]

    entry: dict[str, Any] = {"id": scene.id, "image": f"{scene.id}.jpg", "side": scene.side}
    entry["convention"] = scene.convention
    if "camera" in scene.optional:
        k = np.asarray(camera.matrix, np.float64)
        entry["camera"] = dict(
            zip(("fx", "fy", "cx", "cy"), _round([k[0, 0], k[1, 1], k[0, 2], k[1, 2]], 2), strict=True)
        )
    entry["keypoints_2d"] = _round(pixels + noise, 2)
    if "confidence" in scene.optional:
        entry["confidence"] = _round(confidence, 2)
    if "joints_3d" in scene.optional:  # relative to the root, as from methods without a camera
        joints = np.asarray(camera_keypoints(hand, truth), np.float64)
        entry["joints_3d"] = _round(joints - joints[ROOT] + JOINT_NOISE * rng.normal(size=(21, 3)), 4)
    if "pose" in scene.optional:
        disturbance = matrix_from_axis_angle(jnp.asarray(POSE_NOISE * rng.normal(size=(16, 3)), jnp.float32))
        rotations = jnp.einsum("jab,jbc->jac", disturbance, matrix_from_axis_angle(truth.pose))
        entry["pose"] = _round(axis_angle_from_matrix(rotations), 4)
        entry["betas"] = _round(np.asarray(truth.betas) + 0.3 * rng.normal(size=10), 3)
    return entry


def place(hand: HandModel, scene: Scene, width: int) -> tuple[Camera, HandParameters]:
    """Return a camera, and the hand in front of it as the scene specifies."""
    fingers = hand.anatomy.finger_pose(jnp.asarray(gestures()[scene.gesture]))
    about_y, about_x, about_z = scene.turn
    turn = Rotation.from_euler("yxz", [-about_y, about_x, about_z], degrees=True).as_matrix()
    # A left hand's fingers point along +x in its rest frame.
    upright = UPRIGHT if scene.side == "right" else np.diag([-1.0, 1.0, 1.0]) @ UPRIGHT @ np.diag([-1.0, 1.0, 1.0])
    world = axis_angle_from_matrix(jnp.asarray(turn @ upright, jnp.float32))
    betas = np.pad(np.asarray(scene.betas, np.float32), (0, hand.num_betas - len(scene.betas)))
    parameters = HandParameters(
        pose=jnp.concatenate([world[None], fingers]),
        betas=jnp.asarray(betas),
        scale=jnp.ones((), jnp.float32),
        translation=jnp.asarray([0.0, 0.0, scene.distance], jnp.float32),
    )
    middle = np.asarray([0.5 * (width - 1), 0.5 * (SIZE - 1)])
    focal = 600.0
    for _ in range(8):  # fixed-point iteration: the box of the keypoints in perspective has no closed form
        camera = Camera.perspective(
            focal * scene.stretch, focal, middle[0] + scene.principal[0], middle[1] + scene.principal[1]
        )
        pixels = np.asarray(project(camera, camera_keypoints(hand, parameters)), np.float64)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        offset = middle + np.asarray(scene.shift) - 0.5 * (low + high)
        step = jnp.asarray(np.append(offset * scene.distance / focal, 0.0), jnp.float32)
        parameters = dataclasses.replace(parameters, translation=parameters.translation + step)
        focal *= scene.fill * SIZE / float(hand_size(pixels))
    return camera, parameters


def draw(placed: Sequence[tuple[Scene, Camera, HandParameters]], width: int, rng: np.random.Generator) -> np.ndarray:
    """Render hands in sleeves in front of a wall, distant hands first."""
    image = wall(*placed[0][0].wall, width, rng)
    for scene, camera, truth in placed:
        hand = embedded_hand(scene.side)
        mesh = camera_mesh(hand, truth)
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
        regions = jnp.asarray(embedded_arrays()["face_regions"].astype(np.int32))
        skin = np.asarray(region_colors(len(vertices), mesh.faces, regions, SKINS[scene.skin]))
        wrist = hand.shape(truth.betas).pose(truth.pose).joint_rotations[0]
        forearm = np.asarray(wrist)[:, 0] * (1.0 if scene.side == "right" else -1)
        cloth, cloth_faces = sleeve(vertices[embedded_arrays()["wrist_loop"]], forearm)
        colors = np.concatenate([skin, np.broadcast_to(np.asarray(scene.sleeve, np.float32), cloth.shape)])
        everything = np.concatenate([vertices, cloth]), np.concatenate([faces, cloth_faces + len(vertices)])
        image = render_mesh(*everything, camera, SIZE, width, background=image, colors=colors)
    # A little lens blur, vignetting and sensor noise.
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.45)
    v, u = np.mgrid[0:SIZE, 0:width]
    v, u = v / (SIZE - 1.0) - 0.5, u / (width - 1.0) - 0.5
    blurred *= (1.0 - 0.32 * (u * u + v * v) ** 1.1)[..., None]
    blurred += rng.normal(0.0, 1.6, image.shape)
    return np.rint(np.clip(blurred, 0.0, 255.0)).astype(np.uint8)


def sleeve(loop: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (camera frame, metres) and outward faces of a cuff and a sleeve over the open wrist.

    The tube follows the edge of the wrist and widens toward the elbow.
    """
    center = loop.mean(axis=0)
    radial = loop - center
    radial = radial - (radial @ axis)[:, None] * axis[None]
    # Resample the edge smoothly to more points.
    count, around = len(loop), 72
    spectrum = np.fft.fft(radial, axis=0)
    spectrum[5 : count - 4] = 0.0
    padded = np.zeros((around, 3), complex)
    padded[:5], padded[-4:] = spectrum[:5], spectrum[count - 4 :]
    radial = np.fft.ifft(padded, axis=0).real * (around / count)
    # Metres along the forearm from the opening, and width relative to the opening.
    profile = [
        (0.006, 0.80), (-0.003, 1.06), (-0.006, 1.14), (-0.006, 1.21), (-0.003, 1.26), (0.006, 1.275), (0.020, 1.27),
        (0.030, 1.255), (0.033, 1.22), (0.034, 1.18), (0.037, 1.19), (0.045, 1.26), (0.060, 1.32), (0.075, 1.34),
        (0.095, 1.37), (0.12, 1.43), (0.15, 1.50), (0.19, 1.58), (0.25, 1.66),
    ]  # fmt: skip
    angle = 2.0 * np.pi * np.arange(around) / around
    rings = []
    for along, width in profile:
        loose = np.clip((along - 0.036) / 0.04, 0.0, 1.0)  # folds begin behind the cuff
        folds = 0.05 * np.sin(2.0 * angle + 55.0 * along) + 0.035 * np.sin(5.0 * angle - 80.0 * along)
        rings.append(center + along * axis + (width * (1.0 + loose * folds))[:, None] * radial)
    vertices = np.concatenate(rings)
    index = np.arange(len(vertices)).reshape(len(profile), around)
    a, c = index[:-1].ravel(), index[1:].ravel()
    b, d = (np.roll(rows, -1, axis=1).ravel() for rows in (index[:-1], index[1:]))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([b, d, c], axis=1)])
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle = corners.mean(axis=1) - center
    outward = middle - (middle @ axis)[:, None] * axis[None]
    if np.sum(normals * outward) < 0.0:
        faces = faces[:, ::-1]
    return vertices, faces


def wall(light: Color, shade: Color, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a softly lit background far out of focus, uint8 RGB."""
    v, u = np.mgrid[0:SIZE, 0:width] / (SIZE - 1.0)
    mix = np.clip(0.35 * u + 0.65 * v, 0.0, 1.0)[..., None]
    image = (1.0 - mix) * np.asarray(light) + mix * np.asarray(shade)
    for _ in range(7):
        center, radius = rng.uniform(-0.1, 1.1, 2), rng.uniform(0.10, 0.30)
        distance = np.hypot(u - center[0], v - center[1])
        disc = 1.0 / (1.0 + np.exp((distance - radius) / (0.18 * radius)))
        tint = np.asarray(light) * rng.uniform(0.9, 1.12) + rng.normal(0.0, 0.03, 3)
        image = image + (rng.uniform(0.12, 0.35) * disc)[..., None] * (tint - image)
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _round(values: Any, digits: int) -> Any:
    return np.round(np.asarray(values, np.float64), digits).tolist()


if __name__ == "__main__":
    main()

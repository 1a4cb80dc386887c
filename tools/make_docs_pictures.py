"""Draw the figures of docs/conventions.md from the embedded hand.

Needs matplotlib. Writes keypoints, rest_frame, conventions and bends to docs/pictures.

    python tools/make_docs_pictures.py
"""

import argparse
from pathlib import Path

import cv2
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from make_examples import region_colors
from scipy.spatial.transform import Rotation

from handtailor_jax.mano.hand_model import HandModel, PosedHand
from handtailor_jax.mano.landmarks import load_convention
from handtailor_jax.mano.loading import embedded_arrays, embedded_hand
from handtailor_jax.render.overlay import FINGER_COLORS
from handtailor_jax.render.shading import render_mesh
from handtailor_jax.skeleton import BONES, FINGER_KEYPOINTS, FINGERS, JOINT_KEYPOINTS, KEYPOINTS, MANO_JOINTS
from handtailor_jax.synthetic.poses import gestures
from handtailor_jax.types import Camera

PAPER = (255, 255, 255)
INK = "#2e3036"
HALO = [effects.withStroke(linewidth=3, foreground="white")]
AXIS_COLORS = ("#d23c32", "#2f9e4f", "#2f6fd2")

# Rows are the image's right, down and depth in the rest frame (fingers -x, palm -y, thumb +z).
VIEWS = {
    "palm": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float),
    "back": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float),
    "thumb side": np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]], float),
    "fingertips": np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0]], float),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK})
    hand = embedded_hand()
    for name, figure in (
        ("keypoints", keypoints(hand)),
        ("rest_frame", rest_frame(hand)),
        ("conventions", conventions(hand)),
    ):
        save(figure, out / f"{name}.png")
    write(bends(hand), out / "bends.png")


def pose_of(hand: HandModel, gesture: str | None = None, **degrees: tuple[float, float, float]) -> PosedHand:
    """Pose the mean hand in a gesture, or flat with flexion, abduction and twist (degrees) of named joints."""
    coordinates = np.zeros((15, 3), np.float32) if gesture is None else gestures()[gesture].copy()
    for name, values in degrees.items():
        coordinates[MANO_JOINTS.index(name) - 1] = np.radians(values)
    fingers = hand.anatomy.finger_pose(jnp.asarray(coordinates))
    pose = jnp.concatenate([jnp.zeros((1, 3), jnp.float32), fingers])
    return hand.shape(jnp.zeros((hand.num_betas,), jnp.float32)).pose(pose)


def tilted(view: np.ndarray, about_x: float = 0.0, about_y: float = 0.0) -> np.ndarray:
    """Return a view turned about the image's horizontal and vertical axis, degrees."""
    return Rotation.from_euler("yx", [about_y, about_x], degrees=True).as_matrix() @ view


class Drawing:
    """A hand from one side without perspective, and the map from its points to pixels."""

    def __init__(
        self, hand: HandModel, posed: PosedHand, view: np.ndarray, height: int, width: int, scale: float,
        middle: tuple[float, float] = (0.5, 0.5), opacity: float = 1.0,
    ) -> None:  # fmt: skip
        mesh = posed.skin()
        points = np.asarray(mesh.vertices, np.float64) @ view.T
        center = 0.5 * (points.min(axis=0) + points.max(axis=0))
        self.view, self.scale = view, scale
        self.offset = np.array([(width - 1) * middle[0], (height - 1) * middle[1]]) - scale * center[:2]
        regions = jnp.asarray(embedded_arrays()["face_regions"].astype(np.int32))
        colors = np.asarray(region_colors(len(points), mesh.faces, regions))
        camera = Camera.weak_perspective(scale, [float(t) for t in self.offset])
        self.image = render_mesh(points, np.asarray(mesh.faces), camera, height, width, PAPER, colors, opacity)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels of rest-frame points."""
        return self.scale * (np.asarray(points, np.float64) @ self.view.T)[:, :2] + self.offset


def canvas(*images: np.ndarray, dots: int = 100) -> tuple[plt.Figure, list[plt.Axes]]:
    """Return a figure with images side by side, one image pixel per figure pixel."""
    height, width = images[0].shape[0], sum(image.shape[1] for image in images)
    figure = plt.figure(figsize=(width / dots, height / dots), dpi=dots)
    axes, left = [], 0
    for image in images:
        ax = figure.add_axes((left / width, 0.0, image.shape[1] / width, 1.0))
        ax.imshow(image)
        ax.set_axis_off()
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        axes.append(ax)
        left += image.shape[1]
    return figure, axes


def finger_color(keypoint: int) -> tuple[float, float, float] | str:
    for finger, members in enumerate(FINGER_KEYPOINTS):
        if keypoint in members:
            return tuple(c / 255.0 for c in FINGER_COLORS[finger])
    return INK


def keypoints(hand: HandModel) -> plt.Figure:
    """Draw the 21 keypoints and MANO's 16 joints with numbers and names."""
    posed = pose_of(
        hand,
        index_mcp=(0, 7, 0),
        middle_mcp=(0, 1, 0),
        ring_mcp=(0, -6, 0),
        little_mcp=(0, -13, 0),
        thumb_cmc=(-14, 0, 0),
    )
    first = Drawing(hand, posed, VIEWS["palm"], 860, 830, 3950.0, (0.46, 0.52), 0.55)
    second = Drawing(hand, posed, VIEWS["palm"], 860, 720, 3400.0, (0.46, 0.53), 0.55)
    figure, (left, right) = canvas(first.image, second.image)
    points = first.pixels(posed.keypoints)
    for parent, child in BONES:
        left.plot(*points[[parent, child]].T, color=finger_color(child), linewidth=3, solid_capstyle="round")
    for k, name in enumerate(KEYPOINTS):
        u, v = points[k]
        left.plot(u, v, "o", markersize=17, color=finger_color(k), markeredgecolor="white", markeredgewidth=1.5)
        left.text(u, v, str(k), color="white", fontsize=8.5, weight="bold", ha="center", va="center_baseline")
        thumb = name.startswith("thumb")
        label(left, u + (2 if thumb else 14), v + (22 if thumb else 0), name, "left")
    title(left, "21 keypoints")

    points = second.pixels(posed.keypoints)
    joints = points[list(JOINT_KEYPOINTS)]
    for parent, child in BONES:
        right.plot(*points[[parent, child]].T, color="#9a9ca3", linewidth=2)
    for j, name in enumerate(MANO_JOINTS):
        k = KEYPOINTS.index(name)
        u, v = joints[j]
        right.plot(u, v, "s", markersize=16, color=finger_color(k), markeredgecolor="white", markeredgewidth=1.5)
        right.text(u, v, str(j), color="white", fontsize=8.5, weight="bold", ha="center", va="center_baseline")
    for finger, members in zip(FINGERS, FINGER_KEYPOINTS, strict=True):
        u, v = points[members[-1]]
        right.plot(u, v, "o", markersize=7, color="white", markeredgecolor=finger_color(members[-1]), markeredgewidth=2)
        thumb = finger == "thumb"
        label(right, u + (12 if thumb else 0), v + (0 if thumb else -18), finger, "left" if thumb else "center", 10)
    title(right, "MANO's 16 joints (tips are vertices)")
    return figure


def label(ax: plt.Axes, u: float, v: float, text: str, align: str, size: float = 8.5) -> None:
    ax.text(u, v, text, fontsize=size, ha=align, va="center_baseline", path_effects=HALO)


def title(ax: plt.Axes, text: str) -> None:
    ax.text(0.5, 0.985, text, fontsize=13, ha="center", va="top", weight="bold", transform=ax.transAxes)


def rest_frame(hand: HandModel) -> plt.Figure:
    """Draw the rest pose with the axes of its frame, from the palm and from an angle, and the left hand."""
    panels = []
    views = (
        (hand, VIEWS["palm"], "right hand, palm"),
        (hand, tilted(VIEWS["palm"], -28.0, 52.0), "right hand, turned"),
        (embedded_hand("left"), VIEWS["palm"] @ np.diag([-1.0, 1.0, -1.0]), "left hand, palm"),
    )
    for model, view, _ in views:
        panels.append(Drawing(model, pose_of(model), view, 620, 400, 2050.0, (0.5, 0.5)))
    figure, axes = canvas(*(p.image for p in panels))
    for ax, drawing, (model, _, name) in zip(axes, panels, views, strict=True):
        title(ax, name)
        frame = f"fingers {'-' if model.side == 'right' else '+'}x, palm -y, thumb +z"
        ax.text(0.5, 0.94, frame, fontsize=10, ha="center", va="top", transform=ax.transAxes)
        origin = drawing.pixels(np.zeros((1, 3)))[0]
        for axis in range(3):
            step = 0.045 * drawing.view[:, axis]
            end = origin + drawing.scale * step[:2]
            flat = np.hypot(*(end - origin))
            if flat < 8.0:  # along the line of sight: a dot toward the viewer, a cross away from the viewer
                ax.plot(
                    *origin, "o", markersize=15, color="white", markeredgecolor=AXIS_COLORS[axis], markeredgewidth=2.5
                )
                ax.plot(
                    *origin, "x" if step[2] > 0 else "o", markersize=6, color=AXIS_COLORS[axis], markeredgewidth=2.5
                )
                place = origin + np.array([-22.0, 14.0])
            else:
                ax.annotate(
                    "",
                    end,
                    origin,
                    arrowprops={"arrowstyle": "-|>", "color": AXIS_COLORS[axis], "lw": 3, "mutation_scale": 18},
                )
                place = end + 15.0 * (end - origin) / flat
            ax.text(*place, "xyz"[axis], color=AXIS_COLORS[axis], fontsize=15, weight="bold", ha="center", va="center",
                    path_effects=HALO)  # fmt: skip
    return figure


def conventions(hand: HandModel) -> plt.Figure:
    """Draw the landmarks of both conventions on one hand, from the palm and from the thumb side."""
    posed = pose_of(hand, "relaxed", thumb_cmc=(-10, 0, 0))
    sets = {name: np.asarray(load_convention(name).landmarks(posed)) for name in ("mano", "mediapipe")}
    drawings = [
        Drawing(hand, posed, VIEWS["palm"], 620, 520, 2700.0, (0.5, 0.53), 0.6),
        Drawing(hand, posed, VIEWS["thumb side"], 620, 440, 2700.0, (0.5, 0.53), 0.6),
    ]
    figure, axes = canvas(*(d.image for d in drawings))
    for ax, drawing, name in zip(axes, drawings, ("palm", "thumb side"), strict=True):
        title(ax, name)
        ours, theirs = (drawing.pixels(points) for points in sets.values())
        for a, b in zip(ours, theirs, strict=True):
            ax.plot(*np.stack([a, b]).T, color=INK, linewidth=1.2, zorder=3)
        ax.plot(*ours.T, "o", markersize=9, color="#2f6fd2", markeredgecolor="white", label="mano", zorder=4)
        ax.plot(*theirs.T, "D", markersize=7, color="#e8791c", markeredgecolor="white", label="mediapipe", zorder=4)
    axes[0].legend(loc="lower left", frameon=False, fontsize=11)
    return figure


def bends(hand: HandModel) -> np.ndarray:
    """Draw six gestures from four sides, one row per gesture."""
    shown = ("fist", "pinch", "point", "spread", "thumbs_up", "opposition")
    cell, scale, margin, header = 230, 1080.0, 110, 40
    sheet = np.full((header + cell * len(shown), margin + cell * len(VIEWS), 3), 255, np.uint8)
    for row, gesture in enumerate(shown):
        posed = pose_of(hand, gesture)
        top = header + row * cell
        for column, view in enumerate(VIEWS.values()):
            left = margin + column * cell
            sheet[top : top + cell, left : left + cell] = Drawing(hand, posed, view, cell, cell, scale).image
        write_text(sheet, gesture.replace("_", " "), 10, top + cell // 2)
    for column, name in enumerate(VIEWS):
        write_text(sheet, name, margin + column * cell + cell // 2, header // 2, centred=True)
    return sheet


def write_text(image: np.ndarray, text: str, u: int, v: int, centred: bool = False) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (width, height), _ = cv2.getTextSize(text, font, size, 1)
    place = (u - width // 2 if centred else u, v + height // 2)
    cv2.putText(image, text, place, font, size, (46, 48, 54), 1, cv2.LINE_AA)


def save(figure: plt.Figure, path: Path) -> None:
    figure.canvas.draw()
    write(np.asarray(figure.canvas.buffer_rgba())[..., :3], path)
    plt.close(figure)


def write(image: np.ndarray, path: Path) -> None:
    """Write a PNG with a palette, which takes a third of the size."""
    PIL.Image.fromarray(image).quantize(255, dither=PIL.Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""Mesh from 21 keypoints of any detector: python examples/02_keypoints_to_mesh.py [--out fits]."""

from pathlib import Path

import tyro

import handtailor_jax as ht
from handtailor_jax.results import write_mesh

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def main(out: Path = Path("fits")) -> None:
    """Fit a hand with intrinsics and one without."""
    detections = {each.id: each for each in ht.read_detections(EXAMPLES / "hands.json")}

    # (21, 2) keypoints in pixels: wrist, thumb, index, middle, ring, little finger, each from base to tip.
    known = detections["peace"]
    hand = ht.fit(known.keypoints_2d, side="right", camera=known.camera)
    print(f"root at {hand.parameters.translation} m, {hand.reprojection_after:.1f} pixels from the keypoints")

    # Without intrinsics the unit of the camera frame is a pixel. `confidence=` weights keypoints; 0 ignores one.
    other = ht.fit(detections["pinch"].keypoints_2d, side="right", convention="mediapipe")
    if other.runner_up is not None:  # the best hand with a clearly different pose
        print(f"the energy of another hand is larger by {other.energy_gap:.1f}; below about 3 both are plausible")

    out.mkdir(parents=True, exist_ok=True)
    write_mesh(out / "peace.obj", [hand])
    write_mesh(out / "pinch.obj", [other])


if __name__ == "__main__":
    tyro.cli(main)

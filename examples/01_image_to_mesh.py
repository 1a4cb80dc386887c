"""Meshes of all hands in an image: python examples/01_image_to_mesh.py [--image photo.jpg] [--out hands].

The default is an image that comes with the package.
"""

from pathlib import Path

import tyro

import handtailor_jax as ht
from handtailor_jax.images import read_image
from handtailor_jax.predict import overlay
from handtailor_jax.results import write_image, write_mesh

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def main(image: Path = EXAMPLES / "greeting.jpg", out: Path = Path("hands")) -> None:
    """Recover the hands, and write their meshes and an overlay."""
    pixels = read_image(image)  # (H, W, 3) uint8
    tailor = ht.HandTailor.load()
    hands = tailor(pixels)  # add camera=(fx, fy, cx, cy), in pixels, if you know it
    for hand in hands:
        error = (
            f"{hand.reprojection_before:.1f} pixels from the keypoints, {hand.reprojection_after:.1f} after the tailor"
        )
        print(f"{hand.side}: presence {hand.presence:.2f}, {len(hand.vertices)} vertices, {error}")
    out.mkdir(parents=True, exist_ok=True)
    write_mesh(out / "hands.glb", hands)
    write_image(out / "overlay.png", overlay(hands, pixels))


if __name__ == "__main__":
    tyro.cli(main)

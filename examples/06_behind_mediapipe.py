"""The tailor behind MediaPipe: python examples/06_behind_mediapipe.py [--out mediapipe].

If MediaPipe is installed, compute `result` with it:

    landmarker = mediapipe.tasks.vision.HandLandmarker.create_from_model_path("hand_landmarker.task")
    result = landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image))

This example does not need MediaPipe: `stand_in` returns landmarks of this package's detector in MediaPipe's form.
"""

from pathlib import Path
from types import SimpleNamespace

import tyro

import handtailor_jax as ht
from handtailor_jax.detector.detector import HandDetector
from handtailor_jax.images import read_image
from handtailor_jax.predict import overlay
from handtailor_jax.results import write_image, write_mesh

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def stand_in(image):
    """Return landmarks in MediaPipe's form; the detector of this package has the same networks."""
    height, width = image.shape[:2]
    hands = HandDetector()(image)
    world = [[SimpleNamespace(x=x, y=y, z=z) for x, y, z in hand.joints_3d] for hand in hands]
    points = [[SimpleNamespace(x=u / width, y=v / height, z=0.0) for u, v in hand.keypoints_2d] for hand in hands]
    # MediaPipe assumes a mirrored image, so it names the other side.
    names = ["Left" if hand.side == "right" else "Right" for hand in hands]
    return SimpleNamespace(hand_landmarks=points, hand_world_landmarks=world, handedness=names)


def main(image: Path = EXAMPLES / "open.jpg", out: Path = Path("mediapipe")) -> None:
    """Fit a hand to each of MediaPipe's hands."""
    pixels = read_image(image)
    result, hands = stand_in(pixels), []
    for landmarks, world, side in zip(
        result.hand_landmarks, result.hand_world_landmarks, result.handedness, strict=True
    ):
        found = ht.from_mediapipe(
            landmarks, pixels.shape[1], pixels.shape[0], handedness=side, world_landmarks=world
        )  # add camera=(fx, fy, cx, cy), in pixels, if you know it
        hands.append(ht.fit_detection(found))
        print(f"{hands[-1].side}: {hands[-1].reprojection_after:.1f} pixels from MediaPipe's landmarks")
    out.mkdir(parents=True, exist_ok=True)
    write_mesh(out / "hands.glb", hands)
    write_image(out / "overlay.png", overlay(hands, pixels))


if __name__ == "__main__":
    tyro.cli(main)

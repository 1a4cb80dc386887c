"""Compare ways of searching for hands on labelled images, with the columns of measure_hands.py.

python tools/compare_searches.py ../shared/data/wild [--split train] [--every 1]

Of a list of labels, only the images 1, 3, 5, ... are used: the others must not influence the choice of a search.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measure_hands import Counts, count, print_header, read_entries
from tqdm import tqdm

from handtailor_jax.commands import command, keep_compiled_programs
from handtailor_jax.detector.detector import DetectorConfig, HandDetector
from handtailor_jax.errors import check_range
from handtailor_jax.hand_tailor import HandTailor, LandmarkFinder
from handtailor_jax.images import read_image, whole
from handtailor_jax.types import Region

RIGHT_ANGLES = (0.5 * math.pi, math.pi, 1.5 * math.pi)


def turned(region: Region, angle: float) -> Region:
    """Turn a region about its centre."""
    return Region(region.center, region.side, np.float32(region.rotation + angle))


class TurnedImage(HandDetector):
    """Detector that also finds palms in the image turned by right angles."""

    def _find_palms(self, image: Any, squares: list[Any], threshold: float, presence: float) -> list[Any]:
        candidates = super()._find_palms(image, squares, threshold, presence)
        if squares != [whole(image)]:
            return candidates
        middle = 0.5 * (np.asarray(image.shape[1::-1]) - 1.0)
        for turns in (1, 2, 3):
            other = np.rot90(image, turns)
            for found in super()._find_palms(other, [whole(other)], threshold, presence):
                # A turn by 90 degrees counterclockwise moves the right side of the image to the top.
                offset = np.asarray(found.region.center) - 0.5 * (np.asarray(other.shape[1::-1]) - 1.0)
                for _ in range(turns):
                    offset = np.asarray([-offset[1], offset[0]])
                region = Region((middle + offset).astype(np.float32), found.region.side, found.region.rotation)
                candidates.append(found._replace(region=turned(region, 0.5 * math.pi * turns)))
        return candidates


class TurnedRegions(HandDetector):
    """Detector that turns regions without a hand by right angles and tries again."""

    def recognise(self, image: Any, regions: list[Region]) -> list[Any]:
        """Estimate the hands with additional forward passes."""
        found = list(super().recognise(image, regions))
        for i, region in enumerate(regions):
            if found[i].presence <= self.config.presence:
                others = super().recognise(image, [turned(region, angle) for angle in RIGHT_ANGLES])
                found[i] = max([found[i], *others], key=lambda hand: hand.presence)
        return found


@command("compare_searches")
def main(folder: tyro.conf.Positional[Path], split: str = "train", every: int = 1) -> None:
    """Compare ways of searching for hands.

    Args:
        folder: Folder with labels.json.
        split: Split of photographs, if labels.json is an object.
        every: Use only every n-th of these images.
    """
    check_range("every", every, 1)
    entries = [entry for entry in read_entries(folder, split, 1) if "2, 4, 6, ..." not in entry["rows"]][::every]
    tailor = HandTailor.load()
    network = tailor.module.landmark_network
    uncertain = DetectorConfig(palm=0.15)
    searches: dict[str, tuple[HandDetector, bool]] = {
        "plain": (HandDetector(landmark_network=network), False),
        "palms of score 0.15": (HandDetector(landmark_network=network, config=uncertain), False),
        "rejected regions turned": (TurnedRegions(landmark_network=network), False),
        "without a second look": (HandDetector(landmark_network=network, config=DetectorConfig(sure=0.0)), False),
        "image turned as well": (TurnedImage(landmark_network=network), False),
        "thorough": (HandDetector(landmark_network=network), True),
    }
    table = {name: Counts() for name in searches}
    for entry in tqdm(entries, unit="image"):
        image = read_image(folder / entry["image"])
        for name, (detector, thorough) in searches.items():
            tailor.finder = LandmarkFinder(detector, tailor.module.image_size)
            count(table[name], entry, tailor(image, thorough=thorough))
    print_header("search")
    for name, counts in table.items():
        print(counts.row(name))


if __name__ == "__main__":
    keep_compiled_programs()
    tyro.cli(main, description=__doc__)

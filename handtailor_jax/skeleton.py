"""The hand skeleton: joint names, orders, parents, fingers, tips, reference bone.

Two joint sets are used throughout:

* the 21 *keypoints*: wrist, then thumb, index, middle, ring and little finger, each from base to tip;
* MANO's 16 *joints*, each of which has a rotation: wrist, then index, middle, little, ring finger and thumb.

Permutations between joint orders are computed from names; no index list is typed by hand.
"""

from collections.abc import Sequence

FINGERS = ("thumb", "index", "middle", "ring", "little")


def _chain(finger: str) -> tuple[str, ...]:
    """Return the keypoints of a finger from base to tip."""
    parts = ("cmc", "mcp", "ip", "tip") if finger == "thumb" else ("mcp", "pip", "dip", "tip")
    return tuple(f"{finger}_{part}" for part in parts)


KEYPOINTS = ("wrist", *(name for finger in FINGERS for name in _chain(finger)))
"""Canonical order of the 21 keypoints; FreiHAND, OpenPose and MediaPipe use it too."""

_MANO_FINGERS = ("index", "middle", "little", "ring", "thumb")

MANO_JOINTS = ("wrist", *(name for f in _MANO_FINGERS for name in _chain(f)[:3]))
"""MANO's order of the 16 joints that have a rotation. The little finger comes before the ring finger."""

NUM_KEYPOINTS = len(KEYPOINTS)
NUM_JOINTS = len(MANO_JOINTS)
NUM_BETAS = 10

FINGER_TIPS = tuple(f"{finger}_tip" for finger in FINGERS)
"""Names of the keypoints that are mesh vertices, from thumb to little finger."""

ROOT = KEYPOINTS.index("middle_mcp")
"""The root, keypoint 9 (middle MCP): relative depths and a hand's translation refer to it."""

ROOT_JOINT = MANO_JOINTS.index("middle_mcp")
"""The root among MANO's 16 joints."""

WRIST = KEYPOINTS.index("wrist")

REFERENCE_BONE = (WRIST, ROOT)
"""The reference bone, from the wrist to the root; its length is the unit of relative depths."""


def permutation(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """Return indices that reorder an array from order `source` to order `target`: ``array[list(indices)]``.

    Raises:
        ValueError: If a name of `target` does not occur exactly once in `source`.
    """
    for name in target:
        count = list(source).count(name)
        if count != 1:
            raise ValueError(f"joint name {name!r} occurs {count} times in the source order: it must occur once")
    return tuple(list(source).index(name) for name in target)


_FROM_TIPS = tuple(name for finger in FINGERS for name in _chain(finger)[::-1])

KEYPOINT_ORDERS = {
    "canonical": KEYPOINTS,
    "mano": MANO_JOINTS + FINGER_TIPS,
    "rhd": ("wrist", *_FROM_TIPS),
    "stb": ("wrist", *(name for finger in FINGERS[::-1] for name in _chain(finger))),
    "interhand": (*_FROM_TIPS, "wrist"),
    "boukhayma": ("wrist", *(name for f in _MANO_FINGERS for name in _chain(f))),
}
"""Named orders of the 21 keypoints; docs/conventions.md lists the projects that use them. canonical: `KEYPOINTS`.
mano: 16 MANO joints, then tips from thumb to little finger. rhd: wrist, each finger from tip to base. stb: little
finger first. interhand: each finger from tip to base, wrist last. boukhayma: wrist, MANO's fingers from base to tip."""

KEYPOINTS_FROM_MANO = permutation(MANO_JOINTS + FINGER_TIPS, KEYPOINTS)
"""Indices of the 21 keypoints in ``concatenate(16 MANO joints, 5 tips)``."""

JOINT_KEYPOINTS = permutation(KEYPOINTS, MANO_JOINTS)
"""Keypoint of each of the 16 MANO joints."""

FINGER_KEYPOINTS = tuple(permutation(KEYPOINTS, _chain(finger)) for finger in FINGERS)
"""Keypoints of each finger from base to tip, (5, 4)."""

FINGER_JOINTS = tuple(permutation(MANO_JOINTS, _chain(finger)[:3]) for finger in FINGERS)
"""MANO joints of each finger from base to tip, (5, 3)."""

KEYPOINT_PARENTS = (-1, *(parent for chain in FINGER_KEYPOINTS for parent in (WRIST, *chain[:-1])))
"""Kinematic parent of each keypoint; -1 for the wrist."""

JOINT_PARENTS = (-1, *(MANO_JOINTS.index(KEYPOINTS[KEYPOINT_PARENTS[k]]) for k in JOINT_KEYPOINTS[1:]))
"""Kinematic parent of each MANO joint; -1 for the wrist."""

BONES = tuple((parent, child) for child, parent in enumerate(KEYPOINT_PARENTS) if parent >= 0)
"""The 20 bones as (parent, child) keypoint pairs."""


def ancestors(joint: int) -> tuple[int, ...]:
    """Return a MANO joint and its ancestors, from the joint to the wrist."""
    chain = [joint]
    while JOINT_PARENTS[chain[-1]] >= 0:
        chain.append(JOINT_PARENTS[chain[-1]])
    return tuple(chain)

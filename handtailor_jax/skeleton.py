"""The hand skeleton: joint names, orders, parents, fingers, tips, reference bone.

Two joint sets are used throughout:

* the 21 *keypoints* (also called joints where no confusion can arise): wrist, then thumb, index, middle, ring and
  little finger, each from base to tip;
* MANO's 16 *articulated joints*, which carry a rotation each: wrist, then index, middle, little, ring and thumb.

Every permutation between joint orders is computed from names, never typed as an index list.
"""

from collections.abc import Sequence

FINGERS = ("thumb", "index", "middle", "ring", "little")

KEYPOINTS = (
    "wrist",
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
    "thumb_tip",
    "index_mcp",
    "index_pip",
    "index_dip",
    "index_tip",
    "middle_mcp",
    "middle_pip",
    "middle_dip",
    "middle_tip",
    "ring_mcp",
    "ring_pip",
    "ring_dip",
    "ring_tip",
    "little_mcp",
    "little_pip",
    "little_dip",
    "little_tip",
)
"""The canonical order of the 21 keypoints (that of RHD after reordering, FreiHAND, OpenPose and MediaPipe)."""

MANO_JOINTS = (
    "wrist",
    "index_mcp",
    "index_pip",
    "index_dip",
    "middle_mcp",
    "middle_pip",
    "middle_dip",
    "little_mcp",
    "little_pip",
    "little_dip",
    "ring_mcp",
    "ring_pip",
    "ring_dip",
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
)
"""MANO's order of the 16 joints that carry a rotation. Note that the little finger comes before the ring finger."""

NUM_KEYPOINTS = len(KEYPOINTS)
NUM_JOINTS = len(MANO_JOINTS)
NUM_BETAS = 10

FINGER_TIPS = tuple(f"{finger}_tip" for finger in FINGERS)
"""The keypoints that are mesh vertices, in the order in which models list their tip vertices."""

ROOT = KEYPOINTS.index("middle_mcp")
"""Keypoint 9, the root of root-relative quantities and the joint that placement refers to."""

WRIST = KEYPOINTS.index("wrist")

REFERENCE_BONE = (WRIST, ROOT)
"""The bone whose length is the unit of root-relative depth (method, Conventions)."""


def permutation(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """Indices that reorder an array laid out as `source` into `target`: ``array[permutation(source, target)]``.

    Raises:
        ValueError: if a name of `target` does not occur exactly once in `source`.
    """
    for name in target:
        count = list(source).count(name)
        if count != 1:
            raise ValueError(f"joint name {name!r} occurs {count} times in the source order, not once")
    return tuple(list(source).index(name) for name in target)


def _fingers(*fingers: str, reverse: bool = False) -> tuple[str, ...]:
    """Keypoints of the named fingers in turn, base to tip or reversed."""
    each = [[k for k in KEYPOINTS if k.split("_")[0] == finger] for finger in fingers]
    return tuple(name for joints in each for name in (joints[::-1] if reverse else joints))


KEYPOINT_ORDERS = {
    "canonical": KEYPOINTS,
    "mano": MANO_JOINTS + FINGER_TIPS,
    "rhd": ("wrist", *_fingers(*FINGERS, reverse=True)),
    "stb": ("wrist", *_fingers(*FINGERS[::-1])),
    "interhand": (*_fingers(*FINGERS, reverse=True), "wrist"),
}
"""Orders in which others list the 21 keypoints. Canonical: MediaPipe, OpenPose, FreiHAND, HandTailor, MMPose's
COCO-WholeBody hand, HaMeR's output. mano: 16 MANO joints then the tips from thumb to little finger (smplx, HO-3D).
rhd: one hand of RHD, each finger tip to base. stb: STB's files (whose first point is the palm centre, not the wrist).
interhand: InterHand2.6M, each finger tip to base, wrist last."""


KEYPOINTS_FROM_MANO = permutation(MANO_JOINTS + FINGER_TIPS, KEYPOINTS)
"""Reorders ``concatenate(16 MANO joints, 5 tips)`` into the 21 keypoints."""

JOINT_KEYPOINTS = permutation(KEYPOINTS, MANO_JOINTS)
"""The keypoint at which each of the 16 MANO joints sits."""


def _parent_keypoint(name: str) -> int:
    finger_joints = [k for k in KEYPOINTS if k.split("_")[0] == name.split("_")[0]]
    position = finger_joints.index(name)
    return KEYPOINTS.index(finger_joints[position - 1]) if position else WRIST


KEYPOINT_PARENTS = tuple(-1 if name == "wrist" else _parent_keypoint(name) for name in KEYPOINTS)
"""The kinematic parent of each keypoint; -1 for the wrist."""

JOINT_PARENTS = tuple(
    -1 if name == "wrist" else MANO_JOINTS.index(KEYPOINTS[KEYPOINT_PARENTS[KEYPOINTS.index(name)]])
    for name in MANO_JOINTS
)
"""The kinematic parent of each MANO joint; -1 for the wrist."""

BONES = tuple((parent, child) for child, parent in enumerate(KEYPOINT_PARENTS) if parent >= 0)
"""The 20 bones as (parent, child) keypoint pairs."""

FINGER_KEYPOINTS = tuple(tuple(i for i, name in enumerate(KEYPOINTS) if name.startswith(f)) for f in FINGERS)
"""Keypoints of each finger from base to tip, (5, 4)."""


def joint_levels(parents: Sequence[int] = JOINT_PARENTS) -> tuple[tuple[int, ...], ...]:
    """Joints grouped by their distance from the root: the batches of forward kinematics."""
    depth: list[int] = []
    for parent in parents:
        depth.append(0 if parent < 0 else depth[parent] + 1)
    return tuple(tuple(j for j, d in enumerate(depth) if d == level) for level in range(max(depth) + 1))


def ancestors(joint: int, parents: Sequence[int] = JOINT_PARENTS) -> tuple[int, ...]:
    """The joint itself and every joint above it, from the joint to the root."""
    chain = [joint]
    while parents[chain[-1]] >= 0:
        chain.append(parents[chain[-1]])
    return tuple(chain)

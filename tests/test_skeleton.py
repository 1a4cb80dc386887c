"""Joint names and everything that is derived from them."""

import numpy as np
import pytest

from handtailor_jax import skeleton
from handtailor_jax.skeleton import FINGERS, KEYPOINTS, MANO_JOINTS, permutation
from tests.goldens import golden

# Published index lists, typed here and nowhere else.
MANO_TO_21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
RHD_TO_21 = (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17)
STB_TO_21 = (0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4)


def test_mano_order_with_tips_gives_the_published_permutation():
    assert skeleton.KEYPOINTS_FROM_MANO == MANO_TO_21
    order = golden("mano_layers")["joint_order_21_from_16_plus_tips"]
    np.testing.assert_array_equal(skeleton.KEYPOINTS_FROM_MANO, order)


def test_published_permutations_of_other_projects_follow_from_names():
    by_finger = {f: [k for k in KEYPOINTS if k.startswith(f)] for f in FINGERS}
    rhd = ["wrist"] + [k for f in FINGERS for k in reversed(by_finger[f])]
    stb = ["wrist"] + [k for f in reversed(FINGERS) for k in by_finger[f]]
    assert permutation(rhd, KEYPOINTS) == RHD_TO_21
    assert permutation(stb, KEYPOINTS) == STB_TO_21


def test_permutation_reorders_source_into_target():
    source, target = ("a", "b", "c"), ("c", "a", "b")  # a cycle of three, which is not its own inverse
    assert [source[i] for i in permutation(source, target)] == list(target)
    assert permutation(source, target) == (2, 0, 1)


@pytest.mark.parametrize("source", [("a", "b"), ("a", "c", "c", "b")])
def test_permutation_refuses_missing_and_repeated_names(source):
    with pytest.raises(ValueError, match="'c' occurs"):
        permutation(source, ("a", "b", "c"))


def test_parents_are_the_published_ones():
    assert skeleton.KEYPOINT_PARENTS == (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
    assert skeleton.JOINT_PARENTS == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


def test_mano_lists_the_little_finger_before_the_ring_finger():
    assert [name.split("_")[0] for name in MANO_JOINTS[1::3]] == ["index", "middle", "little", "ring", "thumb"]


def test_joint_keypoints_invert_the_permutation():
    for joint, keypoint in enumerate(skeleton.JOINT_KEYPOINTS):
        assert skeleton.KEYPOINTS_FROM_MANO[keypoint] == joint
        assert KEYPOINTS[keypoint] == MANO_JOINTS[joint]


def test_finger_joints_hold_every_joint_once_and_after_its_parent():
    joints = np.asarray(skeleton.FINGER_JOINTS)
    assert sorted(joints.reshape(-1).tolist()) == list(range(1, 16))
    assert [[skeleton.JOINT_PARENTS[j] for j in finger] for finger in joints] == [[0, *f[:-1]] for f in joints]


def test_ancestors_run_from_the_joint_to_the_root():
    assert skeleton.ancestors(MANO_JOINTS.index("ring_dip")) == (12, 11, 10, 0)
    assert skeleton.ancestors(0) == (0,)


def test_bones_fingers_root():
    assert len(skeleton.BONES) == 20
    assert skeleton.ROOT == 9
    assert tuple(skeleton.REFERENCE_BONE) == (0, 9)
    assert skeleton.FINGER_KEYPOINTS == (
        (1, 2, 3, 4),
        (5, 6, 7, 8),
        (9, 10, 11, 12),
        (13, 14, 15, 16),
        (17, 18, 19, 20),
    )
    assert tuple(KEYPOINTS[i] for i in (4, 8, 12, 16, 20)) == skeleton.FINGER_TIPS

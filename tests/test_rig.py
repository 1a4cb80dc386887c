"""Rigged animation of videos: what an independent reader makes of the GLB and BVH files is our mesh."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from handtailor_jax.errors import InputError
from handtailor_jax.skeleton import JOINT_KEYPOINTS, JOINT_PARENTS, KEYPOINTS, MANO_JOINTS, WRIST, ancestors
from handtailor_jax.tailor.placement import describe
from handtailor_jax.types import Camera, HandParameters, Observation
from handtailor_jax.video.animation import write_bvh, write_glb
from handtailor_jax.video.rig import Recording

FRAMES = 24
TIMES = 0.5 + np.cumsum(np.random.default_rng(0).uniform(0.02, 0.05, FRAMES))  # a variable rate
HIDDEN = range(9, 14)
"""Frames in which the left hand is not seen."""
TO_GLTF = np.asarray([1.0, -1.0, -1.0])


def moving(count, perspective, seed):
    """Made-up parameters of a hand that bends its fingers, turns by more than a whole turn and comes nearer."""
    rng = np.random.default_rng(seed)
    phase = np.linspace(0.0, 2.0 * np.pi, count)[:, None, None] + rng.uniform(0.0, 6.0, (1, 16, 3))
    pose = 0.5 * np.sin(phase) * rng.uniform(0.2, 1.0, (1, 16, 3))
    turns = Rotation.from_euler("xyz", np.stack([np.linspace(0.0, 8.0, count)] * 3, axis=1) * [1.0, 0.2, 0.1])
    pose[:, 0] = turns.as_rotvec()
    along = np.linspace(-1.0, 1.0, count)[:, None]
    if perspective:
        scale, translation = 1.0 + 0.1 * along[:, 0], [0.02, 0.01, 0.6] + along * [0.1, 0.05, 0.2]
    else:
        scale, translation = 900.0 + 200.0 * along[:, 0], [320.0, 240.0, 0.0] + along * [100.0, 50.0, 0.0]
    betas = np.tile(rng.normal(size=10), (count, 1))
    return HandParameters(*(np.float32(value) for value in (pose, betas, scale, translation)))


@jax.jit
def described(model, parameters, camera):
    seen = Observation(jnp.zeros((21, 2)), jnp.ones(21), camera)
    return jax.vmap(lambda each: describe(model, each, seen))(parameters)


def hands_of(model, perspective, seed, track):
    camera = Camera.perspective(600.0, 600.0, 320.0, 240.0) if perspective else Camera.weak_perspective()
    every = jax.device_get(described(model, moving(FRAMES, perspective, seed), camera))
    return [dataclasses.replace(jax.tree.map(lambda x, i=i: x[i], every), track=track) for i in range(FRAMES)]


@pytest.fixture(scope="module")
def models(hand):
    return hand, hand.mirrored()


def record(model, right, left):
    recording = Recording(model)
    for i, time in enumerate(TIMES):
        recording.add([right[i]] if i in HIDDEN else [right[i], left[i]], float(time))
    return recording


def without_pose_shapes(model):
    directions = model.skin.directions.at[-135:].set(0.0)
    return dataclasses.replace(model, skin=dataclasses.replace(model.skin, directions=directions))


# ---------------------------------------------------------------------------------------------------------------------
# An independent reader of GLB files


class Glb:
    """Skins the meshes of a file at a time, as glTF 2.0 says."""

    def __init__(self, path):
        self.path, raw = path, path.read_bytes()
        assert struct.unpack_from("<4sII", raw) == (b"glTF", 2, len(raw))
        length, kind = struct.unpack_from("<I4s", raw, 12)
        assert kind == b"JSON"
        self.document = json.loads(raw[20 : 20 + length])
        size, kind = struct.unpack_from("<I4s", raw, 20 + length)
        self.data = raw[28 + length :]
        assert (kind, size) == (b"BIN\0", len(self.data))
        (animation,) = self.document["animations"]
        self.channels = {
            (channel["target"]["node"], channel["target"]["path"]): animation["samplers"][channel["sampler"]]
            for channel in animation["channels"]
        }

    def array(self, index):
        accessor = self.document["accessors"][index]
        view = self.document["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4", 5123: "<u2", 5121: "u1"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        values = np.frombuffer(self.data, dtype, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)
        if "min" in accessor:
            np.testing.assert_array_equal(np.float32(accessor["min"]), np.float32(values.min(axis=0)))
            np.testing.assert_array_equal(np.float32(accessor["max"]), np.float32(values.max(axis=0)))
        return values.astype(float)

    def value(self, node, path, time, rest):
        if (node, path) not in self.channels:
            return np.asarray(self.document["nodes"][node].get(path, rest), float)
        sampler = self.channels[node, path]
        times = self.array(sampler["input"])[:, 0]
        values = self.array(sampler["output"]).reshape(len(times), -1)
        assert np.all(np.diff(times) > 0.0)
        after = int(np.clip(np.searchsorted(times, time, "right"), 1, len(times) - 1)) if len(times) > 1 else 0
        before = max(after - 1, 0)
        share = np.clip((time - times[before]) / max(times[after] - times[before], 1e-9), 0.0, 1.0)
        if sampler["interpolation"] == "STEP":
            return values[after if share >= 1.0 else before]
        return values[before] + share * (values[after] - values[before])

    def named(self, name):
        return next(i for i, node in enumerate(self.document["nodes"]) if node.get("name") == name)

    def globals(self, time):
        """The matrix of every node."""
        nodes, matrices = self.document["nodes"], {}

        def visit(node, above):
            turn = self.value(node, "rotation", time, [0.0, 0.0, 0.0, 1.0])
            local = np.eye(4)
            local[:3, :3] = Rotation.from_quat(turn).as_matrix() * self.value(node, "scale", time, [1.0, 1.0, 1.0])
            local[:3, 3] = self.value(node, "translation", time, [0.0, 0.0, 0.0])
            matrices[node] = above @ local
            for child in nodes[node].get("children", []):
                visit(child, matrices[node])

        for node in self.document["scenes"][self.document["scene"]]["nodes"]:
            visit(node, np.eye(4))
        return matrices

    def vertices(self, name, time, morph=True, most_sets=4):
        node = self.named(f"{name}_mesh")
        (primitive,) = self.document["meshes"][self.document["nodes"][node]["mesh"]]["primitives"]
        points = self.array(primitive["attributes"]["POSITION"])
        if morph:
            weights = self.value(node, "weights", time, None)
            for weight, target in zip(weights, primitive["targets"], strict=True):
                points = points + weight * self.array(target["POSITION"])
        skin, matrices = self.document["skins"][self.document["nodes"][node]["skin"]], self.globals(time)
        inverse = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
        moved = np.stack([matrices[joint] for joint in skin["joints"]]) @ inverse
        sets = min(most_sets, sum(key.startswith("JOINTS_") for key in primitive["attributes"]))
        joints = np.concatenate([self.array(primitive["attributes"][f"JOINTS_{i}"]) for i in range(sets)], axis=1)
        weights = np.concatenate([self.array(primitive["attributes"][f"WEIGHTS_{i}"]) for i in range(sets)], axis=1)
        if sets < most_sets:
            np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
        weights = weights / weights.sum(axis=1, keepdims=True)
        blended = np.einsum("vk,vkab->vab", weights, moved[joints.astype(int)])
        return np.einsum("vab,vb->va", blended[:, :3, :3], points) + blended[:, :3, 3]


@pytest.fixture(scope="module")
def in_perspective(models, tmp_path_factory):
    right, left = (hands_of(model, True, i, i) for i, model in enumerate(models))
    path = tmp_path_factory.mktemp("rig") / "video.glb"
    write_glb(path, record(models[0], right, left))
    return Glb(path), right, left


def test_skinned_by_an_independent_reader_the_file_gives_our_vertices(models, in_perspective):
    file, right, left = in_perspective
    for track, (model, seen, side) in enumerate(zip(models, (right, left), ("right", "left"), strict=True)):
        plain = described(without_pose_shapes(model), moving(FRAMES, True, track), seen[0].camera).vertices
        for i in set(range(0, FRAMES, 5)) - (set(HIDDEN) if track else set()):
            skinned = file.vertices(f"hand_{track}_{side}", TIMES[i], morph=False)
            np.testing.assert_allclose(skinned, np.asarray(plain[i]) * TO_GLTF, atol=1e-5)
            # The pose blend shapes are 2 mm here, and these movements have few principal components.
            assert np.abs(skinned - seen[i].vertices * TO_GLTF).max() > 5e-4
            whole = file.vertices(f"hand_{track}_{side}", TIMES[i], morph=True)
            np.testing.assert_allclose(whole, seen[i].vertices * TO_GLTF, atol=1e-5)


def test_keyframes_have_the_videos_times_and_hide_hands_that_are_not_seen(in_perspective):
    file, right, _ = in_perspective
    for (_, path), sampler in file.channels.items():
        times = file.array(sampler["input"])[:, 0]
        assert set(times) <= set(np.float32(TIMES).astype(float))
        if path == "scale" and sampler["interpolation"] == "STEP":
            assert times[-1] == np.float32(TIMES[-1])
        if path == "rotation":
            turns = file.array(sampler["output"])
            np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1.0, atol=1e-6)
            assert np.all(np.sum(turns[1:] * turns[:-1], axis=1) > 0.0)
    for i in range(FRAMES):
        shown = np.ptp(file.vertices("hand_1_left", TIMES[i] + 0.005, morph=False)) > 0.0
        assert shown == (i not in HIDDEN)
    middle = file.vertices("hand_0_right", 0.5 * (TIMES[3] + TIMES[4]), morph=True)
    between = 0.5 * (right[3].vertices + right[4].vertices) * TO_GLTF
    assert 1e-4 < np.abs(middle - between).max() < 0.01  # rotations do not mix as vertices do
    for late in (TIMES[-1] + 9.0, TIMES[-1]):
        np.testing.assert_allclose(file.vertices("hand_0_right", late, True), right[-1].vertices * TO_GLTF, atol=1e-5)


def test_a_hand_is_a_tree_of_16_named_joints(in_perspective):
    file, _, _ = in_perspective
    nodes = file.document["nodes"]
    assert [nodes[i]["name"] for i in file.document["scenes"][0]["nodes"]] == [
        "hand_0_right",
        "hand_0_right_mesh",
        "hand_1_left",
        "hand_1_left_mesh",
    ]
    for skin, name in zip(file.document["skins"], ("hand_0_right", "hand_1_left"), strict=True):
        assert [nodes[joint]["name"] for joint in skin["joints"]] == list(MANO_JOINTS)
        assert nodes[file.named(name)]["children"] == [skin["skeleton"]] == skin["joints"][:1]
        for joint, parent in enumerate(JOINT_PARENTS[1:], 1):
            assert skin["joints"][joint] in nodes[skin["joints"][parent]]["children"]
        # Without the animation the nodes are in the rest pose, in which the skin is bound.
        offsets = np.asarray([nodes[joint]["translation"] for joint in skin["joints"]])
        rest = [offsets[list(ancestors(joint))].sum(axis=0) for joint in range(16)]
        np.testing.assert_allclose(file.array(skin["inverseBindMatrices"])[:, 12:15], -np.asarray(rest), atol=1e-6)


def test_without_intrinsics_hands_have_their_size_and_move_as_in_the_image(models, tmp_path):
    right, left = (hands_of(model, False, i, i) for i, model in enumerate(models))
    write_glb(tmp_path / "video.glb", record(models[0], right, left))
    file = Glb(tmp_path / "video.glb")
    seen = [*right, *(hand for i, hand in enumerate(left) if i not in HIDDEN)]
    per_metre = np.mean([hand.parameters.scale for hand in seen])
    origin = np.mean([hand.parameters.translation for hand in seen], axis=0)
    for i in (0, FRAMES - 1):
        hand, at = right[i], right[i].parameters.translation
        expected = (hand.vertices - at) / hand.parameters.scale + (at - origin) / per_metre
        np.testing.assert_allclose(file.vertices("hand_0_right", TIMES[i], True), expected * TO_GLTF, atol=1e-5)


def test_a_minute_of_two_hands_takes_at_most_two_megabytes(models, in_perspective, tmp_path):
    _, right, left = in_perspective
    recording, sizes = Recording(models[0]), []
    for i in range(60):
        recording.add([right[i % FRAMES], left[i % FRAMES]], i / 30)
        if i in (29, 59):
            write_glb(tmp_path / "hands.glb", recording)
            sizes.append((tmp_path / "hands.glb").stat().st_size)
    a_second = sizes[1] - sizes[0]
    assert 1_500_000 < sizes[0] + 59 * a_second <= 2_000_000


def test_what_is_missed_by_readers_that_leave_out_morph_targets_or_weights(models, in_perspective, tmp_path):
    """The figures of docs/cli.md, for fingers that move at random within the prior."""
    hand, anatomy, rng = in_perspective[1][0], models[0].anatomy, np.random.default_rng(0)
    noise = gaussian_filter1d(rng.normal(size=(600, 15, 3)), 20.0, axis=0)
    coordinates = np.asarray(anatomy.mean) + np.asarray(anatomy.std) * noise / noise.std()
    pose = np.concatenate([np.zeros((600, 1, 3)), np.einsum("jab,nja->njb", anatomy.axes, coordinates)], axis=1)
    recording, chosen = Recording(models[0]), np.linspace(0, 599, FRAMES).astype(int)
    for i, each in enumerate(np.float32(pose)):
        recording.add([dataclasses.replace(hand, parameters=dataclasses.replace(hand.parameters, pose=each))], i / 30)
    write_glb(tmp_path / "hand.glb", recording)
    file = Glb(tmp_path / "hand.glb")
    parameters = jax.tree.map(lambda x: np.repeat(x[None], FRAMES, axis=0), hand.parameters)
    ours = described(models[0], dataclasses.replace(parameters, pose=np.float32(pose[chosen])), hand.camera).vertices
    bounds = {"all": (0.2, 2.0), "no morph targets": (1.0, 12.0), "four weights": (0.4, 3.0)}
    reads = {"all": {}, "no morph targets": {"morph": False}, "four weights": {"most_sets": 1}}
    for kind, read in reads.items():
        skinned = np.stack([file.vertices("hand_0_right", np.float32(i / 30), **read) for i in chosen])
        distance = 1e3 * np.linalg.norm(skinned - np.asarray(ours) * TO_GLTF, axis=2)
        rms, most = np.sqrt(np.mean(distance**2)), distance.max()
        print(f"{kind}: {rms:.2f} mm, at most {most:.2f} mm")
        assert 0.5 * bounds[kind][0] < rms < bounds[kind][0]
        assert most < bounds[kind][1]


def test_other_programs_read_the_mesh(in_perspective, models):
    file, right, left = in_perspective
    scene = trimesh.load_scene(file.path)
    assert list(scene.geometry) == ["hand_0_right", "hand_1_left"]
    for model, mesh, hand in zip(models, scene.geometry.values(), (right[0], left[0]), strict=True):
        rest = model.skin.rest_vertices(jnp.asarray(hand.parameters.betas))
        np.testing.assert_allclose(mesh.vertices, rest, atol=1e-6)
        np.testing.assert_array_equal(mesh.faces, model.faces)


# ---------------------------------------------------------------------------------------------------------------------
# BVH


def read_bvh(path):
    """Return names, parents and offsets of joints and end sites, the frame time and the rows."""
    hierarchy, motion = path.read_text().split("MOTION\n")
    names, parents, offsets, open_blocks = [], [], [], []
    for line in hierarchy.splitlines():
        word, *rest = line.split()
        if word in ("ROOT", "JOINT", "End"):
            parents.append(open_blocks[-1] if open_blocks else -1)
            names.append(rest[0])
        elif word == "{":
            open_blocks.append(len(names) - 1)
        elif word == "}":
            open_blocks.pop()
        elif word == "OFFSET":
            offsets.append([float(number) for number in rest])
        elif word == "CHANNELS":
            assert rest[-3:] == ["Zrotation", "Xrotation", "Yrotation"]
    count, interval, *rows = motion.splitlines()
    rows = np.asarray([row.split() for row in rows], float)
    assert int(count.removeprefix("Frames: ")) == len(rows)
    return names, parents, np.asarray(offsets), float(interval.removeprefix("Frame Time: ")), rows


def bvh_joints(names, parents, offsets, row):
    """Positions of the joints and end sites in one frame."""
    turns, places, used = [], [], 3
    for name, parent, offset in zip(names, parents, offsets, strict=True):
        above = turns[parent] if parent >= 0 else Rotation.identity()
        places.append(row[:3] + offset if parent < 0 else places[parent] + above.apply(offset))
        if name != "Site":
            z, x, y = (Rotation.from_euler(axis, row[used + k], degrees=True) for k, axis in enumerate("ZXY"))
            turns.append(above * z * x * y)
            used += 3
        else:
            turns.append(above)
    assert used == len(row)
    return np.asarray(places)


def test_a_bvh_file_gives_our_joints(in_perspective, models, tmp_path):
    _, right, left = in_perspective
    write_bvh(tmp_path / "video", record(models[0], right, left))
    assert {path.name for path in tmp_path.iterdir()} == {"video_hand_0_right.bvh", "video_hand_1_left.bvh"}
    for track, (side, seen) in enumerate((("right", right), ("left", left))):
        names, parents, offsets, interval, rows = read_bvh(tmp_path / f"video_hand_{track}_{side}.bvh")
        assert [name for name in names if name != "Site"] == list(MANO_JOINTS)
        assert interval == pytest.approx(np.median(np.diff(TIMES)), abs=1e-8)
        assert len(rows) * interval == pytest.approx(TIMES[-1] - TIMES[0] + interval, abs=0.5 * interval)
        shown = [i for i in range(FRAMES) if not (track and i in HIDDEN)]
        size = np.mean([seen[i].parameters.scale for i in shown])
        for row in range(0, len(rows), 4):
            latest = np.flatnonzero(TIMES[0] + (row + 0.5) * interval > TIMES)[-1]
            hand = seen[max(i for i in shown if i <= latest)]
            wrist = hand.joints[WRIST]
            expected = ((hand.joints - wrist) * size / hand.parameters.scale + wrist) * TO_GLTF
            places = bvh_joints(names, parents, offsets, rows[row])
            joints = np.asarray([place for place, name in zip(places, names, strict=True) if name != "Site"])
            np.testing.assert_allclose(joints, expected[list(JOINT_KEYPOINTS)], atol=2e-5)
            ends = [places[i] for i, name in enumerate(names) if name == "Site"]
            tips = expected[[KEYPOINTS.index(f"{f}_tip") for f in ("index", "middle", "little", "ring", "thumb")]]
            assert np.linalg.norm(ends - tips, axis=1).max() < 0.004  # the flesh at the tips bends


# ---------------------------------------------------------------------------------------------------------------------
# What makes no sense


def test_a_bvh_file_of_a_video_with_a_gap_stays_small(in_perspective, models, tmp_path):
    _, right, _ = in_perspective
    recording = Recording(models[0])
    for time, hand in zip((0.0, 0.001, 0.002, 40_000.0), right, strict=False):
        recording.add([hand], time)
    write_bvh(tmp_path / "video", recording)
    *_, interval, rows = read_bvh(tmp_path / "video_hand_0_right.bvh")
    assert len(rows) == 401
    assert interval == pytest.approx(100.0)


def test_a_track_that_changes_its_side_is_two_hands(models, in_perspective):
    _, right, left = in_perspective
    recording = Recording(models[1])
    for i, hand in enumerate((right[0], dataclasses.replace(left[1], track=0))):
        recording.add([hand], float(i))
    assert [(rig.name, rig.frames.tolist()) for rig in recording.rigs()] == [
        ("hand_0_left", [1]),
        ("hand_0_right", [0]),
    ]


def test_recordings_that_cannot_be_written(models, in_perspective, tmp_path):
    recording = Recording(models[0])
    recording.add([], 0.1)
    for write in (write_glb, write_bvh):
        with pytest.raises(InputError, match=r"hand: no frame shows a hand"):
            write(tmp_path / "hand", recording)
    with pytest.raises(ValueError, match="times that rise"):
        recording.add([], 0.1)
    recording.add(in_perspective[1][:1], 0.2)
    folders = {"hand.glb", "hand.glb_hand_0_right.bvh"}
    for name in folders:
        (tmp_path / name).mkdir()
    for write in (write_glb, write_bvh):
        with pytest.raises(InputError, match=r"cannot be written"):
            write(tmp_path / "hand.glb", recording)
    assert {path.name for path in tmp_path.iterdir()} == folders

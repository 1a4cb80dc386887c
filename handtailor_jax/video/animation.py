"""Write the hands of a video as rigged animation: skinned meshes (GLB) and skeletons (BVH)."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from handtailor_jax.errors import imported, naming
from handtailor_jax.results import mesh_library, write_atomically
from handtailor_jax.skeleton import FINGER_JOINTS, JOINT_PARENTS, MANO_JOINTS, NUM_JOINTS
from handtailor_jax.video.rig import FloatArray, Recording, Rig

MORPH_TARGETS = 8
"""Number of morph targets of a hand; glTF recommends that readers support at least eight."""

_SKIN = {"baseColorFactor": [0.8, 0.62, 0.53, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}


def write_glb(path: Path, recording: Recording) -> None:
    """Write a GLB file (glTF 2.0) with a skinned mesh for each hand, moved by one animation with the video's times.

    A hand has one shape. Its pose blend shapes are reduced to `MORPH_TARGETS` principal components over the frames. In
    frames that do not show the hand, its scale is 0.

    Raises:
        InputError: If no frame has a hand, or the file cannot be written.
    """
    document = _Document(gltf_library())
    times = recording.times
    times -= min(times[0], 0.0) if len(times) else 0.0  # glTF has no negative times
    with naming(path):
        rigs = recording.rigs()
    for rig in rigs:
        _add_hand(document, rig, times)
    _write(path, document.content())


def write_bvh(stem: Path, recording: Recording) -> None:
    """Write the skeleton of each hand as <stem>_<hand>.bvh, in metres, degrees and the axes of glTF.

    BVH has one interval between frames, here the median of the video's; each interval shows the latest frame before its
    middle. BVH can neither hide nor scale a hand: the hand has its mean size, and its last pose while it is not seen.

    Raises:
        InputError: If no frame has a hand, or a file cannot be written.
    """
    with naming(stem):
        rigs, times = recording.rigs(), recording.times
    # A long gap in the times must not make millions of frames: at most 100 for each frame of the video.
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    interval = max(interval, (times[-1] - times[0]) / (100 * len(times)))
    count = 1 + round((times[-1] - times[0]) / interval)
    frames = np.searchsorted(times, times[0] + (np.arange(count) + 0.5) * interval) - 1
    for rig in rigs:
        _write(stem.with_name(f"{stem.name}_{rig.name}.bvh"), _bvh(rig, frames, interval).encode())


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def gltf_library() -> Any:
    """Import pygltflib, or raise an InputError that names the remedy."""
    return imported("pygltflib", "animated meshes cannot be written", "pip install pygltflib")


class _Document:
    """A glTF document with one animation, and its binary part."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.gltf = library.GLTF2(
            asset=library.Asset(generator="handtailor"),
            scenes=[library.Scene()],
            scene=0,
            materials=[library.Material(pbrMetallicRoughness=library.PbrMetallicRoughness(**_SKIN))],
            animations=[library.Animation(name="hands")],
        )
        self._data = bytearray()

    def accessor(self, values: npt.NDArray[Any], kind: str, *, extent: bool = False, target: int | None = None) -> int:
        """Append an array with one element a row; with `extent` also its minimum and maximum. Return its index."""
        library, gltf = self.library, self.gltf
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        start = len(self._data)
        gltf.bufferViews.append(library.BufferView(buffer=0, byteOffset=start, byteLength=len(data), target=target))
        self._data += data + bytes(-len(data) % 4)
        component = {"f4": library.FLOAT, "u2": library.UNSIGNED_SHORT, "u4": library.UNSIGNED_INT}
        accessor = library.Accessor(
            bufferView=len(gltf.bufferViews) - 1,
            componentType=component.get(values.dtype.str[1:], library.UNSIGNED_BYTE),
            count=values.size if kind == library.SCALAR else len(values),
            type=kind,
        )
        if extent:
            rows = values.reshape(len(values), -1)
            accessor.min, accessor.max = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
        gltf.accessors.append(accessor)
        return len(gltf.accessors) - 1

    def channel(self, node: int, path: str, times: int, values: npt.NDArray[Any], interpolation: str) -> None:
        """Animate a property of a node by keyframes at the times of an accessor."""
        library, animation = self.library, self.gltf.animations[0]
        kind = {"rotation": library.VEC4, "weights": library.SCALAR}.get(path, library.VEC3)
        output = self.accessor(values.reshape(-1) if kind == library.SCALAR else values, kind)
        target = library.AnimationChannelTarget(node=node, path=path)
        animation.channels.append(library.AnimationChannel(sampler=len(animation.samplers), target=target))
        animation.samplers.append(library.AnimationSampler(input=times, interpolation=interpolation, output=output))

    def content(self) -> bytes:
        """Return the whole file."""
        self.gltf.buffers = [self.library.Buffer(byteLength=len(self._data))]
        self.gltf.set_binary_blob(bytes(self._data))
        return b"".join(self.gltf.save_to_bytes())


def _add_hand(document: _Document, rig: Rig, times: FloatArray) -> None:
    """Add the nodes, mesh, skin and keyframes of a hand: a node that hides it, the joints below it, and the mesh."""
    library, gltf = document.library, document.gltf
    top, wrist = len(gltf.nodes), len(gltf.nodes) + 1
    joints = range(wrist, wrist + NUM_JOINTS)
    gltf.nodes.append(library.Node(name=rig.name, children=[wrist]))
    for joint, parent in enumerate(JOINT_PARENTS):
        offset = rig.rest_joints[joint] - (rig.rest_joints[parent] if joint else 0.0)
        children = [joints[child] for child, above in enumerate(JOINT_PARENTS) if above == joint]
        gltf.nodes.append(library.Node(name=MANO_JOINTS[joint], translation=offset.tolist(), children=children))
    inverse = np.tile(np.eye(4), (NUM_JOINTS, 1, 1))
    inverse[:, 3, :3] = -rig.rest_joints  # columns are stored one after the other
    matrices = document.accessor(inverse.reshape(NUM_JOINTS, 16), library.MAT4)
    gltf.skins.append(library.Skin(inverseBindMatrices=matrices, skeleton=wrist, joints=list(joints), name=rig.name))
    targets, weights = _pose_shapes(rig)
    gltf.meshes.append(_mesh(document, rig, targets))
    # A skinned mesh is outside of its skeleton in glTF, because only the joints move it.
    mesh = library.Node(name=f"{rig.name}_mesh", mesh=len(gltf.meshes) - 1, skin=len(gltf.skins) - 1)
    gltf.nodes.append(mesh)
    gltf.scenes[0].nodes += [top, len(gltf.nodes) - 1]

    moments = document.accessor(times[rig.frames], library.SCALAR, extent=True)
    document.channel(wrist, "translation", moments, rig.wrist, library.ANIM_LINEAR)
    document.channel(wrist, "scale", moments, np.repeat(rig.scale[:, None], 3, axis=1), library.ANIM_LINEAR)
    for joint in range(NUM_JOINTS):
        document.channel(joints[joint], "rotation", moments, rig.rotations[:, joint], library.ANIM_LINEAR)
    document.channel(len(gltf.nodes) - 1, "weights", moments, weights, library.ANIM_LINEAR)
    shown = np.isin(np.arange(len(times)), rig.frames)
    # The last frame is always a key, so that the animation is as long as the video.
    keys = np.unique([0, *(np.flatnonzero(shown[1:] != shown[:-1]) + 1), len(times) - 1])
    changes = document.accessor(times[keys], library.SCALAR, extent=True)
    document.channel(top, "scale", changes, np.repeat(shown[keys, None], 3, axis=1).astype(float), library.ANIM_STEP)


def _pose_shapes(rig: Rig) -> tuple[FloatArray, FloatArray]:
    """Return principal components (k, V, 3) of the pose blend shapes of all frames, metres, and weights (n, k).

    The largest magnitude of each component's weights is 1.
    """
    matrices = Rotation.from_quat(rig.rotations[:, 1:].reshape(-1, 4)).as_matrix()
    corrections = (matrices - np.eye(3)).reshape(len(rig.frames), 135)
    directions = np.asarray(rig.model.skin.pose_directions, np.float64)
    # These few coordinates in an orthonormal basis have the same singular values as the displacements of all vertices.
    basis, triangle = np.linalg.qr(directions.reshape(-1, 135))
    coordinates = corrections @ triangle.T
    components = np.linalg.svd(coordinates, full_matrices=False)[2][:MORPH_TARGETS]
    weights = coordinates @ components.T
    largest = np.abs(weights).max(axis=0)
    largest[largest == 0.0] = 1.0
    targets = (components @ basis.T) * largest[:, None]
    return targets.reshape(len(components), *directions.shape[:2]), weights / largest


def _mesh(document: _Document, rig: Rig, targets: FloatArray) -> Any:
    """Return the mesh of a hand in the rest pose, with as many sets of four blend weights as vertices need."""
    library, vertex = document.library, document.library.ARRAY_BUFFER
    skin, faces = rig.model.skin, np.asarray(rig.model.faces)
    points = np.asarray(skin.rest_vertices(rig.betas), np.float64)
    normals = np.asarray(mesh_library().Trimesh(points, faces, process=False).vertex_normals)
    attributes = library.Attributes(
        POSITION=document.accessor(points, library.VEC3, extent=True, target=vertex),
        NORMAL=document.accessor(normals, library.VEC3, target=vertex),
    )
    blend = np.asarray(skin.weights, np.float64)
    # Largest weights first, because many readers use only four of a vertex.
    order = np.argsort(-blend, axis=1, kind="stable")
    blend = np.take_along_axis(blend, order, axis=1)
    order[blend == 0.0] = 0
    for group in range(-(-int((blend > 0.0).sum(axis=1).max()) // 4)):
        four = slice(4 * group, 4 * group + 4)
        joints = document.accessor(order[:, four].astype(np.uint8), library.VEC4, target=vertex)
        setattr(attributes, f"JOINTS_{group}", joints)
        weights = document.accessor(blend[:, four], library.VEC4, target=vertex)
        setattr(attributes, f"WEIGHTS_{group}", weights)
    corners = faces.astype(np.uint16 if len(points) < 2**16 else np.uint32).reshape(-1)
    indices = document.accessor(corners, library.SCALAR, target=library.ELEMENT_ARRAY_BUFFER)
    shapes = [{"POSITION": document.accessor(each, library.VEC3, extent=True, target=vertex)} for each in targets]
    primitive = library.Primitive(attributes=attributes, indices=indices, material=0, targets=shapes)
    names = [f"pose_{i}" for i in range(len(targets))]
    return library.Mesh(
        primitives=[primitive], weights=[0.0] * len(targets), name=rig.name, extras={"targetNames": names}
    )


def _bvh(rig: Rig, frames: npt.NDArray[np.int_], interval: float) -> str:
    """Return the text of a BVH file of the given frames, `interval` seconds apart."""
    size = float(np.mean(rig.scale))
    tips = np.asarray(rig.model.tips.rest_vertices(rig.betas), np.float64)
    ends = {chain[-1]: tip for chain, tip in zip(FINGER_JOINTS, tips, strict=True)}

    def offset(vector: FloatArray) -> str:
        return "OFFSET " + " ".join(f"{number:.6f}" for number in size * vector)

    def block(joint: int) -> list[str]:
        place = rig.rest_joints[joint]
        position = "3 " if joint else "6 Xposition Yposition Zposition "
        inside = [
            offset(place - rig.rest_joints[JOINT_PARENTS[joint]] if joint else np.zeros(3)),
            f"CHANNELS {position}Zrotation Xrotation Yrotation",
            *(line for child, parent in enumerate(JOINT_PARENTS) if parent == joint for line in block(child)),
        ]
        if joint in ends:
            inside += ["End Site", "{", "\t" + offset(ends[joint] - place), "}"]
        head = f"{'JOINT' if joint else 'ROOT'} {MANO_JOINTS[joint]}"
        return [head, "{", *(f"\t{line}" for line in inside), "}"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gimbal lock: SciPy chooses one of the equal answers
        angles = Rotation.from_quat(rig.rotations.reshape(-1, 4)).as_euler("ZXY", degrees=True)
    angles = np.unwrap(angles.reshape(len(rig.frames), -1), period=360.0, axis=0)
    motion = np.concatenate([rig.wrist, angles], axis=1)
    rows = motion[np.maximum(np.searchsorted(rig.frames, frames, "right") - 1, 0)]
    lines = ["HIERARCHY", *block(0), "MOTION", f"Frames: {len(frames)}", f"Frame Time: {interval:.8f}"]
    return "\n".join([*lines, *(" ".join(f"{number:.6f}" for number in row) for row in rows)]) + "\n"

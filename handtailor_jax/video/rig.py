"""Rigs of the hands of a video: for each, a skeleton of MANO's 16 joints, rotated by the pose and placed at the wrist.

In the rest pose the axes of every joint are those of MANO's rest frame. The world has glTF's axes (x right, y up, z
toward the viewer). With intrinsics its origin is the camera. Without, no distance is known: hands have the model's size
and lie in the plane z = 0, as far apart as in the image at their mean scale; the origin is their mean position.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float
from scipy.spatial.transform import Rotation

from handtailor_jax.errors import InputError
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import NUM_JOINTS, ROOT_JOINT
from handtailor_jax.types import Hand, HandParameters, Side

FloatArray = npt.NDArray[np.float64]

_CAMERA_TO_GLTF = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])  # half a turn about x


@dataclasses.dataclass(frozen=True)
class Rig:
    """Skeleton of one hand and its movement in a video; n frames show the hand."""

    name: str
    """hand_<track>_<side>."""
    model: HandModel
    betas: Float[Array, "betas"]
    """Shape coefficients, the mean over the frames, standard deviations."""
    rest_joints: FloatArray
    """(16, 3) joints of this shape in the rest pose, metres, rest frame."""
    frames: npt.NDArray[np.int_]
    """(n,) numbers of the frames that show the hand."""
    scale: FloatArray
    """(n,) scale factor of the hand."""
    wrist: FloatArray
    """(n, 3) position of the wrist, metres, axes of glTF."""
    rotations: FloatArray
    """(n, 16, 4) rotations relative to the parent joint, or to glTF's axes for the wrist: quaternions (x, y, z, w)."""


class Recording:
    """Hands of a video, frame by frame, from which rigs are made."""

    def __init__(self, model: HandModel) -> None:
        """Start without frames; `model` is the hand model of either side."""
        self._model = model
        self._times: list[float] = []
        self._seen: dict[tuple[int, Side], list[tuple[int, HandParameters]]] = {}
        self._perspective = True

    @property
    def times(self) -> FloatArray:
        """Times of all frames, seconds."""
        return np.asarray(self._times, np.float64)

    def add(self, hands: Sequence[Hand], time: float) -> None:
        """Append a frame: its hands, each with the number of its track, and its time in seconds.

        Raises:
            ValueError: If the time does not rise.
        """
        if self._times and not time > self._times[-1]:
            raise ValueError(f"frame {len(self._times)} is at {time} s: give times that rise")
        for hand in hands:
            self._perspective = hand.perspective
            key = 0 if hand.track is None else hand.track, hand.side
            self._seen.setdefault(key, []).append((len(self._times), hand.parameters))
        self._times.append(time)

    def rigs(self) -> list[Rig]:
        """Return a rig for each hand; a track that changes its side has two.

        Raises:
            InputError: If no frame has a hand.
        """
        if not self._seen:
            raise InputError("no frame shows a hand, so there is nothing to animate: leave out --mesh and --skeleton")
        per_metre, origin = 1.0, np.zeros(3)
        if not self._perspective:
            every = [parameters for seen in self._seen.values() for _, parameters in seen]
            per_metre = float(np.mean([each.scale for each in every]))
            origin = np.mean([each.translation for each in every], axis=0, dtype=np.float64)
        sides = {side for _, side in self._seen}
        models = {side: self._model if side == self._model.side else self._model.mirrored() for side in sides}
        return [
            self._rig(f"hand_{number}_{side}", models[side], seen, per_metre, origin)
            for (number, side), seen in sorted(self._seen.items(), key=lambda item: item[0])
        ]

    def _rig(
        self,
        name: str,
        model: HandModel,
        seen: list[tuple[int, HandParameters]],
        per_metre: float,
        origin: FloatArray,
    ) -> Rig:
        parameters = [each for _, each in seen]
        betas = jnp.asarray(np.mean([each.betas for each in parameters], axis=0), model.dtype)
        rest_joints = np.asarray(model.shape(betas).rest_joints, np.float64)
        scale = np.asarray([each.scale if self._perspective else 1.0 for each in parameters], np.float64)
        places = (np.asarray([each.translation for each in parameters], np.float64) - origin) / per_metre
        pose = np.asarray([each.pose for each in parameters], np.float64)
        turn = _CAMERA_TO_GLTF * Rotation.from_rotvec(pose[:, 0])
        # The translation places the root. The root is a child of the wrist, so only the wrist's rotation moves it.
        root = turn.apply(rest_joints[ROOT_JOINT] - rest_joints[0])
        rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_quat().reshape(-1, NUM_JOINTS, 4)
        rotations[:, 0] = turn.as_quat()
        # q and -q are the same rotation; the nearer one is stored, because some readers interpolate the components.
        turned = np.sum(rotations[1:] * rotations[:-1], axis=-1, keepdims=True) < 0.0
        rotations[1:] *= np.cumprod(np.where(turned, -1.0, 1.0), axis=0)
        return Rig(
            name=name,
            model=model,
            betas=betas,
            rest_joints=rest_joints,
            frames=np.asarray([frame for frame, _ in seen], np.int_),
            scale=scale,
            wrist=_CAMERA_TO_GLTF.apply(places) - scale[:, None] * root,
            rotations=rotations,
        )

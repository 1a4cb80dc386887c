"""The subject of every table: predictions of a method for hands with ground truth, before and after the tailor."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int

from handtailor_jax.data.sample import JointDefinition, Sample
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.alignment import PALM_VERTICES, Alignment, Protocol, align
from handtailor_jax.evaluation.freihand import freihand_joints
from handtailor_jax.geometry.boxes import box_center, centered_square, hand_size
from handtailor_jax.geometry.cameras import crop_affine, transform_camera, transform_pixels
from handtailor_jax.images import Image
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import REFERENCE_BONE, ROOT, WRIST
from handtailor_jax.tailor.placement import StartScale, camera_keypoints, camera_mesh, initialize
from handtailor_jax.tailor.tailor import PRESETS, PresetName, TailorConfig, tailor_batch
from handtailor_jax.types import Box, Camera, HandParameters, Numbers, Observation, pytree, static

Tree = TypeVar("Tree")

MARGIN = 2.0
"""Side of the network's square as a multiple of the true hand size: ground truth that the network is given."""

CROP = 256
"""Side in pixels of the crops in which the tailor works. The paper's weights depend on it."""

_PIECE = 500  # hands in one compiled call


@pytree
class GroundTruth:
    """Ground truth of right hands: canonical joints, metres, camera frame. Unknown labels are None."""

    dataset: str = static()  # dataset and split, for titles
    joint_definition: JointDefinition = static()
    joints: Float[Numbers, "n 21 3"]
    keypoints_2d: Float[Numbers, "n 21 2"]  # pixels of the image
    visible: Bool[Numbers, "n 21"]
    intrinsics: Float[Numbers, "n 3 3"]  # K of the image, pixels
    index: Int[Numbers, "n"]  # index of each hand in its dataset
    pose: Float[Numbers, "n 16 3"] | None = None  # axis-angle, radians
    betas: Float[Numbers, "n betas"] | None = None
    vertices: Float[Numbers, "n vertices 3"] | None = None
    read_image: Callable[[int], Image] | None = static(default=None)
    """Function that decodes or renders the image at an `index`; None if there are only labels."""
    read_maps: Callable[[int], Sample] | None = static(default=None)
    """Function that reads the sample at an `index` with the mask, the depth map or both, as its dataset has them."""

    def __len__(self) -> int:
        return len(self.joints)

    def image(self, hand: int) -> Image:
        """Decode or render the image of a hand; raise an InputError if there is none."""
        if self.read_image is None:
            raise InputError(f"{self.dataset} has no images: give --predictions instead of --weights, and no figure")
        return self.read_image(int(self.index[hand]))

    @property
    def parameters(self) -> HandParameters | None:
        """The true hands in the camera frame; None if the dataset has no poses."""
        if self.pose is None or self.betas is None:
            return None
        return HandParameters(self.pose, self.betas, np.ones(len(self), np.float32), self.joints[:, ROOT])

    @property
    def centers(self) -> Float[Numbers, "n 2"]:
        """Centres of the squares around the hands, pixels."""
        return box_center(self.keypoints_2d)

    @property
    def sides(self) -> Float[Numbers, "n"]:
        """Sides of the squares around the hands, pixels."""
        return MARGIN * np.maximum(hand_size(self.keypoints_2d), 1.0)

    def to_crop(self, size: int) -> Float[Array, "n 2 3"]:
        """Return the affine maps from the images to crops of `size` pixels around the hands."""
        return crop_affine(jnp.asarray(self.centers), jnp.asarray(self.sides), size)

    @property
    def boxes(self) -> list[Box]:
        """Squares around the hands, as a network gets them."""
        # Half a pixel to the upper left of the centre, because the results in docs/ were measured with these squares.
        squares = zip(self.centers - 0.5, self.sides.tolist(), strict=True)
        return [centered_square(center, side) for center, side in squares]


@pytree
class Predictions:
    """Predictions of a method, before the tailor; None where the method predicts nothing."""

    method: str = static()
    keypoints_2d: Float[Numbers, "n 21 2"]  # pixels of the image
    confidence: Float[Numbers, "n 21"]  # 0 to 1
    pose: Float[Numbers, "n 16 3"] | None = None  # axis-angle, radians, relative to the flat hand
    betas: Float[Numbers, "n betas"] | None = None
    joints: Float[Numbers, "n 21 3"] | None = None  # any unit; None if they follow from pose and betas
    root_depth: Float[Numbers, "n"] | None = None  # metres; None places the hands without intrinsics
    bone: Float[Numbers, "n"] | None = None  # reference bone, metres; None takes the hand model's own


@pytree
class Proposals:
    """Predictions with pose and betas as the tailor takes them, in pixels of a square crop around each hand."""

    observation: Observation
    pose: Float[Numbers, "*n 16 3"]
    betas: Float[Numbers, "*n betas"]
    root_depth: Float[Numbers, "*n"]  # metres; 0 without intrinsics
    bone: Float[Numbers, "*n"] | None

    def start(self, hand: HandModel, scale: StartScale) -> HandParameters:
        """Return the hand from which the tailor starts, for a single proposal (no leading axis)."""
        given = (self.pose, self.betas, self.observation)
        return initialize(hand, *given, root_depth=self.root_depth, bone=self.bone, scale=scale)


@pytree
class Hands:
    """Hands to be scored: in the camera frame with intrinsics, relative to the root without."""

    joints: Float[Numbers, "n 21 3"]  # metres
    parameters: HandParameters | None = None  # None for a method that predicts joints only


class BeforeAndAfter(NamedTuple):
    """Hands of one method before and after the tailor."""

    proposals: Proposals
    before: Hands
    after: Hands


@dataclasses.dataclass(frozen=True)
class Subject:
    """A method under evaluation, with a tailor, on hands with known ground truth."""

    hand: HandModel
    truth: GroundTruth
    predictions: Predictions  # with intrinsics
    predictions_without_k: Predictions
    protocol: Protocol
    preset: PresetName
    seed: int

    @property
    def config(self) -> TailorConfig:
        """Configuration of the tailor under evaluation."""
        return PRESETS[self.preset]()

    @functools.cached_property
    def with_k(self) -> BeforeAndAfter:
        """Hands with intrinsics."""
        return self._before_and_after(propose(self.truth, self.predictions))

    @functools.cached_property
    def without_k(self) -> BeforeAndAfter:
        """Hands without intrinsics."""
        return self._before_and_after(propose(self.truth, self.predictions_without_k, known_cameras=False))

    def _before_and_after(self, proposals: Proposals) -> BeforeAndAfter:
        return BeforeAndAfter(proposals, placed(self.hand, proposals), tailored(self.hand, proposals, self.config))

    def at(self, indices: Any) -> "Subject":
        """Return the subject on some of the hands only."""
        parts = (self.truth, self.predictions, self.predictions_without_k)
        truth, with_k, without_k = rows(parts, indices)
        return dataclasses.replace(self, truth=truth, predictions=with_k, predictions_without_k=without_k)

    def errors_mm(self, hands: Hands, alignment: Alignment = "lit") -> npt.NDArray[np.float64]:
        """Return distances (n, 21) of the aligned joints from the true joints, millimetres."""
        return align(self.scored_joints(hands), self.truth.joints, alignment, self.truth.visible).errors_mm

    def scored_joints(self, hands: Hands) -> Float[Numbers, "n 21 3"]:
        """Return the joints that are compared with the true joints, by the protocol's definition."""
        if self.protocol.joint_definition == "model" or hands.parameters is None:
            return hands.joints
        vertices, keypoints = meshes(self.hand, hands.parameters), np.asarray(_keypoints(self.hand, hands.parameters))
        if self.protocol.joint_definition == "freihand":
            points = freihand_joints(self.hand, vertices)
        else:
            points = np.array(keypoints)
            points[:, WRIST] = vertices[:, PALM_VERTICES].mean(axis=1)
        # Without intrinsics meshes are in pixels, joints in metres.
        bones = (np.diff(each[:, REFERENCE_BONE], axis=1) for each in (np.asarray(hands.joints), keypoints))
        length, of_keypoints = (np.linalg.norm(bone, axis=-1, keepdims=True) for bone in bones)
        return hands.joints[:, ROOT, None] + length / of_keypoints * (points - keypoints[:, ROOT, None])

    @property
    def true_vertices(self) -> Float[Numbers, "n vertices 3"] | None:
        """The true meshes of this hand model in the camera frame, metres; None without true meshes and poses."""
        given = self.truth.vertices
        if given is not None and given.shape[1] == self.hand.skin.template.shape[0]:
            return given
        return None if self.truth.parameters is None else meshes(self.hand, self.truth.parameters)

    def notes(self, *more: str) -> tuple[str, ...]:
        """Return the lines below a table: data, method, protocol, and `more`."""
        truth, protocol = self.truth, self.protocol
        data = f"Data: {truth.dataset}, {len(truth)} hands. Estimates: {self.predictions.method}. "
        data += f"Tailor: preset {self.preset}. Joints: {truth.joint_definition}."
        mixed = (
            "The ground truth has FreiHAND's joints, the hand model its own: they differ by millimetres, unless --hand "
            "gives MANO's mesh."
        )
        is_mixed = truth.joint_definition == "freihand" and protocol.joint_definition == "model"
        return (data, f"Protocol: {protocol}", *([mixed] if is_mixed else []), *more)


def rows(tree: Tree, indices: Any) -> Tree:
    """Return the hands at some indices of the leading axis, for any of the types of this module."""
    return jax.tree.map(lambda leaf: leaf[indices], tree)


def propose(truth: GroundTruth, predictions: Predictions, *, known_cameras: bool = True, size: int = CROP) -> Proposals:
    """Return predictions with pose and betas in crops of `size` pixels around the true hands.

    The true cameras are used if `known_cameras` and if the predictions have root depths; otherwise the cameras are weak
    perspective.
    """
    assert predictions.pose is not None
    assert predictions.betas is not None
    to_crop = truth.to_crop(size)
    camera, depth = weak_cameras(len(truth)), predictions.root_depth  # in pixels of the crop
    if known_cameras and depth is not None:
        camera = transform_camera(Camera.from_matrix(truth.intrinsics), to_crop)
    keypoints = transform_pixels(to_crop, jnp.asarray(predictions.keypoints_2d))
    return Proposals(
        observation=Observation(keypoints, jnp.asarray(predictions.confidence), camera),
        pose=jnp.asarray(predictions.pose),
        betas=jnp.asarray(predictions.betas),
        root_depth=jnp.asarray(np.zeros(len(truth), np.float32) if depth is None else depth),
        bone=None if predictions.bone is None else jnp.asarray(predictions.bone),
    )


def weak_cameras(count: int) -> Camera:
    """Return the cameras (count,) of images without intrinsics."""
    return Camera.weak_perspective(np.ones(count, np.float32), np.zeros((count, 2), np.float32))


def placed(hand: HandModel, proposals: Proposals) -> Hands:
    """Return the hands before the tailor, placed by the method's own size and depth."""
    return _hands(hand, _starts(hand, proposals, "proposed"), proposals.observation.camera)


def tailored(hand: HandModel, proposals: Proposals, config: TailorConfig) -> Hands:
    """Return the hands after the tailor."""
    proposals = dataclasses.replace(proposals, observation=config.weighted(proposals.observation))
    starts = _starts(hand, proposals, config.scale)
    count = starts.scale.shape[0]
    parts = []
    for first in range(0, count, _PIECE):
        # The last piece is filled up, so that one program serves all pieces.
        piece = jnp.minimum(jnp.arange(first, first + min(_PIECE, count)), count - 1)
        parts.append(tailor_batch(hand, *rows((starts, proposals.observation), piece), config))
    fitted = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *parts)
    return _hands(hand, fitted, proposals.observation.camera)


def meshes(hand: HandModel, parameters: HandParameters) -> Float[Numbers, "n vertices 3"]:
    """Return vertices in the camera frame."""
    firsts = range(0, parameters.scale.shape[0], _PIECE)
    pieces = [_vertices(hand, rows(parameters, slice(first, first + _PIECE))) for first in firsts]
    return np.concatenate(jax.device_get(pieces))


def _hands(hand: HandModel, parameters: HandParameters, camera: Camera) -> Hands:
    keypoints = np.asarray(_keypoints(hand, parameters))
    relative = (keypoints - keypoints[:, ROOT, None]) / np.asarray(parameters.scale)[:, None, None]
    joints = np.where(np.asarray(camera.perspectivity)[:, None, None] > 0.5, keypoints, relative)
    return Hands(joints, parameters)


@functools.partial(jax.jit, static_argnames="scale")
def _starts(hand: HandModel, proposals: Proposals, scale: StartScale) -> HandParameters:
    return jax.vmap(lambda proposal: proposal.start(hand, scale))(proposals)


_keypoints = jax.jit(jax.vmap(camera_keypoints, in_axes=(None, 0)))
_vertices = jax.jit(jax.vmap(lambda hand, one: camera_mesh(hand, one).vertices, in_axes=(None, 0)))

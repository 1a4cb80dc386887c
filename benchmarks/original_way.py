"""The tailor run as in the released program: the baseline of benchmarks/tailor.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from simulation import TailorProblems

from handtailor_jax.geometry.cameras import unproject
from handtailor_jax.geometry.lifting import reference_bone_length
from handtailor_jax.geometry.rotations import matrix_from_axis_angle
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.skeleton import JOINT_PARENTS, KEYPOINTS_FROM_MANO, ROOT
from handtailor_jax.tailor import paper as terms
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.placement import closed_form_scale_with_depths
from handtailor_jax.tailor.solve import Adam
from handtailor_jax.tailor.tailor import TailorConfig


class OriginalWay:
    """The tailor as the released demo runs it, on our hand model, for one hand with known intrinsics.

    As in the released demo, the compiled functions close over the hand model; the keypoints are taken from the
    whole mesh, skinned by the textbook formula and differentiated in reverse mode; the camera is a NumPy array in every
    call; and a Python loop makes three compiled calls an iteration (parameters out of the optimiser's state, gradient,
    Adam's update with learning rate 0.03, b1 = b2 = 0.5, index from 1). The root, the initial joints, the scale and the
    final mesh are one compiled call each. The demo also copies the network's results between device and host
    beforehand; this is left out, in favour of the demo. The result is the same as with the `official` preset.
    """

    def __init__(self, hand: HandModel) -> None:
        config = TailorConfig.official()
        weights, adam = config.energy, config.solver
        assert isinstance(weights, PaperEnergy)
        assert isinstance(adam, Adam)

        def energy(params: dict[str, Array], problem: TailorProblems, root: Array, camera: Array) -> Array:
            keypoints = _in_bones(_textbook_layer(hand, params)[1]) * params["bone"]
            seen = problem.observation
            placed = keypoints + root[None]
            residual = placed[:, :2] / placed[:, 2:] * camera[:, :2] + camera[:, 2:] - seen.keypoints_2d
            non_planarity, bend = terms.twist(keypoints)
            return (
                weights.joint * jnp.sum(seen.confidence[:, None] * residual * residual)
                + weights.non_planarity * jnp.sum(non_planarity)
                - weights.backward_bend * jnp.minimum(jnp.sum(bend), 0.0)
                + weights.identity_pose * terms.squared(params["so3"] - problem.pose.reshape(48))
                + weights.identity_betas * terms.squared(params["beta"] - problem.betas)
            )

        def root(problem: TailorProblems) -> Array:
            seen = problem.observation
            return unproject(seen.camera, seen.keypoints_2d[ROOT][None], problem.root_depth[None])[0]

        def scale(joints: Array, problem: TailorProblems, root: Array) -> Array:
            factor = closed_form_scale_with_depths(problem.observation, joints, root, problem.bone)
            return problem.bone * jnp.maximum(factor, 0.9)

        def update(i: Array, gradient: Any, state: Any) -> Any:
            params, mean, square = state
            mean = jax.tree.map(lambda m, g: adam.b1 * m + (1.0 - adam.b1) * g, mean, gradient)
            square = jax.tree.map(lambda v, g: adam.b2 * v + (1.0 - adam.b2) * g * g, square, gradient)

            def step(x: Array, m: Array, v: Array) -> Array:
                m, v = m / (1.0 - adam.b1 ** (i + 1.0)), v / (1.0 - adam.b2 ** (i + 1.0))
                return x - adam.learning_rate * m / (jnp.sqrt(v) + adam.eps)

            return jax.tree.map(step, params, mean, square), mean, square

        def mesh(params: dict[str, Array], bone: Array, root: Array) -> Array:
            vertices, keypoints = _textbook_layer(hand, params)
            return _in_bones(keypoints, vertices) * bone + root[None]

        self._root = jax.jit(root)
        self._joints = jax.jit(lambda params: _in_bones(_textbook_layer(hand, params)[1]))
        self._scale = jax.jit(scale)
        self._init = jax.jit(lambda params: (params, *2 * (jax.tree.map(jnp.zeros_like, params),)))
        self._get_params = jax.jit(lambda state: state[0])
        self._gradient = jax.jit(jax.grad(energy))
        self._update = jax.jit(update)
        self._mesh = jax.jit(mesh)

    def __call__(self, problem: TailorProblems, iterations: int) -> Float[Array, "vertices 3"]:
        """Return the mesh in the camera frame, metres."""
        params = {"so3": problem.pose.reshape(48), "beta": problem.betas}
        root = self._root(problem)
        bone = self._scale(self._joints(params), problem, root)
        matrix = np.asarray(problem.observation.camera.matrix)
        camera = np.tile(matrix[[0, 1, 0, 1], [0, 1, 2, 2]], (21, 1))  # fx, fy, cx, cy for every keypoint, on the host
        state = self._init({**params, "bone": bone})
        for i in range(1, iterations + 1):
            params = self._get_params(state)
            gradient = self._gradient(params, problem, root, camera)
            state = self._update(float(i), gradient, state)
        # The released program discards the optimised bone length.
        return self._mesh(self._get_params(state), bone, root)


def _textbook_layer(hand: HandModel, params: dict[str, Array]) -> tuple[Array, Array]:
    """Return all vertices and the 21 keypoints (metres, rest frame) by textbook linear blend skinning.

    Everything is computed for every vertex, in homogeneous coordinates: shape, joints regressed from the shaped
    vertices, pose correction, one 4x4 transform per joint, one blended 4x4 transform per vertex.
    """
    skin, dtype = hand.skin, hand.dtype
    rotations = matrix_from_axis_angle(params["so3"].reshape(16, 3))
    shaped = skin.rest_vertices(params["beta"])
    joints = hand.joint_regressor @ shaped
    correction = (rotations[1:] - jnp.eye(3, dtype=dtype)[None]).reshape(135)
    rest = shaped + skin.pose_directions @ correction

    def transform(rotation: Array, translation: Array) -> Array:
        return jnp.eye(4, dtype=dtype).at[:3, :3].set(rotation).at[:3, 3].set(translation)

    chained: list[Array] = []
    for joint, parent in enumerate(JOINT_PARENTS):
        step = joints[joint] if parent < 0 else joints[joint] - joints[parent]
        local = transform(rotations[joint], step)
        chained.append(local if parent < 0 else chained[parent] @ local)
    world = jnp.stack(chained)
    from_rest = jnp.stack([world[j] @ transform(jnp.eye(3, dtype=dtype), -joints[j]) for j in range(len(chained))])
    blended = jnp.einsum("vj,jab->vab", skin.weights, from_rest)
    homogeneous = jnp.concatenate([rest, jnp.ones((rest.shape[0], 1), dtype)], axis=1)
    vertices = jnp.einsum("vab,vb->va", blended, homogeneous)[:, :3]
    keypoints = jnp.concatenate([world[:, :3, 3], vertices[hand.tip_vertices]])
    return vertices, keypoints[np.asarray(KEYPOINTS_FROM_MANO, np.int32)]


def _in_bones(keypoints: Float[Array, "21 3"], points: Float[Array, "n 3"] | None = None) -> Float[Array, "n 3"]:
    """Return points (the keypoints if None) relative to the root, in units of the reference bone."""
    points = keypoints if points is None else points
    return (points - keypoints[ROOT][None]) / reference_bone_length(keypoints)

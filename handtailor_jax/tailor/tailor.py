"""The tailor, which minimises an energy of observed keypoints from a start; its configuration and presets."""

import dataclasses
import functools
import math
from typing import Literal

import jax

from handtailor_jax.geometry import exact
from handtailor_jax.mano.hand_model import HandModel
from handtailor_jax.mano.landmarks import MANO, LandmarkConvention
from handtailor_jax.tailor.calibrated import CalibratedEnergy, CalibratedProblem
from handtailor_jax.tailor.paper import PaperEnergy, PaperProblem
from handtailor_jax.tailor.placement import StartScale, with_floats
from handtailor_jax.tailor.solve import Adam, GradientMode, LevenbergMarquardt, Solver, solve
from handtailor_jax.types import HandParameters, Observation

_TWO_STEPS = LevenbergMarquardt(iterations=2, damping=0.003)


@dataclasses.dataclass(frozen=True)
class TailorConfig:
    """Energy, solver and differentiation of the tailor.

    Each preset documents the starts for which it is meant. From any other finite start, as in the first steps of a
    training, the hand stays bounded: its depth within 0.05 to 50 m, and with a calibrated energy its root within 3 hand
    sizes of the start's and its log zoom within 3.
    """

    energy: CalibratedEnergy | PaperEnergy
    """The energy that is minimised."""
    solver: Solver
    """The solver of the minimisation."""
    scale: StartScale = "closed_form"
    """Scale of the start; see `StartScale`."""
    gradient: GradientMode = "unrolled"
    """Differentiation of the result; see `GradientMode`."""

    def weighted(self, observation: Observation) -> Observation:
        """Return an observation with the confidences that the energy uses.

        The paper's energies weigh all keypoints equally, except those of confidence 0, which are unknown.
        """
        if isinstance(self.energy, CalibratedEnergy):
            return observation
        known = (observation.confidence > 0.0).astype(observation.confidence.dtype)
        return dataclasses.replace(observation, confidence=known)

    @classmethod
    def default(cls) -> "TailorConfig":
        """Return the default for proposals with good keypoints: calibrated robust energy, Levenberg-Marquardt.

        It is meant for starts of the right size whose joints are off by at most about 0.15 radians each.

        Its standard deviations are the noise of a good proposal and of a good detector, selected among about forty
        settings on seed 1 of benchmarks/simulation.py; benchmarks/tailor.py reports on another seed. A more robust
        residual treats a bad start as an outlier, so it needs a third iteration, and is no more accurate.
        """
        energy = CalibratedEnergy(keypoint_std=0.0125, robustness=16.0, betas_std=0.5, size_share=0.5)
        return cls(energy, _TWO_STEPS, scale="proposed")

    @classmethod
    def network(cls) -> "TailorConfig":
        """Return the default for a network's own keypoints, whose noise depends on their confidence.

        The embedded weights' keypoints have errors of about 4 % of the hand size at confidence 0.95 and 25 % at 0.2.
        Their hand sizes are more accurate than their depths. The preset was selected with these weights on rendered
        images and photographs of training splits (docs/model-card.md). It is meant for starts from a network, including
        the first steps of its training. If almost all confidences are low, only `pixel_std` and `zoom_std` keep the
        hand in place.
        """
        energy = CalibratedEnergy(
            keypoint_std=0.03, confidence_power=4, robustness=16.0, betas_std=0.5, pixel_std=0.3, zoom_std=0.3
        )
        return cls(energy, _TWO_STEPS, scale="proposed")

    @classmethod
    def paper(cls) -> "TailorConfig":
        """Return the paper's constants: Eq. 13 with weights 1, 100 and 0.1; 20 Adam steps at 0.003.

        They are meant for starts whose joints are off by at most 0.06 radians each: 20 steps reach no further.
        """
        return cls(PaperEnergy(), Adam())

    @classmethod
    def official(cls) -> "TailorConfig":
        """Return the released program's constants, which differ from the paper's: means instead of sums; Adam at 0.03
        with b1 = b2 = 0.5 and a bias correction that is one step ahead.

        They are meant for starts of the released network.
        """
        energy = PaperEnergy(
            joint=1.0 / 42.0,
            non_planarity=100.0 * 1e4 / 5.0,
            backward_bend=100.0 * 1e5,
            identity_pose=0.01 / 48.0,
            identity_betas=0.01 / 10.0,
            released=True,
        )
        return cls(energy, Adam(learning_rate=0.03, b1=0.5, b2=0.5, first_step=1), scale="released")

    @classmethod
    def plug_in(cls) -> "TailorConfig":
        """Return the preset for a pose of another method without placement: free placement, ten iterations.

        It is meant for starts from `initialize` or `place_proposal`, whatever the errors of their size and place.
        """
        energy = CalibratedEnergy(keypoint_std=0.0125, robustness=8.0, rotation_std=0.3, finger_std=0.2)
        return cls(energy, LevenbergMarquardt(iterations=10))

    @classmethod
    def landmarks(cls) -> "TailorConfig":
        """Return the default for the landmark network: high weight of keypoints, low weight of depths.

        It is meant for IKNet's pose, placed by `place_proposal`, and was selected on renderings and photographs: a
        higher weight of the pose makes renderings more accurate and photographs less (docs/model-card.md).
        """
        energy = CalibratedEnergy(
            keypoint_std=0.01, depth_std=0.25, rotation_std=0.3, finger_std=0.12, betas_std=1.0, robustness=8.0
        )
        return cls(energy, LevenbergMarquardt(iterations=10))

    @classmethod
    def keypoints_only(cls) -> "TailorConfig":
        """Return the preset for 2D keypoints without a proposal: pose prior and joint limits replace the identity.

        It is meant for the starts of `search`. Its gradients through 20 iterations from a bad start have no bound.
        """
        energy = CalibratedEnergy(
            keypoint_std=0.012,
            depth_std=0.09,
            rotation_std=math.inf,
            finger_std=math.inf,
            betas_std=math.inf,
            prior=0.5,
            betas_prior=1.0,
            mcp_std=0.45,
            extent_std=0.2,
        )
        return cls(energy, LevenbergMarquardt(iterations=20))


PRESETS = {
    "default": TailorConfig.default,
    "network": TailorConfig.network,
    "landmarks": TailorConfig.landmarks,
    "paper": TailorConfig.paper,
    "official": TailorConfig.official,
}
"""Presets that refine a proposal, by their names on the command line."""

PresetName = Literal["default", "network", "landmarks", "paper", "official"]


@exact
def tailor(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit one hand to observed keypoints: minimise the configured energy from `start`.

    Use `tailor_batch`, or ``jax.vmap`` inside ``jit``, for several hands. The result is differentiable in every array
    argument; `config.gradient` selects how.

    Args:
        hand: Hand model of the side of the hand in the image.
        start: Proposed hand in the camera frame, from `initialize` or another method.
        observation: Keypoints (pixels), confidences and camera.
        config: Energy and solver; `TailorConfig.default()` if None.
        convention: Landmark convention of the observed keypoints.

    Returns:
        The fitted hand, in the camera frame of `observation.camera`.
    """
    config = config or TailorConfig.default()
    start, observation, convention = with_floats(hand.dtype, (start, observation, convention))
    problem = pose_problem(hand, start, observation, config, convention)
    return problem.parameters(solve(problem, config.solver, config.gradient))


@functools.partial(jax.jit, static_argnames="config")
def tailor_batch(
    hand: HandModel,
    starts: HandParameters,
    observations: Observation,
    config: TailorConfig | None = None,
    *,
    convention: LandmarkConvention = MANO,
) -> HandParameters:
    """Fit many hands with one compiled program on one device.

    The arguments are those of `tailor`; starts, observations and the result have a leading axis (batch). The batch is
    not split over threads, because that deadlocks in XLA's CPU client of jax 0.10 and is no faster on jax 0.12.
    """
    return jax.vmap(lambda start, seen: tailor(hand, start, seen, config, convention=convention))(starts, observations)


def pose_problem(
    hand: HandModel,
    start: HandParameters,
    observation: Observation,
    config: TailorConfig,
    convention: LandmarkConvention = MANO,
) -> CalibratedProblem | PaperProblem:
    """Return the minimisation problem of a configuration.

    Raises:
        ValueError: If the paper's energy is configured for keypoints of another convention than the model's own.
    """
    if isinstance(config.energy, CalibratedEnergy):
        return CalibratedProblem(config.energy, hand, convention, start, observation)
    if convention.offsets is not None:
        raise ValueError(
            f"the paper's energy is defined for the model's own keypoints, not for {convention.name!r} landmarks: "
            "use a calibrated energy"
        )
    return PaperProblem(config.energy, hand, start, config.weighted(observation))

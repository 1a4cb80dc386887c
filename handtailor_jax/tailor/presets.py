"""The tailor's configuration and its named presets."""

import dataclasses
import math
from typing import Literal

from handtailor_jax.tailor.calibrated import CalibratedEnergy
from handtailor_jax.tailor.initialize import StartScale
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.solve import Adam, GradientMode, LevenbergMarquardt, Solver


@dataclasses.dataclass(frozen=True)
class TailorConfig:
    """What the tailor minimises, how, and how it is differentiated."""

    energy: CalibratedEnergy | PaperEnergy
    solver: Solver
    scale: StartScale = "closed_form"
    gradient: GradientMode = "unrolled"

    @classmethod
    def default(cls) -> "TailorConfig":
        """Ours: calibrated robust energy, Levenberg-Marquardt.

        Chosen on seed 1 of `evaluation.simulation` among forty settings, for 3D and reprojection error on Gaussian
        and heavy-tailed noise together; `bench tailor` reports on another seed. The standard deviations are the noise
        of a good proposal and of a good detector. A residual more robust than this needs a third iteration, because a
        start that is far off looks like an outlier to it, and gains nothing by it.
        """
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.0125,
                robustness=16.0,
                rotation_std=0.15,
                finger_std=0.15,
                betas_std=0.5,
                size_share=0.5,
            ),
            solver=LevenbergMarquardt(iterations=2, damping=0.003),
            scale="proposed",
        )

    @classmethod
    def network(cls) -> "TailorConfig":
        """The default for a network's own keypoints, whose confidences tell how far off they are.

        Those of the embedded weights are about 4 % of the hand's size off at confidence 0.95 and 25 % at 0.2; lengths
        of hands are surer than their depths. Chosen with those weights on renderings and photographs of training splits
        (docs/model-card.md).
        """
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.03,
                confidence_power=4,
                robustness=16.0,
                rotation_std=0.15,
                finger_std=0.15,
                betas_std=0.5,
                # Where hardly a keypoint is trusted, nothing else holds the hand's place.
                pixel_std=0.3,
                zoom_std=0.3,
                size_share=0.0,
            ),
            solver=LevenbergMarquardt(iterations=2, damping=0.003),
            scale="proposed",
        )

    @classmethod
    def paper(cls) -> "TailorConfig":
        """The paper's constants: Eq. 13 with weights 1, 100, 0.1, Adam at 0.003 for 20 iterations."""
        return cls(energy=PaperEnergy(), solver=Adam())

    @classmethod
    def official(cls) -> "TailorConfig":
        """The released program's constants and departures from the paper (means instead of sums, Adam with
        b1 = b2 = 0.5 at 0.03 whose bias correction starts one step late)."""
        return cls(
            energy=PaperEnergy(
                joint=1.0 / 42.0,
                non_planarity=100.0 * 1e4 / 5.0,
                backward_bend=100.0 * 1e5,
                identity_pose=0.01 / 48.0,
                identity_betas=0.01 / 10.0,
                released=True,
            ),
            solver=Adam(learning_rate=0.03, b1=0.5, b2=0.5, first_step=1),
            scale="released",
        )

    @classmethod
    def plug_in(cls) -> "TailorConfig":
        """For a pose of another method whose placement is unknown: placement is free, and there is time to find it."""
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.0125, robustness=8.0, rotation_std=0.3, finger_std=0.2, betas_std=1.0
            ),
            solver=LevenbergMarquardt(iterations=10),
        )

    @classmethod
    def keypoints_only(cls) -> "TailorConfig":
        """For 2D keypoints without any proposal: the pose prior and joint limits take the place of the identity."""
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.012,
                robustness=4.0,
                depth_std=0.09,
                rotation_std=math.inf,
                finger_std=math.inf,
                betas_std=math.inf,
                prior=0.5,
                betas_prior=1.0,
                mcp_std=0.45,
                extent_std=0.2,
            ),
            solver=LevenbergMarquardt(iterations=20),
        )


PRESETS = {
    "default": TailorConfig.default,
    "network": TailorConfig.network,
    "paper": TailorConfig.paper,
    "official": TailorConfig.official,
}
"""The presets that refine a proposal, by the name the command line uses."""

PresetName = Literal["default", "network", "paper", "official"]

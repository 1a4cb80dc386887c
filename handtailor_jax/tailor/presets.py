"""Configuration of the tailor, and its presets."""

import dataclasses
import math
from typing import Literal

from handtailor_jax.tailor.calibrated import CalibratedEnergy
from handtailor_jax.tailor.initialize import StartScale
from handtailor_jax.tailor.paper import PaperEnergy
from handtailor_jax.tailor.solve import Adam, GradientMode, LevenbergMarquardt, Solver


@dataclasses.dataclass(frozen=True)
class TailorConfig:
    """Energy, solver and differentiation of the tailor."""

    energy: CalibratedEnergy | PaperEnergy
    """The energy that is minimised."""
    solver: Solver
    """The solver of the minimisation."""
    scale: StartScale = "closed_form"
    """Scale of the start; see `StartScale`."""
    gradient: GradientMode = "unrolled"
    """Differentiation of the result; see `GradientMode`."""

    @classmethod
    def default(cls) -> "TailorConfig":
        """Return the default for proposals with good keypoints: calibrated robust energy, Levenberg-Marquardt.

        Its standard deviations are the noise of a good proposal and of a good detector. They were selected among about
        forty settings on seed 1 of `benchmarks/simulation.py`, by 3D and reprojection errors under Gaussian and
        heavy-tailed noise; benchmarks/tailor.py reports on another seed. A more robust residual treats a bad start as
        an outlier, so it needs a third iteration, and is no more accurate.
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
        """Return the default for a network's own keypoints, whose noise depends on their confidence.

        The embedded weights' keypoints have errors of about 4 % of the hand size at confidence 0.95 and 25 % at 0.2.
        Their hand sizes are more accurate than their depths. The preset was selected with these weights on rendered
        images and photographs of training splits (docs/model-card.md).
        """
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.03,
                confidence_power=4,
                robustness=16.0,
                rotation_std=0.15,
                finger_std=0.15,
                betas_std=0.5,
                # If almost all confidences are low, only these two terms keep the hand in place.
                pixel_std=0.3,
                zoom_std=0.3,
                size_share=0.0,
            ),
            solver=LevenbergMarquardt(iterations=2, damping=0.003),
            scale="proposed",
        )

    @classmethod
    def paper(cls) -> "TailorConfig":
        """Return the paper's constants: Eq. 13 with weights 1, 100 and 0.1; 20 Adam steps at 0.003."""
        return cls(energy=PaperEnergy(), solver=Adam())

    @classmethod
    def official(cls) -> "TailorConfig":
        """Return the released program's constants, which differ from the paper's: means instead of sums; Adam at 0.03
        with b1 = b2 = 0.5 and a bias correction that is one step ahead."""
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
        """Return the preset for a pose of another method without placement: free placement, ten iterations."""
        return cls(
            energy=CalibratedEnergy(
                keypoint_std=0.0125, robustness=8.0, rotation_std=0.3, finger_std=0.2, betas_std=1.0
            ),
            solver=LevenbergMarquardt(iterations=10),
        )

    @classmethod
    def keypoints_only(cls) -> "TailorConfig":
        """Return the preset for 2D keypoints without a proposal: pose prior and joint limits replace the identity."""
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
"""Presets that refine a proposal, by their names on the command line."""

PresetName = Literal["default", "network", "paper", "official"]

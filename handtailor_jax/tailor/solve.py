"""Minimisers of the tailor's energy, and how to differentiate through them.

A problem offers ``initial`` (flat vector x), ``energy(x)``, ``parameters(x)`` and, for Levenberg-Marquardt,
``normal_equations(x)``. Loops are rolled: unrolling multiplies compile time and, on a CPU, run time.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handtailor_jax.types import HandParameters

GradientMode = Literal["unrolled", "checkpointed", "implicit"]
"""How a gradient passes through the solver: back through every iteration, the same with iterations recomputed instead
of stored, or through the stationarity of the energy at the result (exact only where the solver has converged)."""


@runtime_checkable
class Problem(Protocol):
    """An energy minimisation over a flat vector."""

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """x before the first step."""

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """E(x)."""

    def parameters(self, x: Float[Array, "unknowns"]) -> HandParameters:
        """The hand at x."""


@runtime_checkable
class LeastSquaresProblem(Problem, Protocol):
    """A problem whose curvature is known."""

    def normal_equations(
        self, x: Float[Array, "unknowns"]
    ) -> tuple[Float[Array, ""], Float[Array, "unknowns"], Float[Array, "unknowns unknowns"]]:
        """E, its gradient and a positive semi-definite approximation of its Hessian."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """Gradient descent with Adam."""

    learning_rate: float = 0.003
    iterations: int = 20
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    final_learning_rate: float | None = None
    """The rate decays to this along half a cosine; None keeps it fixed."""
    first_step: int = 0
    """Number of steps the bias correction assumes to have been taken already; the released program starts at 1."""

    def minimise(self, problem: Problem, keep: Callable[[Array], Array] = lambda x: x[:0]) -> tuple[Array, Array]:
        """x after the last iteration, and ``keep(x)`` of every iterate, stacked (the default keeps nothing)."""
        x = problem.initial
        gradient = jax.grad(problem.energy)
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate

        def iteration(carry, step):  # type: ignore[no-untyped-def]
            x, mean, square = carry
            g = gradient(x)
            mean = self.b1 * mean + (1.0 - self.b1) * g
            square = self.b2 * square + (1.0 - self.b2) * g * g
            taken = step + (1.0 + self.first_step)
            # Double where: an unknown that never had a gradient must not make the tailor's derivative 0 / 0.
            moved = square > 0.0
            root = jnp.where(moved, jnp.sqrt(jnp.where(moved, square, 1.0) / (1.0 - self.b2**taken)), 0.0)
            direction = (mean / (1.0 - self.b1**taken)) / (root + self.eps)
            progress = 0.5 * (1.0 - jnp.cos(jnp.pi * step / self.iterations))
            rate = self.learning_rate + (final - self.learning_rate) * progress
            return (x - rate * direction, mean, square), keep(x)

        steps = jnp.arange(self.iterations, dtype=x.dtype)
        (x, _, _), kept = jax.lax.scan(iteration, (x, jnp.zeros_like(x), jnp.zeros_like(x)), steps)
        return x, kept


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Damped Gauss-Newton; a step that does not lower the energy is dropped and the damping raised."""

    iterations: int = 3
    damping: float = 0.1
    """First damping, as a multiple of the curvature's diagonal."""
    accepted: float = 0.3
    """Factor on the damping after a step that lowered the energy."""
    rejected: float = 5.0
    """Factor on the damping after one that did not."""

    def minimise(
        self, problem: LeastSquaresProblem, keep: Callable[[Array], Array] = lambda x: x[:0]
    ) -> tuple[Array, Array]:
        """x after the last iteration, and ``keep(x)`` of every iterate, stacked (the default keeps nothing)."""
        x = problem.initial

        def iteration(carry, _):  # type: ignore[no-untyped-def]
            x, damping, best, candidate = carry
            proposed = problem.normal_equations(candidate)
            better = proposed[0] < best[0]  # also False for NaN, so a failed factorisation is a rejected step
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), proposed, best)
            damping = damping * jnp.where(better, self.accepted, self.rejected)
            x = jnp.where(better, candidate, x)
            _, gradient, curvature = best
            damped = curvature + jnp.diag(damping * jnp.diagonal(curvature) + 1e-6)
            step = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), gradient)
            return (x, damping, best, x - step), keep(x)

        # Everything is better than nothing: the start is the first candidate, so that normal equations are compiled
        # once, in the body of the loop.
        nothing = (jnp.asarray(jnp.inf, x.dtype), jnp.zeros_like(x), jnp.zeros((x.shape[0], x.shape[0]), x.dtype))
        carry = (x, jnp.asarray(self.damping / self.accepted, x.dtype), nothing, x)
        (x, _, best, candidate), kept = jax.lax.scan(iteration, carry, length=self.iterations)
        # The last step needs no curvature at its end, so it stands outside the loop.
        return jnp.where(problem.energy(candidate) < best[0], candidate, x), kept


Solver = Adam | LevenbergMarquardt


def solve(problem: Problem, solver: Solver, gradient: GradientMode = "unrolled") -> Float[Array, "unknowns"]:
    """Minimises the energy of a problem; see `GradientMode` for what differentiating the result means."""
    if gradient == "unrolled":
        return solver.minimise(problem)[0]  # type: ignore[arg-type]
    if gradient == "checkpointed":
        return jax.checkpoint(lambda p: solver.minimise(p)[0])(problem)
    if gradient == "implicit":
        return _implicit(problem, solver)
    raise ValueError(f"gradient must be unrolled, checkpointed or implicit, not {gradient!r}")


def _implicit(problem: Problem, solver: Solver) -> Float[Array, "unknowns"]:
    """The minimiser, differentiated by the implicit function theorem: dx = -(d2E/dx2)^-1 d(dE/dx)."""

    def tangent_solve(linear, y):  # type: ignore[no-untyped-def]
        return jnp.linalg.solve(jax.jacobian(linear)(y), y)

    return jax.lax.custom_root(
        jax.grad(problem.energy),
        problem.initial,
        lambda _, __: solver.minimise(problem)[0],  # type: ignore[arg-type]
        tangent_solve,
    )

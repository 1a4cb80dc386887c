"""Solvers that minimise the tailor's energy, and differentiation through them.

Loops are rolled, because unrolling multiplies the compile time and, on a CPU, the run time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

GradientMode = Literal["unrolled", "checkpointed", "implicit"]
"""Differentiation of a solve: through all iterations ("unrolled"); the same, but iterations are recomputed to save
memory ("checkpointed"); or by the implicit function theorem, which is exact only at convergence ("implicit")."""


@runtime_checkable
class Problem(Protocol):
    """An energy of a flat vector of unknowns x.

    Levenberg-Marquardt needs ``normal_equations(x)`` as well: the energy, its gradient and a positive semi-definite
    approximation of its Hessian.
    """

    @property
    def initial(self) -> Float[Array, "unknowns"]:
        """The unknowns before the first step."""

    def energy(self, x: Float[Array, "unknowns"]) -> Float[Array, ""]:
        """Return E(x)."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """The Adam solver."""

    learning_rate: float = 0.003
    """Learning rate of the first step."""
    iterations: int = 20
    """Number of steps."""
    b1: float = 0.9
    """Decay of the gradient's mean."""
    b2: float = 0.999
    """Decay of the squared gradient's mean."""
    eps: float = 1e-8
    """Constant added to the divisor of the step."""
    final_learning_rate: float | None = None
    """Learning rate at the end, reached along half a cosine; None keeps the learning rate constant."""
    first_step: int = 0
    """Number of earlier steps that the bias correction assumes; 1 in the released program."""

    def minimise(self, problem: Problem, keep: Callable[[Array], Array] = lambda x: x[:0]) -> tuple[Array, Array]:
        """Return x after the last step, and ``keep(x)`` before every step, stacked (by default empty)."""
        x = problem.initial
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate

        def iteration(carry, step):  # type: ignore[no-untyped-def]
            x, mean, square = carry
            g = jax.grad(problem.energy)(x)
            mean = self.b1 * mean + (1.0 - self.b1) * g
            square = self.b2 * square + (1.0 - self.b2) * g * g
            taken = step + (1.0 + self.first_step)
            # Double where: for an unknown whose gradients were all 0, the derivative of the root would be 0 / 0, as in
            # Optax's Adam.
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
    """The Levenberg-Marquardt solver: a step that does not lower the energy is rejected and the damping is raised."""

    iterations: int = 3
    """Number of steps."""
    damping: float = 0.1
    """Initial damping, as a multiple of the curvature's diagonal."""
    accepted: float = 0.3
    """Factor on the damping after a step that lowered the energy."""
    rejected: float = 5.0
    """Factor on the damping after a step that did not lower the energy."""

    def minimise(self, problem: Any, keep: Callable[[Array], Array] = lambda x: x[:0]) -> tuple[Array, Array]:
        """Return x after the last step, and ``keep(x)`` before every step, stacked (by default empty)."""
        x = problem.initial

        def iteration(carry, _):  # type: ignore[no-untyped-def]
            x, damping, best, candidate = carry
            proposed = problem.normal_equations(candidate)
            better = proposed[0] < best[0]  # False for NaN, so a step after a failed factorisation is rejected
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), proposed, best)
            damping = damping * jnp.where(better, self.accepted, self.rejected)
            x = jnp.where(better, candidate, x)
            _, gradient, curvature = best
            damped = curvature + jnp.diag(damping * jnp.diagonal(curvature) + 1e-6)
            step = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), gradient)
            return (x, damping, best, x - step), keep(x)

        # The first candidate is the start, which is better than an infinite energy, so the normal equations occur and
        # are compiled once, in the body of the loop.
        nothing = (jnp.asarray(jnp.inf, x.dtype), jnp.zeros_like(x), jnp.zeros((x.shape[0], x.shape[0]), x.dtype))
        carry = (x, jnp.asarray(self.damping / self.accepted, x.dtype), nothing, x)
        (x, _, best, candidate), kept = jax.lax.scan(iteration, carry, length=self.iterations)
        # The last candidate needs its energy only, so it is outside the loop.
        return jnp.where(problem.energy(candidate) < best[0], candidate, x), kept


Solver = Adam | LevenbergMarquardt


def solve(problem: Problem, solver: Solver, gradient: GradientMode = "unrolled") -> Float[Array, "unknowns"]:
    """Minimise the energy of a problem; see `GradientMode` for its derivatives."""
    if gradient == "unrolled":
        return solver.minimise(problem)[0]
    if gradient == "checkpointed":
        return jax.checkpoint(lambda p: solver.minimise(p)[0])(problem)
    if gradient != "implicit":
        raise ValueError(f"gradient is {gradient!r}: use unrolled, checkpointed or implicit")

    def tangent_solve(linear, y):  # type: ignore[no-untyped-def]
        return jnp.linalg.solve(jax.jacobian(linear)(y), y)

    # The implicit function theorem: dx = -(d2E/dx2)^-1 d(dE/dx).
    gradient_of = jax.grad(problem.energy)
    return jax.lax.custom_root(gradient_of, problem.initial, lambda *_: solver.minimise(problem)[0], tangent_solve)

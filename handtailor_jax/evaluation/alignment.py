"""Alignments of a predicted point set to the truth, before distances are taken."""

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.floating]


def scale_and_shift(predicted: Points, truth: Points) -> Points:
    """`predicted` (n, 3) moved and scaled, not rotated, to lie closest to `truth` (n, 3)."""
    p, t = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    return (p * t).sum() / (p * p).sum() * p + truth.mean(axis=0)


def similarity(predicted: Points, truth: Points) -> Points:
    """`predicted` (n, 3) moved, scaled and rotated (never mirrored) to lie closest to `truth` (n, 3): Procrustes."""
    p, t = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    u, singular, vt = np.linalg.svd(p.T @ t)
    sign = np.ones(3)
    sign[-1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign) @ vt
    return (singular * sign).sum() / (p * p).sum() * p @ rotation + truth.mean(axis=0)

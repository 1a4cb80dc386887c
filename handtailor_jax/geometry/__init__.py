"""Rotations, cameras, boxes and other geometry that every stage uses."""

import jax

exact = jax.default_matmul_precision("highest")
"""Decorator of functions whose matrix products need all bits: by default a GPU rounds the factors to ten (TF32)."""

"""Training of the hand module. Needs Flax, Optax and Orbax."""

"""The whole graph, from an image to a mesh, under jit, vmap and grad: python examples/03_jit_vmap_grad.py.

Compilation takes a few minutes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

import handtailor_jax as ht
from handtailor_jax.images import read_image

EXAMPLES = Path(ht.__file__).parent / "assets" / "examples"


def main() -> None:
    """Recover a hand and a batch of hands, and compute the gradients of a mesh."""
    module, hand = ht.load_weights(), ht.embedded_hand()  # or ht.HandTailor.load().module
    known = ht.read_detections(EXAMPLES / "hands.json")[0]
    image, camera = read_image(known.image), jnp.asarray(known.camera)
    box = jnp.asarray([45.0, 20.0, 235.0, 245.0])  # x, y, w, h around the hand

    recover = jax.jit(ht.recover_hand)
    found = recover(module, hand, image, camera, box)
    print("vertices", found.vertices.shape, "root", found.parameters.translation)

    boxes = box + jnp.asarray([[0.0, 0.0, 0.0, 0.0], [-10.0, -10.0, 20.0, 20.0]])
    recover_all = jax.jit(jax.vmap(ht.recover_hand, in_axes=(None, None, None, None, 0)))
    print("a batch", recover_all(module, hand, image, camera, boxes).vertices.shape)

    @jax.jit
    @jax.grad
    def gradient(given):  # of the mean depth of the mesh, with respect to all inputs
        module, image, camera, box = given
        return jnp.mean(ht.recover_hand(module, hand, image, camera, box).vertices[:, 2])

    by_module, by_pixels, by_camera, by_box = gradient((module, jnp.asarray(image) / 255.0, camera, box))
    print("by the pixels", by_pixels.shape, "by the camera", by_camera[0], "by the box", by_box)
    print("by the weights", sum(leaf.size for leaf in jax.tree.leaves(by_module)), "numbers")


if __name__ == "__main__":
    tyro.cli(main)

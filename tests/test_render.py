"""The rasteriser against brute force and plane geometry; images of odd sizes and odd input."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handtailor_jax.errors import InputError
from handtailor_jax.geometry.cameras import project, transform_camera
from handtailor_jax.geometry.normals import vertex_normals
from handtailor_jax.render.overlay import (
    contact_sheet,
    distant_first,
    draw_skeleton,
    overlay_figure,
    scene,
    second_view,
)
from handtailor_jax.render.rasterise import Fragments, interpolate, rasterise
from handtailor_jax.render.shading import SKIN, render_mesh, shaded_square, to_srgb
from handtailor_jax.types import Camera

# One shape for most random scenes, so that they share a compiled program.
HEIGHT, WIDTH, VERTICES, FACES = 37, 50, 30, 20
PERSPECTIVE = Camera.perspective(60.0, 70.0, 24.0, 17.0)
WEAK = Camera.weak_perspective(40.0, (25.0, 18.0))
CAMERAS = pytest.mark.parametrize("camera", [PERSPECTIVE, WEAK], ids=["perspective", "weak"])

draw = jax.jit(rasterise, static_argnames=("height", "width"))
smooth_normals = jax.jit(vertex_normals)


def random_scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vertices = rng.uniform([-0.8, -0.6, 0.7], [0.8, 0.6, 2.0], (VERTICES, 3)).astype(np.float32)
    return vertices, rng.permuted(np.tile(np.arange(VERTICES), (FACES, 1)), axis=1)[:, :3].astype(np.int32)


def draw_small(vertices, faces, camera: Camera, height: int, width: int) -> Fragments:
    """Draw a small scene, padded to the shape of the random scenes so that no other program is compiled."""
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    vertices = np.concatenate([vertices, np.zeros((VERTICES - len(vertices), 3), np.float32)])
    faces = np.concatenate([faces, np.zeros((FACES - len(faces), 3), np.int32)])
    fragments = draw(jnp.asarray(vertices), jnp.asarray(faces), camera, HEIGHT, WIDTH)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:height, :width]), fragments)


def sphere(rings: int = 24, sectors: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere with outward faces; its first and last rings are poles (on the x axis) with faces without area."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings), np.arange(sectors) * 2 * np.pi / sectors, indexing="ij")
    points = np.stack([np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)], -1).reshape(-1, 3)
    faces = []
    for i in range(rings - 1):
        for j in range(sectors):
            a, b = i * sectors + j, i * sectors + (j + 1) % sectors
            faces += [(a, a + sectors, b), (b, a + sectors, b + sectors)]
    return points.astype(np.float32), np.asarray(faces, np.int32)


def brute_force(vertices, faces, camera, height, width):
    """Return nearest face, its depth, the second depth and the distance to the nearest face outline, in float64."""
    linear, center, p = (np.asarray(x, np.float64) for x in (camera.linear, camera.center, camera.perspectivity))
    vertices = vertices.astype(np.float64)
    divisor = p * vertices[:, 2:] + (1 - p)
    uv = vertices[:, :2] / divisor @ linear.T + center
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float64)
    depths, outline = [], np.full((height, width), np.inf)
    for face in faces:
        corners = uv[face]
        matrix = np.concatenate([corners.T, np.ones((1, 3))])
        weights = np.concatenate([pixels, np.ones((height, width, 1))], -1) @ np.linalg.inv(matrix).T
        # The ray through the pixel meets the face's plane.
        ray = np.concatenate([(pixels - center) @ np.linalg.inv(linear).T, np.ones((height, width, 1))], -1)
        a, b, c = vertices[face]
        normal = np.cross(b - a, c - a)
        depth = normal @ a / (ray @ normal) if p == 1 else (normal @ a - ray[..., :2] @ normal[:2]) / normal[2]
        depths.append(np.where((weights >= 0).all(-1), depth, np.inf))
        for i in range(3):
            start, edge = corners[i], corners[i - 1] - corners[i]
            along = np.clip(((pixels - start) @ edge) / (edge @ edge), 0, 1)
            outline = np.minimum(outline, np.linalg.norm(pixels - start - along[..., None] * edge, axis=-1))
    depths = np.stack(depths)
    ordered = np.sort(depths, axis=0)
    nearest = np.where(np.isfinite(ordered[0]), depths.argmin(0), -1)
    return nearest, ordered[0], ordered[1], outline


@CAMERAS
@pytest.mark.parametrize("seed", range(4))
def test_visible_faces_and_depths_equal_brute_force(camera, seed):
    vertices, faces = random_scene(seed)
    fragments = draw(jnp.asarray(vertices), jnp.asarray(faces), camera, HEIGHT, WIDTH)
    nearest, depth, second, outline = brute_force(vertices, faces, camera, HEIGHT, WIDTH)
    sure = outline > 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(np.isfinite(depth)[sure], np.asarray(fragments.mask)[sure])
    np.testing.assert_allclose(np.asarray(fragments.depth)[sure], depth[sure], rtol=2e-4)
    separate = sure & ~(second < depth + 1e-4)
    np.testing.assert_array_equal(np.asarray(fragments.face_index)[separate], nearest[separate])


@CAMERAS
def test_barycentrics_reproduce_the_visible_point(camera):
    vertices, faces = (jnp.asarray(x) for x in random_scene(7))
    fragments = draw(vertices, faces, camera, HEIGHT, WIDTH)
    points = interpolate(fragments, vertices[faces])
    seen = np.asarray(fragments.mask)
    assert seen.mean() > 0.3
    uv = np.asarray(project(camera, points.reshape(-1, 3))).reshape(HEIGHT, WIDTH, 2)
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1)
    assert np.abs(uv - pixels)[seen].max() < 1e-3
    np.testing.assert_allclose(np.asarray(points[..., 2])[seen], np.asarray(fragments.depth)[seen], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(fragments.barycentrics).sum(-1), seen, atol=1e-6)
    assert np.asarray(fragments.barycentrics).min() >= 0
    assert (np.asarray(points)[~seen] == 0).all()
    assert np.isinf(np.asarray(fragments.depth)[~seen]).all()


def test_nearer_face_wins_and_ties_go_to_the_lower_index():
    square = np.asarray([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    vertices = jnp.asarray(np.concatenate([square + np.float32([0, 0, z]) for z in (3.0, 2.0, 2.0)]), jnp.float32)
    faces = jnp.asarray([[4 * k + i for i in t] for k in range(3) for t in ((0, 1, 2), (0, 2, 3))], jnp.int32)
    camera = Camera.perspective(20.0, 20.0, 8.0, 8.0)
    for order in (np.arange(6), np.arange(6)[::-1].copy()):
        index = np.asarray(draw_small(vertices, faces[order], camera, 17, 17).face_index)
        chosen = order[index]
        assert (index >= 0).all()
        assert (chosen >= 2).all()
        duplicates = {2: 4, 3: 5, 4: 2, 5: 3}
        positions = np.argsort(order)
        for face in np.unique(chosen):
            assert positions[face] < positions[duplicates[face]]


def test_ties_on_edges_do_not_depend_on_rounding_or_chunks():
    """Every face is drawn twice, with the copies far apart in the list: only the first copy is ever visible."""
    vertices, faces = sphere(40, 60)
    camera = Camera.perspective(150.0, 150.0, 31.7, 32.1)
    doubled = jnp.asarray(np.concatenate([faces, np.roll(faces[::-1], 1, axis=1)]))
    fragments = draw(jnp.asarray(vertices + np.float32([0, 0, 6])), doubled, camera, 64, 64)
    assert int(fragments.face_index.max()) < len(faces)


@CAMERAS
def test_a_face_much_larger_than_the_image_covers_it(camera):
    vertices = jnp.asarray([[-900.0, -800.0, 2.0], [1000.0, -700.0, 2.5], [30.0, 900.0, 1.5]])
    faces = jnp.asarray([[0, 1, 2]], jnp.int32)  # larger tiles are used for an image of this size
    fragments = draw(vertices, faces, camera, 300, 340)
    assert bool(fragments.mask.all())
    assert np.ptp(np.asarray(fragments.depth)) > 0


def test_tiny_faces_are_visible_exactly_where_they_cover_a_pixel_centre():
    centers = np.asarray([[3.0, 4.0], [7.5, 2.0], [9.0, 9.0]])  # the second lies between two pixel centres
    triangle = np.asarray([[-0.01, -0.01], [0.01, -0.01], [0.0, 0.012]])
    uv = (centers[:, None] + triangle).reshape(-1, 2)
    vertices = jnp.asarray(np.concatenate([uv, np.ones((9, 1))], -1), jnp.float32)
    faces = jnp.arange(9, dtype=jnp.int32).reshape(3, 3)
    mask = np.asarray(draw_small(vertices, faces, Camera.weak_perspective(), 12, 12).mask)
    assert {tuple(p) for p in np.argwhere(mask)} == {(4, 3), (9, 9)}


@CAMERAS
def test_closed_and_subdivided_surfaces_have_no_cracks(camera):
    """A plane cut into irregular triangles, and pixels exactly on shared edges and vertices."""
    rng = np.random.default_rng(0)
    n = 23
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.03, 0.03, (n - 2, n - 2, 2))
    grid[::2, ::2] = np.round(grid[::2, ::2] * 20) / 20  # on pixel centres of the camera below
    vertices = np.concatenate([grid.reshape(-1, 2), np.ones((n * n, 1))], -1).astype(np.float32)
    k = np.arange(n * n).reshape(n, n)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([c, d, a], -1)]).astype(np.int32)
    fine = transform_camera(camera, jnp.asarray([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))
    for view in (camera, fine):
        fragments = draw(jnp.asarray(vertices), jnp.asarray(faces), view, 140, 150)
        border = np.asarray(project(view, jnp.asarray(vertices[[0, -1]])))
        (left, top), (right, bottom) = np.ceil(border[0]).astype(int), np.floor(border[1]).astype(int)
        mask = np.asarray(fragments.mask)[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
        assert mask.size > 1000
        assert mask.all()


def test_faces_that_cannot_be_drawn_are_left_out():
    good = [[-0.2, -0.2, 1.0], [0.3, -0.2, 1.0], [0.0, 0.3, 1.0]]
    vertices = np.asarray(
        [*good, [0.0, 0.0, -0.5], [np.nan, 0.0, 1.0], [0.0, np.inf, 1.0], [0.0, 0.0, 0.0], [1e30, 0, 0.5], [0, 0, 0.5]],
        np.float32,
    )
    bad = [[3, 0, 1], [4, 0, 1], [5, 0, 1], [6, 0, 1], [0, 0, 1], [8, 8, 8], [0, 1, 99], [-1, 0, 1], [7, 3, 6]]
    camera = Camera.perspective(20.0, 20.0, 10.0, 10.0)
    faces = jnp.asarray([*bad, [0, 1, 2]], jnp.int32)
    fragments = draw_small(vertices, faces, camera, 20, 20)
    alone = draw_small(good, [[0, 1, 2]], camera, 20, 20)
    np.testing.assert_array_equal(fragments.mask, alone.mask)
    assert set(np.unique(fragments.face_index)) == {-1, len(bad)}
    assert np.isfinite(np.asarray(fragments.barycentrics)).all()
    assert not draw_small(vertices, bad, camera, 20, 20).mask.any()
    nothing = jnp.zeros((0, 3), jnp.int32)
    empty = rasterise(jnp.asarray(vertices), nothing, camera, 9, 7)
    assert not bool(empty.mask.any())
    assert empty.depth.shape == (9, 7)
    assert not bool(interpolate(empty, jnp.asarray(vertices)[nothing]).any())


def test_weak_perspective_draws_negative_depths():
    vertices = jnp.asarray([[0.0, 0.0, -3.0], [9.0, 0.0, -3.0], [0.0, 9.0, 4.0]])
    fragments = draw_small(vertices, jnp.asarray([[0, 1, 2]], jnp.int32), Camera.weak_perspective(), 5, 5)
    v = np.arange(5.0)[:, None] * np.ones((1, 5))
    assert bool(fragments.mask.sum() >= 15)
    np.testing.assert_allclose(
        np.asarray(fragments.depth)[fragments.mask], (-3 + 7 * v / 9)[fragments.mask], rtol=1e-5, atol=1e-6
    )


def test_pixel_centres_are_whole_numbers():
    """A square from 0.5 to 2.5 covers the centres 1 and 2, and nothing else."""
    vertices = jnp.asarray([[0.5, 0.5, 1.0], [2.5, 0.5, 1.0], [2.5, 2.5, 1.0], [0.5, 2.5, 1.0]])
    faces = jnp.asarray([[0, 1, 2], [0, 2, 3]], jnp.int32)
    mask = np.asarray(draw_small(vertices, faces, Camera.weak_perspective(), 4, 5).mask)
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(mask, expected)


def same(a: Fragments, b: Fragments) -> None:
    np.testing.assert_array_equal(a.face_index, b.face_index)
    np.testing.assert_allclose(a.barycentrics, b.barycentrics, atol=1e-5)
    np.testing.assert_allclose(a.depth, b.depth, rtol=1e-5)


def test_vmap_and_jit_change_nothing():
    faces = random_scene(3)[1]
    stack = jnp.asarray(np.stack([random_scene(seed)[0] for seed in range(4)]))
    cameras = jax.tree.map(lambda *x: jnp.stack(x), PERSPECTIVE, WEAK, PERSPECTIVE, WEAK)
    faces = jnp.asarray(faces)

    def one(v, c):
        return rasterise(v, faces, c, HEIGHT, WIDTH)

    plain = [draw(stack[i], faces, jax.tree.map(lambda x, i=i: x[i], cameras), HEIGHT, WIDTH) for i in range(4)]
    same(one(stack[0], PERSPECTIVE), plain[0])
    nested = jax.jit(jax.vmap(jax.vmap(one)))(
        stack.reshape(2, 2, VERTICES, 3), jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), cameras)
    )
    for i in range(4):
        same(plain[i], jax.tree.map(lambda x, i=i: x[i // 2, i % 2], nested))


def test_memory_does_not_grow_with_faces_times_pixels():
    vertices, faces = sphere(40, 41)
    assert len(faces) > 3100
    compiled = (
        jax.jit(rasterise, static_argnames=("height", "width"))
        .lower(jnp.asarray(vertices), jnp.asarray(faces), PERSPECTIVE, 256, 256)
        .compile()
    )
    memory = compiled.memory_analysis()
    if memory is None:
        pytest.skip("this backend reports no memory use")
    assert memory.temp_size_in_bytes < 40e6  # faces x pixels would be 840 MB in float32


def test_depth_has_a_finite_gradient():
    vertices, faces = random_scene(1)

    def total(v):
        depth = rasterise(v, jnp.asarray(faces), PERSPECTIVE, HEIGHT, WIDTH).depth
        return jnp.where(jnp.isfinite(depth), depth, 0.0).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray(vertices))
    assert bool(jnp.isfinite(gradient).all())
    assert bool((gradient != 0).any())


def test_sphere_normals_point_outward_smoothly():
    points, faces = sphere()
    normals = np.asarray(smooth_normals(jnp.asarray(points), jnp.asarray(faces)))
    inner = np.abs(points[:, 0]) < 0.999
    assert (normals[inner] * points[inner]).sum(-1).min() > np.cos(np.radians(2))
    assert np.isfinite(normals).all()
    # Independent of the unit: the faces of a hand in kilometres have areas that underflow when squared.
    small = np.asarray(smooth_normals(jnp.asarray(points * np.float32(1e-9)), jnp.asarray(faces)))
    np.testing.assert_allclose(small[inner], normals[inner], atol=1e-3)


def test_normals_by_area_and_by_angle_differ_in_how_they_average_faces():
    """At a cube corner, one side of which is cut into two triangles: angles see three equal sides, areas do not."""
    points = jnp.asarray([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 3]])
    faces = jnp.asarray([[0, 1, 2], [0, 3, 1], [0, 2, 4], [0, 4, 3]], jnp.int32)
    corner = np.asarray(vertex_normals(points, faces))[0]
    np.testing.assert_allclose(corner, np.full(3, 3**-0.5), atol=1e-6)
    by_area = np.asarray(vertex_normals(points, faces, by_area=True))[0]
    np.testing.assert_allclose(by_area, np.asarray([6.0, 1.0, 1.0]) / 38**0.5, atol=1e-6)


def test_normals_of_degenerate_faces_are_finite():
    points = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0]])
    faces = jnp.asarray([[0, 1, 2], [0, 0, 1], [1, 3, 0]], jnp.int32)
    gradient = jax.jit(jax.grad(lambda p: vertex_normals(p, faces)[:, 2].sum()))(points)
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_allclose(np.asarray(smooth_normals(points, faces))[[0, 1, 3]], [[0, 0, 1.0]] * 3, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(smooth_normals(points, faces))[4], [0.0, 0.0, 0.0])


def test_too_large_and_empty_images_are_refused():
    vertices, faces = (jnp.asarray(x) for x in random_scene(0))
    with pytest.raises(ValueError, match="at least one pixel"):
        draw(vertices, faces, PERSPECTIVE, 0, 5)
    with pytest.raises(ValueError, match="too many"):
        draw(vertices, faces, PERSPECTIVE, 10**6, 10**6)


def ball(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    points, faces = sphere(16, 24)
    return (points * np.float32(scale)), faces


def test_shaded_square_is_lit_from_above_and_smooth_at_its_edge():
    points, faces = ball()
    colors = jnp.broadcast_to(jnp.asarray(SKIN), points.shape)
    camera = Camera.weak_perspective(50.0, (63.5, 63.5))
    image = np.asarray(shaded_square(jnp.asarray(points), jnp.asarray(faces), camera, colors, 128)).astype(int)
    assert image.dtype.kind == "i"
    assert image.shape == (128, 128, 4)
    assert image[64, 64, 3] == 255
    assert image[2, 2, 3] == 0
    assert len(np.unique(image[..., 3])) > 3
    assert image[30, 64, :3].sum() > image[100, 64, :3].sum() + 60
    # Adjacent pixels inside the ball differ little: no facets, no cracks.
    inner = image[40:88, 40:88, :3]
    assert np.abs(np.diff(inner, axis=0)).max() < 12
    assert np.abs(np.diff(inner, axis=1)).max() < 12
    covered = (image[..., 3] / 255).sum()
    assert covered == pytest.approx(np.pi * 50**2, rel=0.03)


def test_inside_is_darker_than_outside():
    points, faces = ball()
    camera = Camera.weak_perspective(50.0, (63.5, 63.5))
    colors = jnp.full(points.shape, 0.5, jnp.float32)
    outside, inside = (
        np.asarray(shaded_square(jnp.asarray(points), jnp.asarray(f), camera, colors, 128)).astype(int)
        for f in (faces, np.ascontiguousarray(faces[:, ::-1]))
    )
    assert inside[64, 64, :3].sum() < 0.7 * outside[64, 64, :3].sum()


def test_srgb_ends_and_middle():
    np.testing.assert_allclose(to_srgb(jnp.asarray([-1.0, 0.0, 0.2140411, 1.0, 2.0])), [0, 0, 0.5, 1, 1], atol=1e-5)


def test_render_mesh_lands_on_its_pixels():
    points, faces = ball()
    camera = Camera.weak_perspective(20.0, (60.0, 25.0))
    photograph = np.full((70, 101, 3), 7, np.uint8)
    image = render_mesh(points, faces, camera, 70, 101, photograph)
    changed = np.argwhere((image != 7).any(-1))
    np.testing.assert_allclose(changed.mean(0), [25, 60], atol=0.5)
    np.testing.assert_allclose(np.ptp(changed, axis=0), 40, atol=2)
    assert (photograph == 7).all()
    away = render_mesh(points + np.float32([50, 0, 0]), faces, camera, 70, 101, photograph)
    np.testing.assert_array_equal(away, photograph)
    lost = render_mesh(np.full_like(points, np.nan), faces, camera, 70, 101, photograph)
    np.testing.assert_array_equal(lost, photograph)
    with pytest.raises(ValueError, match="background"):
        render_mesh(points, faces, camera, 70, 101, photograph[:5])
    with pytest.raises(ValueError, match="faces"):
        render_mesh(points, faces.astype(float), camera, 70, 101)


KEYPOINTS = np.random.default_rng(0).uniform(0, 1, (21, 2))


def test_skeleton_tolerates_missing_keypoints_and_any_size():
    pytest.importorskip("cv2")
    for size in (1, 16, 400):
        image = np.zeros((size, size + 3, 3), np.uint8)
        points = KEYPOINTS * size
        points[3], points[4], points[5] = np.nan, 1e30, np.inf
        drawn = draw_skeleton(image, points)
        assert drawn.shape == image.shape
        assert drawn.any()
        assert not image.any()
        assert draw_skeleton(image, points, hollow=True).any()
    assert not draw_skeleton(image, points, confidence=np.zeros(21)).any()
    with pytest.raises(ValueError, match="21"):
        draw_skeleton(image, points[:20])
    with pytest.raises(ValueError, match="uint8"):
        draw_skeleton(image.astype(float), points)


@pytest.mark.parametrize("size", [None, (5, 4), (90, 120), (600, 1500)])
def test_overlay_figure_of_any_photograph(size):
    pytest.importorskip("cv2")
    points, faces = ball(0.08)
    points = points + np.float32([0.0, 0.0, 0.6])
    h, w = size or (200, 200)
    camera = Camera.perspective(1.0 * w, 1.0 * w, 0.5 * w, 0.5 * h)
    keypoints = (KEYPOINTS - 0.5) * 0.3 * w + [0.5 * w, 0.5 * h]
    photograph = None if size is None else np.full((h, w, 3), 90, np.uint8)
    figure = overlay_figure(photograph, [(points, faces)], camera, [keypoints], [keypoints + 1], panel_height=110)
    assert figure.dtype == np.uint8
    assert figure.shape[0] == 110
    assert 250 < figure.shape[1] < 480
    assert np.ptp(figure) > 100
    assert overlay_figure(photograph, [], camera, panel_height=110).shape[0] == 110


@pytest.mark.parametrize("perspective", [True, False])
def test_hands_of_a_scene_occlude_each_other(perspective):
    """With intrinsics the closer ball is in front; without, the one that is larger in the image."""
    points, faces = ball(0.1)
    far, near = points + np.float32([0.0, 0.0, 1.2]), 0.5 * points + np.float32([0.0, 0.0, 0.6])
    pinhole = Camera.perspective(100.0, 100.0, 50.0, 50.0)
    camera = pinhole if perspective else Camera.weak_perspective(100.0, (50.0, 50.0))
    for order in ([0, 1], [1, 0]):
        vertices, triangles = scene([((far, faces), (near, faces))[i] for i in order], camera)
        assert len(vertices) == 2 * len(points)
        in_front = vertices[:, 2].argmin() // len(points)
        assert order[in_front] == (1 if perspective else 0)
    # Three are padded to four, without faces.
    vertices, triangles = scene([(far, faces)] * 3, camera)
    assert len(vertices) == 4 * len(points)
    assert (triangles[3 * len(faces) :] == 0).all()


def test_second_view_fits_and_turns():
    """A rod along x is a dot from 90 degrees; positive angles show its right end."""
    points, faces = ball()
    rod = points * np.float32([1.0, 0.1, 0.1])
    along, across = (
        (second_view(rod, faces, 100, 100, angle=a, pixels_per_unit=40.0) != 241).any(-1) for a in (0.0, 90.0)
    )
    assert np.ptp(np.argwhere(along)[:, 1]) > 70
    nothing = second_view(np.full_like(points, np.nan), faces, 30, 40)
    assert nothing.shape == (30, 40, 3)
    assert across.any()


def test_contact_sheet():
    pytest.importorskip("cv2")
    panels = [np.full((20, 30, 3), 10, np.uint8), np.full((10, 40, 3), 20, np.uint8), np.full((5, 5, 3), 30, np.uint8)]
    sheet = contact_sheet(panels, 2, ["one", "a very long caption that cannot fit", "dr\u00e9i"])
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 40 + 10 + 3 * 8  # all panels have the height 10; the row of two is the widest
    assert [(sheet == panel[0, 0]).all(-1).sum() for panel in panels] == [15 * 10, 40 * 10, 10 * 10]
    assert contact_sheet(3 * panels, 4, most_width=60).shape[1] <= 60
    grid = contact_sheet(6 * panels[:1], 2)
    assert grid.shape == (3 * 28 + 8, 2 * 38 + 8, 3)
    assert (grid == 10).all(-1).sum() == 6 * 20 * 30
    for arguments in (([], 2), (panels, 0), (panels, 2, ["one"])):
        with pytest.raises(ValueError, match="images"):
            contact_sheet(*arguments)


def test_error_without_opencv_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install .* opencv-python-headless"):
        draw_skeleton(np.zeros((4, 4, 3), np.uint8), KEYPOINTS)


def test_many_hands_are_drawn_in_groups():
    pytest.importorskip("cv2")
    points, faces = ball(0.02)
    meshes = [
        (points + np.float32([0.1 * (i % 4) - 0.15, 0.1 * (i // 4) - 0.1, 0.6 + 0.1 * i]), faces) for i in range(11)
    ]
    camera = Camera.perspective(200.0, 200.0, 100.0, 100.0)
    assert [len(group) for group in distant_first(meshes, camera)] == [8, 3]
    assert distant_first(meshes, camera)[-1][-1][0][:, 2].mean() == pytest.approx(0.6, abs=1e-3)
    black = np.zeros((200, 200, 3), np.uint8)
    figure = overlay_figure(black, meshes, camera, panel_height=110)
    assert figure.shape[0] == 110


@pytest.mark.parametrize(("size", "height"), [(90.0, 110), (25.0, 220), (2.0, 330)])
def test_small_hands_get_larger_panels(size, height):
    pytest.importorskip("cv2")
    keypoints = np.linspace(60.0, 60.0 + size, 21)[None, :, None] + np.zeros(2)
    points, faces = ball(0.02)
    meshes = [(points + np.float32([0.3, 0.0, 1.0]), faces), (points + np.float32([-0.3, 0.0, 1.0]), faces)]
    black, camera = np.zeros((200, 200, 3), np.uint8), Camera.perspective(200.0, 200.0, 100.0, 100.0)
    assert overlay_figure(black, meshes, camera, keypoints, keypoints, panel_height=110).shape[0] == height


def test_names_are_written_at_the_wrists():
    pytest.importorskip("cv2")
    points, faces = ball(0.02)
    keypoints = np.full((1, 21, 2), 100.0)
    arguments = (
        np.zeros((200, 200, 3), np.uint8),
        [(points + np.float32([0.0, 0.0, 1.0]), faces)],
        Camera.perspective(200.0, 200.0, 100.0, 100.0),
    )
    plain, named = (overlay_figure(*arguments, keypoints, keypoints, names) for names in ((), ("2 left",)))
    rows, columns = np.nonzero((plain != named).any(axis=-1))
    assert len(rows) > 50
    assert 200 < rows.min() < rows.max() < 240  # under the wrist, in the first of three panels of 400 pixels
    assert 150 < columns.min() < columns.max() < 250

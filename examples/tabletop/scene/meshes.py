"""Meshes from curves: surfaces of revolution, tubes, sheets, boxes, and how an object comes to rest.

Every shape is built in numpy in metres and handed to Blender once. An object is a list of parts (Blender
objects) that share one local frame, so a whole object is placed by giving all its parts the same matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import bmesh
import bpy
import numpy as np
from mathutils import Matrix, Vector
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Part: TypeAlias = "bpy.types.Object"
Material: TypeAlias = "bpy.types.Material"


def smooth(points: ArrayLike, rounds: int = 3) -> Array:
    """Round off an open polyline `(P, D)` by Chaikin corner cutting; a point given twice stays sharp."""
    curve = np.asarray(points, float)
    for _ in range(rounds):
        before, after = curve[:-1], curve[1:]
        cut = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=1)
        curve = np.concatenate([curve[:1], cut.reshape(-1, curve.shape[1]), curve[-1:]])
    return curve


def build(
    vertices: Array, faces: Sequence[Sequence[int]], uvs: Array, material: Material, crease_deg: float = 50.0
) -> Part:
    """Make a smooth-shaded part from vertices `(V, 3)`, faces and texture coordinates `(V, 2)`."""
    mesh = bpy.data.meshes.new("part")
    mesh.from_pydata(vertices.tolist(), [], [list(face) for face in faces])
    layer = mesh.uv_layers.new()
    corner = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", corner)
    layer.data.foreach_set("uv", uvs[corner].astype(np.float32).ravel())
    work = bmesh.new()
    work.from_mesh(mesh)
    bmesh.ops.remove_doubles(work, verts=work.verts, dist=1e-6)
    bmesh.ops.recalc_face_normals(work, faces=work.faces)
    work.to_mesh(mesh)
    work.free()
    mesh.polygons.foreach_set("use_smooth", [True] * len(mesh.polygons))
    mesh.set_sharp_from_angle(angle=math.radians(crease_deg))
    mesh.materials.append(material)
    part = bpy.data.objects.new("part", mesh)
    bpy.context.scene.collection.objects.link(part)
    return part


def sheet(points: Array, material: Material, crease_deg: float = 50.0) -> Part:
    """Span a surface over a grid of points `(M, N, 3)`; texture v runs along M, u along N."""
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    quads = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], axis=-1).reshape(-1, 4)
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    return build(points.reshape(-1, 3), quads.tolist(), np.stack([u, v], -1).reshape(-1, 2), material, crease_deg)


def lathe(
    profile: Array,
    material: Material,
    segments: int = 56,
    wobble: Callable[[Array, Array], Array] | None = None,
    crease_deg: float = 50.0,
) -> Part:
    """Turn a profile of (radius, height) rows `(P, 2)` about z; `wobble(angle, t)` scales the radius."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)[None, :]
    t = np.linspace(0, 1, len(profile))[:, None]
    radius = profile[:, :1] * (np.ones_like(angle) if wobble is None else wobble(angle, t))
    radius[:, -1] = radius[:, 0]
    height = np.broadcast_to(profile[:, 1:], radius.shape)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    points[:, -1] = points[:, 0]
    return sheet(points, material, crease_deg)


def tube(
    path: ArrayLike,
    radius: ArrayLike,
    material: Material,
    sides: int = 20,
    section: Callable[[Array], Array] | None = None,
    flatten: float = 1.0,
    closed: bool = False,
) -> Part:
    """Sweep a round (or `section(angle)`-shaped) cross-section along a path `(P, 3)`, with rounded-off ends.

    `flatten` scales the cross-section along the path's mean normal: below 1 makes a strap instead of a rod.
    """
    line = np.asarray(path, float)
    tangent = np.gradient(line, axis=0)
    if closed:
        line = np.concatenate([line, line[:1]])
        tangent = np.roll(line[:-1], -1, 0) - np.roll(line[:-1], 1, 0)
        tangent = np.concatenate([tangent, tangent[:1]])
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    widths = np.broadcast_to(np.asarray(radius, float), (len(line),))
    normal = _plane_normal(line)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    shape = np.ones_like(angle) if section is None else section(angle)
    rings = []
    for point, direction, width in zip(line, tangent, widths, strict=True):
        side = normal - direction * float(normal @ direction)
        side /= np.linalg.norm(side)
        other = np.cross(direction, side)
        ring = np.cos(angle)[:, None] * side * flatten + np.sin(angle)[:, None] * other
        ring[-1] = ring[0]
        rings.append(point + width * shape[:, None] * ring)
    if not closed:
        rings = [np.broadcast_to(line[0], rings[0].shape), *rings, np.broadcast_to(line[-1], rings[0].shape)]
    return sheet(np.array(rings), material)


def _plane_normal(line: Array) -> Array:
    """Return the direction a path varies least in, nudged so that no tangent of a straight path equals it."""
    centred = line - line.mean(0)
    return np.asarray(np.linalg.svd(centred, full_matrices=True)[2][-1] + 1e-3, float)


def box(size: ArrayLike, materials: Sequence[Material], bevel: float = 0.0, centre: ArrayLike = (0, 0, 0)) -> Part:
    """Make a box with materials for the faces -x, +x, -y, +y, -z, +z, or one for all; textures fill each."""
    half = np.asarray(size, float) / 2
    corners, faces = [], []
    for axis in range(3):
        for sign in (-1, 1):
            along, up = ((1, 2), (0, 2), (0, 1))[axis]
            mirror = sign if axis != 1 else -sign
            for a, b in ((-mirror, -1), (mirror, -1), (mirror, 1), (-mirror, 1)):
                corner = np.zeros(3)
                corner[axis], corner[along], corner[up] = sign * half[axis], a * half[along], b * half[up]
                corners.append(corner + np.asarray(centre, float))
            faces.append(range(len(corners) - 4, len(corners)))
    uvs = np.tile(np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float), (6, 1))
    part = build(np.array(corners), [list(face) for face in faces], uvs, materials[0])
    for material in materials[1:]:
        part.data.materials.append(material)
    if len(materials) == 6:
        part.data.polygons.foreach_set("material_index", list(range(6)))
    return soften(part, bevel)


def soften(part: Part, bevel: float, segments: int = 3) -> Part:
    """Round a part's sharp edges by a radius in metres."""
    if bevel > 0:
        modifier = part.modifiers.new("bevel", "BEVEL")
        modifier.width, modifier.segments, modifier.limit_method = bevel, segments, "ANGLE"
    return part


def thicken(part: Part, thickness: float, rounds: int = 1) -> Part:
    """Give a sheet a thickness in metres and round its rim."""
    modifier = part.modifiers.new("solid", "SOLIDIFY")
    modifier.thickness, modifier.offset = thickness, 0.0
    if rounds:
        rounding = part.modifiers.new("subdivide", "SUBSURF")
        rounding.levels = rounding.render_levels = rounds
    return part


def prism(outline: ArrayLike, thickness: float, material: Material, bevel: float = 0.0) -> Part:
    """Extrude a flat outline `(P, 2)` to a plate of a thickness in metres, lying in the xy plane."""
    flat = np.asarray(outline, float)
    count = len(flat)
    low = np.column_stack([flat, np.full(count, -thickness / 2)])
    high = np.column_stack([flat, np.full(count, thickness / 2)])
    sides = [(i, (i + 1) % count, count + (i + 1) % count, count + i) for i in range(count)]
    faces = [tuple(range(count))[::-1], tuple(range(count, 2 * count)), *sides]
    spread = np.ptp(flat, axis=0).max()
    uvs = np.tile((flat - flat.min(0)) / spread, (2, 1))
    return soften(build(np.concatenate([low, high]), faces, uvs, material, 30.0), bevel, 2)


def move(parts: Sequence[Part], matrix: Matrix) -> None:
    """Apply a matrix to the local geometry of all parts, so that the object is made that way."""
    for part in parts:
        part.data.transform(matrix)


def vertices_of(parts: Sequence[Part]) -> Array:
    """Return the corners `(V, 3)` of all parts in their common frame, after bevels and subdivision."""
    graph = bpy.context.evaluated_depsgraph_get()
    clouds = []
    for part in parts:
        mesh = part.evaluated_get(graph).data
        cloud = np.empty(3 * len(mesh.vertices), np.float32)
        mesh.vertices.foreach_get("co", cloud)
        clouds.append(cloud.reshape(-1, 3).astype(float))
    return np.concatenate(clouds)


def resting_pose(parts: Sequence[Part], rotation: Matrix) -> Matrix:
    """Return the matrix that turns an object by `rotation` and lets it rest on z = 0 above the origin.

    The object tips onto the face of its convex hull that already points most nearly down.
    """
    cloud = vertices_of(parts) @ np.asarray(rotation.to_3x3()).T
    work = bmesh.new()
    for corner in cloud[:: max(1, len(cloud) // 4000)]:
        work.verts.new(corner)
    hull = bmesh.ops.convex_hull(work, input=work.verts)
    faces = [face for face in hull["geom"] if isinstance(face, bmesh.types.BMFace) and face.calc_area() > 1e-9]
    bmesh.ops.recalc_face_normals(work, faces=faces)
    normals = np.round([face.normal[:] for face in faces], 4)  # the hull's last digits and order vary between runs
    work.free()
    down = Vector(normals[np.lexsort((normals[:, 1], normals[:, 0], normals[:, 2]))[0]])
    tip = down.rotation_difference(Vector((0, 0, -1))).to_matrix().to_4x4()
    cloud = cloud @ np.asarray(tip.to_3x3()).T
    middle = (cloud.min(0) + cloud.max(0)) / 2
    return Matrix.Translation((-middle[0], -middle[1], -cloud[:, 2].min())) @ tip @ rotation

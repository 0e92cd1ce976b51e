"""The room around the table: table top, floor, walls, and the light."""

from __future__ import annotations

import math
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector

from . import prints
from .clutter import far_things
from .colours import Colour, any_colour, dark, hsv, linear, mix, muted, pale
from .materials import Graph, Inputs, as_image, plain, wood
from .meshes import Material, Part, box

SKIES = ("interior", "studio", "courtyard", "city", "forest", "sunset", "sunrise")


def table(rng: np.random.Generator, behind: float) -> None:
    """Put a table under the object, its far edge `behind` metres away."""
    wide, front, thick = rng.uniform(0.9, 1.8), 1.0, rng.uniform(0.02, 0.04)
    top = box((wide, front + behind, thick), [_table_top(rng)], 0.003, centre=(0, (behind - front) / 2, -thick / 2))
    shift = Matrix.Translation((rng.uniform(-0.15, 0.15), 0, 0))
    top.matrix_world = Matrix.Rotation(rng.normal(0, 0.25), 4, "Z") @ shift
    if behind < 0.7:
        top.matrix_world = Matrix.Rotation(rng.uniform(-0.15, 0.15), 4, "Z") @ shift


def _table_top(rng: np.random.Generator) -> Material:
    """Draw what the table is made of."""
    kinds = (_oak, _cloth, _laminate, _stone, _steel, _mat, _tiles)
    pick = rng.choice(len(kinds), p=[0.34, 0.17, 0.17, 0.12, 0.07, 0.07, 0.06])
    return kinds[int(pick)](rng)


def _oak(rng: np.random.Generator) -> Material:
    return wood(rng, rng.uniform(35, 90), rng.choice([0.0, rng.uniform(0.06, 0.14)]))


def _cloth(rng: np.random.Generator) -> Material:
    graph = Graph("cloth")
    size = rng.uniform(0.03, 0.14)
    turn = graph.node("TexCoord").outputs["Object"]
    inputs: Inputs = {"Vector": turn, "Scale": (1 / size, 1 / size, 1.0), "Rotation": (0, 0, rng.uniform(0, 1.57))}
    place = graph.node("Mapping", inputs).outputs["Vector"]
    colour = graph.picture(as_image(prints.fabric(rng)), place)
    folds = graph.noise(graph.coordinates(scale=(1.0, 3.0, 1.0), shift=rng.uniform(0, 9)), rng.uniform(4, 9), 2.0)
    return graph.surface(colour, 0.95, Normal=graph.bump(folds, 0.7, 0.02), Sheen_Weight=0.3)


def _laminate(rng: np.random.Generator) -> Material:
    tone = pale(rng) if rng.random() < 0.5 else muted(rng) if rng.random() < 0.7 else dark(rng)
    graph = Graph("laminate")
    flecks = graph.noise(graph.coordinates(), rng.uniform(150, 500), 2.0)
    smear = graph.noise(graph.coordinates(shift=3.0), 6.0, 5.0)
    colour = graph.ramp(flecks, [(0.35, mix(tone, (0.4, 0.35, 0.3), rng.uniform(0.0, 0.25))), (0.65, tone)])
    return graph.surface(colour, graph.math("MULTIPLY_ADD", smear, 0.35, rng.uniform(0.05, 0.45)))


def _stone(rng: np.random.Generator) -> Material:
    tone, vein = (pale(rng), muted(rng)) if rng.random() < 0.6 else (dark(rng), mix(pale(rng), dark(rng), 0.5))
    graph = Graph("stone")
    if rng.random() < 0.5:
        grains = graph.node("TexVoronoi", {"Vector": graph.coordinates(), "Scale": rng.uniform(300, 900)})
        shade = graph.axis(grains.outputs["Color"], "X")
        colour = graph.ramp(shade, [(0.08, mix(tone, dark(rng), 0.7)), (0.25, mix(tone, vein, 0.6)), (0.7, tone)])
    else:
        cloud = graph.noise(graph.coordinates(shift=rng.uniform(0, 9)), rng.uniform(4, 10), 8.0, rng.uniform(0.5, 2.0))
        colour = graph.ramp(cloud, [(0.3, tone), (0.47, tone), (0.5, vein), (0.54, tone), (0.8, mix(tone, vein, 0.4))])
    return graph.surface(colour, rng.uniform(0.05, 0.3))


def _steel(rng: np.random.Generator) -> Material:
    graph = Graph("steel")
    brush = graph.noise(graph.coordinates(scale=(4.0, 900.0, 1.0)), 1.0, 4.0)
    tone = rng.uniform(0.45, 0.75)
    gloss = graph.math("MULTIPLY_ADD", brush, 0.25, rng.uniform(0.2, 0.35))
    return graph.surface((tone, tone, tone * 1.02, 1.0), gloss, Metallic=1.0, Normal=graph.bump(brush, 0.06))


def _mat(rng: np.random.Generator) -> Material:
    """Return a cutting mat or a robot cell's work surface: dark, ruled with a grid."""
    tone = hsv(rng.choice([0.35, 0.6, 0.0]), rng.uniform(0.0, 0.6), rng.uniform(0.15, 0.4))
    ink = mix(tone, (0.95, 0.95, 0.9), 0.7)
    graph = Graph("mat")
    inputs: Inputs = {
        "Vector": graph.coordinates(),
        "Scale": 1.0,
        "Mortar Size": 0.0007,
        "Brick Width": 0.05,
        "Row Height": 0.05,
    }
    inputs |= {"Color1": linear(tone), "Color2": linear(tone), "Mortar": linear(ink)}
    return graph.surface(graph.node("TexBrick", inputs, offset=0.0).outputs["Color"], 0.6)


def _tiles(rng: np.random.Generator) -> Material:
    tone = pale(rng) if rng.random() < 0.5 else muted(rng)
    graph = Graph("tiles")
    size = rng.uniform(0.05, 0.15)
    inputs: Inputs = {
        "Vector": graph.coordinates(),
        "Scale": 1.0,
        "Mortar Size": 0.0025,
        "Brick Width": size,
        "Row Height": size,
    }
    inputs |= {
        "Color1": linear(tone),
        "Color2": linear(mix(tone, (0, 0, 0), 0.12)),
        "Mortar": linear((0.6, 0.58, 0.55)),
    }
    return graph.surface(graph.node("TexBrick", inputs, offset=0.0).outputs["Color"], rng.uniform(0.08, 0.4))


def surroundings(rng: np.random.Generator, behind: float) -> None:
    """Build what is seen past the table: floor, and mostly a wall with things before it."""
    _plane(_floor(rng), (0, 1, -0.75), (0, 0, 0), 8)
    if rng.random() < 0.78:
        away = behind + rng.choice([rng.uniform(0.0, 0.05), rng.uniform(0.3, 1.6)])
        _plane(_wall(rng), (0, away, 1.0), (math.pi / 2, 0, rng.normal(0, 0.12)), 6)
        if rng.random() < 0.45:
            side = rng.choice([-1, 1])
            _plane(_wall(rng), (side * rng.uniform(0.9, 1.6), 0, 1.0), (math.pi / 2, 0, math.pi / 2), 6)
        _hangings(rng, away)
    if rng.random() < 0.65:
        far_things(rng, int(rng.integers(2, 8)), 0.42, max(0.5, behind - 0.06))


def _plane(
    material: Material, place: tuple[float, float, float], turn: tuple[float, float, float], size: float
) -> Part:
    part = box((size, size, 0.001), [material])
    part.location, part.rotation_euler = place, turn
    return part


def _floor(rng: np.random.Generator) -> Material:
    return wood(rng, 30.0, 0.15) if rng.random() < 0.5 else plain(muted(rng), 0.6)


def _wall(rng: np.random.Generator) -> Material:
    """Draw a wall: painted, papered in stripes, tiled or brick."""
    tone = pale(rng) if rng.random() < 0.5 else muted(rng)
    kind = rng.choice(["paint", "stripes", "tiles", "bricks"], p=[0.6, 0.12, 0.16, 0.12])
    graph = Graph("wall")
    place = graph.coordinates(shift=rng.uniform(0, 3))
    rough = graph.noise(place, 60.0, 4.0)
    if kind == "paint":
        cloud = graph.noise(place, 1.5, 3.0)
        colour = graph.ramp(cloud, [(0.3, mix(tone, (0, 0, 0), 0.12)), (0.7, tone)])
    elif kind == "stripes":
        wave = graph.node("TexWave", {"Vector": place, "Scale": rng.uniform(2, 6)}).outputs["Fac"]
        colour = graph.ramp(wave, [(0.0, tone), (0.5, mix(tone, muted(rng), 0.5))], hard=True)
    else:
        wide = 0.15 if kind == "tiles" else 0.21
        inputs: Inputs = {
            "Vector": place,
            "Scale": 1.0,
            "Mortar Size": 0.005,
            "Brick Width": wide,
            "Row Height": 0.5 * wide,
        }
        other = mix(tone, (0.5, 0.25, 0.15), 0.6) if kind == "bricks" else tone
        inputs |= {
            "Color1": linear(other),
            "Color2": linear(mix(other, (0, 0, 0), 0.2)),
            "Mortar": linear(pale(rng)),
        }
        colour = graph.node("TexBrick", inputs).outputs["Color"]
    return graph.surface(colour, 0.3 if kind == "tiles" else 0.85, Normal=graph.bump(rough, 0.2))


def _hangings(rng: np.random.Generator, away: float) -> None:
    """Hang pictures, a shelf with things, a bright window or a socket on the wall."""
    for _ in range(int(rng.integers(0, 4))):
        x, z = rng.uniform(-0.9, 0.9), rng.uniform(0.05, 0.7)
        kind = rng.choice(["picture", "window", "shelf", "switch"], p=[0.4, 0.2, 0.25, 0.15])
        if kind == "picture":
            frame = plain(any_colour(rng), 0.5)
            size = rng.uniform((0.15, 0.02, 0.15), (0.5, 0.02, 0.5))
            art = Graph("art")
            face = art.surface(art.picture(as_image(prints.scenery(rng, 128, 128))), 0.4)
            box(size, [frame], centre=(x, away - 0.02, z))
            box(size * (0.86, 1.0, 0.86), [face, face, face, face, face, face], centre=(x, away - 0.023, z))
        elif kind == "window":
            pane = Graph("window")
            shine = pane.node("Emission", {"Color": linear(_lamp_colour(rng)), "Strength": rng.uniform(1.5, 5.0)})
            box(
                (rng.uniform(0.3, 0.7), 0.01, rng.uniform(0.4, 0.8)),
                [pane.finish(shine.outputs[0])],
                centre=(x, away - 0.01, z + 0.4),
            )
        elif kind == "shelf":
            box((0.8, 0.15, 0.02), [wood(rng)], centre=(x, away - 0.08, z))
            for i in range(int(rng.integers(3, 9))):
                tall = rng.uniform(0.08, 0.25)
                thing = plain(any_colour(rng), 0.5)
                box(
                    (rng.uniform(0.02, 0.08), 0.1, tall),
                    [thing],
                    0.002,
                    centre=(x - 0.35 + 0.085 * i, away - 0.08, z + 0.01 + tall / 2),
                )
        else:
            box((0.08, 0.01, 0.08), [plain(pale(rng), 0.3)], 0.004, centre=(x, away - 0.006, z))


def _lamp_colour(rng: np.random.Generator) -> Colour:
    """Draw a white between a warm bulb and an overcast sky."""
    warm, cool = (1.0, 0.78, 0.55), (0.78, 0.88, 1.0)
    return mix(warm, cool, rng.random())


def light(rng: np.random.Generator) -> None:
    """Light the scene with a room or sky panorama and up to three lamps."""
    sky = SKIES[int(rng.integers(len(SKIES)))]
    _panorama(rng, Path(bpy.utils.system_resource("DATAFILES")) / "studiolights" / "world" / f"{sky}.exr")
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.25, 0.4, 0.25, 0.1]))):
        lamp = bpy.data.lights.new("lamp", "AREA")
        lamp.energy, lamp.size = 10 ** rng.uniform(0.4, 1.5), 10 ** rng.uniform(-1.5, -0.1)
        lamp.color = linear(_lamp_colour(rng))[:3]
        turn, rise, away = rng.uniform(0, 6.28), rng.uniform(0.35, 1.45), rng.uniform(0.8, 1.8)
        flat = math.cos(rise)
        place = Vector((flat * math.cos(turn), flat * math.sin(turn), math.sin(rise))) * away
        thing = bpy.data.objects.new("lamp", lamp)
        thing.location = place
        thing.rotation_euler = (-place).to_track_quat("-Z", "Y").to_euler()
        bpy.context.scene.collection.objects.link(thing)


def _panorama(rng: np.random.Generator, path: Path) -> None:
    world = bpy.data.worlds.new("world")
    bpy.context.scene.world = world
    nodes, links = world.node_tree.nodes, world.node_tree.links
    nodes.clear()
    world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 256
    coordinates, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
    mapping.inputs["Rotation"].default_value = (0, 0, rng.uniform(0, 6.28))
    picture = nodes.new("ShaderNodeTexEnvironment")
    picture.image = bpy.data.images.load(str(path))
    tint = nodes.new("ShaderNodeMix")
    tint.data_type, tint.blend_type = "RGBA", "MULTIPLY"
    tint.inputs[0].default_value = 1.0
    tint.inputs[7].default_value = linear(mix((1, 1, 1), _lamp_colour(rng), 0.6))
    ground, output = nodes.new("ShaderNodeBackground"), nodes.new("ShaderNodeOutputWorld")
    ground.inputs["Strength"].default_value = 10 ** rng.uniform(-0.5, 0.3)
    links.new(coordinates.outputs["Generated"], mapping.inputs["Vector"])
    links.new(mapping.outputs["Vector"], picture.inputs["Vector"])
    links.new(picture.outputs["Color"], tint.inputs[6])
    links.new(tint.outputs[2], ground.inputs["Color"])
    links.new(ground.outputs["Background"], output.inputs["Surface"])

"""Procedural materials as Cycles node graphs: ceramic, metal, wood, plastic, glass, prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import bpy
import numpy as np
from PIL import Image

from .colours import Colour, hsv, linear, mix, pale

Socket: TypeAlias = "bpy.types.NodeSocket"
Value: TypeAlias = "float | tuple[float, ...] | Socket"
Inputs: TypeAlias = "dict[str | int, Value]"


class Graph:
    """A material under construction: add nodes, end with `surface`."""

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.tree = self.material.node_tree
        self.tree.nodes.clear()

    def node(self, kind: str, inputs: Mapping[str | int, Value] | None = None, **settings: object) -> bpy.types.Node:
        """Add a node of a kind, set its properties, and set or connect its inputs."""
        node = self.tree.nodes.new(f"ShaderNode{kind}")
        for name, setting in settings.items():
            setattr(node, name, setting)
        for slot, value in (inputs or {}).items():
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, node.inputs[slot])
            else:
                node.inputs[slot].default_value = value
        return node

    def coordinates(
        self, kind: str = "Object", scale: tuple[float, float, float] = (1, 1, 1), shift: float = 0
    ) -> Socket:
        """Return texture coordinates: `Object` in metres, `UV` in 0-1."""
        source = self.node("TexCoord").outputs[kind]
        inputs: Inputs = {
            "Vector": source,
            "Scale": scale,
            "Location": (shift, shift * 1.7, shift * 0.6),
        }
        return self.node("Mapping", inputs).outputs["Vector"]

    def noise(self, vector: Socket, scale: float, detail: float = 3.0, distortion: float = 0.0) -> Socket:
        """Return fractal noise around 0.5."""
        inputs: Inputs = {
            "Vector": vector,
            "Scale": scale,
            "Detail": detail,
            "Distortion": distortion,
        }
        return self.node("TexNoise", inputs).outputs["Fac"]

    def spots(self, vector: Socket, scale: float) -> Socket:
        """Return the distance to the nearest of randomly strewn points."""
        return self.node("TexVoronoi", {"Vector": vector, "Scale": scale}).outputs["Distance"]

    def math(self, operation: str, first: Value, second: Value = 0.0, third: Value = 0.0) -> Socket:
        """Return an arithmetic operation on up to three values."""
        return self.node("Math", {0: first, 1: second, 2: third}, operation=operation).outputs[0]

    def axis(self, vector: Socket, name: str) -> Socket:
        """Return one coordinate, X, Y or Z, of a vector."""
        return self.node("SeparateXYZ", {0: vector}).outputs[name]

    def ramp(self, factor: Socket, stops: Sequence[tuple[float, Colour]], hard: bool = False) -> Socket:
        """Map a value in 0-1 through colour stops given as (position, sRGB colour)."""
        node = self.node("ValToRGB", {"Fac": factor})
        band = node.color_ramp
        band.interpolation = "CONSTANT" if hard else "LINEAR"
        for position, colour in stops[1:-1]:
            band.elements.new(position).color = linear(colour)
        for element, (position, colour) in ((band.elements[0], stops[0]), (band.elements[-1], stops[-1])):
            element.position, element.color = position, linear(colour)
        return node.outputs["Color"]

    def blend(self, factor: Value, first: Value, second: Value) -> Socket:
        """Mix two colours by a factor in 0-1."""
        node = self.node("Mix", {0: factor, 6: first, 7: second}, data_type="RGBA")
        return node.outputs[2]

    def bump(self, height: Socket, strength: float, distance: float = 0.001) -> Socket:
        """Return a normal that makes `height` (0-1, times `distance` in metres) look raised."""
        inputs: Inputs = {"Height": height, "Strength": strength, "Distance": distance}
        return self.node("Bump", inputs).outputs["Normal"]

    def picture(self, image: bpy.types.Image, vector: Socket | None = None, **settings: object) -> Socket:
        """Return the colour of a picture at the texture coordinates."""
        inputs: Inputs = {} if vector is None else {"Vector": vector}
        return self.node("TexImage", inputs, image=image, **settings).outputs["Color"]

    def surface(self, colour: Value, roughness: Value = 0.5, **inputs: Value) -> bpy.types.Material:
        """Finish with a principled surface; further inputs by name with `_` for a space, as `Coat_Weight`."""
        values: Inputs = {"Base Color": colour, "Roughness": roughness}
        values |= {name.replace("_", " "): value for name, value in inputs.items()}
        shader = self.node("BsdfPrincipled", values).outputs["BSDF"]
        return self.finish(shader)

    def finish(self, shader: Socket) -> bpy.types.Material:
        """Make a shader the material's surface."""
        self.node("OutputMaterial", {"Surface": shader})
        return self.material


def as_image(picture: Image.Image) -> bpy.types.Image:
    """Hand a PIL picture to the renderer."""
    rgba = np.asarray(picture.convert("RGBA"), np.float32)[::-1] / 255.0
    image = bpy.data.images.new("print", picture.width, picture.height)
    image.pixels.foreach_set(rgba.ravel())
    image.update()
    return image


def plain(colour: Colour, roughness: float = 0.4, metallic: float = 0.0, coat: float = 0.0) -> bpy.types.Material:
    """Return a one-coloured surface with slightly uneven gloss, as nothing real is quite even."""
    graph = Graph("plain")
    grime = graph.noise(graph.coordinates(), 60.0, 4.0)
    gloss = graph.math("MULTIPLY_ADD", grime, 0.3 * roughness, roughness * 0.85)
    shade = graph.ramp(grime, [(0.3, mix(colour, (0, 0, 0), 0.1)), (0.7, colour)])
    return graph.surface(shade, gloss, Metallic=metallic, Coat_Weight=coat)


def metal(rng: np.random.Generator, colour: Colour | None = None) -> bpy.types.Material:
    """Return steel, brass or copper (or the given colour), polished or brushed."""
    tones = [(0.8, 0.8, 0.82), (0.72, 0.73, 0.75), (0.85, 0.7, 0.42), (0.82, 0.55, 0.42)]
    tone = colour or tones[rng.choice(4, p=[0.5, 0.35, 0.09, 0.06])]
    graph = Graph("metal")
    stretch = (30.0, 900.0, 900.0) if rng.random() < 0.5 else (60.0, 60.0, 60.0)
    scratch = graph.noise(graph.coordinates(scale=stretch), 1.0, 5.0)
    base = rng.uniform(0.1, 0.32)
    gloss = graph.math("MULTIPLY_ADD", scratch, 0.22, base)
    return graph.surface(linear(tone), gloss, Metallic=1.0, Normal=graph.bump(scratch, 0.05))


def wood(rng: np.random.Generator, grain_per_m: float = 60.0, planks: float = 0.0) -> bpy.types.Material:
    """Return varnished or raw wood with grain along x, and joints every `planks` metres where above zero."""
    tone = hsv(rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.85))
    deep = mix(tone, (0.12, 0.06, 0.02), rng.uniform(0.25, 0.6))
    graph = Graph("wood")
    place = graph.coordinates(shift=rng.uniform(0, 9))
    along = graph.coordinates(scale=(0.12, 1.0, 1.0), shift=rng.uniform(0, 9))
    wave = graph.node(
        "TexWave", {"Vector": along, "Scale": grain_per_m / 8, "Distortion": rng.uniform(3, 9), "Detail": 3.0}
    )
    fibre = graph.noise(graph.coordinates(scale=(0.03, 1.0, 1.0)), grain_per_m * 6, 4.0)
    grain = graph.math("MULTIPLY_ADD", fibre, 0.55, graph.math("MULTIPLY", wave.outputs["Fac"], 0.45))
    colour = graph.ramp(grain, [(0.15, deep), (0.5, mix(tone, deep, 0.3)), (0.85, tone)])
    if planks > 0:
        inputs: Inputs = {
            "Vector": place,
            "Scale": 1.0,
            "Mortar Size": 0.002,
            "Brick Width": 0.9,
            "Row Height": planks,
        }
        inputs |= {"Color1": (0.75, 0.75, 0.75, 1), "Color2": (1, 1, 1, 1), "Mortar": (0.12, 0.1, 0.08, 1)}
        joints = graph.node("TexBrick", inputs).outputs["Color"]
        colour = graph.node("Mix", {0: 1.0, 6: colour, 7: joints}, data_type="RGBA", blend_type="MULTIPLY").outputs[2]
    gloss = graph.math("MULTIPLY_ADD", fibre, 0.2, rng.uniform(0.2, 0.6))
    return graph.surface(colour, gloss, Normal=graph.bump(grain, 0.15))


def printed(
    picture: Image.Image, roughness: float = 0.5, coat: float = 0.0, metallic: float = 0.0
) -> bpy.types.Material:
    """Return paper, card or tin printed with a picture."""
    graph = Graph("print")
    wear = graph.noise(graph.coordinates(), 90.0, 4.0)
    gloss = graph.math("MULTIPLY_ADD", wear, 0.2, roughness - 0.1)
    colour = graph.picture(as_image(picture), extension="EXTEND")
    return graph.surface(colour, gloss, Coat_Weight=coat, Metallic=metallic)


def clear(colour: Colour, roughness: float = 0.0, ior: float = 1.45) -> bpy.types.Material:
    """Return tinted glass or clear plastic whose shadow is light too."""
    graph = Graph("clear")
    inputs: Inputs = {"Base Color": linear(colour), "Roughness": roughness, "IOR": ior}
    inputs |= {"Transmission Weight": 1.0}
    glass = graph.node("BsdfPrincipled", inputs).outputs["BSDF"]
    through = graph.node("BsdfTransparent", {"Color": linear(mix(colour, (1, 1, 1), 0.3))}).outputs["BSDF"]
    shadow = graph.node("LightPath").outputs["Is Shadow Ray"]
    return graph.finish(graph.node("MixShader", {0: shadow, 1: glass, 2: through}).outputs["Shader"])


def ceramic(
    rng: np.random.Generator, base: Colour, second: Colour, low: float, high: float, style: str | None = None
) -> bpy.types.Material:
    """Return glazed pottery between two heights in metres: plain, speckled, dipped, banded or brushed."""
    look = style or str(
        rng.choice(["plain", "speckled", "dipped", "bands", "cloudy"], p=[0.38, 0.18, 0.22, 0.17, 0.05])
    )
    graph = Graph("ceramic")
    place = graph.coordinates(shift=rng.uniform(0, 5))
    height = graph.node("MapRange", {"Value": graph.axis(graph.coordinates(), "Z"), "From Min": low, "From Max": high})
    level = height.outputs["Result"]
    ripple = graph.noise(place, 25.0, 3.0)
    if look == "speckled":
        edge = rng.uniform(0.12, 0.25)
        colour = graph.ramp(graph.spots(place, rng.uniform(180, 500)), [(edge, second), (edge + 0.05, base)])
    elif look == "dipped":
        wavy = graph.math("MULTIPLY_ADD", ripple, 0.25, graph.math("SUBTRACT", level, 0.12))
        line = rng.uniform(0.3, 0.75)
        colour = graph.ramp(wavy, [(line, base), (line + 0.03, second)])
    elif look == "bands":
        cuts = np.sort(rng.uniform(0.1, 0.95, 4))
        stops = [(0.0, base), *((float(c), (second, base)[i % 2]) for i, c in enumerate(cuts)), (1.0, base)]
        colour = graph.ramp(level, stops, hard=True)
    elif look == "cloudy":
        colour = graph.ramp(graph.noise(place, 18.0, 5.0, 1.5), [(0.35, base), (0.65, second)])
    else:
        colour = graph.ramp(ripple, [(0.3, mix(base, (0, 0, 0), 0.06)), (0.7, base)])
    roughness = rng.uniform(0.06, 0.5)
    return graph.surface(colour, roughness, Coat_Weight=float(rng.random() < 0.5), Normal=graph.bump(ripple, 0.12))


def any_vessel_material(rng: np.random.Generator, base: Colour, low: float, high: float) -> bpy.types.Material:
    """Draw what pots and plates are made of: mostly ceramic, sometimes plastic, wood, enamel or steel."""
    kind = rng.choice(4, p=[0.72, 0.13, 0.08, 0.07])
    if kind == 0:
        return ceramic(rng, base, pale(rng) if rng.random() < 0.5 else mix(base, (0.1, 0.08, 0.1), 0.6), low, high)
    if kind == 1:
        return plain(base, rng.uniform(0.25, 0.5))
    return wood(rng, 120.0) if kind == 2 else metal(rng)

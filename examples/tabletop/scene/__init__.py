"""The procedural tabletop that `examples/render_tabletop.py` renders: one module an ingredient."""

import bpy  # noqa: F401  first: it brings bmesh and mathutils along

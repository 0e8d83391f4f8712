"""MiniVRS: cartoon clips with exact masks, and sentences that are true by construction."""

# `import x as x`: used by other modules of this package, not part of its public names.
from .data import SPLITS, Clip, MiniVRS, make_clip, write_revos
from .restrictors import RESTRICTORS, Restrictor
from .restrictors import Record as Record
from .scenes import OCCLUDERS, SCENES, add_occluder, add_scene, draw_occluder, draw_scene
from .sentences import FACTS, LOOKS, Expression, draw_expressions
from .sentences import FAMILIES as FAMILIES
from .sentences import try_expression as try_expression
from .sprites import COLOURS, SPRITES, Pen, add_sprite, draw_sprite
from .world import KINDS, MOTIONS, Kind, add_motion, held_out, make_world, render_world
from .world import SIZES as SIZES

__all__ = [
    "COLOURS",
    "FACTS",
    "KINDS",
    "LOOKS",
    "MOTIONS",
    "OCCLUDERS",
    "RESTRICTORS",
    "SCENES",
    "SPLITS",
    "SPRITES",
    "Clip",
    "Expression",
    "Kind",
    "MiniVRS",
    "Pen",
    "Restrictor",
    "add_motion",
    "add_occluder",
    "add_scene",
    "add_sprite",
    "draw_expressions",
    "draw_occluder",
    "draw_scene",
    "draw_sprite",
    "held_out",
    "make_clip",
    "make_world",
    "render_world",
    "write_revos",
]

"""MiniVRS: cartoon clips with exact masks, and sentences that are true by construction."""

from .data import SPLITS, Clip, MiniVRS, make_clip, write_revos
from .scenes import OCCLUDERS, SCENES, add_occluder, add_scene, draw_occluder, draw_scene
from .sentences import (
    FACTS,
    FAMILIES,
    LOOKS,
    RESTRICTORS,
    Expression,
    Record,
    Restrictor,
    draw_expressions,
)
from .sprites import COLOURS, SPRITES, Pen, add_sprite, draw_sprite
from .world import (
    KINDS,
    MOTIONS,
    SIZES,
    Kind,
    Thing,
    World,
    add_motion,
    held_out,
    make_world,
    render_world,
)

__all__ = [
    "COLOURS",
    "FACTS",
    "FAMILIES",
    "KINDS",
    "LOOKS",
    "MOTIONS",
    "OCCLUDERS",
    "RESTRICTORS",
    "SCENES",
    "SIZES",
    "SPLITS",
    "SPRITES",
    "Clip",
    "Expression",
    "Kind",
    "MiniVRS",
    "Pen",
    "Record",
    "Restrictor",
    "Thing",
    "World",
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

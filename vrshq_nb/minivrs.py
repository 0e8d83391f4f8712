"""MiniVRS: a small world of cartoon clips and sentences about them, drawn by code, without end."""
# %% imports
from __future__ import annotations
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
import numpy as np

from vrshq_nb.sprites import COLOURS, SCENES, draw_occluder, draw_scene, draw_sprite
# %% facts
@dataclass(frozen=True)
class Kind:
    "A kind of thing: its plural, the classes it belongs to and what everybody knows about it."
    name: str
    plural: str
    classes: tuple = ()  # hypernyms: "animal", "vehicle", "toy"
    facts: tuple = ()    # keys of `FACTS`

KINDS = {k.name: k for k in [
    Kind("cat", "cats", ("animal",), ("purrs", "fur")),
    Kind("dog", "dogs", ("animal",), ("barks", "fur")),
    Kind("bird", "birds", ("animal",), ("flies", "nest", "wings")),
    Kind("fish", "fish", ("animal",), ("swims",)),
    Kind("butterfly", "butterflies", ("animal",), ("flies", "caterpillar", "wings")),
    Kind("rabbit", "rabbits", ("animal",), ("carrots", "fur")),
    Kind("kite", "kites", ("toy",), ("flies", "wind", "string")),
    Kind("balloon", "balloons", ("toy",), ("flies", "string", "pops")),
    Kind("sailboat", "sailboats", ("vehicle",), ("wind", "water", "ride")),
    Kind("car", "cars", ("vehicle",), ("wheels", "ride")),
    Kind("bus", "buses", ("vehicle",), ("wheels", "passengers", "ride")),
    Kind("ball", "balls", ("toy",), ("kick",)),
    Kind("rocket", "rockets", ("vehicle",), ("flies", "space", "ride")),
    Kind("flower", "flowers", (), ("grows",)),
    Kind("cup", "cups", (), ("drink",)),
    Kind("lamp", "lamps", (), ("light",)),
    Kind("umbrella", "umbrellas", (), ("rain",)),
    Kind("book", "books", (), ("read",)),
]}
CLASSES = {"animal": "animals", "vehicle": "vehicles", "toy": "toys"}
SIZES = {"small": .17, "medium": .23, "big": .31}  # longest side, as a fraction of the frame

# wordings of a fact; the last of each list is kept for the `phrase` split
FACTS = {
    "purrs": ["the animal that purrs", "the one who drinks milk", "who likes to chase mice?", "the pet that says meow"],
    "barks": ["the animal that barks", "the one who guards the house", "who likes to fetch a stick?", "the pet that says woof"],
    "fur": ["the one with soft fur", "the thing that has fur", "what is covered in fur?", "the furry creature"],
    "nest": ["the animal that builds a nest", "the one with feathers", "who lays eggs in a tree?", "the feathered creature"],
    "swims": ["the thing that swims", "the animal that lives under water", "what breathes with gills?", "the one at home in the water"],
    "caterpillar": ["the one who was once a caterpillar", "the insect", "what visits flowers for nectar?", "the creature that came from a cocoon"],
    "carrots": ["the one who eats carrots", "the animal with long ears", "who hops across the meadow?", "the creature that loves carrots"],
    "flies": ["the thing that flies", "the one that can fly", "what is able to fly?", "the thing at home in the air"],
    "wings": ["the one that flaps its wings", "the animal with wings", "who has wings?", "the winged creature"],
    "wind": ["the thing pushed by the wind", "the one that needs wind", "what is moved by the wind?", "the thing that is useless without wind"],
    "string": ["the thing held by a string", "the one on a string", "what is tied to a string?", "the thing a child holds by its string"],
    "pops": ["the thing a needle would pop", "the one filled with gas", "what would burst if pricked?", "the thing that can go bang"],
    "water": ["the thing that floats on water", "the one that belongs on a lake", "what would you sail in?", "the thing for a trip on the lake"],
    "wheels": ["the thing with wheels", "the one that runs on wheels", "what rolls along a road?", "the thing that needs a road"],
    "passengers": ["the thing that carries many passengers", "the one that stops for passengers", "what takes many people to work?", "the public transport"],
    "ride": ["the thing people travel in", "the one that takes people somewhere", "what could you travel in?", "the means of transport"],
    "kick": ["the thing players kick", "the one you need for a match", "what would you throw and catch?", "the round thing for a game"],
    "space": ["the thing that goes to the moon", "the one that flies to space", "what would an astronaut use?", "the thing that leaves the earth"],
    "grows": ["the thing that grows", "the one that needs water and sun", "what would you plant in a garden?", "the living thing with petals"],
    "drink": ["the thing you drink from", "the one for coffee or tea", "what holds a hot drink?", "the thing you pour tea into"],
    "light": ["the thing that gives light", "the one you switch on when it is dark", "what lights up a room?", "the thing that helps you see at night"],
    "rain": ["the thing that keeps the rain off", "the one to take along when it rains", "what keeps you dry?", "the shelter you carry in bad weather"],
    "read": ["the thing you read", "the one with pages", "what tells a story?", "the thing full of words"],
}

def held_out(kind: str, colour: str) -> bool:
    "Colour–kind pairs that only the `compose` split shows (about one in seven)."
    return (3 * list(KINDS).index(kind) + list(COLOURS).index(colour)) % 7 == 0
# %% paths
def _inside(rng, size, dx=0., dy=0.):
    "A start point so that a sprite of `size` moving by (dx, dy) stays within the frame."
    pad = size / 2 + .02
    low = [pad + max(0., -d) for d in (dx, dy)]
    high = [1 - pad - max(0., d) for d in (dx, dy)]
    return np.array([rng.uniform(lo, max(hi, lo + 1e-3)) for lo, hi in zip(low, high)])

def _direction(rng, length):
    "A displacement of `length` along one of the four sides, slightly slanted."
    angle = rng.integers(4) * math.pi / 2 + rng.uniform(-.2, .2)
    return length * math.cos(angle), length * math.sin(angle)

def _along(rng, u, size, progress):
    dx, dy = _direction(rng, rng.uniform(.35, .55))
    return _inside(rng, size, dx, dy) + progress(u)[:, None] * np.array([dx, dy])

def path_still(rng, u, size): return np.repeat(_inside(rng, size)[None], len(u), 0)
def path_straight(rng, u, size): return _along(rng, u, size, lambda u: u)
def path_speeding(rng, u, size): return _along(rng, u, size, lambda u: u ** 3)
def path_stopping(rng, u, size):
    stop = rng.uniform(.4, .55)
    return _along(rng, u, size, lambda u: np.minimum(u / stop, 1))

def path_bouncing(rng, u, size):
    height, drift, hops = rng.uniform(.2, .3), rng.uniform(-.1, .1), rng.integers(2, 4)
    start = _inside(rng, size, drift, -height)
    return start + np.stack([drift * u, -height * np.abs(np.sin(math.pi * hops * u))], 1)

def path_circling(rng, u, size):
    radius, turns = rng.uniform(.1, .16), rng.uniform(1.1, 1.6) * rng.choice([-1, 1])
    pad = size / 2 + radius
    angle = rng.uniform(0, 2 * math.pi) + 2 * math.pi * turns * u
    return rng.uniform(pad, 1 - pad, 2) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)

def path_zigzag(rng, u, size):
    dx, width, turns = rng.choice([-1, 1]) * rng.uniform(.35, .5), rng.uniform(.18, .26), rng.integers(2, 4)
    wave = np.abs((u * turns * 2) % 2 - 1) * width
    return _inside(rng, size, dx, width) + np.stack([dx * u, wave], 1)

def _edge(rng, point, size):
    "The nearest place outside the frame to the left or right of `point`."
    return np.array([-size / 2 - .03 if rng.random() < .5 else 1 + size / 2 + .03, point[1]])

def path_entering(rng, u, size):
    inside = _inside(rng, size); t0 = rng.uniform(.35, .55)
    w = np.clip((u - t0) / rng.uniform(.25, .4), 0, 1)[:, None]
    return (1 - w) * _edge(rng, inside, size) + w * inside

def path_leaving(rng, u, size):
    inside = _inside(rng, size); t0 = rng.uniform(.15, .4)
    w = np.clip((u - t0) / rng.uniform(.2, .35), 0, 1)[:, None]
    return (1 - w) * inside + w * _edge(rng, inside, size)

def path_hiding(rng, u, size):
    dx = rng.choice([-1, 1]) * rng.uniform(.62, .68)
    return _inside(rng, size, dx, 0) + np.stack([dx * u, 0 * u], 1)

def path_parting(rng, u, size):
    "Walks out of the frame but stops when only its rear shows."
    y, side = rng.uniform(.3, .8), rng.choice([-1, 1])
    end = .5 + side * (.5 + size * rng.uniform(.27, .33))
    start = .5 - side * rng.uniform(0, .25)
    w = np.minimum(u / rng.uniform(.75, .9), 1)
    return np.stack([start + (end - start) * w, 0 * u + y], 1)

MOTIONS = {"still": path_still, "straight": path_straight, "bouncing": path_bouncing, "circling": path_circling,
           "zigzag": path_zigzag, "speeding": path_speeding, "stopping": path_stopping, "entering": path_entering,
           "leaving": path_leaving, "hiding": path_hiding, "parting": path_parting}
MOTION_WEIGHTS = np.array([.15, .21, .07, .07, .07, .06, .08, .09, .09, .08, .03])
# %% things
@dataclass
class Thing:
    "One object of a clip: what it is, and where its centre is in every frame (`xy`, fractions of the frame)."
    kind: str
    colour: str
    size: str
    motion: str
    xy: np.ndarray        # (T, 2)
    extent: float         # longest side, fraction of the frame
    faces_left: bool
    phase: float
    cycle: float          # animation cycles over the clip

@dataclass
class Occluder:
    "Something that stands before the things: a tree, a wall or a cloud."
    kind: str
    box: tuple            # centre x, centre y, width, height; fractions of the frame
    seed: int

def _colour_for(rng, kind, split):
    "A colour for `kind`; held-out pairs only in the `compose` split."
    pool = [c for c in COLOURS if not held_out(kind, c)]
    if split == "compose" and rng.random() < .6: pool = [c for c in COLOURS if held_out(kind, c)] or pool
    return pool[rng.integers(len(pool))]

def _cast(rng, n, split):
    "Kinds and colours for `n` things; often two share the kind, the colour or both."
    cast = []
    for _ in range(n):
        kind = list(KINDS)[rng.integers(len(KINDS))]
        other = cast[rng.integers(len(cast))] if cast else None
        share = rng.random() if other else 1.
        if share < .38: kind = other[0]
        colour = _colour_for(rng, kind, split)
        if (share < .1 or .38 < share < .55) and (split == "compose" or not held_out(kind, other[1])): colour = other[1]
        cast.append((kind, colour))
    return cast

def _clear(xy, others):
    "How far a path keeps from the others: the mean over frames of the distance to the nearest."
    if not others: return 1.
    return np.min([np.linalg.norm(xy - o.xy, axis=1) - .35 * o.extent for o in others], 0).mean()

def _make_thing(rng, kind, colour, u, others):
    "A thing on the clearest of a few random paths."
    size = list(SIZES)[rng.integers(3)]
    motion = rng.choice(list(MOTIONS), p=MOTION_WEIGHTS)
    if motion == "parting" and kind != "cat" or kind == "cat" and rng.random() < .25:
        motion = "parting" if kind == "cat" else "leaving"
    extent = SIZES[size] * rng.choice([.95, 1.05])
    if motion == "parting": extent = max(extent, .24)
    paths = [MOTIONS[motion](rng, u, extent) for _ in range(5)]
    xy = max(paths, key=lambda p: _clear(p, others))
    dx = xy[-1, 0] - xy[0, 0]
    left = dx < 0 if abs(dx) > .03 else bool(rng.random() < .5)
    size = min(SIZES, key=lambda s: abs(SIZES[s] - extent))
    return Thing(kind, colour, size, str(motion), xy, extent, left, rng.random(), rng.uniform(2., 4.) * len(u) / 16)

def _hide_behind(rng, thing, occluders):
    "An occluder on the middle of a hiding thing's way, wide enough to cover it."
    x, y = thing.xy[len(thing.xy) // 2]
    kind = ("tree", "wall", "cloud")[rng.integers(3)]
    occluders.append(Occluder(kind, (x, y, thing.extent * 1.35 + .06, thing.extent * 1.35 + .06), int(rng.integers(1 << 30))))
# %% sprites
PHASES = 4

@lru_cache(maxsize=8192)
def sprite(kind: str, colour: str, pixels: int, phase: int, faces_left: bool) -> np.ndarray:
    "A cached sprite, uint8 RGBA [h,w,4], facing the way it goes."
    rgba = draw_sprite(kind, COLOURS[colour], pixels, phase / PHASES)
    return np.ascontiguousarray(rgba[:, ::-1]) if faces_left else rgba

@lru_cache(maxsize=256)
def _occluder(kind, height, width, seed): return draw_occluder(kind, height, width, np.random.default_rng(seed))

def paste(frame, ids, layer, cx, cy, label):
    "Blend a layer [h,w,4] into `frame` [H,W,3] around (cx, cy) and write `label` into `ids` [H,W]; returns its full area."
    (h, w), (H, W) = layer.shape[:2], ids.shape
    top, left = round(cy - h / 2), round(cx - w / 2)
    y0, y1, x0, x1 = max(top, 0), min(top + h, H), max(left, 0), min(left + w, W)
    if y0 < y1 and x0 < x1:
        cut, region = layer[y0 - top:y1 - top, x0 - left:x1 - left], frame[y0:y1, x0:x1]
        alpha = cut[..., 3:].astype(np.uint16)
        region[:] = (region * (255 - alpha) + cut[..., :3] * alpha) // 255
        ids[y0:y1, x0:x1][cut[..., 3] > 127] = label
    return np.count_nonzero(layer[..., 3] > 127)
# %% render
@dataclass
class World:
    "The full record of a clip before it is drawn."
    scene: str
    things: list
    occluders: list
    drift: np.ndarray     # (T, 2), fractions of the frame
    seed: int

def make_world(rng: np.random.Generator, n_frames: int, split: str = "train") -> World:
    "Draws the record of a random clip: scene, 2–6 things, their ways, occluders and camera drift."
    u = np.linspace(0, 1, n_frames) if n_frames > 1 else np.array([.5])
    things, occluders = [], []
    for kind, colour in _cast(rng, int(rng.integers(2, 7)), split): things.append(_make_thing(rng, kind, colour, u, things))
    for thing in things:
        if thing.motion == "hiding": _hide_behind(rng, thing, occluders)
    if not occluders and rng.random() < .15:
        occluders.append(Occluder("tree", (rng.uniform(.1, .9), rng.uniform(.4, .8), .2, .3), int(rng.integers(1 << 30))))
    wave = rng.uniform(0, .015, 2) * np.sin(2 * math.pi * (rng.uniform(.3, .8, 2) * u[:, None] + rng.random(2)))
    return World(list(SCENES)[rng.integers(len(SCENES))], things, occluders, wave, int(rng.integers(1 << 30)))

def _drawing_order(things):
    "Smaller things come last, so that they are seen."
    return sorted(range(len(things)), key=lambda i: -things[i].extent)

def _draw_frame(world, background, t, n_frames, size, areas):
    "One frame and its id map (0 background, i+1 thing i)."
    margin = (background.shape[0] - size) // 2
    dx, dy = (round(d * size) for d in world.drift[t])
    frame = background[margin - dy:margin - dy + size, margin - dx:margin - dx + size].copy()
    ids = np.zeros((size, size), np.uint8)
    for i in _drawing_order(world.things):
        th = world.things[i]
        phase = int((th.phase + th.cycle * t / n_frames) * PHASES) % PHASES
        layer = sprite(th.kind, th.colour, max(round(th.extent * size), 6), phase, th.faces_left)
        areas[i, t] = paste(frame, ids, layer, th.xy[t, 0] * size + dx, th.xy[t, 1] * size + dy, i + 1)
    for oc in world.occluders:
        layer = _occluder(oc.kind, round(oc.box[3] * size), round(oc.box[2] * size), oc.seed)
        paste(frame, ids, layer, oc.box[0] * size + dx, oc.box[1] * size + dy, 0)
    return frame, ids

def render(world: World, n_frames: int, size: int) -> tuple:
    "Draws a world: frames uint8 [T,H,W,3], id maps uint8 [T,H,W], unoccluded areas [n,T] in pixels."
    rng = np.random.default_rng(world.seed)
    margin = max(round(.03 * size), 1)
    background = draw_scene(world.scene, size + 2 * margin, size + 2 * margin, rng)
    areas = np.zeros((len(world.things), n_frames), np.int64)
    frames, ids = zip(*[_draw_frame(world, background, t, n_frames, size, areas) for t in range(n_frames)])
    frames = np.stack(frames)
    noise = rng.integers(-5, 6, (size + 16, size, 3), dtype=np.int16)
    for t in range(n_frames):
        row = (7 * t) % 16
        frames[t] = np.clip(frames[t] + noise[row:row + size], 0, 255)
    return frames, np.stack(ids), areas
# %% expression
@dataclass(frozen=True)
class Expression:
    "A sentence, its ReVOS type (0 referring, 1 reasoning, 2 nothing there) and the things it means."
    text: str
    type_id: int
    targets: tuple = ()      # indices of things
    family: str = ""         # look, place, motion, sense, time, compare, several, absent
    template: str = ""

# %% record
class Record:
    "What a clip's own record says of its things, as arrays over the `n` things."
    def __init__(self, world: World, ids: np.ndarray, full: np.ndarray):
        self.things, n = world.things, len(world.things)
        visible = np.stack([np.bincount(frame.ravel(), minlength=n + 1)[1:n + 1] for frame in ids], 1)
        self.share = visible / np.maximum(full, 1)             # (n, T), 1: all of it in view
        self.seen = self.share > .3
        self.kind, self.colour = [t.kind for t in self.things], [t.colour for t in self.things]
        self.motion, self.size = [t.motion for t in self.things], [t.size for t in self.things]
        self.xy = np.stack([t.xy for t in self.things])        # (n, T, 2)
        self.area = np.array([f.max() for f in full], float)
        self.T = self.seen.shape[1]
        ever = self.seen.any(1)
        self.first = np.where(ever, self.seen.argmax(1), self.T)
        self.last = np.where(ever, self.T - 1 - self.seen[:, ::-1].argmax(1), -1)
        self.step = np.linalg.norm(np.diff(self.xy, axis=1), axis=2) if self.T > 1 else np.zeros((n, 0))

    def mean_xy(self):
        "Mean place of each thing over the frames it is seen in, (n, 2)."
        w = self.seen[..., None] + 1e-9
        return (self.xy * w).sum(1) / w.sum(1)

    def shift(self):
        "Displacement between the first and the last frame a thing is seen in, (n, 2)."
        i = np.arange(len(self.things))
        return self.xy[i, self.last.clip(0)] - self.xy[i, self.first.clip(max=self.T - 1)]

    def path(self):
        "Length of the way made while seen, (n,)."
        return (self.step * self.seen[:, 1:]).sum(1)

    def speed(self):
        "Mean speed while seen, (n,), frame widths a clip."
        return self.path() / np.maximum(self.seen[:, 1:].sum(1), 1) * max(self.T - 1, 1)

# %% truth values
def between(x, no, yes):
    "Truth values of a graded property: 1 from `yes` on, 0 up to `no`, NaN (no sentence may depend on it) in between."
    x = np.asarray(x, float)
    sign = 1 if yes > no else -1
    return np.where(sign * x >= sign * yes, 1., np.where(sign * x <= sign * no, 0., np.nan))

def stands_out(x, group, margin, ratio=False):
    "1 for the thing of `group` with the largest `x`, if by a clear margin; NaN where two are close."
    x = np.where(group, x, -np.inf)
    if group.sum() < 2: return np.full(len(x), np.nan)
    best, second = np.sort(x)[::-1][:2]
    clear = np.isfinite(best) and (best >= second * margin if ratio else best - second >= margin)
    return (x == best).astype(float) if clear else np.where(group, np.nan, 0.)

# %% restrictors
@dataclass(frozen=True)
class Restrictor:
    "A relative clause: its family, when it is true of which thing, and its wordings (the last is for the `phrase` split)."
    family: str
    truth: object            # (record, group [n] bool) -> (n,) in {1, 0, NaN}
    clauses: tuple           # follow a noun: "the cat moving to the left"
    question: str            # follows "which cat": "moves to the left?"
    whole_group: bool = False  # a superlative: exactly one of a group

def superlative(value, margin, ratio=False): return lambda r, g: stands_out(value(r), g, margin, ratio)
def _leaves_at(r): return np.where(r.last >= r.T - 1, -np.inf, -r.last.astype(float))
def _x_at(t, sign): return lambda r: np.where(r.share[:, t] > .6, sign * r.xy[:, t, 0], -np.inf)
def _moves(axis, sign):
    def truth(r, g):
        d = r.shift(); along, across = sign * d[:, axis], np.abs(d[:, 1 - axis])
        return np.where(along <= .05, 0., np.where((along >= .2) & (along > 1.8 * across), 1., np.nan))
    return truth
def _does(*motions, unsure=()):
    return lambda r, g: np.array([1. if m in motions else np.nan if m in unsure else 0. for m in r.motion]) * np.where(r.seen.mean(1) > .4, 1, np.nan)
def _hidden(r, g):
    inner = np.array([(r.share[i, a:b + 1] < .12).sum() if b > a else 0 for i, (a, b) in enumerate(zip(r.first, r.last))])
    return between(inner, 0, 2)
def _end_speed(r):
    k = max(r.T // 4, 1)
    return r.step[:, -k:].sum(1) / k * (r.T - 1) if r.T > 1 else np.zeros(len(r.things))
def _still_going(r, g): return np.where(r.share[:, -1] < .1, 0., np.where(r.share[:, -1] > .5, between(_end_speed(r), .06, .2), np.nan))
def _part_at_end(r, g):
    end, gone = r.share[:, -1], r.xy[:, -1, 0]
    outside = (gone < .12) | (gone > .88)
    return np.where(outside & (end > .05) & (end < .42) & (r.share[:, 0] > .6), 1., np.where((end > .75) | (end < .01), 0., np.nan))

RESTRICTORS = {
    "left": Restrictor("place", superlative(lambda r: -r.mean_xy()[:, 0], .12), ("on the left", "furthest to the left", "at the left side"), "is furthest to the left?", True),
    "right": Restrictor("place", superlative(lambda r: r.mean_xy()[:, 0], .12), ("on the right", "furthest to the right", "at the right side"), "is furthest to the right?", True),
    "top": Restrictor("place", superlative(lambda r: -r.mean_xy()[:, 1], .12), ("at the top", "highest up", "in the upper part"), "is highest up?", True),
    "bottom": Restrictor("place", superlative(lambda r: r.mean_xy()[:, 1], .12), ("at the bottom", "lowest down", "in the lower part"), "is lowest down?", True),
    "moves left": Restrictor("motion", _moves(0, -1), ("moving to the left", "that goes left", "heading left"), "moves to the left?"),
    "moves right": Restrictor("motion", _moves(0, 1), ("moving to the right", "that goes right", "heading right"), "moves to the right?"),
    "moves up": Restrictor("motion", _moves(1, -1), ("rising", "that goes up", "on its way up"), "rises?"),
    "moves down": Restrictor("motion", _moves(1, 1), ("falling", "that goes down", "on its way down"), "falls?"),
    "still": Restrictor("motion", lambda r, g: between(r.path(), .15, .02), ("staying still", "that does not move", "resting in one place"), "does not move?"),
    "bounces": Restrictor("motion", _does("bouncing"), ("bouncing", "that jumps up and down", "hopping on the spot"), "jumps up and down?"),
    "circles": Restrictor("motion", _does("circling"), ("circling", "that goes round in circles", "turning round and round"), "goes round in circles?"),
    "zigzags": Restrictor("motion", _does("zigzag"), ("zigzagging", "that moves in a zigzag", "swerving to and fro"), "moves in a zigzag?"),
    "speeds up": Restrictor("motion", _does("speeding", unsure=("entering", "leaving")), ("speeding up", "that gets faster and faster", "accelerating"), "speeds up?"),
    "stops": Restrictor("motion", _does("stopping", unsure=("entering", "parting")), ("that comes to a stop", "that stops on the way", "that halts halfway"), "comes to a stop?"),
    "enters": Restrictor("time", lambda r, g: between(r.first / r.T, .01, .3), ("that appears later", "that is not there at the beginning", "that joins in later"), "comes into view later?"),
    "leaves": Restrictor("time", lambda r, g: between(1 - (r.last + 1) / r.T, .01, .2), ("that is gone at the end", "that leaves the scene", "that does not stay until the end"), "leaves before the end?"),
    "hides": Restrictor("time", _hidden, ("that is hidden for a while", "that disappears and comes back", "that plays hide and seek"), "is hidden for a while?"),
    "leaves first": Restrictor("time", superlative(_leaves_at, 2), ("that leaves first", "that is the first to go", "that departs before the others"), "leaves first?", True),
    "enters last": Restrictor("time", superlative(lambda r: np.where(r.first > 0, r.first, -np.inf), 2), ("that comes last", "that is the last to appear", "that arrives after the others"), "appears last?", True),
    "left at start": Restrictor("time", superlative(_x_at(0, -1), .12), ("on the left at the start", "that begins furthest left", "that starts out leftmost"), "is furthest to the left at the start?", True),
    "right at end": Restrictor("time", superlative(_x_at(-1, 1), .12), ("on the right at the end", "that ends up furthest right", "that finishes rightmost"), "is furthest to the right at the end?", True),
    "still going": Restrictor("time", _still_going, ("still moving at the last moment", "that keeps going until the end", "that never comes to rest"), "is still moving at the end?"),
    "part at end": Restrictor("time", _part_at_end, ("of which only the tail shows at the end", "that has almost left at the end", "only partly in view at the end"), "is only partly in view at the end?"),
    "fastest": Restrictor("compare", superlative(lambda r: r.speed(), 1.4, True), ("that moves fastest", "with the highest speed", "quicker than all others"), "is the fastest?", True),
    "farthest": Restrictor("compare", superlative(lambda r: r.path(), 1.4, True), ("that travels farthest", "that covers the most ground", "with the longest way"), "travels farthest?", True),
    "largest": Restrictor("compare", superlative(lambda r: r.area, 1.5, True), ("that is the largest", "bigger than all others", "taking up the most room"), "is the largest?", True),
    "smallest": Restrictor("compare", superlative(lambda r: -np.log(r.area), .4), ("that is the smallest", "smaller than all others", "taking up the least room"), "is the smallest?", True),
}
# %% nouns
@dataclass(frozen=True)
class Noun:
    "A noun phrase and the things it names."
    text: str
    plural: str
    group: np.ndarray        # (n,) bool
    kind: str = ""           # "kind", "colour", "colour kind", "size kind", "class", "thing"

def _has(record, kind=None, colour=None, size=None):
    return np.array([(kind is None or k == kind) and (colour is None or c == colour) and (size is None or s == size)
                     for k, c, s in zip(record.kind, record.colour, record.size)])

def make_noun(record: Record, how: str, kind: str, colour: str, size: str) -> Noun:
    "The noun phrase of form `how` with these words."
    plural = KINDS[kind].plural
    if how == "kind": return Noun(kind, plural, _has(record, kind), how)
    if how == "colour kind": return Noun(f"{colour} {kind}", f"{colour} {plural}", _has(record, kind, colour), how)
    if how == "size kind": return Noun(f"{size} {kind}", f"{size} {plural}", _has(record, kind, None, size), how)
    if how == "colour": return Noun(f"{colour} thing", f"{colour} things", _has(record, None, colour), how)
    if how == "class" and KINDS[kind].classes:
        name = KINDS[kind].classes[0]
        return Noun(name, CLASSES[name], np.array([name in KINDS[k].classes for k in record.kind]), how)
    return Noun("thing", "things", np.ones(len(record.things), bool), "thing")

NOUN_FORMS = {  # how often a family uses which noun phrase
    "look": {"kind": .3, "colour kind": .4, "size kind": .1, "colour": .2},
    "place": {"kind": .4, "colour kind": .25, "thing": .2, "colour": .15},
    "motion": {"kind": .4, "colour kind": .15, "thing": .3, "colour": .15},
    "time": {"kind": .35, "colour kind": .15, "thing": .3, "class": .2},
    "compare": {"kind": .35, "colour": .15, "thing": .3, "class": .2},
    "several": {"kind": .4, "colour": .3, "class": .3},
}
LOOKS = ("the {0}", "show the {0}", "find the {0}", "where is the {0}?", "please point out the {0}")
ALL_LOOKS = ("all the {1}", "every {0}", "each {0} in the video", "all {1} that can be seen")

# %% sentences
def _wording(rng, wordings, split):
    "One wording; the last is held out for the `phrase` split."
    return wordings[-1] if split == "phrase" else wordings[rng.integers(len(wordings) - 1)]

def _pick(rng, weights): return rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values()))

def _random_noun(record, rng, family, absent=False, split="train"):
    "A noun phrase about a random thing of the clip (or, for `absent`, about any kind and colour)."
    i = rng.integers(len(record.things))
    kind, colour, size = record.kind[i], record.colour[i], record.size[i]
    if absent and rng.random() < .7: kind = list(KINDS)[rng.integers(len(KINDS))]
    if absent and rng.random() < .5: colour = list(COLOURS)[rng.integers(len(COLOURS))]
    if absent and split != "compose" and held_out(kind, colour): colour = record.colour[i]
    return make_noun(record, _pick(rng, NOUN_FORMS[family]), kind, colour, size)

def _look(record, rng, split, absent):
    noun = _random_noun(record, rng, "look", absent, split)
    return _wording(rng, LOOKS, split).format(noun.text), noun.group.astype(float), noun.kind

def _sense(record, rng, split, absent):
    known = [f for k in record.kind for f in KINDS[k].facts]
    fact = list(FACTS)[rng.integers(len(FACTS))] if absent else known[rng.integers(len(known))]
    truth = np.array([float(fact in KINDS[k].facts) for k in record.kind])
    if absent and _doubtful(fact, record): return None
    return _wording(rng, FACTS[fact], split), truth, fact

def _doubtful(fact, record):
    "Facts that somebody could hold of another kind as well: no sentence may deny them."
    also = {"string": {"ball"}, "wind": {"balloon"}, "water": {"fish", "cup"}, "swims": {"sailboat", "dog"}, "pops": {"ball"}, "kick": {"balloon"}, "nest": {"fish"}}
    return any(k in also.get(fact, ()) for k in record.kind)

def _restricted(family):
    names = [k for k, r in RESTRICTORS.items() if r.family == family]
    def make(record, rng, split, absent):
        name = names[rng.integers(len(names))]
        noun, clause = _random_noun(record, rng, family, absent, split), RESTRICTORS[name]
        if absent and clause.whole_group or noun.group.sum() < 1 and not absent: return None
        if name == "part at end" and "cat" not in noun.text: words = clause.clauses[1:]
        else: words = clause.clauses
        truth = np.where(noun.group, clause.truth(record, noun.group), 0.)
        if rng.random() < .3 and split != "phrase": text = f"which {noun.text} {clause.question}"
        else: text = f"the {noun.text} {_wording(rng, words, split)}"
        flies = noun.kind.endswith("kind") and "flies" in KINDS[noun.text.split()[-1]].facts
        return text.replace("still moving", "still flying") if flies else text, truth, name
    return make

def _several(record, rng, split, absent):
    if rng.random() < .6:
        noun = _random_noun(record, rng, "several")
        return _wording(rng, ALL_LOOKS, split).format(noun.text, noun.plural), noun.group.astype(float), "all " + noun.kind
    names = [k for k, r in RESTRICTORS.items() if not r.whole_group and k != "part at end"]
    name = names[rng.integers(len(names))]
    noun, clause = _random_noun(record, rng, "several"), RESTRICTORS[name]
    truth = np.where(noun.group, clause.truth(record, noun.group), 0.)
    return f"every {noun.text} {_wording(rng, clause.clauses, split)}", truth, "all " + name

FAMILIES = {"look": (0, _look), "place": (0, _restricted("place")), "motion": (0, _restricted("motion")),
            "sense": (1, _sense), "time": (1, _restricted("time")), "compare": (1, _restricted("compare")), "several": (1, _several)}
FAMILY_WEIGHTS = {"look": .18, "place": .12, "motion": .17, "sense": .13, "time": .14, "compare": .07, "several": .07, "absent": .12}

def try_expression(record: Record, rng: np.random.Generator, family: str, split: str = "train") -> Expression | None:
    "One random sentence of a family if the record leaves no doubt about what it means, else `None`."
    absent = family == "absent"
    source = ("look", "sense", "motion", "time")[rng.choice(4, p=[.5, .25, .15, .1])] if absent else family
    type_id, make = FAMILIES[source]
    made = make(record, rng, split, absent)
    if made is None or np.isnan(made[1]).any(): return None
    text, truth, template = made
    targets = tuple(int(i) for i in np.flatnonzero(truth))
    wanted = len(targets) == 0 if absent else len(targets) > 1 if family == "several" else len(targets) == 1
    if not wanted or any(record.seen[i].sum() < 2 and record.T > 2 for i in targets): return None
    return Expression(text, 2 if absent else type_id, targets, family, template)

def _fits(e, record, split):
    "In the `compose` split a sentence is about a held-out pair of colour and kind."
    return split != "compose" or not e.targets or any(held_out(record.kind[i], record.colour[i]) for i in e.targets)

def draw_expressions(record: Record, rng: np.random.Generator, n: int = 8, split: str = "train", weights: dict = FAMILY_WEIGHTS) -> list:
    "Up to `n` different sentences about a clip."
    found, families, p = {}, list(weights), np.array(list(weights.values())) / sum(weights.values())
    for family in rng.choice(families, size=4 * n, p=p):
        tries = (try_expression(record, rng, str(family), split) for _ in range(6))
        e = next((e for e in tries if e and e.text not in found and _fits(e, record, split)), None)
        if e: found[e.text] = e
        if len(found) == n: break
    return list(found.values())

# %% clip
@dataclass
class Clip:
    "A rendered clip: frames, the id map, the record and the sentences about it."
    frames: np.ndarray           # uint8 [T,H,W,3]
    ids: np.ndarray              # uint8 [T,H,W]: 0 background, i+1 thing i
    record: Record
    world: World
    expressions: list
    name: str = "clip"
    fps: float = 8.

    def masks(self, expression: Expression) -> np.ndarray:
        "What is visible of the targets, bool [T,H,W]."
        lut = np.zeros(256, bool); lut[[i + 1 for i in expression.targets]] = True
        return lut[self.ids]

    @property
    def foreground(self) -> np.ndarray:
        "What is visible of all things, bool [T,H,W]."
        return self.ids > 0

    def save(self, path) -> Path:
        "Writes the frames as mp4 or gif."
        from vrshq_nb.video import write_video
        return write_video(path, self.frames, fps=self.fps)

SPLITS = {"train": 0, "val": 1, "compose": 2, "phrase": 3, "long": 4}

def make_clip(split: str, seed: int, index: int, size: int = 256, n_frames: int = 16, n_expressions: int = 8) -> Clip:
    "Clip `index` of a split: the same for the same arguments; no two splits share a seed."
    rng = np.random.default_rng([SPLITS[split], seed, index])
    world = make_world(rng, n_frames, split)
    frames, ids, full = render(world, n_frames, size)
    record = Record(world, ids, full)
    return Clip(frames, ids, record, world, draw_expressions(record, rng, n_expressions, split), f"{split}_{seed}_{index:05d}")

class MiniVRS:
    "An endless procedural dataset: `len(data)` clips, `data[i]` is a `Clip`, the same for the same seed."
    def __init__(self, split="val", n=100, seed=0, size=256, n_frames=None, n_expressions=8):
        if split not in SPLITS: raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.split, self.n, self.seed, self.size, self.n_expressions = split, n, seed, size, n_expressions
        self.n_frames = n_frames or (48 if split == "long" else 16)
    def __len__(self): return self.n
    def __getitem__(self, i: int) -> Clip:
        if not 0 <= i < self.n: raise IndexError(f"clip {i} of {self.n}")
        return make_clip(self.split, self.seed, i, self.size, self.n_frames, self.n_expressions)

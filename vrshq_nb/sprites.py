"""Drawings of MiniVRS: sprites, scenes and occluders, all made of a few polygons."""
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

# --- colours ---------------------------------------------------------------------------------------------------------
COLOURS = dict(red=(222, 40, 40), orange=(250, 130, 20), yellow=(252, 214, 30), green=(36, 160, 62),
               blue=(30, 95, 225), purple=(128, 52, 178), pink=(255, 130, 190), white=(252, 249, 240))
FIXED = dict(snow=(252, 252, 250), ink=(36, 38, 48), glass=(190, 220, 232), steel=(150, 154, 164), gold=(255, 196, 60),
             flame=(255, 120, 40), leaf=(84, 132, 72), bark=(112, 76, 52))

def mix(a, b, amount):
    "The colour `amount` of the way from `a` to `b`."
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b))

def palette(colour):
    "Tags to RGB: `colour`, its shades, and the colours that never change."
    black, white = (0, 0, 12), (255, 255, 255)
    return FIXED | dict(main=colour, shade=mix(colour, black, .18), dark=mix(colour, black, .45),
                        light=mix(colour, white, .3), outline=mix(colour, black, .52))

# --- the pen ---------------------------------------------------------------------------------------------------------
def smooth(points, closed=True, n=5):
    "Catmull-Rom curve through `points` [k, 2]."
    p = np.asarray(points, float)
    pad = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    a, b, c, d = (pad[i:len(pad) - 3 + i, None] for i in range(4))
    t = np.arange(n)[:, None] / n
    curve = b + .5 * t * (c - a + t * (2*a - 5*b + 4*c - d + t * (3*(b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, 2), p[-1:]][:1 if closed else 2])

@lru_cache(64)
def arc(start=0., end=1., n=33):
    "Points [n, 2] on the unit circle, `start` and `end` in turns, clockwise from the right."
    a = 2*np.pi * np.linspace(start, end, n)
    return np.stack([np.cos(a), np.sin(a)], 1)

class Pen:
    "Records shapes in unit coordinates (x right, y down) as `(tag, points [n, 2], line width or 0)`."
    def __init__(self, aspect=1.): self.parts, self.aspect = [], aspect

    def poly(self, tag, *points): self.parts.append((tag, np.array(points, float), 0.))

    def blob(self, tag, *points): self.parts.append((tag, smooth(points), 0.))

    def line(self, tag, width, *points):
        self.parts.append((tag, smooth(points, closed=False) if len(points) > 2 else np.array(points), width))

    def rect(self, tag, x0, y0, x1, y1): self.poly(tag, (x0, y0), (x1, y0), (x1, y1), (x0, y1))

    def ellipse(self, tag, x, y, rx, ry=None, turn=0., span=(0., 1.)):
        p = arc(*span, 33 if rx > .03 else 13) * (rx, ry or rx)
        if turn: p = p @ rotation(turn)
        self.parts.append((tag, p / (self.aspect, 1) + (x, y), 0.))

    def eye(self, x, y, r=.04):
        self.ellipse("snow", x, y, r)
        self.ellipse("ink", x + .25*r, y, .68*r)

    def wheel(self, x, y, r, angle):
        self.ellipse("ink", x, y, r)
        self.ellipse("steel", x, y, .55*r)
        for a in angle + np.arange(3) * np.pi/3:
            dx, dy = .5*r * np.cos(a), .5*r * np.sin(a)
            self.line("ink", .15*r, (x - dx, y - dy), (x + dx, y + dy))

    def turn(self, angle, pivot, last=0):
        "Rotate the `last` parts (0: all of them) by `angle` radians about `pivot`."
        for i in range(len(self.parts) - last if last else 0, len(self.parts)):
            tag, p, width = self.parts[i]
            self.parts[i] = tag, (p - pivot) @ rotation(angle) + pivot, width

def rotation(angle):
    "Matrix that turns row vectors by `angle` radians, clockwise on the screen."
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])

def paint(image, parts, scale, offset, colours):
    "Fill `parts` into `image`; a tag is a name in `colours` or a colour itself."
    draw = ImageDraw.Draw(image)
    for tag, points, width in parts:
        xy, colour = points * scale + offset, colours.get(tag, tag)
        if not width:
            draw.polygon(xy.ravel().tolist(), colour)
            continue
        r = width * np.mean(scale) / 2
        draw.line(xy.ravel().tolist(), colour, round(2*r))
        for x, y in (xy if r > 3 else xy[[0, -1]]).tolist(): draw.ellipse((x - r, y - r, x + r, y + r), colour)

def grow(mask, r):
    "Widen a mask by `r` pixels."
    for i in range(r):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]; wide[:, :-1] |= mask[:, 1:]
        tall, mask = (wide if i % 2 else mask), wide.copy()      # a square, then a diamond: together almost a disc
        mask[1:] |= tall[:-1]; mask[:-1] |= tall[1:]
    return mask

def draw_outlined(parts, box, height, width, colours, edge):
    "Paint `parts` so that `box` fills uint8 RGBA [height, width, 4], with an outline of `edge` pixels."
    r, low, high = round(4*edge), np.array(box[:2]), np.array(box[2:])
    scale = (4*np.array([width, height]) - 2*r - 2) / (high - low)
    image = Image.new("RGBA", (4*width, 4*height), (*colours["outline"], 0))
    paint(image, parts, scale, r + 1 - low * scale, colours)
    image.putalpha(Image.fromarray(grow(np.array(image.getchannel("A")), r)))
    return np.array(image.reduce(4))

# --- sprites ---------------------------------------------------------------------------------------------------------
SPRITES = {}

def sprite(draw):
    "Register `draw(pen, angle)`, where `angle` runs through 0..2π as the animation goes round."
    SPRITES[draw.__name__] = draw
    return draw

@sprite
def cat(p, t):
    s = np.sin(t)
    p.line("main", .075, (.30, .56), (.16, .58), (.05, .47), (.07 + .02*s, .30), (.02 + .06*s, .16), (.06 + .1*s, .08))
    for x, k in ((.36, 1), (.68, -1)): p.line("shade", .085, (x, .66), (x + .05*k*s, .92))
    for x, k in ((.43, -1), (.75, 1)): p.line("main", .085, (x, .66), (x + .05*k*s, .92))
    p.blob("main", (.26, .58), (.38, .48), (.62, .50), (.82, .50), (.84, .66), (.70, .77), (.40, .78), (.27, .70))
    for x in (.40, .50, .60): p.line("dark", .028, (x, .51), (x + .015, .58))
    p.poly("main", (.73, .36), (.74, .10), (.88, .24)), p.poly("main", (.88, .24), (1.01, .10), (1.02, .36))
    p.poly("light", (.77, .28), (.77, .17), (.83, .24)), p.poly("light", (.93, .24), (.98, .17), (.985, .28))
    p.ellipse("main", .875, .38, .165, .15)
    p.eye(.85, .36, .035), p.eye(.955, .36, .035)
    p.poly("ink", (.89, .42), (.94, .42), (.915, .45))

@sprite
def dog(p, t):
    s = np.sin(t)
    p.line("main", .08, (.22, .50), (.12 + .02*s, .40), (.10 + .07*s, .30))
    for x, k in ((.27, 1), (.62, -1)): p.line("shade", .11, (x, .66), (x + .04*k*s, .94))
    for x, k in ((.36, -1), (.70, 1)): p.line("main", .11, (x, .66), (x + .04*k*s, .94))
    p.blob("main", (.18, .52), (.30, .45), (.60, .44), (.78, .46), (.78, .68), (.60, .74), (.34, .72), (.20, .68))
    p.blob("main", (.60, .30), (.68, .14), (.84, .14), (.92, .27), (1.04, .31), (1.05, .43), (.90, .48), (.72, .50))
    p.line("ink", .05, (.66, .50), (.80, .52))
    p.blob("dark", (.65, .15), (.72, .20), (.715, .38), (.65, .47), (.58, .41), (.60, .24))
    p.eye(.85, .25, .04), p.ellipse("ink", 1.04, .33, .04)
    p.line("dark", .02, (.93, .42), (1.02, .41))

@sprite
def bird(p, t):
    s = np.sin(t)
    p.poly("shade", (.24, .54), (.00, .40), (.04, .55), (.00, .68))
    p.blob("main", (.14, .54), (.40, .39), (.62, .38), (.75, .24), (.91, .30), (.92, .48), (.76, .67), (.50, .75), (.26, .67))
    p.poly("gold", (.92, .35), (1.05, .41), (.92, .46))
    p.blob("light", (.52, .70), (.74, .59), (.85, .50), (.75, .66))
    wing = np.array([(.34, .54), (.22, .52 - .38*s), (.36, .50 - .46*s), (.54, .50 - .30*s), (.64, .52), (.50, .60)])
    p.blob("dark", *wing), p.blob("main", *(wing - (.48, .53)) * .88 + (.48, .53))
    p.eye(.82, .36, .05)

@sprite
def fish(p, t):
    s = .05 * np.sin(t)
    p.poly("shade", (.28, .50), (.02 + s, .26 + s), (.10 - s, .50 + s), (.02 + s, .74 + s))
    p.blob("shade", (.42, .36), (.46, .16), (.66, .22), (.72, .34)), p.poly("shade", (.48, .66), (.42, .82), (.62, .68))
    p.blob("main", (.20, .50), (.40, .32), (.64, .26), (.88, .36), (1.00, .50), (.88, .64), (.64, .72), (.40, .66))
    p.line("light", .05, (.40, .40), (.44, .50), (.40, .60)), p.line("light", .05, (.54, .36), (.58, .50), (.54, .64))
    p.line("dark", .025, (.73, .36), (.69, .50), (.73, .62))
    p.poly("shade", (.64, .54), (.52, .60 + s), (.62, .64 + s)), p.eye(.84, .43, .05)

@sprite
def butterfly(p, t):
    w = .74 + .26*np.cos(t)
    for k in (-w, w):
        p.blob("main", (.5, .48), (.5 + .08*k, .24), (.5 + .34*k, .06), (.5 + .5*k, .16), (.5 + .44*k, .42), (.5 + .2*k, .52))
        p.blob("main", (.5, .5), (.5 + .28*k, .52), (.5 + .42*k, .66), (.5 + .32*k, .88), (.5 + .14*k, .8), (.5 + .04*k, .64))
        p.ellipse("light", .5 + .33*k, .26, .09*w, .09), p.ellipse("shade", .5 + .25*k, .70, .08*w, .08)
        p.line("ink", .025, (.5, .26), (.5 + .06*np.sign(k), .12), (.5 + .12*np.sign(k), .08))
    p.ellipse("ink", .5, .50, .04, .24), p.ellipse("ink", .5, .25, .055)
    p.turn(.3, (.5, .5))

@sprite
def rabbit(p, t):
    s = np.sin(t)
    for x, tag in ((.60, "shade"), (.70, "main")):
        p.ellipse(tag, x, .22, .07, .24), p.ellipse("light", x, .22, .03, .16), p.turn(-.16 - .08*s, (.68, .44), last=2)
    p.ellipse("light", .13, .76, .09)
    p.ellipse("main", .42, .73, .30, .25), p.ellipse("main", .70, .50, .19, .17)
    p.ellipse("shade", .34, .80, .16, .15), p.ellipse("main", .34, .81, .13, .12)
    p.line("main", .12, (.62, .72), (.66, .92)), p.ellipse("main", .36, .95, .18, .055), p.ellipse("main", .67, .94, .11, .055)
    p.eye(.77, .46, .04), p.ellipse("ink", .885, .52, .025)
    p.line("dark", .02, (.87, .57), (.80, .59))

@sprite
def kite(p, t):
    wave = [(.34 - .07*i + .04*np.sin(t + 1.5*i), .74 + .085*i) for i in range(6)]
    p.line("shade", .035, *wave)
    for x, y in wave[1::2]:
        p.poly("main", (x - .10, y - .05), (x, y), (x + .06, y - .08), (x + .1, y + .04), (x, y), (x - .07, y + .07))
    top, left, right, low, mid = (.66, .0), (.14, .25), (.92, .46), (.34, .76), (.53, .35)
    p.poly("main", top, right, low, left), p.poly("shade", mid, left, low), p.poly("light", mid, top, right)
    p.line("dark", .022, top, low), p.line("dark", .022, left, right)

@sprite
def balloon(p, t):
    p.line("shade", .035, *[(.5 + .035*i**.5*np.sin(t + 1.3*i), .80 + .09*i) for i in range(5)])
    p.blob("main", (.5, .0), (.74, .09), (.84, .33), (.72, .60), (.5, .76), (.28, .60), (.16, .33), (.26, .09))
    p.poly("shade", (.5, .73), (.58, .84), (.42, .84))
    p.blob("shade", (.80, .34), (.69, .58), (.5, .72), (.62, .60), (.73, .42))
    p.ellipse("light", .35, .24, .06, .12, turn=.4)

@sprite
def sailboat(p, t):
    p.line("bark", .04, (.50, .0), (.50, .80))
    p.poly("main", (.47, .03), (.47, .68), (.02, .68)), p.poly("shade", (.47, .56), (.47, .68), (.02, .68), (.11, .56))
    p.poly("main", (.53, .10), (.94, .68), (.53, .68))
    p.poly("main", (.00, .75), (1.00, .75), (.86, .98), (.14, .98))
    p.poly("shade", (.06, .85), (.94, .85), (.86, .98), (.14, .98))
    p.poly("snow", (.00, .75), (1.00, .75), (.98, .79), (.02, .79))
    p.turn(.09 * np.sin(t), (.5, .9))

@sprite
def car(p, t):
    p.blob("main", (.18, .36), (.28, .08), (.46, .03), (.66, .06), (.82, .36), (.5, .40))
    p.poly("glass", (.30, .28), (.35, .13), (.46, .11), (.46, .28))
    p.poly("glass", (.53, .28), (.53, .11), (.63, .13), (.71, .28))
    p.blob("main", (.00, .42), (.04, .32), (.30, .29), (.74, .29), (.96, .34), (1.02, .44), (1.0, .59), (.5, .61), (.02, .59))
    p.blob("shade", (.02, .54), (.5, .54), (1.0, .54), (1.0, .59), (.5, .61), (.02, .59))
    p.ellipse("gold", .97, .41, .035), p.rect("flame", .0, .38, .03, .44), p.line("dark", .02, (.53, .37), (.61, .37))
    p.wheel(.23, .60, .105, t), p.wheel(.78, .60, .105, t)

@sprite
def bus(p, t):
    p.blob("main", (.02, .02), (.5, .0), (1.16, .0), (1.27, .04), (1.30, .30), (1.30, .56), (.65, .57), (.0, .56), (.0, .26))
    for x in (.07, .29, .51, .73): p.rect("glass", x, .09, x + .16, .21)
    p.poly("glass", (1.15, .09), (1.24, .09), (1.27, .28), (1.15, .28))
    p.rect("shade", .95, .09, 1.09, .56), p.rect("glass", .98, .12, 1.06, .34)
    p.rect("light", .0, .30, .95, .35), p.rect("shade", .0, .50, 1.30, .56), p.ellipse("gold", 1.27, .42, .03)
    p.wheel(.25, .57, .10, t), p.wheel(1.05, .57, .10, t)

@sprite
def ball(p, t):
    p.ellipse("main", .5, .5, .5)
    for tag, w in (("dark", .042), ("snow", .028)):
        p.poly(tag, *(.5 + .5 * np.concatenate([arc(-w, w, 9), arc(.5 - w, .5 + w, 9)])))
    p.turn(t, (.5, .5))
    p.ellipse("light", .33, .24, .10, .06, turn=-.6)

@sprite
def rocket(p, t):
    f = .05 * np.sin(t)
    p.blob("flame", (.38, .80), (.62, .80), (.59, .91), (.5 + f/2, 1.05 + f), (.41, .91))
    p.blob("gold", (.43, .80), (.57, .80), (.5 + f/3, .96 + f))
    for k in (-1, 1):
        p.poly("dark", (.5, .44), (.5 + .42*k, .76), (.5 + .42*k, .93), (.5, .80))
        p.poly("shade", (.5, .47), (.5 + .39*k, .77), (.5 + .39*k, .88), (.5, .76))
    side = np.array([(.0, .0), (.15, .12), (.24, .34), (.23, .58), (.16, .80), (.0, .83)])
    p.blob("main", *(side + (.5, 0)), *(side[-2:0:-1] * (-1, 1) + (.5, 0)))
    p.blob("light", (.5, .01), (.61, .10), (.66, .17), (.5, .19), (.34, .17), (.39, .10))
    p.ellipse("dark", .5, .38, .115), p.ellipse("glass", .5, .38, .08), p.line("shade", .04, (.5, .60), (.5, .80))

@sprite
def flower(p, t):
    p.line("leaf", .055, (.5, .5), (.52, .80), (.5, 1.10))
    p.blob("leaf", (.5, 1.02), (.58, .90), (.76, .87), (.68, 1.0))
    p.blob("leaf", (.5, 1.06), (.42, .94), (.26, .92), (.34, 1.03))
    petals = arc(0, 5/6, 6)
    for x, y in petals: p.ellipse("main", .5 + .27*x, .42 + .27*y, .18)
    for x, y in petals: p.line("shade", .025, (.5, .42), (.5 + .28*x, .42 + .28*y))
    p.ellipse("bark", .5, .42, .125), p.ellipse("gold", .5, .42, .085)
    p.turn(.12*np.sin(t), (.5, 1.1))

@sprite
def cup(p, t):
    p.line("main", .10, (.70, .28), (.92, .26), (1.0, .44), (.88, .62), (.64, .66))
    p.blob("main", (.02, .14), (.4, .14), (.78, .14), (.77, .42), (.68, .82), (.56, .88), (.24, .88), (.12, .82), (.03, .42))
    p.ellipse("light", .40, .14, .38, .10), p.ellipse("bark", .40, .15, .31, .068)
    p.blob("shade", (.76, .44), (.68, .82), (.56, .88), (.40, .88), (.56, .78), (.66, .50))
    p.turn(.04*np.sin(t), (.4, .9))

@sprite
def lamp(p, t):
    p.ellipse("gold", .5, .64, .10 + .02*np.sin(t), .08)
    p.line("steel", .07, (.5, .5), (.5, .92))
    p.blob("shade", (.24, .98), (.34, .88), (.66, .88), (.76, .98), (.5, 1.0))
    p.poly("main", (.28, .0), (.72, .0), (.98, .62), (.02, .62))
    p.poly("light", (.33, .03), (.41, .03), (.27, .56), (.11, .56))
    p.poly("shade", (.045, .56), (.955, .56), (.98, .62), (.02, .62))

@sprite
def umbrella(p, t):
    p.line("bark", .05, (.5, .0), (.5, .84)), p.line("bark", .05, (.5, .82), (.52, .93), (.60, .95), (.66, .86))
    p.ellipse("main", .5, .52, .5, .46, span=(.5, 1.))
    for x, tag in ((.125, "main"), (.375, "shade"), (.625, "main"), (.875, "shade")): p.ellipse(tag, x, .51, .125, .06)
    p.blob("shade", (.25, .53), (.32, .27), (.5, .06), (.46, .32), (.5, .53))
    p.blob("shade", (.75, .53), (.90, .50), (.98, .47), (.90, .29), (.72, .11), (.5, .06), (.68, .27))
    p.turn(.10*np.sin(t), (.5, .9))

@sprite
def book(p, t):
    p.poly("shade", (.12, .04), (.80, .04), (.84, .98), (.12, .98))
    p.poly("snow", (.14, .86), (.78, .86), (.82, .945), (.14, .945))
    p.rect("main", .06, .0, .80, .88), p.rect("shade", .06, .0, .16, .98), p.line("dark", .02, (.17, .0), (.17, .90))
    p.rect("light", .28, .16, .70, .26), p.rect("light", .34, .33, .64, .38)
    p.turn(.12 + .03*np.sin(t), (.5, .5))

@lru_cache
def sprite_box(kind):
    "Bounds (x0, y0, x1, y1) of the sprite over one round of its animation, so that only its moving parts move."
    pens = [Pen() for _ in range(12)]
    for i, pen in enumerate(pens): SPRITES[kind](pen, 2*np.pi * i / len(pens))
    parts = [(p, width/2) for pen in pens for _, p, width in pen.parts]
    return (*np.min([p.min(0) - r for p, r in parts], 0), *np.max([p.max(0) + r for p, r in parts], 0))

def draw_sprite(kind, colour, size, phase=0.):
    "Sprite facing right, uint8 RGBA [h, w, 4] with max(h, w) == size."
    pen, (x0, y0, x1, y1) = Pen(), sprite_box(kind)
    SPRITES[kind](pen, 2*np.pi * phase)
    edge, unit = max(.6, size / 52), max(x1 - x0, y1 - y0)
    h, w = (max(4, round(size * length / unit)) for length in (y1 - y0, x1 - x0))
    return draw_outlined(pen.parts, (x0, y0, x1, y1), h, w, palette(colour), edge)

# --- scenes ----------------------------------------------------------------------------------------------------------
SCENES = {}

def scene(draw):
    "Register `draw(pen, rng)`, which draws in unit coordinates and returns the backdrop's stops [(y, colour), ...]."
    SCENES[draw.__name__] = draw
    return draw

def backdrop(stops, height):
    "Vertical colour gradient through `stops`: [height, 1, 3]."
    y, colours = np.linspace(0, 1, height), np.array([colour for _, colour in stops], float)
    return np.stack([np.interp(y, [y for y, _ in stops], c) for c in colours.T], 1)[:, None].astype(np.uint8)

def hill(p, rng, colour, y, rise):
    "A rolling hill from about `y` down to the bottom."
    x = np.linspace(0, 1, 25)
    a, b = rng.uniform(0, 2*np.pi, 2)
    top = y - rise * (np.sin(rng.uniform(3, 5)*x + a) + .4*np.sin(9*x + b))
    p.poly(colour, *np.stack([x, top], 1), (1, 1), (0, 1))

def puff(p, colour, x, y, r, rng):
    "A flat-bottomed cloud about 4 r wide."
    for dx, dy, k in ((-1.1, 0, .6), (-.4, -.35, .85), (.5, -.25, .75), (1.2, 0, .55), (0, .1, .7)):
        p.ellipse(colour, x + dx*r/p.aspect, y + dy*r, k*r*rng.uniform(.9, 1.1), .8*k*r)

def speckle(p, rng, n, colours, low, high, size):
    "`n` small dashes of random `colours` between the heights `low` and `high`, larger when nearer."
    for x, y, k in zip(rng.uniform(0, 1, n), rng.uniform(low, high, n), rng.integers(len(colours), size=n)):
        s = size * (.4 + (y - low) / (high - low))
        p.poly(colours[k], (x - s, y), (x, y - s), (x + s, y), (x, y + .4*s))

@scene
def sky(p, rng):
    p.ellipse((232, 226, 206), rng.uniform(.1, .9), rng.uniform(.1, .3), .08)
    for x, y, r in rng.uniform((0, -.06, .06), (1, .06, .11), (4, 3)) + np.array([[0, y, 0] for y in (.14, .34, .52, .70)]):
        puff(p, mix((222, 228, 230), (234, 236, 234), y), x, y, r, rng)
    hill(p, rng, (170, 184, 186), .92, .02), hill(p, rng, (158, 174, 166), .96, .02)
    return [(0, (158, 184, 202)), (.75, (204, 214, 216)), (1, (220, 220, 210))]

@scene
def meadow(p, rng):
    puff(p, (224, 228, 226), rng.uniform(.1, .9), rng.uniform(.08, .18), rng.uniform(.05, .08), rng)
    hill(p, rng, (160, 178, 164), .36, .04)
    for x in rng.uniform(0, 1, 5):
        p.ellipse((146, 164, 142), x, .43, .05, .04), p.ellipse((140, 158, 136), x + .05, .44, .04, .03)
    hill(p, rng, (164, 180, 142), .46, .02), hill(p, rng, (172, 186, 146), .62, .03)
    speckle(p, rng, 45, [(150, 168, 126), (184, 196, 158), (156, 174, 132)], .55, 1., .012)
    speckle(p, rng, 10, [(206, 200, 190), (200, 184, 176)], .66, 1., .008)
    return [(0, (176, 198, 208)), (.4, (212, 220, 216)), (1, (170, 184, 140))]

@scene
def sea(p, rng):
    x, y = rng.uniform(.15, .85), rng.uniform(.26, .32)
    p.blob((156, 166, 160), (x - .16, y + .02), (x - .08, y - .04), (x + .02, y - .07), (x + .10, y - .03), (x + .17, y + .02))
    xs = np.linspace(-.02, 1.02, 41)
    for d in np.linspace(0, .62, 8):
        top = y + d + .016*d * np.sin((34 - 34*d) * xs + rng.uniform(0, 6)) + .006*d * np.sin(40*xs)
        p.poly(mix((156, 180, 186), (112, 142, 156), d / .62), *np.stack([xs, top], 1), (1, 1), (0, 1))
        for i in rng.integers(0, 34, 3):
            crest = np.stack([xs, top + .012], 1)[i:i + 6]
            p.poly((178, 197, 200), *crest, *(crest[4:0:-1] + (0, .005 + .007*d)))
    puff(p, (226, 228, 226), rng.uniform(0, 1), .12, rng.uniform(.04, .08), rng)
    return [(0, (180, 200, 210)), (.3, (222, 222, 214)), (1, (120, 150, 160))]

@scene
def room(p, rng):
    floor, wood, trim = rng.uniform(.68, .76), (170, 150, 132), (230, 226, 218)
    for x in np.arange(0, 1, .1) + rng.uniform(0, .05): p.rect((209, 201, 188), x, 0, x + .04, floor)
    p.rect(wood, 0, floor, 1, 1), p.rect(trim, 0, floor - .03, 1, floor)
    for i in range(-4, 15): p.line((158, 138, 120), .004, (.1*i, floor), (.5 + 1.9*(.1*i - .5), 1.))
    p.ellipse((182, 166, 156), rng.uniform(.3, .7), .5 + floor/2, .34, .08)
    a, b = rng.permutation([.08, .58]) + rng.uniform(-.05, .05, 2)
    window(p, a, .09, trim), picture(p, b + .08, rng.uniform(.1, .16), rng)
    cupboard(p, b, floor)
    return [(0, (218, 210, 196)), (1, (214, 206, 192))]

def window(p, x, y, frame):
    "A window with four panes, curtains beside it."
    p.rect(frame, x, y, x + .34, y + .38), p.rect((190, 204, 208), x + .02, y + .02, x + .32, y + .36)
    p.rect(frame, x + .163, y, x + .177, y + .36), p.rect(frame, x, y + .183, x + .34, y + .197)
    for k in (x - .03, x + .29):
        for i in range(4): p.rect(((186, 172, 168), (178, 164, 160))[i % 2], k + .02*i, y - .02, k + .02*i + .02, y + .42)

def cupboard(p, x, floor):
    "A low cupboard with two doors."
    p.rect((160, 140, 122), x, floor - .20, x + .36, floor + .02)
    p.rect((172, 152, 134), x - .02, floor - .22, x + .38, floor - .19)
    for left in (x + .02, x + .19): p.rect((168, 148, 130), left, floor - .16, left + .15, floor - .02)

def picture(p, x, y, rng):
    "A framed landscape."
    p.rect((156, 140, 124), x, y, x + .2, y + .18), p.rect((198, 204, 198), x + .02, y + .02, x + .18, y + .16)
    k = rng.uniform(.05, .11)
    p.poly((168, 180, 170), (x + .02, y + .16), (x + k, y + .06), (x + .12, y + .12), (x + .15, y + .09), (x + .18, y + .16))

@scene
def night(p, rng):
    for x, y, s in rng.uniform((0, 0, .002), (1, .7, .005), (45, 3)): p.ellipse((166, 166, 164), x, y, s)
    x, y = rng.uniform(.12, .88), rng.uniform(.12, .25)
    for dx, dy, r, c in ((0, 0, .075, 200), (-.02, .015, .018, 184), (.03, -.02, .012, 184)):
        p.ellipse((c, c - 4, c - 20), x + dx, y + dy, r)
    hill(p, rng, (54, 60, 76), .78, .03)
    for x in rng.uniform(0, .92, 4):
        y = rng.uniform(.80, .84)
        p.rect((46, 50, 62), x, y, x + .08, 1.), p.poly((46, 50, 62), (x - .01, y), (x + .04, y - .05), (x + .09, y))
        p.rect((158, 146, 108), x + .03, y + .02, x + .05, y + .04)
    hill(p, rng, (42, 48, 60), .90, .02)
    return [(0, (40, 44, 64)), (.8, (76, 80, 100)), (1, (60, 64, 80))]

def draw_scene(scene, height, width, rng):
    "A muted background, uint8 [height, width, 3], a little different for each `rng` state."
    pen = Pen(width / height)
    stops = SCENES[scene](pen, rng)
    image = Image.fromarray(backdrop(stops, 2*height)).resize((2*width, 2*height), Image.NEAREST)
    paint(image, pen.parts, np.array([2*width, 2*height]), 0, {})
    return np.array(image.reduce(2)) + texture(height, width, rng) - 10

def texture(height, width, rng):
    "Grain and soft blotches, uint8 [height, width, 1], 0..19."
    grain = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width) & 7
    blotches = Image.fromarray(rng.integers(0, 13, (height//12 + 1, width//12 + 1), np.uint8))
    return (grain + np.asarray(blotches.resize((width, height), Image.BILINEAR)))[..., None]

# --- occluders -------------------------------------------------------------------------------------------------------
OCCLUDERS = {}

def occluder(draw):
    "Register `draw(pen, rng)`, which fills the unit square."
    OCCLUDERS[draw.__name__] = draw
    return draw

def tufts(rng):
    "Loosely spread points [n, 2] inside the crown of a tree."
    x, y = np.meshgrid(np.linspace(.2, .70, 4), np.linspace(.2, .59, 4))
    return np.stack([x + .07*(np.arange(4) % 2)[:, None], y], -1).reshape(-1, 2) + rng.uniform(-.04, .04, (16, 2))

@occluder
def tree(p, rng):
    p.poly("wood", (.34, .6), (.66, .6), (.70, 1.), (.30, 1.))
    p.line("bark", .03, (.45, .86), (.45, .97)), p.line("bark", .03, (.56, .83), (.56, .93))
    p.ellipse("main", .5, .42, .44, .36)
    for x, y in arc(0, 11/12, 12) @ rotation(rng.uniform(0, .5)): p.ellipse("main", .5 + .37*x, .42 + .30*y, .13, .12)
    for x, y in tufts(rng):
        p.blob("light" if x + y < .9 else "shade", (x - .07, y + .01), (x, y - .05), (x + .07, y + .01), (x, y - .02))

@occluder
def wall(p, rng):
    p.rect("shade", 0, 0, 1, 1)
    for row in range(8):
        for x in np.arange(-1, 4) / 4 + .125*(row % 2):
            brick = mix((150, 132, 122), (172, 154, 142), rng.random())
            p.rect(brick, max(.008, x + .008), row/8 + .01, min(.992, x + .242), row/8 + .115)

@occluder
def cloud(p, rng):
    puffs = np.array([(.16, .62, .17), (.34, .34, .23), (.62, .30, .27), (.84, .60, .17), (.68, .74, .22), (.32, .76, .22)])
    puffs *= rng.uniform(.97, 1., puffs.shape)
    p.ellipse("main", .5, .56, .40, .36)
    for x, y, r in puffs: p.ellipse("main", x, y, r)
    for x, y, r in puffs: p.ellipse("light", x - .05*r, y - .2*r, .62*r), p.ellipse("main", x + .05*r, y + .02*r, .60*r)

OCCLUDER_COLOURS = dict(tree=(112, 130, 98), wall=(150, 132, 122), cloud=(206, 211, 214))

def draw_occluder(kind, height, width, rng):
    "Something to hide behind, uint8 RGBA [height, width, 4], opaque inside its silhouette."
    pen = Pen()
    OCCLUDERS[kind](pen, rng)
    points = np.concatenate([p for _, p, _ in pen.parts])
    colours = palette(OCCLUDER_COLOURS[kind]) | dict(wood=(128, 108, 92), bark=(108, 90, 76))
    return draw_outlined(pen.parts, (*points.min(0), *points.max(0)), height, width, colours, 1.)

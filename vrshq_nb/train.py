"""How nano is made: the losses of the paper, and the stages that train small parts from nothing."""
import json
import math
import os
import tempfile
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers.models.llama.modeling_llama import rotate_half

from vrshq_nb.mdp import Features, MaskOutput, sam2_from_config
from vrshq_nb.metrics import boundary_f, bootstrap_interval, jaccard
from vrshq_nb.minivrs import COLOURS, FAMILIES, KINDS, MOTIONS, SIZES, MiniVRS, draw_expressions, held_out, make_clip, paste, sprite
from vrshq_nb.sprites import SCENES, draw_scene
from vrshq_nb.tda import tda
from vrshq_nb.tks import clip_tokenize, scorer_from_config
from vrshq_nb.tokens import TokenEncoder, build_tokenizer

KIND_IDS = {k: i for i, k in enumerate(KINDS)}
COLOUR_IDS = {c: i for i, c in enumerate(COLOURS)}
ANY_KIND, ANY_COLOUR = len(KINDS), len(COLOURS)

SAM2_NANO = dict(image_size=128, d_model=128, mem_dim=32, trunk=dict(embed_dim=24, stages=(1, 2, 4, 1), global_att_blocks=(5,), window_spec=(8, 4, 8, 4)),
                 neck=dict(backbone_channel_list=[192, 96, 48, 24]), memory_attention=dict(num_layers=2, dim_feedforward=256, dropout=0.),
                 memory_encoder=dict(out_dim=32), decoder_mlp_dim=512)
ENCODER_NANO = dict(image_size=128, cells=8, prompt_width=128,
                    tower=dict(embedding_size=32, hidden_sizes=[40, 64, 96], depths=[2, 2, 2], layer_type="basic"),
                    llama=dict(hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=3,
                               max_position_embeddings=4096, tie_word_embeddings=True))
CLIP_NANO = dict(embed_dim=96, vision_cfg=dict(image_size=128, layers=3, width=128, head_width=64, patch_size=16),
                 text_cfg=dict(context_length=32, vocab_size=768, width=128, heads=2, layers=2))

# %% losses
def bce_loss(
    logits: Tensor,   # (N, H, W) mask logits
    target: Tensor,   # (N, H, W) masks in {0, 1}
    num_masks: float | None = None,  # what the sum over masks is divided by; N by default
) -> Tensor:
    "Mean binary cross-entropy per pixel, averaged over masks (method, section 5)."
    per_mask = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none").flatten(1).mean(1)
    return per_mask.sum() / ((len(logits) if num_masks is None else num_masks) + 1e-8)

def dice_loss(
    logits: Tensor,   # (N, H, W) mask logits
    target: Tensor,   # (N, H, W) masks in {0, 1}
    num_masks: float | None = None,  # what the sum over masks is divided by; N by default
    scale: float = 1000,  # both sums are divided by it
    eps: float = 1e-6,
) -> Tensor:
    "`1 - (2 Σ p g / s + ε) / (Σ p / s + Σ g / s + ε)`, averaged over masks (method, section 5)."
    p, g = logits.sigmoid().flatten(1), target.to(logits).flatten(1)
    overlap, total = 2 * (p / scale * g).sum(1), (p / scale).sum(1) + (g / scale).sum(1)
    return (1 - (overlap + eps) / (total + eps)).sum() / ((len(logits) if num_masks is None else num_masks) + 1e-8)

def object_loss(logits: Tensor, present: Tensor) -> Tensor:
    "Cross-entropy of the occlusion logit, balanced between present and absent objects."
    loss = F.binary_cross_entropy_with_logits(logits, present.float(), reduction="none")
    groups = [loss[present], loss[~present]]
    return sum(g.mean() for g in groups if len(g)) / 2

# %% teacher tokens
class Teacher(nn.Module):
    "Scaffolding: the token a perfect language model would write, made of kind, colour and place."
    def __init__(self, D: int):
        super().__init__()
        self.kind, self.colour = nn.Embedding(len(KINDS) + 1, D), nn.Embedding(len(COLOURS) + 1, D)
        self.place = nn.Linear(D, D)
        nn.init.eye_(self.place.weight)     # as SAM's own points: the code of the place itself
        self.special = nn.Embedding(3, D)   # 0: no place given, 1: not in this frame, 2: no such thing in the video
    def forward(self, sam2, queries):
        "Tokens (Q, D); a query is a list of parts (kind id, colour id, [(x, y), …] or a special id); several parts are averaged."
        parts = [(q, *p) for q, query in enumerate(queries) for p in query]
        of, kind, colour = (torch.tensor([p[i] for p in parts]) for i in range(3))
        tokens = self.kind(kind) + self.colour(colour) + self._places(sam2, [p[3] for p in parts])
        total = torch.zeros(len(queries), tokens.shape[1]).index_add(0, of, tokens)
        return total / torch.bincount(of, minlength=len(queries))[:, None]
    def _places(self, sam2, places):
        points = [(i, xy) for i, p in enumerate(places) if not isinstance(p, int) for xy in p]
        out = torch.stack([self.special.weight[p if isinstance(p, int) else 0] * isinstance(p, int) for p in places])
        if not points: return out
        at, xy = torch.tensor([p[0] for p in points]), torch.tensor(np.array([p[1] for p in points]), dtype=torch.float32)
        code = sam2.sam_prompt_encoder.pe_layer._pe_encoding(xy.clamp(0, 1))
        mean = torch.zeros(len(places), code.shape[1]).index_add(0, at, code) / torch.bincount(at, minlength=len(places)).clamp(min=1)[:, None]
        given = torch.tensor([not isinstance(p, int) for p in places])[:, None]
        return out + self.place(mean) * given

def seg_part(record, i, t, attributes=True):
    "The teacher's part for thing `i` in frame `t`."
    kind, colour = (KIND_IDS[record.kind[i]], COLOUR_IDS[record.colour[i]]) if attributes else (ANY_KIND, ANY_COLOUR)
    return kind, colour, [record.xy[i, t]] if record.share[i, t] > .02 else 1

def tak_part(record, i):
    "The teacher's part for thing `i` in the whole video: its place is the mean code of its way."
    seen = np.flatnonzero(record.share[i] > .3)
    return KIND_IDS[record.kind[i]], COLOUR_IDS[record.colour[i]], [record.xy[i, t] for t in seen] if len(seen) else 1

def random_query(record, rng, t):
    "A query about frame `t`: (parts, indices of the things meant)."
    n = len(record.things); i = int(rng.integers(n)); how = rng.random()
    kind, colour = KIND_IDS[record.kind[i]], COLOUR_IDS[record.colour[i]]
    if how < .2: return [seg_part(record, i, t)], [i]
    if how < .55: return [seg_part(record, i, t, False)], [i]   # place alone is the hardest to learn
    if how < .7: return [tak_part(record, i)], [i]
    if how < .78:
        some = [int(j) for j in rng.permutation(n)[:2]]
        return [seg_part(record, j, t) if rng.random() < .5 else tak_part(record, j) for j in some], some
    if how > .92: kind, colour = int(rng.integers(len(KINDS))), int(rng.integers(len(COLOURS)))
    elif how > .85: kind, colour = (kind, ANY_COLOUR) if rng.random() < .5 else (ANY_KIND, colour)
    meant = [j for j in range(n) if kind in (ANY_KIND, KIND_IDS[record.kind[j]]) and colour in (ANY_COLOUR, COLOUR_IDS[record.colour[j]])]
    return [(kind, colour, 0 if meant else int(rng.choice([0, 2])))], meant

def masks_of(ids: np.ndarray, things) -> Tensor:
    "Union of the visible masks of `things`, bool (…, H, W)."
    return torch.from_numpy(np.isin(ids, [i + 1 for i in things]))

# %% running
def optimiser(parameters, lr, steps, warmup=100, betas=(.9, .98), decay=.01):
    "AdamW with warm-up and cosine decay."
    opt = torch.optim.AdamW(parameters, lr, betas=betas, weight_decay=decay)
    rate = lambda s: min((s + 1) / warmup, .02 + .98 * .5 * (1 + math.cos(math.pi * min(s / steps, 1))))
    return opt, torch.optim.lr_scheduler.LambdaLR(opt, rate)

def save_checkpoint(path: Path, **parts):
    "Written aside, then renamed."
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save(parts, aside); os.replace(aside, path)

def run_stage(name, folder, modules: dict, steps, step_fn, lr, log_every=50, save_every=200, **opt_args):
    "The plain loop of every stage: resumes from its checkpoint, saves, logs the running means of what `step_fn(step)` returns (loss, dict)."
    path, log = Path(folder) / f"{name}.pt", Path(folder) / f"{name}.jsonl"
    params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    opt, schedule = optimiser(params, lr, steps, **opt_args)
    first = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        state = torch.load(path, weights_only=True)
        for k, m in modules.items(): m.load_state_dict(state[k])
        opt.load_state_dict(state["opt"]); schedule.load_state_dict(state["schedule"]); first = state["step"]
    def save(step): save_checkpoint(path, step=step, opt=opt.state_dict(), schedule=schedule.state_dict(), **{k: m.state_dict() for k, m in modules.items()})
    sums, start = {}, time.time()
    for step in tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=10):
        loss, parts = step_fn(step)
        opt.zero_grad(); loss.backward()
        nn.utils.clip_grad_norm_(params, 1.); opt.step(); schedule.step()
        for k, v in parts.items(): sums.setdefault(k, []).append(float(torch.as_tensor(v).detach()))
        if (step + 1) % log_every == 0:
            with log.open("a") as f:
                f.write(json.dumps({"step": step + 1, "minutes": round((time.time() - start) / 60, 2), **{k: round(float(np.mean(v)), 4) for k, v in sums.items()}}) + "\n")
            sums = {}
        if (step + 1) % save_every == 0: save(step + 1)
    if first < steps: save(steps)

# %% SAM 2, one frame
class DenseAux(nn.Module):
    "Scaffolding: kind and colour of every low-resolution pixel, from the three feature levels."
    def __init__(self, channels):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(sum(channels), 64, 1), nn.GELU(), nn.Conv2d(64, len(KINDS) + len(COLOURS) + 2, 1))
    def forward(self, levels, ids, records):
        size = levels[0].shape[-1]
        x = self.head(torch.cat([F.interpolate(f, (size, size), mode="bilinear", align_corners=False) for f in levels], 1))
        stride = ids.shape[-1] // size
        small = ids[:, stride // 2::stride, stride // 2::stride]
        lut = lambda r, f, end: np.array([end] + [f(i) for i in range(len(r.things))])
        kind = np.stack([lut(r, lambda i: KIND_IDS[r.kind[i]], ANY_KIND)[s] for r, s in zip(records, small)])
        colour = np.stack([lut(r, lambda i: COLOUR_IDS[r.colour[i]], ANY_COLOUR)[s] for r, s in zip(records, small)])
        a, b = x.split([len(KINDS) + 1, len(COLOURS) + 1], 1)
        return F.cross_entropy(a, torch.from_numpy(kind)) + F.cross_entropy(b, torch.from_numpy(colour))

def upsampled(logits, size): return F.interpolate(logits[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]

def mask_losses(out, target):
    "Losses of decoded masks against bool targets (Q, H, W): the paper's 2 BCE + .5 Dice on present objects, and the object logit's."
    present = target.flatten(1).sum(1) > 8
    logits = upsampled(out.raw, target.shape[-1])
    goal = target.float()
    object_ = object_loss(out.object_logit, present)
    if not present.any(): return object_, dict(object=object_)
    p, g = logits[present], goal[present]
    weight = 1 + 4 * g   # small things
    bce = (F.binary_cross_entropy_with_logits(p, g, reduction="none") * weight).flatten(1).mean(1).mean()
    dice = dice_loss(p, g)
    iou = iou_of(p > 0, g > 0)
    guess = F.mse_loss(out.iou[present], iou)
    hit = ((out.object_logit > 0) == present).float()
    return 2 * bce + dice + .5 * object_ + .1 * guess, dict(bce=bce, dice=dice, object=object_, iou=iou.mean(), hit=hit.mean(), hit_absent=hit[~present].mean() if (~present).any() else 1.)

def iou_of(a, b):
    "IoU of bool masks (N, H, W)."
    return (a & b).flatten(1).sum(1).float() / (a | b).flatten(1).sum(1).clamp(min=1)

def tie_attention(sam2):
    "Lets the decoder begin with attention by place: queries and keys are projected alike, so that equal codes of place meet."
    transformer = sam2.sam_mask_decoder.transformer
    pairs = [a for layer in transformer.layers for a in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for a in (*pairs, transformer.final_attn_token_to_image):
        nn.init.orthogonal_(a.k_proj.weight, gain=1.4)
        a.q_proj.load_state_dict(a.k_proj.state_dict())

def train_sam2_image(folder, steps=3000, lr=8e-4, clips=3, frames=4, queries=5, seed=0, start=None):
    "SAM 2 without memory: decode the thing that a teacher token means."
    torch.manual_seed(seed)
    sam2 = sam2_from_config(SAM2_NANO).train()
    teacher, aux = Teacher(128), DenseAux((16, 32, 128))
    if start: load_parts(start, sam2=sam2, teacher=teacher, aux=aux)
    tie_attention(sam2)
    size = SAM2_NANO["image_size"]
    def step_fn(step):
        rng = np.random.default_rng([11, seed, step])
        images, ids, records, parts, rows, targets = [], [], [], [], [], []
        for c in range(clips):
            clip = make_clip("train", 100, step * clips + c, size, 16, 0)
            for t in rng.choice(16, frames, replace=False):
                for _ in range(queries):
                    query, meant = random_query(clip.record, rng, int(t))
                    parts.append(query); rows.append(len(images)); targets.append(masks_of(clip.ids[t], meant))
                images.append(clip.frames[t]); ids.append(clip.ids[t]); records.append(clip.record)
        features = sam2.encode(np.stack(images), len(images))
        out = sam2.decode(features, rows, teacher(sam2, parts))
        loss, log = mask_losses(out, torch.stack(targets))
        by_place = torch.tensor([q[0][0] == ANY_KIND and q[0][1] == ANY_COLOUR and len(t.nonzero()) > 8 for q, t in zip(parts, targets)])
        log["iou_place"] = iou_of(upsampled(out.raw.detach()[by_place], size) > 0, torch.stack(targets)[by_place]).mean()
        dense = aux(features.levels, np.stack(ids), records)
        return loss + .5 * dense, dict(log, dense=dense)
    run_stage("sam2_image", folder, dict(sam2=sam2, teacher=teacher, aux=aux), steps, step_fn, lr)

# %% the language model's eye
def cell_occupancy(ids: np.ndarray, n: int, cells: int = 8) -> np.ndarray:
    "Share of every cell that each of `n` things covers: (n, T, cells, cells)."
    T, H, W = ids.shape
    one = ids[None] == np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None]
    return one.reshape(n, T, cells, H // cells, cells, W // cells).mean((3, 5), dtype=np.float32)

class EyeAux(nn.Module):
    "Scaffolding: of every cell, which thing covers most of it: kind, colour, where its centre is and how large it is."
    def __init__(self, channels):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(channels, 128, 1), nn.GELU(), nn.Conv2d(128, len(KINDS) + len(COLOURS) + 2 + 3, 1))
    def forward(self, cells, labels):
        kind, colour, numbers = self.head(cells).split([len(KINDS) + 1, len(COLOURS) + 1, 3], 1)
        there = labels["kind"] != ANY_KIND
        weight = torch.where(there, 1., .2)
        def weighted(x): return (x * weight).sum() / weight.sum()
        loss_kind = weighted(F.cross_entropy(kind, labels["kind"], reduction="none"))
        loss_colour = weighted(F.cross_entropy(colour, labels["colour"], reduction="none"))
        offset = (F.smooth_l1_loss(numbers, labels["numbers"], reduction="none").mean(1) * there).sum() / there.sum().clamp(min=1)
        right = lambda x, name: (x.argmax(1) == labels[name])[there].float().mean()
        return loss_kind + loss_colour + 4 * offset, dict(kind=loss_kind, colour=loss_colour, offset=offset, kind_right=right(kind, "kind"), colour_right=right(colour, "colour"))

def eye_labels(record, ids, frames, cells=8):
    "Labels of `EyeAux` for some frames of a clip."
    occupancy = cell_occupancy(ids[frames], len(record.things), cells)
    kinds, colours = np.array([KIND_IDS[k] for k in record.kind]), np.array([COLOUR_IDS[c] for c in record.colour])
    return cell_labels(occupancy, kinds, colours, record.xy[:, frames], np.array([t.extent for t in record.things]))

@lru_cache
def backdrops(size, n=100):
    "Some empty scenes."
    rng = np.random.default_rng(5)
    return [draw_scene(list(SCENES)[i % len(SCENES)], size, size, rng) for i in range(n)]

def collage(rng, size=128, n=10, cells=8):
    "A frame crowded with still sprites, and its `eye_labels`: many more examples a frame than a clip has."
    frame, ids = backdrops(size)[rng.integers(100)].copy(), np.zeros((size, size), np.uint8)
    kinds, colours = rng.integers(len(KINDS), size=n), rng.integers(len(COLOURS), size=n)
    extent = rng.choice(list(SIZES.values()), n) * rng.choice([.95, 1.05], n)
    xy = rng.uniform(0, 1, (n, 2))
    for i in np.argsort(-extent):
        kind, colour = list(KINDS)[kinds[i]], list(COLOURS)[colours[i]]
        if held_out(kind, colour): kinds[i] = (kinds[i] + 1) % len(KINDS); kind = list(KINDS)[kinds[i]]
        pixels = max(round(extent[i] * size), 6)
        paste(frame, ids, sprite(kind, colour, pixels, int(rng.integers(4)), bool(rng.random() < .5)), *(xy[i] * size), i + 1)
    noise = rng.integers(-5, 6, frame.shape, dtype=np.int16)
    return np.clip(frame + noise, 0, 255).astype(np.uint8), cell_labels(cell_occupancy(ids[None], n, cells), kinds, colours, xy[:, None], extent)

def cell_labels(occupancy, kinds, colours, xy, extent):
    "Labels of `EyeAux` from occupancy (n, T, c, c), attributes (n,), places (n, T, 2) and sizes (n,)."
    cells = occupancy.shape[-1]
    best, share = occupancy.argmax(0), occupancy.max(0)
    empty = share < .08
    centre = np.take_along_axis(xy.transpose(1, 0, 2)[:, :, None, None], best[:, None, ..., None], 1)[:, 0]
    grid = (np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1) + .5) / cells
    numbers = np.concatenate([(centre - grid) * 4, extent[best][..., None] * 4], -1).transpose(0, 3, 1, 2)
    return dict(kind=np.where(empty, ANY_KIND, kinds[best]), colour=np.where(empty, ANY_COLOUR, colours[best]), numbers=numbers.astype(np.float32))

def train_eye(folder, steps=1500, lr=2e-3, frames=28, seed=0):
    "The language model's vision tower: name what is in every cell."
    from transformers import ResNetConfig, ResNetModel
    from vrshq_nb.tokens import frame_tensor
    torch.manual_seed(seed)
    eye, aux = ResNetModel(ResNetConfig(**ENCODER_NANO["tower"])).train(), EyeAux(96)
    def step_fn(step):
        rng = np.random.default_rng([12, seed, step])
        images, labels = zip(*[collage(rng, n=int(rng.integers(4, 12))) for _ in range(frames)])
        cells = eye(frame_tensor(np.stack(images), 128)).last_hidden_state
        return aux(cells, {k: torch.from_numpy(np.concatenate([l[k] for l in labels])) for k in labels[0]})
    run_stage("eye", folder, dict(eye=eye, aux=aux), steps, step_fn, lr)

# %% the language model
MOST = 6   # things a clip may hold
MOTION_IDS = {m: i for i, m in enumerate(MOTIONS)}

def answer_of(record, e):
    "The words after `[TAK]`: what the target is called."
    if not e.targets: return "there is no such thing"
    names = [f"{record.colour[i]} {record.kind[i]}" for i in e.targets]
    return f"it is the {names[0]}" if len(names) == 1 else f"there are {len(names)} things"

def clip_facts(record, occupancy):
    "Arrays about the things of a clip, padded to `MOST`, for the auxiliary losses."
    n, T = occupancy.shape[:2]
    occ = np.zeros((MOST, T, *occupancy.shape[2:]), np.float16); occ[:n] = occupancy
    attributes = np.zeros((MOST, 3), np.int64)
    attributes[:n] = np.stack([[KIND_IDS[k] for k in record.kind], [COLOUR_IDS[c] for c in record.colour], [MOTION_IDS[m] for m in record.motion]], 1)
    numbers = np.zeros((MOST, 6), np.float32)
    numbers[:n] = np.concatenate([record.shift() * 2, (record.first / T)[:, None], (record.last / T)[:, None], record.path()[:, None], np.sqrt(record.area)[:, None] / 40], 1)
    xy, share = np.zeros((MOST, T, 2), np.float32), np.zeros((MOST, T), np.float32)
    xy[:n], share[:n] = record.xy, record.share
    return dict(occupancy=occ, attributes=attributes, numbers=numbers, xy=xy, share=share)

class Bank:
    "Clips already seen by the eye; a few new ones join at every step, old ones are met again with new sentences."
    def __init__(self, encoder, seed, size=128, most=5000, new=2, fill=150):
        self.encoder, self.seed, self.size, self.most, self.new, self.fill, self.items, self.made = encoder, seed, size, most, new, fill, {}, 0
    def make(self, index):
        clip = make_clip("train", self.seed, index, self.size, 16, 0)
        with torch.no_grad(): cells = self.encoder.see(clip.frames)
        facts = {k: torch.from_numpy(v) for k, v in clip_facts(clip.record, cell_occupancy(clip.ids, len(clip.record.things))).items()}
        return dict(record=clip.record, cells=cells.half(), index=index, **facts)
    def batch(self, step, size, rng):
        "`size` clips: the new ones of this step and some of the last `most`."
        end = self.fill + (step + 1) * self.new
        for i in range(max(self.made, end - self.most), end): self.items[i] = self.make(i)
        for i in [i for i in self.items if i < end - self.most]: del self.items[i]
        self.made = end
        pick = list(range(end - self.new, end)) + [int(i) for i in rng.choice(sorted(self.items), size - self.new)]
        return [self.items[i] for i in pick]

def some_frames(rng, n=16):
    "Frames as TKS would take them (every second of 16), or another number of evenly spread ones."
    if rng.random() < .6: return np.arange(int(rng.integers(2)), n, 2)
    k = int(rng.integers(6, 12))
    return np.unique(np.clip(np.round((np.arange(k) + rng.random()) * n / k).astype(int), 0, n - 1))

class LanguageAux(nn.Module):
    "Scaffolding on the language model's states: where the target is, what it is, and how the things of the video move."
    def __init__(self, d, cells=64):
        super().__init__()
        self.where = nn.Linear(d, cells + 1)   # of a [SEG] state: occupancy of every cell, presence
        self.place = nn.Linear(d, 2)
        self.what = nn.Linear(d, len(KINDS) + 1 + len(COLOURS) + 1)
        self.video = nn.Linear(d, 6 + len(MOTIONS))  # of a video token in a middle layer
        self.scale = nn.Parameter(torch.tensor(10.))

def gather_positions(ids, token):
    "Positions one before every `token`, (B, S, k); every row has the same number."
    B, S, L = ids.shape
    return (ids == token).nonzero()[:, 2].view(B, S, -1) - 1

def at(hidden, positions):
    "States (B, S, k, d) at positions (B, S, k)."
    return hidden.gather(2, positions[..., None].expand(-1, -1, -1, hidden.shape[-1]))

def block_majority(occupancy):
    "Of every 2×2 block of cells: which thing covers most of it and whether any does, (B, T, 16)."
    B, n, T = occupancy.shape[:3]
    blocks = F.avg_pool2d(occupancy.flatten(0, 2)[:, None], 2).view(B, n, T, -1)
    share, best = blocks.max(1)
    return best, share > .05

def video_losses(encoder, aux, out, P, batch, frames, word_ids):
    "Alignment of the video's tokens with words, and motion facts from a middle layer."
    occ = torch.stack([b["occupancy"] for b in batch])[:, :, frames].float()
    best, there = block_majority(occ)                                       # (B, T, 16)
    pick = lambda x: torch.stack([b[x] for b in batch]).gather(1, best.flatten(1)[..., None].expand(-1, -1, batch[0][x].shape[-1])).view(*best.shape, -1)[there]
    attributes, numbers = pick("attributes"), pick("numbers")
    B, T = best.shape[:2]
    tokens = lambda h: h[:, :P].view(B, T, -1, h.shape[-1])[:, :, 1:][there]
    first, middle = tokens(out.hidden_states[0]), tokens(out.hidden_states[len(out.hidden_states) // 2])
    words = F.normalize(encoder.llm.get_input_embeddings().weight[word_ids], dim=-1)
    logits = aux.scale * F.normalize(first, dim=-1) @ words.T
    align = F.cross_entropy(logits[:, :len(KINDS)], attributes[:, 0]) + F.cross_entropy(logits[:, len(KINDS):], attributes[:, 1])
    n, m = aux.video(middle).split([6, len(MOTIONS)], -1)
    return dict(align=align, motion=F.smooth_l1_loss(n, numbers) * 3 + .5 * F.cross_entropy(m, attributes[:, 2]))

def sentence_targets(batch, sentences, frames):
    "Occupancy (B, S, T, 64) of the targets, their presence (B, S, T), place of single ones (B, S, T, 2), attribute ids (B, S, 2), target flags (B, S, MOST)."
    flags = torch.zeros(len(batch), len(sentences[0]), MOST)
    for b, row in enumerate(sentences):
        for s, e in enumerate(row): flags[b, s, list(e.targets)] = 1
    occ = torch.stack([b["occupancy"] for b in batch])[:, :, frames].float().flatten(3)   # (B, n, T, 64)
    share = torch.stack([b["share"] for b in batch])[:, :, frames]
    xy = torch.stack([b["xy"] for b in batch])[:, :, frames]
    attributes = torch.stack([b["attributes"] for b in batch])[..., :2].float()
    count = flags.sum(-1).clamp(min=1)[..., None]
    mean = torch.einsum("bsn,bna->bsa", flags, attributes) / count
    spread = torch.einsum("bsn,bna->bsa", flags, attributes ** 2) / count - mean ** 2
    none = torch.tensor([ANY_KIND, ANY_COLOUR]).float()
    what = torch.where((spread < .01) & (flags.sum(-1, keepdim=True) > 0), mean, none).round().long()
    return dict(occupancy=torch.einsum("bsn,bntc->bstc", flags, occ), present=torch.einsum("bsn,bnt->bst", flags, share) > .1,
                place=torch.einsum("bsn,bntx->bstx", flags, xy), single=flags.sum(-1) == 1, what=what, flags=flags, things=occ, share=share)

def language_losses(encoder, aux, hidden, ids, goal):
    "Words of the answer, and what the states of `[SEG]` and `[TAK]` must know."
    seg, tak = at(hidden, gather_positions(ids, encoder.seg_id)), at(hidden, gather_positions(ids, encoder.tak_id))[:, :, 0]
    where = aux.where(seg)
    weight = 1 + 6 * (goal["occupancy"] > .1)
    occupancy = (F.binary_cross_entropy_with_logits(where[..., :-1], goal["occupancy"].clamp(0, 1), reduction="none") * weight).mean()
    presence = object_loss(where[..., -1].flatten(), goal["present"].flatten())
    here = goal["present"] & goal["single"][..., None]
    place = F.smooth_l1_loss(aux.place(seg)[here], goal["place"][here]) if here.any() else 0.
    what = 0.
    for state in (tak, seg.mean(2)):
        kind, colour = aux.what(state).split([len(KINDS) + 1, len(COLOURS) + 1], -1)
        what = what + F.cross_entropy(kind.flatten(0, 1), goal["what"][..., 0].flatten()) + F.cross_entropy(colour.flatten(0, 1), goal["what"][..., 1].flatten())
    answer = (ids == encoder.seg_id).cumsum(-1)[..., :-1].bool() & (ids[..., 1:] != encoder.pad_id)
    words = F.cross_entropy(encoder.llm.lm_head(hidden[:, :, :-1][answer]), ids[..., 1:][answer])
    return seg, tak, where, dict(words=words, occupancy=occupancy, presence=presence, place=place, what=what)

def pointer_loss(encoder, out, P, ids, goal, layer=3):
    "One head of a middle layer is shown where to look: from `(t)` in the answer to the target's tokens in frame t."
    attention, rope = encoder.llm.model.layers[layer].self_attn, encoder.llm.model.rotary_emb
    x = encoder.llm.model.layers[layer].input_layernorm(out.hidden_states[layer])
    B, S, L = ids.shape
    d, T = attention.head_dim, goal["present"].shape[2]
    positions = gather_positions(ids, encoder.seg_id)
    def head(proj, states, place):
        y = F.linear(states, proj.weight[:d])[:, None]
        cos, sin = rope(y, place)
        return (y * cos[:, None] + rotate_half(y) * sin[:, None])[:, 0]
    q = head(attention.q_proj, at(x[:, P:].view(B, S, L, -1), positions).flatten(1, 2), P + positions.flatten(1))   # (B, S·T, d)
    k = head(attention.k_proj, x[:, :P], torch.arange(P)[None].expand(B, -1))                                       # (B, P, d)
    score = (q @ k.transpose(1, 2) / d ** .5).view(B, S, T, P).log_softmax(-1).view(B, S, T, T, -1)[..., 1:]
    own = score.diagonal(dim1=2, dim2=3).movedim(-1, 2)                                                             # (B, S, T, 16): frame t for (t)
    side = int(goal["occupancy"].shape[-1] ** .5)
    wanted = F.avg_pool2d(goal["occupancy"].view(-1, 1, side, side), 2).view(B, S, T, -1)
    wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=1e-6)
    return -(wanted * own).sum(-1)[goal["present"]].mean()

def right_object(where, goal):
    "Per sentence with one target: share of its visible frames in which the occupancy map points at the right thing, (B, S), NaN elsewhere."
    p = where[..., :-1].sigmoid()
    score = torch.einsum("bstc,bntc->bsnt", p, goal["things"]) / goal["things"].sum(-1).clamp(min=.5)[:, None]
    score = score.masked_fill(goal["share"][:, None] < .1, -1)
    right = goal["flags"].gather(2, score.argmax(2)) > 0
    seen = goal["present"]
    return torch.where(goal["single"], (right & seen).sum(-1) / seen.sum(-1).clamp(min=1), torch.nan)

EASY = {"look": .5, "place": .15, "sense": .2, "absent": .15}
FULL = {"look": .2, "place": .14, "motion": .2, "sense": .14, "time": .12, "compare": .05, "several": .06, "absent": .09}

def draw_sentences(batch, rng, n, weights):
    "`n` sentences for every clip (some twice where a clip gives fewer)."
    rows = []
    for item in batch:
        es = draw_expressions(item["record"], rng, n, "train", weights)
        while not es: es = draw_expressions(item["record"], rng, n, "train")
        rows.append([es[i % len(es)] for i in range(n)])
    return rows

def language_step(encoder, aux, bank, step, rng, clips, sentences, weights, word_ids):
    "Everything of one step but the loss through SAM 2."
    batch, frames = bank.batch(step, clips, rng), some_frames(rng)
    rows = draw_sentences(batch, rng, sentences, weights)
    texts, ends = [e.text for r in rows for e in r], [answer_of(b["record"], e) for b, r in zip(batch, rows) for e in r]
    ids = encoder.sentence_ids(texts, len(frames), ends).view(clips, sentences, -1)
    cells = torch.stack([b["cells"][frames] for b in batch]).float()
    out, P, hidden = encoder.hidden(cells, ids)
    goal = sentence_targets(batch, rows, frames)
    seg, tak, where, losses = language_losses(encoder, aux, hidden, ids, goal)
    losses |= video_losses(encoder, aux, out, P, batch, frames, word_ids)
    losses["pointer"] = pointer_loss(encoder, out, P, ids, goal)
    right, log = right_object(where.detach(), goal), dict(losses)
    for family in FULL:
        chosen = torch.tensor([[e.family == family for e in r] for r in rows])
        x = right[chosen]; x = x[~x.isnan()]
        if len(x): log["r_" + family] = x.mean()
        elif family == "absent" and chosen.any(): log["r_absent"] = (where.detach()[..., -1][chosen].amax(-1) < 0).float().mean()
    return batch, frames, rows, goal, seg, tak, losses, log

LANGUAGE_WEIGHTS = dict(words=.5, occupancy=3., presence=.5, place=4., what=.25, align=.25, motion=.5, pointer=.5)

def word_tokens(tokenizer):
    "Ids of the words for kinds and colours."
    ids = [tokenizer(" " + w, add_special_tokens=False)["input_ids"] for w in (*KINDS, *COLOURS)]
    assert all(len(i) == 1 for i in ids), "the vocabulary is too small: a kind or colour is more than one token"
    return torch.tensor([i[0] for i in ids])

@lru_cache
def nano_tokenizer(vocab_size=768, clips=400):
    "The tokenizer of nano, trained on sentences of the world."
    texts = []
    for i in range(clips):
        clip = make_clip("train", 5, i, 32, 16)
        texts += [e.text for e in clip.expressions] + [answer_of(clip.record, e) for e in clip.expressions]
    texts += [f" {c} {k} it is the {c} {k}" for c in COLOURS for k in KINDS]
    return build_tokenizer(texts, vocab_size)

def new_encoder(folder):
    "The language model's side with the trained eye."
    encoder = TokenEncoder(ENCODER_NANO, nano_tokenizer())
    encoder.eye.load_state_dict(torch.load(Path(folder) / "eye.pt", weights_only=True)["eye"])
    encoder.eye.requires_grad_(False)
    return encoder

def tie_heads(llm, share=2/3, gain=.8):
    "Most heads begin by looking for what is like themselves (queries and keys projected alike): words find the pictures of what they name, `(t)` finds frame t."
    for layer in llm.model.layers:
        a = layer.self_attn
        rows = int(round(share * llm.config.num_attention_heads)) * a.head_dim
        with torch.no_grad():
            for start in range(0, rows, a.head_dim):
                nn.init.orthogonal_(a.k_proj.weight[start:start + a.head_dim], gain)
            a.q_proj.weight[:rows] = a.k_proj.weight[:rows]

def train_language(folder, steps=3000, lr=1e-3, clips=8, sentences=8, easy=900, most=5000, fill=150, seed=0):
    "The language model: learn where and what from auxiliary losses on its states."
    torch.manual_seed(seed)
    encoder, aux = new_encoder(folder).train(), LanguageAux(192)
    encoder.eye.eval(); tie_heads(encoder.llm)
    bank, words = Bank(encoder, 300, most=most, fill=fill), word_tokens(encoder.tokenizer)
    def step_fn(step):
        rng = np.random.default_rng([13, seed, step])
        *_, losses, log = language_step(encoder, aux, bank, step, rng, clips, sentences, EASY if step < easy else FULL, words)
        return sum(LANGUAGE_WEIGHTS[k] * v for k, v in losses.items()), log
    run_stage("language", folder, dict(encoder=encoder, aux=aux), steps, step_fn, lr)

# %% SAM 2 with memory
def load_parts(path, **modules):
    "Loads modules from a stage's checkpoint."
    state = torch.load(path, weights_only=True)
    for name, module in modules.items(): module.load_state_dict(state[name])

def wake_memory(sam2, sharpness=1.7, pairs=8, loudness=5.):
    "Lets memory begin useful: attention looks at the same place in earlier frames (equal biases, which RoPE turns by place), and the mask is heard beside the image."
    encoder = sam2.memory_encoder
    with torch.no_grad():
        encoder.pix_feat_proj.weight.mul_(.3)
        for layer in sam2.memory_attention.layers:
            a = layer.cross_attn_image
            for proj in (a.q_proj, a.k_proj):           # the fastest `pairs` of each axis tell neighbours apart
                proj.bias.zero_()
                for axis in proj.bias.chunk(2): axis[:2 * pairs] = sharpness
            a.v_proj.weight.mul_(loudness); a.out_proj.weight.mul_(loudness)

def some_tracks(record, ids, frames, rng, n):
    "`n` tracks that are in view at the first of `frames`: true masks bool (n, L, H, W); things that vanish later come first, since they are rare."
    seen = np.flatnonzero(record.share[:, frames[0]] > .4)
    order = sorted(rng.permutation(seen), key=lambda i: record.share[i, frames].min() > .1)
    pairs = [[int(i) for i in rng.permutation(seen)[:2]] for _ in range(n)]
    some = [[int(order[k])] if k < len(order) and rng.random() < .85 else pairs[k] for k in range(n)]
    return [masks_of(ids[frames], s) for s in some]

def some_way(rng, length, n=16):
    "Frames to follow a thing through: forwards or backwards, every one or every second."
    stride = int(rng.choice([1, 1, 2])); start = int(rng.integers(n - (length - 1) * stride))
    frames = start + stride * np.arange(length)
    return frames[::-1] if rng.random() < .5 else frames

def train_sam2_memory(folder, steps=900, lr=5e-4, clips=4, tracks=4, length=6, queries=6, seed=0):
    "SAM 2's memory: follow a mask through a few frames, behind things and out of the frame; tokens are decoded beside, so as not to be forgotten."
    torch.manual_seed(seed)
    sam2, teacher = sam2_from_config(SAM2_NANO).train(), Teacher(128)
    load_parts(Path(folder) / "sam2_image.pt", sam2=sam2, teacher=teacher)
    sam2.hide_absent = True
    wake_memory(sam2)
    for part in (sam2.image_encoder, sam2.sam_mask_decoder.conv_s0, sam2.sam_mask_decoder.conv_s1, teacher): part.requires_grad_(False)
    size = SAM2_NANO["image_size"]
    def step_fn(step):
        rng = np.random.default_rng([14, seed, step])
        images, tracked, rows, parts, at_row, wanted = [], [], [], [], [], []
        for c in range(clips):
            clip, frames = make_clip("train", 400, step * clips + c, size, 16, 0), some_way(rng, length)
            first = len(images); images += list(clip.frames[frames])
            if (clip.record.share[:, frames[0]] > .4).any():
                tracked += some_tracks(clip.record, clip.ids, frames, rng, tracks)
                rows += [torch.arange(first, first + length)] * tracks
            for _ in range(queries):
                t = int(rng.integers(length))
                query, meant = random_query(clip.record, rng, int(frames[t]))
                parts.append(query); at_row.append(first + t); wanted.append(masks_of(clip.ids[frames[t]], meant))
        with torch.no_grad(): features, tokens = sam2.encode(np.stack(images), len(images)), teacher(sam2, parts)
        truth = torch.stack(tracked)
        out = sam2.propagate(features, 0, truth[:, 0], rows=torch.stack(rows), details=True)
        later = lambda x: x[:, 1:].flatten(0, 1)
        loss, log = mask_losses(MaskOutput(*(later(getattr(out, k)) for k in ("logits", "raw", "iou", "object_logit"))), later(truth))
        by_token, other = mask_losses(sam2.decode(features, at_row, tokens), torch.stack(wanted))
        return loss + .5 * by_token, log | dict(iou_token=other.get("iou", 0.), hit_token=other.get("hit", 0.))
    run_stage("sam2_memory", folder, dict(sam2=sam2), steps, step_fn, lr)

# %% joint
class SamBank(Bank):
    "A bank that keeps SAM 2's features and the id maps too."
    def __init__(self, encoder, sam2, seed, **kw):
        super().__init__(encoder, seed, **kw); self.sam2 = sam2
    def make(self, index):
        clip = make_clip("train", self.seed, index, self.size, 16, 0)
        with torch.no_grad():
            cells, features = self.encoder.see(clip.frames), self.sam2.encode(clip.frames, 16, dtype=torch.float16)
        facts = {k: torch.from_numpy(v) for k, v in clip_facts(clip.record, cell_occupancy(clip.ids, len(clip.record.things))).items()}
        return dict(record=clip.record, cells=cells.half(), index=index, features=features, ids=clip.ids, **facts)

def sentence_query(record, e, t=None):
    "The teacher's query for a sentence: in frame `t`, or for the whole video."
    if not e.targets: return [(ANY_KIND, ANY_COLOUR, 2)]
    return [tak_part(record, i) if t is None else seg_part(record, i, t) for i in e.targets]

def joint_losses(encoder, sam2, teacher, batch, frames, rows, goal, seg, tak, rng, per_clip=3):
    "Tokens against the teacher's, and the masks SAM 2 decodes from them: the fused token on two frames, `[SEG]` on one."
    seg, tak = encoder.project(seg), encoder.project(tak)                    # (B, S, T, D), (B, S, D)
    tokens, truth, feats, queries, given = [], [], [], [], []
    for b, item in enumerate(batch):
        for s in rng.choice(len(rows[b]), per_clip, replace=False):
            e = rows[b][s]
            fused, weight = tda(seg[b, s], tak[b, s][None])
            a, c = int(rng.integers(len(frames))), int(rng.integers(len(frames)))
            key = int(weight.argmax()) if rng.random() < .3 else int(rng.integers(len(frames)))
            for token, t in ((fused[0], key), (fused[0], c), (seg[b, s, a], a)):
                tokens.append(token); feats.append((b, int(frames[t]))); truth.append(masks_of(item["ids"][frames[t]], e.targets))
            if e.targets:
                queries += [sentence_query(item["record"], e), sentence_query(item["record"], e, int(frames[a]))]
                given += [tak[b, s], seg[b, s, a]]
    levels = [torch.stack([batch[b]["features"].levels[k][t] for b, t in feats]).float() for k in range(3)]
    features = Features(levels, batch[0]["features"].positions, sam2.image_size, sam2.image_size)
    features = replace(features, positions=[p.float() for p in features.positions])
    out = sam2.decode(features, range(len(tokens)), torch.stack(tokens))
    loss, log = mask_losses(out, torch.stack(truth))
    with torch.no_grad(): wanted = teacher(sam2, queries)
    like = F.smooth_l1_loss(torch.stack(given), wanted) * 10
    present = torch.stack(truth).flatten(1).sum(1) > 8
    iou = iou_of(upsampled(out.raw, sam2.image_size) > 0, torch.stack(truth)).detach()
    kind = torch.arange(len(tokens)) % 3
    log |= dict(like=like, iou_fused=iou[present & (kind < 2)].mean(), iou_seg=iou[present & (kind == 2)].mean())
    return loss, like, log

JOINT_WEIGHTS = dict(language=.5, masks=1., like=1.)

def train_joint(folder, steps=800, lr=8e-4, clips=6, sentences=8, fill=100, seed=0):
    "The language model learns to write tokens that SAM 2 understands: towards the teacher's, and through the mask losses."
    torch.manual_seed(seed)
    encoder, aux = new_encoder(folder).train(), LanguageAux(192)
    sam2, teacher = sam2_from_config(SAM2_NANO), Teacher(128)
    load_parts(Path(folder) / "language.pt", encoder=encoder, aux=aux)
    load_parts(Path(folder) / "sam2_image.pt", teacher=teacher)
    newest = next(p for p in ("sam2_memory.pt", "sam2_image.pt") if (Path(folder) / p).exists())
    load_parts(Path(folder) / newest, sam2=sam2)
    encoder.eye.eval(); sam2.eval().requires_grad_(False); teacher.requires_grad_(False)
    bank, words = SamBank(encoder, sam2, 300, most=1000, new=1, fill=fill), word_tokens(encoder.tokenizer)
    def step_fn(step):
        rng = np.random.default_rng([15, seed, step])
        batch, frames, rows, goal, seg, tak, losses, log = language_step(encoder, aux, bank, step, rng, clips, sentences, FULL, words)
        masks, like, more = joint_losses(encoder, sam2, teacher, batch, frames, rows, goal, seg, tak, rng)
        language = sum(LANGUAGE_WEIGHTS[k] * v for k, v in losses.items())
        return JOINT_WEIGHTS["language"] * language + JOINT_WEIGHTS["masks"] * masks + JOINT_WEIGHTS["like"] * like, log | more
    run_stage("joint", folder, dict(encoder=encoder, aux=aux), steps, step_fn, lr)

# %% CLIP
def train_clip(folder, steps=600, lr=8e-4, pairs=48, seed=0):
    "CLIP: which frame fits a sentence; pairs from many clips, and frames of the same clip without the thing."
    torch.manual_seed(seed)
    tokenizer = nano_tokenizer()
    scorer = scorer_from_config(CLIP_NANO, partial(clip_tokenize, tokenizer, context_length=32), fit="stretch").train()
    weights = {"look": .6, "sense": .3, "several": .1}
    def step_fn(step):
        rng = np.random.default_rng([16, seed, step])
        images, texts, i = [], [], 0
        while len(texts) < pairs:
            clip = make_clip("train", 500, step * 1000 + i, 128, 4, 0); i += 1
            for e in draw_expressions(clip.record, rng, 2, "train", weights):
                share = clip.record.share[list(e.targets)].min(0)
                images.append(clip.frames[share.argmax()]); texts.append(e.text)
        images, texts = np.stack(images[:pairs]), texts[:pairs]
        logits = scorer.logits(scorer.encode_frames(images, pairs), texts)
        same = torch.tensor([[a == b for a in texts] for b in texts]) & ~torch.eye(pairs, dtype=torch.bool)
        logits = logits.masked_fill(same, -1e4)
        goal = torch.arange(pairs)
        loss = (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2
        return loss, dict(loss=loss, right=(logits.argmax(1) == goal).float().mean())
    run_stage("clip", folder, dict(scorer=scorer), steps, step_fn, lr)

# %% assemble
def assemble(folder, out, dtype=torch.float16):
    "Puts the newest parts together and writes the model."
    from vrshq_nb.model import VRSHQ
    folder = Path(folder)
    model = VRSHQ(dict(encoder=ENCODER_NANO, sam2=SAM2_NANO, clip=CLIP_NANO), nano_tokenizer())
    newest = lambda *names: next(folder / f"{n}.pt" for n in names if (folder / f"{n}.pt").exists())
    load_parts(newest("joint", "language"), encoder=model.encoder)
    load_parts(newest("sam2_memory", "sam2_image"), sam2=model.sam2)
    scorer = scorer_from_config(CLIP_NANO, model.clip.tokenize, fit="stretch")
    load_parts(folder / "clip.pt", scorer=scorer); model.clip.load_state_dict(scorer.state_dict())
    return model.save_pretrained(out, dtype)

# %% scores
def score_clip(model, clip, folder) -> list:
    "Scores of all sentences about a clip, from an mp4 and the sentences alone."
    path = clip.save(Path(folder) / f"{clip.name}.mp4")
    rows = []
    for e, seg in zip(clip.expressions, model.segment(path, [e.text for e in clip.expressions])):
        true = clip.masks(e)
        J, F_ = jaccard(seg.masks, true), boundary_f(seg.masks, true)
        rows.append(dict(clip=clip.name, family=e.family, type_id=e.type_id, text=e.text, J=float(J.mean()), F=float(F_.mean()), JF=float(J.mean() + F_.mean()) / 2,
                         found=seg.found, keyframe=seg.keyframe, keyframe_J=float(J[seg.keyframe])))
    path.unlink()
    return rows

def score_model(
    model,              # a `VRSHQ`
    split: str = "val",
    n: int = 100,       # clips
    seed: int = 1000,   # never a training seed
    size: int = 256,
    n_frames: int | None = None,
    progress: bool = True,
) -> list:              # one dict a sentence
    "J, F and J&F of every sentence of `n` clips; sentences about nothing count as found or not."
    data = MiniVRS(split, n, seed, size, n_frames)
    with tempfile.TemporaryDirectory() as folder:
        return [row for i in tqdm(range(n), desc=f"score {split}", disable=not progress) for row in score_clip(model, data[i], folder)]

def summary(rows) -> dict:
    "Means with 95 % intervals (bootstrap over clips): J&F of referring, reasoning and each family; the share of sentences about nothing that were answered so."
    groups = {"referring": lambda r: r["type_id"] == 0, "reasoning": lambda r: r["type_id"] == 1}
    groups |= {f: lambda r, f=f: r["family"] == f for f in FAMILIES}
    out = {}
    for name, wanted in groups.items():
        chosen = [r for r in rows if wanted(r) and r["family"] != "absent"]
        if chosen: out[name] = dict(zip(("JF", "low", "high"), bootstrap_interval([r["JF"] for r in chosen], [r["clip"] for r in chosen])), n=len(chosen))
    absent = [r for r in rows if r["family"] == "absent"]
    if absent: out["absent, nothing shown"] = dict(zip(("share", "low", "high"), bootstrap_interval([not r["found"] for r in absent], [r["clip"] for r in absent])), n=len(absent))
    return out

# %% all stages
STEPS = dict(eye=900, sam2_image=2500, sam2_memory=520, language=1200, joint=800, clip=400)

def train_nano(
    folder,               # checkpoints, logs and the finished model under `nano`
    smoke: bool = False,  # a few steps of every stage: does it run?
    steps: dict | None = None,  # other numbers of steps, by stage
    seed: int = 0,
) -> Path:                # the folder of the model
    "All stages one after the other on one CPU core, each resumed from its checkpoint; a finished stage is not run again."
    folder, steps = Path(folder), STEPS | ({k: 3 for k in STEPS} if smoke else {}) | (steps or {})
    stages = dict(eye=train_eye, sam2_image=train_sam2_image, sam2_memory=train_sam2_memory, language=train_language, joint=train_joint, clip=train_clip)
    for name, stage in stages.items():
        stage(folder, steps=steps[name], seed=seed, **(dict(fill=8) if smoke and name in ("language", "joint") else {}))
    return assemble(folder, folder / "nano")

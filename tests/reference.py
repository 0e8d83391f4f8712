"""Whole runs of the reference implementation against ours: `python tests/reference.py FILE.npz [FOLDER OF ITS WEIGHTS]`.

An npz holds inputs and outputs of one inference (`check_inference`) or of several training steps (`check_training`). Beside it, or in
the folder given, lie the weights, sizes and vocabulary of the run: sam2_tiny.safetensors (or none: it is drawn again),
sam2_tiny_config.json, chatunivi_tiny.safetensors, chatunivi_tiny_config.json, tiny_tokenizer/. All else (frames, alpha, sizes, padding) comes from the npz.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vrshq_nb.chatunivi import (
    Sample,
    decode_prompt,
    inner_size,
    load_released,
    paper_losses,
    read_sample,
)
from vrshq_nb.mdp import Features, sam2_from_config
from vrshq_nb.model import (
    EncodedVideo,
    Options,
    carry_mask,
    choose_keyframe,
    propose_frames,
    read_tokens,
    segment_one,
)
from vrshq_nb.tda import tda
from vrshq_nb.tokens import LONG_QUESTIONS, SHORT_QUESTIONS, TemporalTokens, temporal_prompt


# ---------------------------------------------------------------- a checkpoint in the released format, from the run's weights


@torch.no_grad()
def draw_weights(model):
    "A SAM 2 with the runs' random weights: drawn again from their seed, in the order of names (the unused embeddings of clicks differ)"
    g = torch.Generator().manual_seed(14)
    for name, p in sorted(model.named_parameters()):
        z = torch.randn(p.shape, generator=g)
        if name.endswith("pred_obj_score_head.layers.2.bias"):
            p.copy_(2 + 0.1 * z)
        elif name.endswith("pred_obj_score_head.layers.2.weight"):
            p.copy_(0.9 * z)
        elif name.endswith("gamma"):
            p.copy_(0.5 + 0.1 * z)
        elif p.dim() == 1:
            p.copy_(0.1 * z + (0 if name.endswith("bias") else 1))
        elif "token" in name:
            p.copy_(0.5 * z)
        elif any(
            s in name
            for s in ("embed.weight", "embeddings", "pos_embed", "no_mem", "no_obj", "tpos")
        ):
            p.copy_(0.3 * z)
        else:
            p.copy_(z * 1.2 / (p.shape[0] if "upscaling" in name else p[0].numel()) ** 0.5)
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix.copy_(torch.randn(matrix.shape, generator=g))
    return model


def seeded_sam2(config):
    "Those weights, to keep 5 MB out of the repository"
    return {k: v.clone() for k, v in draw_weights(sam2_from_config(config)).state_dict().items()}


def released_state(assets):
    "Weights of a run under the names of the released checkpoint"
    stored = assets / "sam2_tiny.safetensors"
    sam2 = (
        load_file(stored)
        if stored.exists()
        else seeded_sam2(json.loads((assets / "sam2_tiny_config.json").read_text()))
    )
    name = lambda k: "model.visual_model." + k.removeprefix("model.").removeprefix("visual_model.")
    return load_file(assets / "chatunivi_tiny.safetensors") | {name(k): v for k, v in sam2.items()}


def write_released(folder, assets, kind="safetensors", shards=1):
    "A folder as the authors release it: config.json, tokenizer.model, weights in one file or in shards with an index"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((assets / "chatunivi_tiny_config.json").read_text())
    sizes = {k: v for k, v in config.items() if k in ("clip_vision", "clip_model")}
    config = {
        "model_type": "ChatUniVi",
        **config["llama"],
        **sizes,
        "sam2_config": json.loads((assets / "sam2_tiny_config.json").read_text()),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(
        (assets / "tiny_tokenizer" / "tokenizer.model").read_bytes()
    )
    write_shards(folder, released_state(assets), kind, shards)
    return folder


def write_shards(folder, state, kind="safetensors", shards=1):
    "Weights in one file, or in shards of alternate tensors with their index"
    stem, ending, save = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[kind]
    if shards == 1:
        return save(state, folder / f"{stem}.{ending}")
    files = [f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}" for i in range(shards)]
    places = {k: files[i % shards] for i, k in enumerate(state)}
    for f in files:
        save({k: v for k, v in state.items() if places[k] == f}, folder / f)
    (folder / f"{stem}.{ending}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


STORED = Path(__file__).resolve().parent / "data" / "chatunivi"


def assets_of(npz_path, assets=None):
    "Where a run's weights are: as given, beside the npz, or those that are kept for the tests"
    npz_path = Path(npz_path)
    if not npz_path.is_file():
        raise FileNotFoundError(f"there is no file {npz_path}")
    return (
        Path(assets)
        if assets
        else npz_path.parent
        if (npz_path.parent / "chatunivi_tiny_config.json").exists()
        else STORED
    )


def run_model(assets):
    "Our model with the weights of a run, read as a released checkpoint is"
    with tempfile.TemporaryDirectory() as folder:
        return load_released(write_released(folder, Path(assets)), dtype=torch.float32)


# ---------------------------------------------------------------- comparing


@dataclass
class Report:
    "Largest differences, in the order of the computation"

    where: str
    differences: dict = field(default_factory=dict)  # quantity -> largest absolute difference
    tolerances: dict = field(default_factory=dict)

    def compare(self, name, ours, theirs, tolerance=0.0):
        ours, theirs = (
            np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, dtype=np.float64)
            for x in (ours, theirs)
        )
        same = ours.shape == theirs.shape
        worst = (float(np.abs(ours - theirs).max()) if ours.size else 0.0) if same else np.inf
        if not same:
            name = f"{name} (shape {ours.shape} instead of {theirs.shape})"
        self.differences[name], self.tolerances[name] = (
            (worst if np.isfinite(worst) else np.inf),
            tolerance,
        )

    @property
    def first(self):
        return next((k for k, v in self.differences.items() if v > self.tolerances[k]), None)

    def done(self, problem=None):
        "Itself; an `AssertionError` names the first quantity that differs, or the error in which our run ended"
        if self.first is None and problem is None:
            return self
        what = (
            f"{self.first} differs by {self.differences[self.first]:.3g} (at most {self.tolerances[self.first]:g})"
            if self.first
            else f"all compared so far is equal, then {type(problem).__name__}: {problem}"
        )
        error = AssertionError(f"{self.where}: {what}\n{self}")
        error.report = self
        raise error from problem

    def __str__(self):
        return "\n".join(
            f"  {'DIFFERS' if v > self.tolerances[k] else 'equal  '} {k:<36} {v:.3g} of {self.tolerances[k]:g}"
            for k, v in self.differences.items()
        )


def is_inference(npz):
    return "pred_masks" in npz


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def sentence(prompt, n):
    "The expression in a conversation, or None where our templates did not make it"
    for question in (*SHORT_QUESTIONS, *LONG_QUESTIONS):
        before, after = ("\n" + question).split("{}")
        found = re.search(
            re.escape(before) + "(.*?)" + re.escape(after) + " ASSISTANT:", prompt, re.S
        )
        if found and "".join(temporal_prompt(found[1], n)) == prompt:
            return found[1]


# ---------------------------------------------------------------- inference


def stored_video(model, d):
    "The npz's frames as `VRSHQ.encode` would have encoded them, each once"
    height, width = map(int, d["orig_hw"])
    features = Features(*model.sam2.encode_batch(tensor(d["images_sam"])), height, width)
    clip = F.normalize(model.clip.clip.encode_image(tensor(d["clip_pixel_values"])).float(), dim=-1)
    model.clip.tokenize = lambda texts: tensor(
        d["clip_input_ids"]
    )  # the run's CLIP has no vocabulary
    cells = model.encoder.tokens_of(model.encoder.look(tensor(d["images_clip"])))
    seen = range(len(features)) if len(cells) == len(features) else d["frame_ids"].tolist()
    return EncodedVideo(None, features, clip, dict(zip(seen, cells)))


@torch.no_grad()
def check_inference(npz_path, assets=None):
    "A whole inference of ours on the npz's inputs; a `Report`, or an `AssertionError` that names the first quantity that differs"
    npz_path = Path(npz_path)
    report, problem = Report(npz_path.name), None
    model, d = run_model(assets_of(npz_path, assets)), video_numbers(dict(np.load(npz_path)))
    try:
        _inference(model, d, report)
    except Exception as e:
        problem = e
    return report.done(problem)


def video_numbers(d):
    """The npz with frames named by their number in the video, also where a run named candidates by their place in the row.

    Scored frames 0, 1, 2 … that are not the candidates' numbers are places. A keyframe is a place if the npz's own scores say so.
    """
    frames, scored, key = d["frame_ids"], d["tks_frame_ids"], int(d["keyframe"])
    if not np.array_equal(scored, frames) and np.array_equal(scored, np.arange(len(frames))):
        d = d | {"tks_frame_ids": frames}
    seg, tak = tensor(d["seg_embed"]), tensor(d["tak_embed"])
    best = int((tensor(d["tks_obj_logits"]).softmax(0) + tda(seg, tak)[1]).argmax())
    return d | {"keyframe": frames[best]} if key != frames[best] and key == best else d


def _inference(model, d, report):
    alpha, options = float(d["alpha"]), Options(alpha=float(d["alpha"]), gate=False)
    shared = stored_video(model, d)
    size = model.sam2.image_size
    report.compare(
        "size in the padded square",
        inner_size(shared.features.height, shared.features.width, size),
        d["resize"],
    )

    logits, anchor, frames = propose_frames(model, shared, "any", options)
    report.compare("CLIP logits", logits, d["clip_logits_per_image"][:, 0], 1e-3)
    report.compare("anchor", anchor, d["anchor"])
    report.compare("candidate frames", frames, d["frame_ids"])

    theirs = tensor(d["llm_input_ids"])[0]
    prompt = decode_prompt(model.tokenizer, theirs)
    text = sentence(prompt, len(frames))
    ids = (
        model.encoder.prompt(text, len(frames))[0]
        if text
        else torch.tensor(model.tokenizer.prompt_ids(prompt))
    )
    report.compare("token ids", ids, theirs)

    cells = model.cells(shared, frames)
    report.compare(
        "inputs of the language model", model.encoder.embed(cells, ids), d["inputs_embeds"][0], 1e-4
    )
    hidden = dict(zip(("seg", "tak"), model.encoder.states(cells, ids)))
    for name in hidden:
        report.compare(f"{name} hidden", hidden[name], d[f"{name}_hidden"], 1e-4)
    tokens = (
        read_tokens(model, shared, text, frames)[0]
        if text
        else TemporalTokens(*map(model.encoder.project, hidden.values()), frames)
    )
    for name in hidden:
        report.compare(f"{name} token", getattr(tokens, name), d[f"{name}_embed"], 1e-4)

    fused, _ = tda(tokens.seg, tokens.tak, alpha)
    report.compare("fused token", fused, d["fused"], 1e-4)
    keyframe, candidates, low = choose_keyframe(model, shared, tokens, fused, logits, options)
    report.compare("scored frames", frames, d["tks_frame_ids"])
    report.compare("object logits", [c.occlusion for c in candidates], d["tks_obj_logits"], 1e-3)
    report.compare(
        "mask qualities", model.sam2.decode(shared.features, frames, fused).iou, d["tks_ious"], 1e-3
    )
    report.compare("keyframe", keyframe, d["keyframe"])
    large = model.sam2.enlarge(low, shared.features, None, prompt=True)[0]
    report.compare("keyframe mask logits", large, d["keyframe_mask_logits"], 1e-3)

    out = carry_mask(model, shared, keyframe, large > 0, fused, options)
    masks = model.sam2.enlarge(out.logits, shared.features, None)
    report.compare("mask logits", masks, d["pred_masks"], 1e-3)
    if text:
        whole = segment_one(model, shared, text, options)
        report.compare("keyframe of segment", whole.keyframe, d["keyframe"])
        report.compare(
            "masks of segment",
            (whole.masks != (d["pred_masks"] > 0)) & (np.abs(d["pred_masks"]) > 1e-3),
            np.zeros_like(whole.masks),
        )


# ---------------------------------------------------------------- training


def cases(npz):
    return sorted({k.rpartition("/")[0] for k in npz if k.rpartition("/")[2] == "input_ids"})


def case_alpha(case, d):
    "TDA's alpha: as stored, or as named, or the paper's"
    if "alpha" in d:
        return float(d["alpha"])
    named = re.search(r"alpha_?(\d*\.?\d+)", case)
    if named is None:
        return 0.1
    return float(re.sub(r"^0(\d)", r"0.\1", named[1]))  # alpha1, alpha0.25, alpha025


def stored_samples(d):
    "The batch: one sample an image or video, with its conversations"
    rows = [slice(a, b) for a, b in zip(d["offset"][:-1], d["offset"][1:])]
    kept = [tensor(m).bool() for m in d["attention_masks"]]
    cut = lambda name, rows: [tensor(x)[m] for x, m in zip(d[name][rows], kept[rows])]
    return [
        Sample(
            tensor(d[f"images{i}"]),
            tensor(d[f"images_clip{i}"]),
            tensor(d[f"masks{i}"]),
            tuple(map(int, d[f"resize{i}"])),
            cut("input_ids", r),
            cut("labels", r),
        )
        for i, r in enumerate(rows)
    ]


def without_dropout(model):
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
        if hasattr(m, "dropout_p"):
            m.dropout_p = 0.0
    return model


def check_training(npz_path, assets=None, only=None):
    "Losses, masks and gradients of every case in the npz; {case: `Report`}, or an `AssertionError` that names the first difference"
    npz_path, reports = Path(npz_path), {}
    assets = assets_of(npz_path, assets)
    npz = np.load(npz_path)
    for case in cases(npz) if only is None else [only]:
        d = {k.rpartition("/")[2]: npz[k] for k in npz.files if k.rpartition("/")[0] == case}
        report, problem, name = Report(f"{npz_path.name}, {case}"), None, case or npz_path.stem
        model = without_dropout(run_model(assets_of(npz_path, assets))).train("trainmode" in name)
        try:
            _training(model, d, report, case_alpha(name, d))
        except Exception as e:
            problem = e
        reports[case] = report.done(problem)
    return reports


def _training(model, d, report, alpha):
    samples = stored_samples(d)
    with torch.no_grad():
        tokens = [t for s in samples for t in read_sample(model.encoder, s)[1]]
    for i, name in enumerate(("seg", "tak")):
        report.compare(
            f"{name} tokens",
            torch.cat([t[i] for t in tokens]) if tokens else d[f"{name}_embed"],
            d[f"{name}_embed"],
            1e-4,
        )
    losses, masks = paper_losses(model, samples, alpha)
    for i, (logits, true) in enumerate(masks):
        report.compare(f"mask logits {i}", logits, d[f"pred_mask{i}"], 1e-3)
        report.compare(f"true masks {i}", true, d[f"gt_mask{i}"])
    if "mask_loss" in d:
        report.compare(
            "mask_loss",
            losses["loss"] - losses["ce"],
            d["mask_loss"],
            5e-5 * max(1, abs(float(d["mask_loss"]))),
        )
    for ours, theirs in (
        ("ce", "ce_loss"),
        ("bce", "mask_bce_loss"),
        ("dice", "mask_dice_loss"),
        ("loss", "loss"),
    ):
        report.compare(theirs, losses[ours], d[theirs], 5e-5 * max(1, abs(float(d[theirs]))))
    losses["loss"].backward()
    zero = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    gradients = {
        "lm_head": zero(model.encoder.llm.lm_head.weight),
        "text_hidden_fcs.0.2.weight": zero(model.encoder.project[2].weight),
        "mask_tokens": zero(model.sam2.sam_mask_decoder.mask_tokens.weight),
    }
    for name, ours in gradients.items():
        theirs = d[f"grad_{name}"]
        if len(ours) != len(theirs):
            ours = ours[
                :: -(-len(ours) // len(theirs))
            ]  # the reference stored every so many-th row
        report.compare(
            f"gradient of {name}",
            ours,
            theirs,
            3e-3 * max(1e-2, float(np.abs(theirs).max(initial=0))),
        )


def main(paths):
    if not 1 <= len(paths) <= 2:
        sys.exit(__doc__.splitlines()[0])
    if not Path(paths[0]).is_file():
        sys.exit(f"there is no file {paths[0]}")
    npz = np.load(paths[0])
    assert is_inference(npz) or cases(npz), (
        f"{paths[0]} holds neither an inference nor training steps"
    )
    reports = (
        {"inference": check_inference(*paths)} if is_inference(npz) else check_training(*paths)
    )
    for name, report in reports.items():
        print(f"{name}\n{report}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AssertionError as e:
        sys.exit(str(e))

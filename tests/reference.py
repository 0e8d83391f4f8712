"""Whole runs of the reference implementation against ours.

`python tests/reference.py FILE.npz [FOLDER OF ITS WEIGHTS]`

An npz holds inputs and outputs of one inference (`check_inference`) or of several training steps
(`check_training`). Beside it, or in the folder given, lie the weights, sizes and vocabulary of the
run: sam2_tiny.safetensors (or none: it is drawn again), sam2_tiny_config.json,
chatunivi_tiny.safetensors, chatunivi_tiny_config.json, tiny_tokenizer/. All else (frames, alpha,
sizes, padding) comes from the npz.
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

from vrshq_nb.chatunivi import TrainingSample, paper_losses, sample_tokens
from vrshq_nb.mdp import Features, sam2_from_config
from vrshq_nb.model import (
    VRSHQ,
    EncodedVideo,
    Options,
    encode_tokens,
    propagate_mask,
    propose_frames,
    score_candidates,
    segment_one,
    visual_features,
)
from vrshq_nb.released import load_released
from vrshq_nb.scorer import image_vectors
from vrshq_nb.tda import tda
from vrshq_nb.tokens import LONG_QUESTIONS, SHORT_QUESTIONS, TemporalTokens, temporal_prompt
from vrshq_nb.transforms import inner_size


# ---- a checkpoint in the released format, from the run's weights

EMBEDDINGS = ("embed.weight", "embeddings", "pos_embed", "no_mem", "no_obj", "tpos")


def drawn(name, p, z):
    "The weight of a parameter from normal numbers z"
    if name.endswith("pred_obj_score_head.layers.2.bias"):
        return 2 + 0.1 * z
    if name.endswith("pred_obj_score_head.layers.2.weight"):
        return 0.9 * z
    if name.endswith("gamma"):
        return 0.5 + 0.1 * z
    if p.dim() == 1:
        return 0.1 * z + (0 if name.endswith("bias") else 1)
    if "token" in name:
        return 0.5 * z
    if any(part in name for part in EMBEDDINGS):
        return 0.3 * z
    return z * 1.2 / (p.shape[0] if "upscaling" in name else p[0].numel()) ** 0.5


@torch.no_grad()
def draw_weights(model):
    "A SAM 2 with the runs' random weights, from their seed (unused embeddings of clicks differ)"
    g = torch.Generator().manual_seed(14)
    for name, p in sorted(model.named_parameters()):
        p.copy_(drawn(name, p, torch.randn(p.shape, generator=g)))
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix.copy_(torch.randn(matrix.shape, generator=g))
    return model


def seeded_sam2(config):
    "Those weights, to keep 5 MB out of the repository"
    return {k: v.clone() for k, v in draw_weights(sam2_from_config(config)).state_dict().items()}


def released_state(assets):
    "Weights of a run under the names of the released checkpoint"
    stored = assets / "sam2_tiny.safetensors"
    if stored.exists():
        sam2 = load_file(stored)
    else:
        sam2 = seeded_sam2(json.loads((assets / "sam2_tiny_config.json").read_text()))
    state = load_file(assets / "chatunivi_tiny.safetensors")
    for key, value in sam2.items():
        name = key.removeprefix("model.").removeprefix("visual_model.")
        state["model.visual_model." + name] = value
    return state


def write_released(folder, assets, kind="safetensors", shards=1):
    "A folder as the authors release it: config.json, tokenizer.model, weights in files"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((assets / "chatunivi_tiny_config.json").read_text())
    sizes = {k: v for k, v in config.items() if k in ("clip_vision", "clip_model")}
    sam2 = json.loads((assets / "sam2_tiny_config.json").read_text())
    config = {"model_type": "ChatUniVi", **config["llama"], **sizes, "sam2_config": sam2}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = (assets / "tiny_tokenizer" / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(vocabulary)
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
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}.{ending}.index.json").write_text(index)


STORED = Path(__file__).resolve().parent / "data" / "chatunivi"


def assets_of(npz_path, assets=None):
    "Where a run's weights are: as given, beside the npz, or those that are kept for the tests"
    npz_path = Path(npz_path)
    if not npz_path.is_file():
        raise FileNotFoundError(f"there is no file {npz_path}")
    if assets:
        return Path(assets)
    beside = (npz_path.parent / "chatunivi_tiny_config.json").exists()
    return npz_path.parent if beside else STORED


def run_model(assets):
    "Our model with the weights of a run, read as a released checkpoint is"
    with tempfile.TemporaryDirectory() as folder:
        parts = load_released(write_released(folder, Path(assets)), dtype=torch.float32)
    return VRSHQ(parts.encoder, parts.sam2, parts.scorer, parts.config)


# ---- comparing


def as_array(x):
    return np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, dtype=np.float64)


@dataclass
class Report:
    "Largest differences, in the order of the computation"

    where: str
    differences: dict = field(default_factory=dict)  # quantity -> largest absolute difference
    tolerances: dict = field(default_factory=dict)

    def compare(self, name, ours, theirs, tolerance=0.0):
        ours, theirs = as_array(ours), as_array(theirs)
        if ours.shape != theirs.shape:
            name = f"{name} (shape {ours.shape} instead of {theirs.shape})"
            worst = np.inf
        else:
            worst = float(np.abs(ours - theirs).max()) if ours.size else 0.0
        self.differences[name] = worst if np.isfinite(worst) else np.inf
        self.tolerances[name] = tolerance

    @property
    def first(self):
        return next((k for k, v in self.differences.items() if v > self.tolerances[k]), None)

    def done(self, problem=None):
        "Itself; an `AssertionError` names the first quantity that differs, or the error of our run"
        if self.first is None and problem is None:
            return self
        what = f"all compared so far is equal, then {type(problem).__name__}: {problem}"
        if self.first:
            worst, allowed = self.differences[self.first], self.tolerances[self.first]
            what = f"{self.first} differs by {worst:.3g} (at most {allowed:g})"
        error = AssertionError(f"{self.where}: {what}\n{self}")
        error.report = self
        raise error from problem

    def __str__(self):
        lines = []
        for name, worst in self.differences.items():
            allowed = self.tolerances[name]
            verdict = "DIFFERS" if worst > allowed else "equal  "
            lines.append(f"  {verdict} {name:<36} {worst:.3g} of {allowed:g}")
        return "\n".join(lines)


def is_inference(npz):
    return "pred_masks" in npz


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def sentence(prompt, n):
    "The expression in a conversation, or None where our templates did not make it"
    for question in (*SHORT_QUESTIONS, *LONG_QUESTIONS):
        before, after = ("\n" + question).split("{}")
        pattern = re.escape(before) + "(.*?)" + re.escape(after) + " ASSISTANT:"
        found = re.search(pattern, prompt, re.S)
        if found and "".join(temporal_prompt(found[1], n)) == prompt:
            return found[1]


# ---- inference


def stored_video(model, d):
    "The npz's frames as `VRSHQ.encode` would have encoded them, each once"
    height, width = map(int, d["orig_hw"])
    features = Features(*model.sam2.encode_batch(tensor(d["images_sam"])), height, width)
    vectors = image_vectors(model.scorer.clip, tensor(d["clip_pixel_values"]))
    clip_ids = tensor(d["clip_input_ids"])
    model.scorer.tokenize = lambda texts: clip_ids  # the run's CLIP has no vocabulary
    encoder = model.encoder
    visual = encoder.visual_tokens(encoder.encode_images(tensor(d["images_clip"])))
    all_frames = len(visual) == len(features)
    frames = range(len(features)) if all_frames else d["frame_ids"].tolist()
    clip = F.normalize(vectors.float(), dim=-1)
    return EncodedVideo(None, features, clip, dict(zip(frames, visual)))


@torch.no_grad()
def check_inference(npz_path, assets=None):
    "A `Report` of our run on the npz's inputs; an `AssertionError` names the first difference"
    npz_path = Path(npz_path)
    report, problem = Report(npz_path.name), None
    model, d = run_model(assets_of(npz_path, assets)), video_numbers(dict(np.load(npz_path)))
    try:
        _inference(model, d, report)
    except Exception as e:  # whatever our run ends in belongs into the report
        problem = e
    return report.done(problem)


def video_numbers(d):
    """The npz with frames named by their number in the video.

    A run may have named candidates by their place in the row. Scored frames 0, 1, 2 … that are not
    the candidates' numbers are places. A keyframe is a place if the npz's own scores say so.
    """
    frames, scored, key = d["frame_ids"], d["tks_frame_ids"], int(d["keyframe"])
    if not np.array_equal(scored, frames) and np.array_equal(scored, np.arange(len(frames))):
        d = d | {"tks_frame_ids": frames}
    seg, tak = tensor(d["seg_embed"]), tensor(d["tak_embed"])
    best = int((tensor(d["tks_obj_logits"]).softmax(0) + tda(seg, tak)[1]).argmax())
    return d | {"keyframe": frames[best]} if key != frames[best] and key == best else d


def _inference(model, d, report):
    options = Options(alpha=float(d["alpha"]), gate=False)
    encoded = stored_video(model, d)
    features, size = encoded.features, model.sam2.image_size
    inner = inner_size(features.height, features.width, size)
    report.compare("size in the padded square", inner, d["resize"])

    logits, anchor, frames = propose_frames(model, encoded, "any", options)
    report.compare("CLIP logits", logits, d["clip_logits_per_image"][:, 0], 1e-3)
    report.compare("anchor", anchor, d["anchor"])
    report.compare("candidate frames", frames, d["frame_ids"])

    text, tokens = _tokens(model, encoded, frames, d, report)
    fused, weights = tda(tokens.seg, tokens.tak, options.alpha)
    report.compare("fused token", fused, d["fused"], 1e-4)
    scored = score_candidates(model, encoded, tokens, fused, weights, logits, options)
    keyframe, candidates, low = scored
    report.compare("scored frames", frames, d["tks_frame_ids"])
    report.compare("object logits", [c.occlusion for c in candidates], d["tks_obj_logits"], 1e-3)
    iou = model.sam2.decode(features, frames, fused).iou
    report.compare("mask qualities", iou, d["tks_ious"], 1e-3)
    report.compare("keyframe", keyframe, d["keyframe"])
    large = model.sam2.resize_masks(low, features, None, prompt=True)[0]
    report.compare("keyframe mask logits", large, d["keyframe_mask_logits"], 1e-3)

    out = propagate_mask(model, encoded, keyframe, large > 0, fused, options)
    masks = model.sam2.resize_masks(out.logits, features, None)
    report.compare("mask logits", masks, d["pred_masks"], 1e-3)
    if text:
        whole = segment_one(model, encoded, text, options)
        report.compare("keyframe of segment", whole.keyframe, d["keyframe"])
        clear = np.abs(d["pred_masks"]) > 1e-3
        wrong = (whole.masks != (d["pred_masks"] > 0)) & clear
        report.compare("masks of segment", wrong, np.zeros_like(wrong))


def _tokens(model, encoded, frames, d, report):
    "The sentence (or None) and its tokens, compared on the way"
    encoder, theirs = model.encoder, tensor(d["llm_input_ids"])[0]
    prompt = encoder.tokenizer.decode(theirs)
    text = sentence(prompt, len(frames))
    if text:
        ids = encoder.prompt(text, len(frames))[0]
    else:
        ids = torch.tensor(encoder.tokenizer.prompt_ids(prompt))
    report.compare("token ids", ids, theirs)

    visual = visual_features(model, encoded, frames)
    embeds = encoder.embed(visual, ids)
    report.compare("inputs of the language model", embeds, d["inputs_embeds"][0], 1e-4)
    hidden = dict(zip(("seg", "tak"), encoder.states(visual, ids)))
    for name, states in hidden.items():
        report.compare(f"{name} hidden", states, d[f"{name}_hidden"], 1e-4)
    if text:
        tokens, _ = encode_tokens(model, encoded, text, frames)
    else:
        tokens = TemporalTokens(*map(encoder.project, hidden.values()), frames)
    for name in hidden:
        report.compare(f"{name} token", getattr(tokens, name), d[f"{name}_embed"], 1e-4)
    return text, tokens


# ---- training


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
    kept = [tensor(m).bool() for m in d["attention_masks"]]
    samples = []
    for i, (a, b) in enumerate(zip(d["offset"][:-1], d["offset"][1:])):
        sample = TrainingSample(
            images=tensor(d[f"images{i}"]),
            images_clip=tensor(d[f"images_clip{i}"]),
            masks=tensor(d[f"masks{i}"]),
            inner=tuple(map(int, d[f"resize{i}"])),
            ids=[tensor(x)[m] for x, m in zip(d["input_ids"][a:b], kept[a:b])],
            labels=[tensor(x)[m] for x, m in zip(d["labels"][a:b], kept[a:b])],
        )
        samples.append(sample)
    return samples


def without_dropout(model):
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
        if hasattr(m, "dropout_p"):
            m.dropout_p = 0.0
    return model


def check_training(npz_path, assets=None, only=None):
    "{case: `Report`} of losses, masks, gradients; an `AssertionError` names the first difference"
    npz_path, reports = Path(npz_path), {}
    assets = assets_of(npz_path, assets)
    npz = np.load(npz_path)
    for case in cases(npz) if only is None else [only]:
        d = {k.rpartition("/")[2]: npz[k] for k in npz.files if k.rpartition("/")[0] == case}
        report, problem, name = Report(f"{npz_path.name}, {case}"), None, case or npz_path.stem
        model = without_dropout(run_model(assets_of(npz_path, assets))).train("trainmode" in name)
        try:
            _training(model, d, report, case_alpha(name, d))
        except Exception as e:  # whatever our run ends in belongs into the report
            problem = e
        reports[case] = report.done(problem)
    return reports


def _training(model, d, report, alpha):
    samples = stored_samples(d)
    with torch.no_grad():
        tokens = [t for s in samples for t in sample_tokens(model.encoder, s)[1]]
    for i, name in enumerate(("seg", "tak")):
        theirs = d[f"{name}_embed"]
        ours = torch.cat([t[i] for t in tokens]) if tokens else theirs
        report.compare(f"{name} tokens", ours, theirs, 1e-4)
    losses, masks = paper_losses(model.encoder, model.sam2, samples, alpha)
    for i, (logits, true) in enumerate(masks):
        report.compare(f"mask logits {i}", logits, d[f"pred_mask{i}"], 1e-3)
        report.compare(f"true masks {i}", true, d[f"gt_mask{i}"])
    scalars = {
        "mask_loss": losses["loss"] - losses["ce"],
        "ce_loss": losses["ce"],
        "mask_bce_loss": losses["bce"],
        "mask_dice_loss": losses["dice"],
        "loss": losses["loss"],
    }
    for name, ours in scalars.items():
        if name in d or name != "mask_loss":
            report.compare(name, ours, d[name], 5e-5 * max(1, abs(float(d[name]))))
    losses["loss"].backward()
    _gradients(model, d, report)


def _gradients(model, d, report):
    parameters = {
        "lm_head": model.encoder.llm.lm_head.weight,
        "text_hidden_fcs.0.2.weight": model.encoder.project[2].weight,
        "mask_tokens": model.sam2.sam_mask_decoder.mask_tokens.weight,
    }
    for name, p in parameters.items():
        ours, theirs = torch.zeros_like(p) if p.grad is None else p.grad, d[f"grad_{name}"]
        if len(ours) != len(theirs):
            ours = ours[:: -(-len(ours) // len(theirs))]  # the reference stored every n-th row
        largest = float(np.abs(theirs).max(initial=0))
        report.compare(f"gradient of {name}", ours, theirs, 3e-3 * max(1e-2, largest))


def main(paths):
    if not 1 <= len(paths) <= 2:
        sys.exit("usage: python tests/reference.py FILE.npz [FOLDER OF ITS WEIGHTS]")
    if not Path(paths[0]).is_file():
        sys.exit(f"there is no file {paths[0]}")
    npz = np.load(paths[0])
    assert is_inference(npz) or cases(npz), (
        f"{paths[0]} holds neither an inference nor training steps"
    )
    if is_inference(npz):
        reports = {"inference": check_inference(*paths)}
    else:
        reports = check_training(*paths)
    for name, report in reports.items():
        print(f"{name}\n{report}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AssertionError as e:
        sys.exit(str(e))

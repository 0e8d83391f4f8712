"""The four stages as one: a video and a sentence in, masks out."""
import json
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from vrshq_nb.mdp import Features, sam2_from_config, upscale
from vrshq_nb.tda import tda
from vrshq_nb.tks import anchor_frame, candidate_frames, clip_tokenize, scorer_from_config, select_keyframe
from vrshq_nb.tokens import TemporalTokens, TokenEncoder, clean_expression
from vrshq_nb.video import VRSError, Video, atomic_path, write_video
from vrshq_nb.viz import browse, overlay, summary_picture

# %% result
@dataclass
class Segmentation:
    "What `VRSHQ.segment` found out about one sentence."
    text: str                     # the sentence
    masks: np.ndarray             # bool (T, H, W), at the video's own size
    keyframe: int                 # the frame whose mask was propagated
    found: bool                   # False where the model says that no such thing is there: all masks are empty
    answer: str                   # what the language model says
    candidates: list              # `Candidate`s, the frames that the language model saw
    tokens: TemporalTokens        # `[SEG]` (T', D) and `[TAK]` (1, D)
    fused: Tensor                 # (1, D), the token that prompted SAM 2 (TDA)
    weights: Tensor               # (T',), TDA's weights
    anchor: int                   # CLIP's favourite frame
    clip_logits: Tensor           # (T,), CLIP's logit of every frame
    object_logits: Tensor         # (T,), SAM 2's occlusion logit of every frame while propagating
    video: Video
    timings: dict = field(default_factory=dict)  # seconds a stage

    @property
    def fps(self) -> float: return self.video.fps
    def show(self, n: int = 6): return summary_picture(self, n)
    def browse(self): return browse(self)
    def save(self, path) -> Path: return save_segmentation(self, path)
    def __repr__(self):
        what = f"keyframe {self.keyframe}, {self.masks.mean():.1%} of the pixels" if self.found else "nothing found"
        return f"Segmentation({self.text!r}: {what}, masks {list(self.masks.shape)}, answer {self.answer!r})"

# %% saving
def save_segmentation(
    seg: Segmentation,
    path,    # .mp4, .gif: overlay; .json: COCO RLE; a folder (no ending): one PNG a frame
) -> Path:   # where it was written
    "Writes a result in one of four formats; nothing is left behind where that fails."
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".mp4", ".gif", ".json", ""): raise VRSError(f"cannot save as {kind!r}: use .mp4, .gif, .json or a folder")
    if kind in (".mp4", ".gif"):
        return write_video(path, (f for i, frames in seg.video.chunks(16) for f in overlay(frames, seg.masks[i[0]:i[-1] + 1])), fps=seg.fps)
    with atomic_path(path) as aside: (_write_json if kind else _write_pngs)(seg, aside)
    return path

def to_rle(mask: np.ndarray) -> dict:
    "A bool mask (H, W) as COCO run lengths, ready for json."
    from pycocotools import mask as coco
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}

def _write_json(seg, path):
    record = dict(text=seg.text, answer=seg.answer, found=seg.found, keyframe=seg.keyframe, anchor=seg.anchor, fps=seg.fps, video=seg.video.name,
                  candidates=[vars(c) for c in seg.candidates], object_logits=[round(x, 4) for x in seg.object_logits.tolist()],
                  timings={k: round(v, 4) for k, v in seg.timings.items()}, masks=[to_rle(m) for m in seg.masks])
    path.write_text(json.dumps(record))

def _write_pngs(seg, path):
    path.mkdir()
    for t, mask in enumerate(seg.masks): Image.fromarray(mask.astype(np.uint8) * 255).save(path / f"{t:05d}.png")

def load_masks(
    path,            # what `Segmentation.save` wrote: .json or a folder of PNGs
) -> np.ndarray:     # bool (T, H, W)
    "Reads masks back."
    path = Path(path)
    if path.is_dir(): return np.stack([np.asarray(Image.open(p)) > 0 for p in sorted(path.glob("*.png"))])
    from pycocotools import mask as coco
    return np.stack([coco.decode(m).astype(bool) for m in json.loads(path.read_text())["masks"]])

# %% weights
def own_state(model: nn.Module) -> dict:
    "The state dict without tied copies: every tensor once."
    seen, state = set(), {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen: continue
        seen.add(key); state[name] = tensor
    return state

def check_state(expected: dict, given: dict, where):
    "A `VRSError` that names missing, extra and misshapen keys and values that are not finite."
    problems = {"missing": sorted(expected.keys() - given.keys()), "unexpected": sorted(given.keys() - expected.keys()),
                "of another shape": [k for k in expected.keys() & given.keys() if expected[k].shape != given[k].shape],
                "not finite": [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]}
    found = [f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', …' if len(keys) > 3 else ''})" for what, keys in problems.items() if keys]
    if found: raise VRSError(f"the weights in {where} do not fit the model: {'; '.join(found)}")

def find_weights(name) -> Path:
    "The folder of a model: 'nano' in the package, a folder on disk, or a hub id `owner/name`."
    builtin = Path(str(files("vrshq_nb") / "weights" / str(name)))
    if str(name).isidentifier() and (builtin / "config.json").exists(): return builtin
    folder = Path(str(name)).expanduser()
    if (folder / "config.json").exists(): return folder
    if folder.exists(): raise VRSError(f"{name} holds no model: a folder with config.json and model.safetensors is wanted")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise VRSError(f"unknown model {str(name)!r}: use 'nano', a folder written by save_pretrained, or a hub id owner/name")
    from huggingface_hub import snapshot_download
    try: return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as e: raise VRSError(f"model {name!r} is not a folder here and could not be fetched from the hub ({type(e).__name__}): check the name and the connection") from e

def find_device(name=None) -> torch.device:
    "`None` or 'auto': CUDA, else Apple's MPS, else the CPU."
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise VRSError(f"device {str(name)!r} cannot be used here: try 'cpu' or 'auto'") from e
    return device

# %% timing
class Stopwatch:
    "Seconds per stage."
    def __init__(self): self.seconds = {}
    @contextmanager
    def __call__(self, stage):
        start = time.perf_counter()
        try: yield
        finally: self.seconds[stage] = self.seconds.get(stage, 0.) + time.perf_counter() - start

@dataclass
class EncodedVideo:
    "What every sentence shares: features of SAM 2 and of CLIP, each frame encoded once, and cells of the frames shown so far."
    video: Video
    features: Features
    clip: Tensor                                # (T, E)
    cells: dict = field(default_factory=dict)   # frame -> (C, h, w)
    timings: dict = field(default_factory=dict)

# %% VRSHQ
class VRSHQ(nn.Module):
    "VRS-HQ: token encoding, temporal aggregation, keyframe selection, mask decoding and propagation."
    def __init__(
        self,
        config: dict,  # keys encoder, sam2, clip: the parts' own configs
        tokenizer,     # of the language model, shared with CLIP
    ):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.encoder = TokenEncoder(config["encoder"], tokenizer)
        self.sam2 = sam2_from_config(config["sam2"])
        tokenize = partial(clip_tokenize, tokenizer, context_length=config["clip"]["text_cfg"]["context_length"])
        self.clip = scorer_from_config(config["clip"], tokenize, fit="stretch")
        self.eval()

    @property
    def device(self) -> torch.device: return self.sam2.device

    @classmethod
    def from_pretrained(
        cls,
        name="nano",   # 'nano', a folder, or a hub id
        device="cpu",  # 'cpu', 'cuda', 'mps' or 'auto'
    ) -> "VRSHQ":
        "Loads a model; every key of its weights is accounted for, or a `VRSError` says which is not."
        device, folder = find_device(device), find_weights(name)
        try:
            config = json.loads((folder / "config.json").read_text())
            state = load_file(folder / "model.safetensors")
            model = cls(config, PreTrainedTokenizerFast.from_pretrained(folder))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            if isinstance(e, VRSError): raise
            raise VRSError(f"the model in {folder.name!r} cannot be read ({type(e).__name__}: {str(e)[:120]}): write it again with save_pretrained") from e
        check_state(own_state(model), state, folder.name)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=False)
        return model.to(device).eval()

    def save_pretrained(
        self,
        folder,                       # is made; an existing one is replaced
        dtype: torch.dtype | None = None,  # such as torch.float16 to halve the size
    ) -> Path:
        "Writes config.json, model.safetensors and the tokenizer, aside first."
        folder = Path(folder)
        state = {k: v.detach().cpu().contiguous() for k, v in own_state(self).items()}
        if dtype: state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        with atomic_path(folder) as aside:
            aside.mkdir()
            save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
            (aside / "config.json").write_text(json.dumps(self.config, indent=1))
            self.tokenizer.save_pretrained(aside)
        return folder

    def precision(self):
        "bf16 autocast where it pays: on CUDA."
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else nullcontext()

    @torch.inference_mode()
    def encode(self, video, batch_size: int = 16, progress: bool = False) -> EncodedVideo:
        "Every frame once through SAM 2's image encoder and through CLIP's, `batch_size` at a time."
        video, watch, parts, clip = Video.open(video), Stopwatch(), [], []
        bar = tqdm(total=len(video), desc="encode", unit="frame", disable=not progress, leave=False)
        chunks = iter(video.chunks(batch_size))
        while True:
            with watch("read"): chunk = next(chunks, None)
            if chunk is None: break
            with self.precision():
                with watch("SAM 2 encoder"): parts.append(self.sam2.encode(chunk[1], batch_size))
                with watch("CLIP"): clip.append(self.clip.encode_frames(chunk[1]).float())
            bar.update(len(chunk[0]))
        bar.close()
        return EncodedVideo(video, Features.cat(parts), torch.cat(clip), timings=watch.seconds)

    def cells(self, shared: EncodedVideo, frames: list) -> Tensor:
        "Vision-tower cells (T', C, h, w) of some frames; a frame seen before is not encoded again."
        new = [t for t in frames if t not in shared.cells]
        if new: shared.cells.update(zip(new, self.encoder.see(shared.video.frames(new))))
        return torch.stack([shared.cells[t] for t in frames])

    def segment(
        self,
        video,                  # path, folder, array, `Video`, or what `encode` returned
        text,                   # a sentence, or a list of sentences
        *,
        k: int = 12,            # candidates at most (TKS)
        sampling: str = "clip", # how candidates are chosen: see `candidate_frames`
        terms: tuple = ("similarity", "occlusion"),  # of the keyframe's score: see `keyframe_scores`
        alpha: float = .1,      # weight of the frame tokens (TDA)
        temperature: float = 1.,# of TDA's softmax
        how: str = "softmax",   # TDA's form: see `tda`
        prompt: str = "mask",   # what is propagated: the keyframe's "mask" (paper) or its "token" (as in training)
        gate: bool = True,      # nothing is shown where the keyframe's object logit is not above 0
        seed: int = 0,          # for sampling="random"
        progress: bool = False, # progress bars
    ):                          # a `Segmentation`, or a list of them
        "Masks of what a sentence means, in every frame. The frames are encoded once, whatever the number of sentences."
        single = isinstance(text, str)
        texts = [clean_expression(t) for t in ([text] if single else text)]
        if not texts: raise VRSError("no sentence is given: say what to look for")
        options = dict(k=k, sampling=sampling, terms=terms, alpha=alpha, temperature=temperature, how=how, prompt=prompt, gate=gate, seed=seed)
        shared = video if isinstance(video, EncodedVideo) else self.encode(video, progress=progress)
        out = [self._segment_one(shared, t, progress=progress, **options) for t in texts]
        return out[0] if single else out

    @torch.inference_mode()
    def _segment_one(self, shared, text, *, k, sampling, terms, alpha, temperature, how, prompt, gate, seed, progress):
        watch, n = Stopwatch(), len(shared.features)
        with watch("anchor"):
            logits = self.clip.logits(shared.clip, [text])[0].cpu()
            anchor = anchor_frame(logits)
            frames = candidate_frames(n, anchor, k, how=sampling, scores=logits, seed=seed)
        with watch("tokens"), self.precision():
            tokens, answer = self.encoder(self.cells(shared, frames), text, frames)
        with watch("aggregate"): fused, weights = tda(tokens.seg.float(), tokens.tak.float(), alpha, temperature, how)
        with watch("keyframe"):
            _, similarity = tda(tokens.seg.float(), tokens.tak.float())   # λ of the unfused token
            decoded = self.sam2.decode(shared.features, frames, fused)
            keyframe, candidates = select_keyframe(frames, decoded.object_logit.float().cpu(), similarity.cpu(), logits.softmax(0)[frames], terms)
        masks, seen, found = self._propagate(shared, keyframe, fused, decoded, frames.index(keyframe), prompt, gate, watch, progress)
        timings = shared.timings | watch.seconds
        return Segmentation(text, masks, keyframe, found, answer, candidates, tokens, fused, weights, anchor, logits, seen, shared.video, timings)

    def _propagate(self, shared, keyframe, fused, decoded, at, prompt, gate, watch, progress):
        "Masks at the video's size, occlusion logits of all frames, and whether anything was found."
        features, n = shared.features, len(shared.features)
        mask = upscale(decoded.logits[[at]], features.height, features.width)[0]
        found = bool(mask.any()) and bool(decoded.object_logit[at] > 0)
        if not found and gate:
            return np.zeros((n, features.height, features.width), bool), torch.full((n,), float(decoded.object_logit[at])), False
        bar = tqdm(total=n, desc="propagate", unit="frame", disable=not progress, leave=False)
        with watch("propagate"):
            out = self.sam2.propagate(features, keyframe, mask, prompt=prompt, token=fused, details=True, progress=lambda done, _: bar.update(done - bar.n))
        bar.close()
        with watch("upscale"): masks = upscale(out.logits, features.height, features.width).numpy()
        return masks, out.object_logit.float().cpu(), found or bool(masks.any())

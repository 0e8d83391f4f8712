"""Stage 1: a multimodal language model writes one `[SEG]` token per frame and one `[TAK]` token per video."""
import re
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ResNetConfig, ResNetModel

from vrshq_nb.video import VRSError

SEG, TAK, IMAGE = "[SEG]", "[TAK]", "<image>"
MAX_FRAMES, MAX_CHARACTERS = 64, 1000

# %% TemporalTokens
@dataclass
class TemporalTokens:
    "The tokens of one sentence: `seg` (T', D), one per frame given to the language model, `tak` (1, D), and those frames."
    seg: Tensor
    tak: Tensor
    frames: list

# %% clean
def clean_expression(
    text: str,  # a phrase or a question
) -> str:       # lower-cased, white space normalised
    "The sentence as the prompt wants it; `VRSError` if it is empty or longer than `MAX_CHARACTERS`."
    if not isinstance(text, str): raise VRSError(f"the sentence must be text, not {type(text).__name__}")
    text = " ".join(text.split()).lower()
    if not text: raise VRSError("the sentence is empty: say what to look for, such as 'the red kite'")
    if len(text) > MAX_CHARACTERS:
        raise VRSError(f"the sentence has {len(text)} characters: at most {MAX_CHARACTERS} are read, please shorten it")
    return text

# %% prompt
def temporal_prompt(
    text: str,              # the expression
    n_frames: int,          # T', frames given to the language model
    style: str = "vicuna",  # "vicuna": the paper's conversation; "plain": nano's short one
) -> tuple:                 # (what the user says, what the model answers)
    "Question and answer with one `[SEG]` per frame and one `[TAK]` (method section 3.1)."
    if n_frames < 1: raise VRSError("the prompt needs at least one frame")
    text = clean_expression(text)
    if style == "plain": return _plain_prompt(text, n_frames)
    if style != "vicuna": raise VRSError(f"unknown prompt style {style!r}: choose 'vicuna' or 'plain'")
    return _vicuna_prompt(text, n_frames)

def _plain_prompt(text, n_frames):
    video = "".join(f"({t}){IMAGE}" for t in range(n_frames))
    answer = "".join(f"({t}){SEG}" for t in range(n_frames))
    return f"{video}<user> {text}<assistant>", f"{answer}<video>{TAK}"

def _vicuna_prompt(text, n_frames):
    video = ", ".join(f"({t}){IMAGE}" for t in range(n_frames))
    ask = (f"{text} Please answer with masks for every frame." if text.endswith("?")
           else f"Which thing in the video is “{text}”? Please answer with masks for every frame.")
    answer = ", ".join(f"({t}) {SEG}" for t in range(n_frames))
    return (f"USER: Reference Video: {video} \n{ask} ASSISTANT:",
            f"The mask of each frame is {answer}, while for the entire video it is {TAK}.")

# %% gather
def gather_tokens(
    hidden: Tensor,     # (L, d) last layer's hidden states
    input_ids: Tensor,  # (L,) token ids; a token's state stands one position before it
    seg_id: int,        # id of [SEG]
    tak_id: int,        # id of [TAK]
) -> tuple:             # (T', d) states of [SEG], (1, d) state of [TAK]
    "The states that *predict* `[SEG]` and `[TAK]`: one position before each token."
    if len(hidden) != len(input_ids): raise ValueError(f"{len(hidden)} states for {len(input_ids)} token ids")
    seg, tak = ((input_ids == i).nonzero()[:, 0] - 1 for i in (seg_id, tak_id))
    if len(seg) == 0 or len(tak) != 1: raise ValueError(f"the answer needs [SEG]s and one [TAK], found {len(seg)} and {len(tak)}")
    return hidden[seg], hidden[tak]

# %% projection
class TokenProjection(nn.Sequential):
    "Hidden states (…, d) to prompts of the mask decoder (…, D): `Linear(d, d) → ReLU → Linear(d, D)`, shared by both kinds of token."
    def __init__(self, d: int, D: int): super().__init__(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, D))

# %% tokenizer
def build_tokenizer(
    texts,                   # an iterable of sentences
    vocab_size: int = 1024,  # size of the byte-pair vocabulary, special tokens included
) -> PreTrainedTokenizerFast:
    "A byte-pair tokenizer trained on `texts`, with the special tokens of stage 1."
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.normalizer = normalizers.Lowercase()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tok.decoder = decoders.ByteLevel()
    special = ["<pad>", "<unk>", "<user>", "<assistant>", "<video>", IMAGE, SEG, TAK, *(f"({t})" for t in range(MAX_FRAMES))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens([AddedToken("<end>", special=True)])  # the highest id: CLIP pools its text there
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", additional_special_tokens=special[2:])

# %% vision
def frame_tensor(frames, size: int) -> Tensor:
    "uint8 frames [n, H, W, 3] to float (n, 3, size, size) in [-1, 1], squeezed to a square."
    x = torch.as_tensor(frames).permute(0, 3, 1, 2)
    if x.shape[-2:] != (size, size): x = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.float() / 127.5 - 1

class VideoConnector(nn.Module):
    "Cells of T' frames to inputs of the language model: each cell with its change since the last frame, 2×2 cells a token."
    def __init__(self, channels: int, d: int, cells: int):
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.proj = nn.Sequential(nn.Linear(8 * channels, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.place = nn.Parameter(torch.randn(cells * cells // 4, d) * .02)
    def forward(self, cells: Tensor) -> Tensor:  # (B, T', C, h, w) -> (B, T', h·w/4, d)
        last = torch.cat([cells[:, :1], cells[:, :-1]], 1)
        x = F.pixel_unshuffle(torch.cat([cells, cells - last], 2), 2).flatten(3).transpose(2, 3)
        return self.proj(self.norm(x)) + self.place

# %% attention mask
def shared_video_mask(
    prefix: int,     # length of the video's part
    sentences: int,  # S sentences about that video
    length: int,     # length of each, padded
) -> Tensor:         # bool (1, 1, P + S·L, P + S·L), True where a row may look at a column
    "Every sentence sees the whole video and its own past, never another sentence; frames see one another."
    block = torch.cat([torch.zeros(prefix, dtype=torch.long), 1 + torch.arange(sentences).repeat_interleave(length)])
    causal = torch.ones(len(block), len(block), dtype=torch.bool).tril()
    same = block[:, None] == block[None]
    return ((block[None] == 0) | (same & causal))[None, None]

# %% encoder
class TokenEncoder(nn.Module):
    "Nano's multimodal language model: a small ResNet, a connector, a small Llama and the projection to prompts."
    def __init__(
        self,
        config: dict,  # keys: image_size, cells, tower (ResNetConfig), llama (LlamaConfig), prompt_width (D)
        tokenizer,     # from `build_tokenizer`
    ):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.eye = ResNetModel(ResNetConfig(**config["tower"]))
        llama = LlamaConfig(vocab_size=len(tokenizer), attn_implementation="sdpa", **config["llama"])
        self.llm = LlamaForCausalLM(llama)
        self.connector = VideoConnector(config["tower"]["hidden_sizes"][-1], llama.hidden_size, config["cells"])
        self.project = TokenProjection(llama.hidden_size, config["prompt_width"])
        ids = tokenizer.convert_tokens_to_ids
        self.seg_id, self.tak_id, self.pad_id, self.image_id = ids(SEG), ids(TAK), ids("<pad>"), ids(IMAGE)
        self.register_buffer("marks", torch.tensor(ids([f"({t})" for t in range(MAX_FRAMES)])), persistent=False)

    def see(self, frames, batch_size: int = 32) -> Tensor:
        "Vision tower: uint8 frames [n, H, W, 3] to cells (n, C, h, w), each frame once."
        device = self.marks.device
        parts = [self.eye(frame_tensor(frames[i:i + batch_size], self.config["image_size"]).to(device)).last_hidden_state
                 for i in range(0, len(frames), batch_size)]
        return torch.cat(parts)

    def video_inputs(self, cells: Tensor) -> Tensor:
        "Cells (B, T', C, h, w) to (B, P, d): of every frame its mark `(t)` and its image tokens, which carry the mark too."
        B, T = cells.shape[:2]
        if T > MAX_FRAMES: raise VRSError(f"{T} frames for the language model: at most {MAX_FRAMES} are possible, choose fewer candidates")
        marks = self.llm.get_input_embeddings()(self.marks[:T])[None, :, None].expand(B, -1, -1, -1)
        return torch.cat([marks, self.connector(cells) + marks], 2).flatten(1, 2)

    def sentence_ids(self, texts: list, n_frames: int, endings: list | None = None) -> Tensor:
        "Token ids (S, L) of what follows the video: the expression, the answer with its tokens and, for training, how it ends."
        rows = []
        for i, text in enumerate(texts):
            question, answer = temporal_prompt(text, n_frames, "plain")
            words = question.split("<user>", 1)[1]
            rows.append(f"<user>{words}{answer}" + (f" {endings[i]}<end>" if endings else ""))
        out = self.tokenizer(rows, add_special_tokens=False, padding=True, return_tensors="pt")
        return out["input_ids"].to(self.marks.device)

    def hidden(self, cells: Tensor, ids: Tensor, cache=None):
        "Runs the language model on cells (B, T', C, h, w) and ids (B, S, L); returns its output, P and hidden states (B, S, L, d)."
        B, S, L = ids.shape
        video = self.video_inputs(cells)
        words = self.llm.get_input_embeddings()(ids.flatten(1))
        P = video.shape[1]
        place = torch.cat([torch.arange(P), P + torch.arange(L).repeat(S)]).to(ids.device)
        mask = shared_video_mask(P, S, L).to(ids.device).expand(B, -1, -1, -1)
        out = self.llm.model(inputs_embeds=torch.cat([video, words], 1), attention_mask=mask, position_ids=place[None].expand(B, -1),
                             output_hidden_states=self.training, past_key_values=cache, use_cache=cache is not None)
        return out, P, out.last_hidden_state[:, P:].reshape(B, S, L, -1)

    def forward(self, cells: Tensor, text: str, frames=None, max_words: int = 10) -> tuple:
        "Cells (T', C, h, w) of some frames and a sentence to (`TemporalTokens`, the answer's words)."
        ids, cache = self.sentence_ids([text], len(cells)), DynamicCache()
        out, P, hidden = self.hidden(cells[None], ids[None], cache)
        seg, tak = gather_tokens(hidden[0, 0], ids[0], self.seg_id, self.tak_id)
        tokens = TemporalTokens(self.project(seg), self.project(tak), list(range(len(cells))) if frames is None else list(frames))
        return tokens, self._answer(hidden[0, 0, -1], cache, P + ids.shape[1], max_words)

    def _answer(self, state, cache, position, max_words):
        "What the model says after `[TAK]`, word by word."
        words = []
        for _ in range(max_words):
            word = self.llm.lm_head(state).argmax(-1)
            if word == self.tokenizer.eos_token_id: break
            words.append(int(word))
            out = self.llm.model(input_ids=word.view(1, 1), past_key_values=cache, use_cache=True,
                                 position_ids=torch.tensor([[position]], device=word.device))
            state, position = out.last_hidden_state[0, -1], position + 1
        return self.tokenizer.decode(words).strip()

"""LLaMA's tokenizer: recorded ids of the reference, added words, and vocabularies that will not do.

`data/chatunivi/prompts.json` holds conversations and the ids that transformers 4.31 gave them.
"""

import io
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from vrshq_nb.files import VRSError
from vrshq_nb.llama_tokenizer import (
    IMAGE_ID,
    LegacyLlamaTokenizer,
    read_vocabulary,
    split_added,
    train_vocabulary,
)
from vrshq_nb.tokens import SEG, TAK

DATA = Path(__file__).parent / "data" / "chatunivi"
PROMPTS = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
VOCABULARY = DATA / "tiny_tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer():
    return LegacyLlamaTokenizer(DATA / "tiny_tokenizer")


# ---- LLaMA's own ids, in a file with the pieces that they need


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    "A field of a protobuf message"
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_vocabulary(folder, pieces):
    "A byte-pair vocabulary with these pieces (text, score, kind) at these ids"
    rows = []
    for text, score, kind in pieces:
        piece = field(1, text.encode()) + field(2, float(score)) + field(3, kind)
        rows.append(field(1, piece))
    trainer = field(3, 2) + field(35, 1)  # byte pairs, bytes for what is unknown
    normalizer = field(3, 1) + field(4, 0)  # a blank in front, blanks are kept
    model = b"".join(rows) + field(2, trainer) + field(3, normalizer)
    (folder / "tokenizer.model").write_bytes(model)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    "LLaMA's pieces as far as the conversations use them, at the true ids; nothing matches the rest"
    named = {i: t for t, i in PROMPTS["llama_pieces"].items()}
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
    pieces += [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
    for i in range(259, 32000):
        text = named.get(i, f"\x01{i}")
        blanks = len(text) > 1 and set(text) == {"▁"}
        pieces.append((text, -1e9 if blanks else 259 - i, 1))  # runs of blanks come last in LLaMA
    return LegacyLlamaTokenizer(write_vocabulary(tmp_path_factory.mktemp("llama"), pieces))


@pytest.mark.parametrize("which, count", [("tiny", 50), ("llama", 30)])
def test_conversations_have_the_reference_s_ids(which, count, tokenizer, llama):
    words = {"tiny": tokenizer, "llama": llama}[which]
    assert len(PROMPTS[which]) == count
    for case in PROMPTS[which]:
        ids = words.prompt_ids(case["prompt"])
        assert ids == case["input_ids"]
        assert len(ids) + 111 * ids.count(IMAGE_ID) == case["expanded_len"]
        assert words.decode(ids) == case["prompt"]


def test_llama_s_new_ids(llama):
    assert len(llama) == 32002
    assert llama.new == {SEG: 32000, TAK: 32001}
    assert (llama.bos, llama.eos) == (1, 2)
    blank_first = [PROMPTS["llama_pieces"][p] for p in ("▁", "▁the")]  # not the two blanks first
    assert llama.model.encode(" the") == blank_first


# ---- added words


def test_added_words_remove_blanks():
    added, strip = {SEG: 7, TAK: 8, "</s>": 2}, (SEG, TAK)
    chunks = split_added("a [SEG]  , b[TAK]\n.</s> c", added, strip)
    assert chunks == ["a", 7, ", b", 8, ".", 2, " c"]
    assert split_added("[SEG][SEG]", added, strip) == [7, 7]
    assert split_added("", added, (SEG,)) == []


def test_ids_from_added_tokens_json(tmp_path):
    shutil.copy(VOCABULARY, tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[SEG]": 520, "[TAK]": 512}))
    words = LegacyLlamaTokenizer(tmp_path)
    assert words.encode("[SEG][TAK]") == [1, 520, 512]
    assert len(words) == 521


@pytest.mark.parametrize("text", ["{", "[]", '{"[SEG]": -5}', '{"[SEG]": "7"}'])
def test_added_words_that_have_no_ids(tmp_path, text):
    shutil.copy(VOCABULARY, tmp_path)
    (tmp_path / "added_tokens.json").write_text(text)
    with pytest.raises(VRSError, match="added_tokens.json"):
        LegacyLlamaTokenizer(tmp_path)


def test_names_to_ids(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("<s>", SEG, "<0x41>", "not a piece")]
    assert ids == [1, 512, 3 + 0x41, 0]


def test_saved_byte_for_byte(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == VOCABULARY.read_bytes()
    assert LegacyLlamaTokenizer(tmp_path).added == tokenizer.added


# ---- text and pieces


@pytest.mark.parametrize("text", ["naïve 凧 🪁", "a  b   c", "  x ", "é\n\n x", "\0", "%s {}"])
def test_text_goes_there_and_back(tokenizer, text):
    assert tokenizer.model.decode(tokenizer.model.encode(text)) == text


def merge_pairs_loop(text, scores):
    "Again and again the two neighbours whose union scores highest, the leftmost first"
    parts = list(text)
    while True:
        pairs = [
            (scores[a + b], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in scores
        ]
        if not pairs:
            return parts
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_merging_is_what_the_plain_loop_does(tmp_path):
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
    pieces += [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
    merges = {"aa": 0, "ab": -1, "aaa": -2, "ba": -3, "bab": -4, "abab": -5, "ac": -1}  # one tie
    letters = {letter: -10 for letter in "abc▁ é①ﬁ"}
    pieces += [(text, score, 1) for text, score in (merges | letters).items()]
    words = LegacyLlamaTokenizer(write_vocabulary(tmp_path, pieces))
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list("aaabbc"), rng.integers(1, 40)))
        assert words.model.encode(text, out_type=str) == merge_pairs_loop("▁" + text, merges)


# ---- files that will not do


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:1000],
        lambda b: b"",
        lambda b: b"no vocabulary",
        lambda b: b[:7],
        lambda b: np.random.default_rng(0).bytes(500),
    ],
)
def test_a_damaged_vocabulary(tmp_path, damage, capfd):
    (tmp_path / "tokenizer.model").write_bytes(damage(VOCABULARY.read_bytes()))
    with pytest.raises(VRSError, match="tokenizer.model.*copy it again") as e:
        LegacyLlamaTokenizer(tmp_path)
    assert "\n" not in str(e.value)
    assert capfd.readouterr().out == ""


def test_no_vocabulary(tmp_path):
    with pytest.raises(VRSError, match="tokenizer.model"):
        LegacyLlamaTokenizer(tmp_path)


TRAINED = dict(
    vocab_size=300,
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
)


def train(folder, **changes):
    "A vocabulary trained with LLaMA's settings, but for the changes"
    model = io.BytesIO()
    texts = ["the red kite is up in the air", "a boat on the lake", "it is a dog and a cat"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **(TRAINED | changes),
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def test_the_settings_of_llama_are_accepted(tmp_path):
    assert LegacyLlamaTokenizer(train(tmp_path)).encode("the kite")[0] == 1


@pytest.mark.parametrize(
    "other",
    [
        dict(model_type="unigram"),
        dict(remove_extra_whitespaces=True),
        dict(normalization_rule_name="nfkc"),
        dict(byte_fallback=False, vocab_size=40),
    ],
)
def test_another_kind_of_vocabulary_is_refused(tmp_path, other):
    with pytest.raises(VRSError, match="byte-pair"):
        LegacyLlamaTokenizer(train(tmp_path, **other))


def test_a_vocabulary_can_be_trained(tmp_path):
    texts = ["the red kite is up in the air", "a boat on the lake"] * 20
    path = train_vocabulary(iter(texts), tmp_path / "tokenizer.model", 300)
    words, data = read_vocabulary(path)
    assert data == path.read_bytes()
    assert words.encode("the kite", out_type=str)[0] == "▁the"


def test_without_sentencepiece_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(VRSError, match="pip install sentencepiece"):
        LegacyLlamaTokenizer(DATA / "tiny_tokenizer")

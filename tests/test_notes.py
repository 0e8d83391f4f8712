"""What a model says it does not know: words, scripts, pictures; and that answer and mask agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from vrshq_nb import VRSHQ, VRSError
from vrshq_nb.cli import sentence_line
from vrshq_nb.minivrs import MiniVRS
from vrshq_nb.nano_knowledge import damaged_clips, fit_nano_knowledge, nano_words
from vrshq_nb.notes import (
    agreed_answer,
    fit_knowledge,
    fit_pictures,
    is_typo,
    load_knowledge,
    picture_note,
    save_knowledge,
    sentence_words,
    word_notes,
)
from vrshq_nb.viz import browse, result_line

STRANGE = """the wolf|a lion on the left|where's the hamster?|show me the pterodactyl
the woman in a red dress|find the lasagna|the person riding a horse|which horse is fastest?
two zebras|the policeman|a tractor|the skyscraper|the elephant moving to the left|the mouse
asdf qwer|blah blah blah|lkjh gfds|lorem ipsum|??? !!!|12345|foo bar baz|what is that?
красный кот|赤い猫|الكلب|η γάτα|빨간 고양이|le chat rouge|der rote hund|el gato negro"""
ORDINARY = """the red kite|show me the cat please|where's the dog?|which bird moves fastest?
could you highlight everything that is blue?|the fish swimming to the right|the baloon
what can you drink from?|teh red car|the umbrella that enters from the right|the two dogs
the flower at the bottom|the lamp above the book|the ball next to the umbrella|The KITES!
would you mind marking the sailboat for me|i'm looking for a blue ball|the dog's tail
the kite moving to the left|the thing that leaves first|which of these is a toy"""


def lines(text):
    return text.replace("\n", "|").split("|")


@pytest.fixture(scope="module")
def nano():
    return VRSHQ.from_pretrained("nano")


@pytest.fixture(scope="module")
def clip():
    return MiniVRS("val", 1, seed=1505, size=128)[0]


@pytest.mark.parametrize("text", lines(STRANGE))
def test_a_strange_sentence_has_a_note(nano, text):
    notes = word_notes(text, nano.knowledge)
    assert notes and all("\n" not in note for note in notes)


def test_ordinary_sentences_have_none(nano):
    assert {t: n for t in lines(ORDINARY) if (n := word_notes(t, nano.knowledge))} == {}


def test_a_note_names_the_word_and_what_is_left(nano):
    (note,) = word_notes("the red dinosaur", nano.knowledge)
    assert "does not know the word 'dinosaur'" in note and "cats" in note and "'red'" in note
    (note,) = word_notes("красный кот", nano.knowledge)
    assert "Latin" in note and "'красный'" in note and "Cyrillic" in note


def test_words_are_plain_letters():
    assert sentence_words("Où’s the 2 CAFÉs, кот?") == ["ou's", "the", "cafes", "кот"]


def test_typing_errors():
    pairs = [("baloon", "balloon"), ("ktie", "kite"), ("umbrellla", "umbrella"), ("bost", "boat")]
    assert all(is_typo(*pair) for pair in pairs)
    others = [("goat", "boat"), ("bull", "ball"), ("cat", "car"), ("mouse", "house")]
    assert not any(is_typo(*pair) for pair in others)


def test_a_noun_met_beside_others_is_not_known_alone():
    texts = ["who would chase a mouse?", "the red cat", "the duck"]
    small = fit_knowledge("m", texts, ["cat", "duck"], ["red"])
    assert "in descriptions" in word_notes("the red mouse", small)[0]
    assert not word_notes("who chases a mouse?", small)
    assert not word_notes("the duck", small) and word_notes("the goose", small)


def test_real_pictures_carry_the_note_and_clips_do_not(nano):
    def note(frames):
        with torch.no_grad():
            return picture_note(nano.encoder.encode_frames(frames), nano.knowledge)

    images = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.cat()]
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    assert all("cartoon world" in note(image[None]) for image in [*images, noise])
    notes = [note(frames) for frames in damaged_clips("val", 16, seed=1506)]
    assert sum(n is not None for n in notes) <= 1


def test_the_limit_comes_from_clips_held_out():
    rng = torch.Generator().manual_seed(0)
    clips = [torch.randn(2, 4, generator=rng) for _ in range(200)]
    near, far = fit_pictures(clips), fit_pictures([*clips[:140], *(3 * c for c in clips[140:])])
    assert far.limit > 2 * near.limit and torch.equal(near.mean, far.mean)
    with pytest.raises(ValueError, match="too few"):
        fit_pictures(clips[:2])


def test_other_features_get_no_note(nano):
    assert picture_note(torch.randn(2, 7, 3, 3), nano.knowledge) is None
    assert picture_note(torch.randn(2, 16, 128), nano.knowledge) is None


def test_answer_and_mask_agree(nano, clip):
    texts = ["the red dinosaur", "asdf qwer", *(e.text for e in clip.expressions)]
    for seg in nano.segment(clip.frames, texts):
        says_none = seg.answer in (*nano.knowledge.nothing, "not understood")
        assert says_none == (not seg.masks.any()), seg


def test_rules_of_the_answer(nano):
    known = nano.knowledge
    assert agreed_answer("it is the cat", False, True, known) == known.nothing[0]
    assert agreed_answer(known.nothing[0], True, True, known) not in known.nothing
    assert agreed_answer("it is the cat", False, False, known) == "not understood"
    assert agreed_answer("anything", False, True, None) == "anything"


def test_nothing_readable_shows_no_mask(nano, clip):
    seg = nano.segment(clip.frames, "asdf qwer")
    assert not seg.masks.any() and not seg.found and seg.answer == "not understood"
    assert "not understood" in result_line(seg)
    assert any("asdf" in box.value for box in browse(seg).children if "HTML" in type(box).__name__)
    assert seg.show().array.shape[0] > replace(seg, notes=[]).show().array.shape[0]


def test_the_command_line_prints_notes(nano, clip):
    record = nano.segment(clip.frames, "asdf qwer").record()
    first, note = sentence_line(record | {"share": 0.0, "output": None}).splitlines()
    assert "not understood" in first and note.strip().startswith("note: nano does not know")


def test_without_knowledge_there_are_no_notes(nano, clip):
    parts = nano.parts
    bare = VRSHQ(parts.encoder, parts.sam2, parts.scorer)
    assert bare.segment(clip.frames, "asdf qwer").notes == []


def test_knowledge_is_saved_with_the_model(nano, tmp_path):
    folder = nano.save_pretrained(tmp_path / "model", torch.float16)
    again = VRSHQ.from_pretrained(folder).knowledge
    assert vars(again).keys() >= {"words", "others"} and again.words == nano.knowledge.words
    assert again.pictures.limit == pytest.approx(nano.knowledge.pictures.limit, abs=1e-3)
    (folder / "knowledge.json").write_text("{}")
    with pytest.raises(VRSError, match="knowledge.json"):
        VRSHQ.from_pretrained(folder)
    save_knowledge(None, tmp_path)
    assert load_knowledge(tmp_path) is None


def test_held_out_wordings_do_not_count_as_known(tmp_path):
    text = '{"looks": {"phrases": ["a zorb {n}"], "held_out": {"phrases": ["a quib {n}"]}}}'
    (tmp_path / "frames.json").write_text(text)
    (tmp_path / "unknown.json").write_text('{"nouns": [["gloop", "gloops"]], "facts": ["a flurp"]}')
    said = nano_words(tmp_path)
    words = {w for s in said["sentences"] for w in sentence_words(s)}
    assert "zorb" in words and not {"quib", "flurp", "gloop"} & words
    assert "gloop" in said["others"]


def test_nano_knowledge_is_fitted_from_clips(nano):
    made = fit_nano_knowledge(nano.encoder, clips=8, folder=Path("nowhere"))
    assert made.pictures.whiten.shape == nano.knowledge.pictures.whiten.shape
    assert "butterflies" in made.things and not word_notes("the butterflies", made)

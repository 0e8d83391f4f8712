"Stage 1: prompts as the reference writes them, gathering and projection."

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb.tokens import (
    ANSWERS,
    IMAGE,
    LONG_QUESTIONS,
    MAX_CHARACTERS,
    SEG,
    SHORT_QUESTIONS,
    TAK,
    Conversation,
    TokenProjection,
    build_conversation,
    clean_expression,
    gather_tokens,
    plain_prompt,
    temporal_prompt,
    vicuna_prompt,
)
from vrshq_nb.files import VRSError

DATA = Path(__file__).parent / "data"
PROMPTS = json.loads((DATA / "tokens_prompts.json").read_text(encoding="utf-8"))


# the prompt


@pytest.mark.parametrize(
    "case",
    PROMPTS["prompts"],
    ids=lambda c: f"T{c['T']}-{c['kind']}{c['question']}-answer{c['answer']}",
)
def test_reference_conversations(case):
    text = PROMPTS["expression"]
    talk = build_conversation(
        text + "?" * (case["kind"] == "long"), case["T"], "vicuna", case["question"], case["answer"]
    )
    question, answer = vicuna_prompt(talk)
    wanted = case["prompt"]
    if case["kind"] == "long":  # the reference's case puts a phrase into the template for questions
        wanted = wanted.replace(text, text + "?", 1)
    assert question + answer == wanted


def test_templates_are_the_reference_s():
    video = "Reference Video: <video> \n"
    assert [video + q.format("{sent}") for q in SHORT_QUESTIONS] == PROMPTS["question_short"]
    assert [video + q.format("{sent}") for q in LONG_QUESTIONS] == PROMPTS["question_long"]
    assert [a.format(seg=SEG, tak=TAK) for a in ANSWERS] == PROMPTS["answer"]


def test_default_conversation_cleans_and_picks_by_question_mark():
    phrase, question = ("".join(temporal_prompt(t, 1)) for t in ("The\n DOG", "Which DOG?"))
    assert phrase == next(
        c["prompt"]
        for c in PROMPTS["prompts"]
        if (c["T"], c["kind"], c["question"], c["answer"]) == (1, "short", 0, 0)
    )
    assert "\nwhich dog? Please find it" in question


@pytest.mark.parametrize("style", ["vicuna", "plain"])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_one_mark_a_frame(style, n):
    question, answer = temporal_prompt("the dog", n, style)
    assert question.count(IMAGE) == answer.count(SEG) == n and answer.count(TAK) == 1
    assert SEG not in question and answer.index(TAK) > answer.rindex(SEG)
    assert all(f"({t}){IMAGE}" in question and f"({t})" in answer for t in range(n))


def test_plain_form():
    assert plain_prompt(build_conversation("the dog", 2, "plain")) == (
        "(0)<image>(1)<image><user> the dog<assistant>",
        "(0)[SEG](1)[SEG]<video>[TAK]",
    )


@pytest.mark.parametrize("style", ["vicuna", "plain"])
def test_the_parts_of_a_conversation_are_the_prompt(style):
    talk = build_conversation("the <image> of a Dog", 3, style)
    assert isinstance(talk, Conversation) and len(talk.question) == 3 + 1
    assert "the <image> of a dog" in talk.question[-1]
    question, answer = temporal_prompt("the <image> of a Dog", 3, style)
    assert IMAGE.join(talk.question)[:30] in question and talk.answer in answer
    assert all(f"({t})" in piece for t, piece in enumerate(talk.question[:-1]))
    assert talk.answer.count(SEG) == 3 and talk.answer.count(TAK) == 1


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("  The RED\tkite \n", "the red kite"),
        ("WHICH\r\none?", "which one?"),
        ("Ünïcödé 凧", "ünïcödé 凧"),
        ("a\u00a0b", "a b"),
        ("x" * MAX_CHARACTERS, "x" * MAX_CHARACTERS),
        ("the [TAK]", "the [tak]"),
    ],
)
def test_cleaning(text, wanted):
    assert clean_expression(text) == wanted == clean_expression(wanted)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("kite " * 40_000, "199999 characters"),
        ("x" * (MAX_CHARACTERS + 1), "at most 1000"),
        (None, "must be text"),
        (["a"], "must be text"),
        (b"kite", "must be text"),
    ],
)
def test_bad_sentences(text, words):
    for call in (clean_expression, lambda t: temporal_prompt(t, 2)):
        with pytest.raises(VRSError, match=words) as e:
            call(text)
        assert "\n" not in str(e.value) and len(str(e.value)) < 200


def test_bad_prompts():
    with pytest.raises(VRSError, match="at least one frame"):
        temporal_prompt("the dog", 0)
    with pytest.raises(VRSError, match="'vicuna' or 'plain'"):
        temporal_prompt("the dog", 1, style="chatml")


# gathering and projection


def test_gather_by_hand():
    ids = torch.tensor([5, 1, 8, 2, 8, 3, 9, 4])
    seg, tak = gather_tokens(torch.arange(8.0)[:, None], ids, 8, 9)
    assert seg[:, 0].tolist() == [1, 3] and tak.tolist() == [[5]]


@pytest.mark.parametrize(
    "ids, words",
    [
        ([1, 2, 3], "found 0 and 0"),
        ([1, 8, 2], "found 1 and 0"),
        ([1, 9, 2], "found 0 and 1"),
        ([1, 8, 9, 2, 9], "found 1 and 2"),
        ([8, 1, 9], "nothing stands before"),
        ([9, 1, 8], "nothing stands before"),
    ],
)
def test_gather_refuses(ids, words):
    with pytest.raises(ValueError, match=words):
        gather_tokens(torch.zeros(len(ids), 4), torch.tensor(ids), 8, 9)


def test_gather_refuses_states_that_do_not_line_up():
    with pytest.raises(ValueError, match="9 states for 3 token ids"):
        gather_tokens(torch.zeros(9, 4), torch.tensor([1, 8, 9]), 8, 9)


def test_reference_states_and_projection():
    ref = {k: torch.from_numpy(v) for k, v in np.load(DATA / "tokens.npz").items()}
    project = TokenProjection(64, 64)
    project.load_state_dict(
        {k: ref[f"0.{k}"] for k in ("0.weight", "0.bias", "2.weight", "2.bias")}
    )
    ids = ref["ids"].long()
    seg, tak = gather_tokens(ref["hidden"], ids, int(ref["seg_id"]), int(ref["tak_id"]))
    assert torch.equal(seg, ref["hidden"][ref["seg_positions"] - 1]) and torch.equal(
        tak, ref["hidden"][ref["tak_position"] - 1]
    )
    torch.testing.assert_close(project(seg), ref["seg"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(project(tak), ref["tak"], atol=1e-5, rtol=1e-5)

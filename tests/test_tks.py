"Stage 3: parity with the reference numbers, samplings, scores, bad input."

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vrshq_nb.files import VRSError
from vrshq_nb.tks import (
    SAMPLINGS,
    TERMS,
    Candidate,
    anchor_frame,
    candidate_frames,
    keyframe_scores,
    segment_bounds,
    select_keyframe,
)

HERE = Path(__file__).parent / "data"
DATA = np.load(HERE / "tda_tks.npz")
SAMPLING = json.loads((HERE / "sampling.json").read_text())
CASES = sorted({k.split("/")[0] for k in DATA.files if not k.startswith("crop")})


# candidates


def test_candidate_rule_of_the_reference():
    assert len(SAMPLING["rule"]) > 1000
    for T, anchor, k, first, step, count in SAMPLING["rule"]:
        assert candidate_frames(T, anchor, k) == [first + i * step for i in range(count)], (
            T,
            anchor,
            k,
        )


def test_six_to_eleven_of_twelve():
    for T in range(1, 200):
        counts = {len(candidate_frames(T, a)) for a in range(T)}
        assert counts == {T} if T <= 11 else (min(counts) >= 6 and max(counts) <= 11)


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("T", [1, 2, 11, 12, 13, 31, 200])
@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_every_sampling_is_sorted_and_unique(how, T, k):
    scores = torch.rand(T, generator=torch.Generator().manual_seed(T))
    anchor = anchor_frame(scores)
    frames = candidate_frames(T, anchor, k, how, scores)
    assert frames == sorted(set(frames)) and 0 <= frames[0] and frames[-1] < T
    assert all(type(f) is int for f in frames)
    assert len(frames) <= k if how == "clip" else len(frames) == (T if how == "all" else min(T, k))
    if how in ("clip", "segment", "all") or how == "top" and k > 1:
        assert anchor in frames


def test_segments_of_the_reference():
    for c in SAMPLING["segment"]:
        assert candidate_frames(len(c["prob"]), None, how="segment", scores=c["prob"]) == c["idx"]
    for edges in SAMPLING["edges"]:
        bounds = segment_bounds(edges[-1], 12)
        assert bounds == list(zip(edges[:-1], edges[1:]))
        assert all(
            a <= f < b
            for f, (a, b) in zip(candidate_frames(edges[-1], None, how="uniform"), bounds)
        )


def test_equal_scores_stay_in_their_segments():
    assert candidate_frames(6, None, 3, "segment", [0.5, 0.25] * 3) == [0, 2, 4]
    assert candidate_frames(24, None, how="segment", scores=[1.0] * 24) == list(range(0, 24, 2))


def test_top_takes_the_best_and_spreads_the_rest():
    scores = torch.zeros(60).index_fill(0, torch.tensor([3, 30, 31, 32, 57, 59]), 1.0)
    frames = candidate_frames(60, 3, how="top", scores=scores)
    assert {3, 30, 31, 32, 57, 59} <= set(frames) and len(frames) == 12
    rest = [f for f in frames if scores[f] == 0]
    assert max(b - a for a, b in zip(rest, rest[1:])) < 15


def test_random_follows_its_seed():
    pick = functools.partial(candidate_frames, 100, 0, how="random")
    assert pick(seed=1) == pick(seed=1) != pick(seed=2)


@pytest.mark.parametrize(
    "args, words",
    [
        ((0, 0), "n_frames"),
        ((-1, 0), "n_frames"),
        ((10, 10), r"0\.\.9"),
        ((10, -1), "anchor"),
        ((10, None), "anchor"),
        ((10, 0, 0), "k must be"),
        ((10, 0, -3), "k must be"),
        ((10, 0, 12, "best"), "how must be"),
        ((30, 0, 12, "segment"), "needs scores"),
        ((30, 0, 12, "top", [1.0] * 29), "30 numbers"),
        ((30, 0, 12, "top", [math.nan] * 30), "not finite"),
    ],
)
def test_bad_candidates(args, words):
    with pytest.raises(VRSError, match=words) as e:
        candidate_frames(*args)
    assert "\n" not in str(e.value)


def test_anchor_is_the_first_maximum():
    assert anchor_frame(torch.tensor([0.0, 2.0, 2.0, 1.0])) == 1
    assert anchor_frame(torch.tensor([5.0], dtype=torch.bfloat16)) == 0
    for bad in (torch.zeros(0), torch.zeros(1, 4), torch.tensor([0.0, math.nan])):
        with pytest.raises(VRSError, match="clip_logits"):
            anchor_frame(bad)


# scores


@pytest.mark.parametrize("case", CASES)
def test_scores_of_the_reference(case):
    def get(name):
        return torch.tensor(DATA[f"{case}/{name}"])

    keyframe, candidates = select_keyframe(
        get("frames").tolist(), get("occlusion"), get("weights")[:, 0]
    )
    torch.testing.assert_close(
        torch.tensor([c.score for c in candidates]), get("scores").float(), atol=1e-4, rtol=0
    )
    assert keyframe == int(get("keyframe"))


def test_terms():
    assert set(TERMS) == {"similarity", "occlusion", "clip"}
    o, s, c = (
        torch.tensor([4.0, 2.0, -3.0]),
        torch.tensor([0.33, 0.35, 0.32]),
        torch.tensor([0.1, 0.8, 0.1]),
    )
    assert torch.equal(keyframe_scores(o, s, c, ("similarity",)), s)
    assert torch.equal(keyframe_scores(o, s, c, ("clip",)), c)
    torch.testing.assert_close(keyframe_scores(o, s, c, ("occlusion",)), o.softmax(0))
    torch.testing.assert_close(
        keyframe_scores(o, s, c, ("clip", "occlusion", "similarity")), c + o.softmax(0) + s
    )
    assert select_keyframe([0, 1, 2], o, s, c, ("clip", "similarity"))[0] == 1
    assert keyframe_scores(o.bfloat16(), s.bfloat16()).dtype == torch.float32


def test_candidates_keep_their_numbers():
    keyframe, (a, b) = select_keyframe([3, 9], torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 0.5]))
    assert keyframe == 9 and (a.frame, b.frame) == (3, 9) and math.isnan(a.clip)
    assert a.occlusion == -2 and a.similarity == 0.5 and a.score < b.score
    assert isinstance(a, Candidate)
    _, (a, b) = select_keyframe(
        [3, 9], torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    )
    assert (a.clip, b.clip) == (0.25, 0.75)


def test_ties_take_the_first():
    assert select_keyframe([4, 7, 1], torch.zeros(3), torch.full((3,), 1 / 3))[0] == 4


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(frames=[1, 2]), "frames must hold 3"),
        (dict(occlusion=torch.zeros(2)), "occlusion must be"),
        (dict(occlusion=torch.zeros(1, 3)), "occlusion must be"),
        (dict(similarity=torch.tensor([0.0, math.nan, 0.0])), "not finite"),
        (dict(occlusion=torch.tensor([0.0, math.inf, 0.0])), "not finite"),
        (dict(terms=("clip",)), "needs clip"),
        (dict(clip=torch.zeros(2), terms=("clip", "occlusion")), "clip must be"),
        (dict(terms=()), "terms"),
        (dict(terms="occlusion"), "terms"),
        (dict(terms=("occlusion", "occlusion")), "terms"),
        (dict(terms=("iou",)), "terms"),
        (dict(frames=[], occlusion=torch.zeros(0), similarity=torch.zeros(0)), "must be"),
    ],
)
def test_bad_scores(kwargs, words):
    with pytest.raises(VRSError, match=words) as e:
        select_keyframe(
            **{
                "frames": [1, 2, 3],
                "occlusion": torch.zeros(3),
                "similarity": torch.full((3,), 1 / 3),
                **kwargs,
            }
        )
    assert "\n" not in str(e.value)


def test_import_does_not_load_open_clip():
    modules = "vrshq_nb.tda, vrshq_nb.tks, vrshq_nb.scorer"
    code = f"import sys, {modules}; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"Each check: right for the lab's solution, and a message of its own for each way to be wrong."

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from labs import LABS, check_name, definitions, exercises, run_check
from torch.nn import functional as F

from vrshq_nb import checks
from vrshq_nb.checks import CheckFailed
from vrshq_nb.masks import upscale
from vrshq_nb.metrics import boundaries, dilate

CHECKS = sorted(name for name in vars(checks) if name.startswith("check_"))


def stub(*inputs):
    raise NotImplementedError


def returns_nothing(*inputs):
    return None


def message(name, student):
    "What a check says to a wrong function."
    with pytest.raises(CheckFailed) as failed:
        getattr(checks, name)(student)
    return str(failed.value)


def loop(step, n_frames, keyframe, first, most, backwards=True, fresh=True):
    "A loop of tracking without the backward pass, or with one memory bank for both passes."
    outputs, bank = {keyframe: first}, []
    passes = (range(keyframe + 1, n_frames), range(keyframe - 1, -1, -1))
    for frames in passes if backwards else passes[:1]:
        bank = [] if fresh else bank
        for t in frames:
            outputs[t] = step(t, [first, *bank[1 - most :]])
            bank.append(outputs[t])
    return [outputs[t] for t in sorted(outputs)]


def contour(pred, true, radius, mean):
    "F with another mean of precision and recall."
    edges = boundaries(np.stack([pred, true]))
    near = dilate(edges, radius)
    return mean([(edges[i] & near[1 - i]).sum() / edges[i].sum() for i in (0, 1)])


def sentences(clips, share, seed):
    return np.random.default_rng(seed).random(len(clips)) < share


def always_the_first(clips, share, seed):
    return np.isin(clips, sorted(set(clips))[:5])


def entry(frames, height, width, said, key):
    lines = [{"exp": t, "type_id": k, "anno_id": o} for t, k, o in said]
    known = {key(i): line for i, line in enumerate(lines)} if key else lines
    return {"frames": frames, "height": height, "width": width, "expressions": known}


def by_rows(mask):
    return checks.run_lengths_of(mask.ravel())


def no_last_run(mask):
    return checks.run_lengths_of(mask.T.ravel())[:-1]


def step_of(n, fps, wanted):
    return range(0, n, int(fps / wanted) or 1)


def every_frame(n, fps, wanted):
    return range(n)


WRONG = {  # two typical wrong answers for each check
    "check_answer": (
        lambda n: "".join(f"({t})[SEG]" for t in range(n)),
        lambda n: "[SEG]" * n + "<video>[TAK]",
    ),
    "check_gather": (
        lambda h, ids, seg, tak: (h[ids == seg], h[ids == tak]),
        lambda h, ids, seg, tak: torch.cat([h[ids == seg], h[ids == tak]]),
    ),
    "check_causal": (
        lambda q, k: (q @ k.T / 4).softmax(-1),
        lambda q, k: (q @ k.T / 4).softmax(-1).tril(),
    ),
    "check_frame_shares": (
        lambda a: a.mean((0, 1)).sum(-1),
        lambda a: a.mean((0, 1)).sum(-1).softmax(-1),
    ),
    "check_change": (
        lambda before, after: (after - before).norm(dim=1),
        lambda before, after: (after - before).norm(dim=1) / after.norm(dim=1),
    ),
    "check_log_probability": (
        lambda x, ids, start: x.log_softmax(-1)[range(start, len(ids)), ids[start:]].sum(),
        lambda x, ids, start: x.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum(),
    ),
    "check_cosine": (
        lambda seg, tak: seg @ tak[0],
        lambda seg, tak: seg @ tak[0] / seg.norm(dim=1),
    ),
    "check_weights": (
        lambda cos, temperature: cos / cos.abs().max(),
        lambda cos, temperature: (cos * temperature).softmax(0),
    ),
    "check_largest_weight": (
        lambda n, t: 1 / (1 + (n - 1) * math.exp(-1 / t)),
        lambda n, t: 1 / (1 + n * math.exp(-2 / t)),
    ),
    "check_fused": (
        lambda seg, tak, w, alpha: (1 - alpha) * tak + alpha * w[None] @ seg,
        lambda seg, tak, w, alpha: tak + alpha * seg.mean(0),
    ),
    "check_forms": (
        lambda seg, tak, how: torch.ones(len(seg)),
        lambda seg, tak, how: torch.full((len(seg),), 1 / len(seg)),
    ),
    "check_temperature": (lambda cos, n: 1.0, lambda cos, n: 1e-3),
    "check_candidate_frames": (
        lambda n, anchor, k: range(0, n, math.ceil(n / (k - 1))),
        lambda n, anchor, k: range(anchor, n, math.ceil(n / (k - 1))),
    ),
    "check_occlusion_shares": (torch.sigmoid, lambda scores: scores / scores.sum()),
    "check_keyframe": (
        lambda frames, o, w: int((o.softmax(0) + w).argmax()),
        lambda frames, o, w: frames[int(o.argmax())],
    ),
    "check_visible_share": (
        lambda masks: masks.float().mean((1, 2)),
        lambda masks: masks.sum((1, 2)) / masks.sum((1, 2)).max(),
    ),
    "check_gate": (lambda scores, present: 0.0, lambda scores, present: -0.75),
    "check_order": (lambda n, key: range(key, n), lambda n, key: [*range(key, n), *range(key)]),
    "check_remembered": (
        lambda t, key, most: [key, *range(key + 1, t)][-most:] if t > key else [key],
        lambda t, key, most: range(key, t) if t > key else range(key, t, -1),
    ),
    "check_hidden": (
        lambda x, scores: x * (scores > 0)[:, None, None],
        lambda x, scores: torch.where(scores[:, None, None] >= 0, x, -1024.0),
    ),
    "check_memory_read": (
        lambda q, ks, vs: torch.stack([(q @ k.T / 4).softmax(-1) @ v for k, v in zip(ks, vs)]).mean(
            0
        ),
        lambda q, ks, vs: (q @ torch.cat(ks).T).softmax(-1) @ torch.cat(vs),
    ),
    "check_tracking": (partial(loop, backwards=False), partial(loop, fresh=False)),
    "check_overlap": (
        lambda pred, true: (pred == true).mean((1, 2)),
        lambda pred, true: (pred & true).sum() / (pred | true).sum(),
    ),
    "check_contour": (partial(contour, mean=np.mean), partial(contour, mean=lambda x: x[0])),
    "check_paired": (
        lambda before, after: [before[k] - after[k] for k in before if k in after],
        lambda before, after: [b - a for a, b in zip(before.values(), after.values())],
    ),
    "check_resampling": (
        lambda x, groups, n, rng: [rng.choice(x, len(x)).mean() for _ in range(n)],
        lambda x, groups, n, rng: [x.mean()] * n,
    ),
    "check_verdict": (
        lambda mean, low, high: "better" if mean > 0 else "worse",
        lambda mean, low, high: "worse" if high < 0 else "not decided" if low < 0 else "better",
    ),
    "check_sampling": (step_of, every_frame),
    "check_resized": (
        lambda x, h, w: F.interpolate((x > 0)[None, None].float(), (h, w))[0, 0] > 0,
        lambda x, h, w: upscale(x[None], w, h)[0],
    ),
    "check_runs": (by_rows, no_last_run),
    "check_entry": (partial(entry, key=None), partial(entry, key=int)),
    "check_split": (sentences, always_the_first),
}
EXERCISES = {check_name(e): e for lab in LABS for e in exercises(lab)}


def test_every_check_has_an_exercise_and_two_wrong_answers():
    assert sorted(EXERCISES) == sorted(WRONG) == CHECKS


@pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
def test_solutions_are_right(lab):
    names = definitions(lab)
    for exercise in exercises(lab):
        said = run_check(exercise, names)
        assert said.startswith("right: "), exercise.check


@pytest.mark.parametrize("name", CHECKS)
def test_wrong_answers_are_told_apart(name):
    one, two = (message(name, student) for student in WRONG[name])
    empty = message(name, stub)
    assert empty == checks.NOTHING
    assert message(name, returns_nothing).startswith("nothing is written yet")
    assert len({one, two, empty}) == 3
    for said in (one, two):
        assert "\n" not in said and not said.startswith("the function stops"), said


@pytest.mark.parametrize("lab", LABS, ids=lambda p: p.stem)
def test_every_listed_mistake_can_be_told(lab, monkeypatch):
    "For some input it differs from the right result, and from every other mistake."
    names = definitions(lab)
    for exercise in exercises(lab):
        asked = []
        monkeypatch.setattr(checks, "compare", lambda *given: asked.append(given))  # noqa: B023
        run_check(exercise, names)
        listed = sorted({message for _, _, mistakes in asked for message in mistakes})
        for message in listed:
            cases = [(right, m[message], m) for _, right, m in asked if message in m]
            assert not all(checks.same(wrong, right) for right, wrong, _ in cases), message
            for other in set(listed) - {message}:
                both = [(wrong, m[other]) for _, wrong, m in cases if other in m]
                assert not both or not all(checks.same(*pair) for pair in both), (message, other)


@pytest.mark.parametrize("name", CHECKS)
def test_an_error_in_the_function_is_named(name):
    def broken(*inputs):
        raise KeyError("cosine")

    assert "stops with KeyError: 'cosine'" in message(name, broken)


def test_a_check_keeps_its_own_inputs():
    def spoils(logits, scores):
        right = torch.where(scores[:, None, None] > 0, logits, -1024.0)
        logits.zero_()
        return right

    assert checks.check_hidden(spoils).startswith("right")


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_what_it_takes(name):
    check = getattr(checks, name)
    assert list(inspect.signature(check).parameters) == ["student"]
    assert check.__doc__.startswith("Lab 5")

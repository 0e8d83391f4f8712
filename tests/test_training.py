"""The loop that survives interruptions, one command for all of nano, and its scores."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from vrshq_nb import VRSHQ
from vrshq_nb.minivrs import make_clip
from vrshq_nb.nano_stages import NANO_STAGES
from vrshq_nb.training import (
    ROUNDS,
    STEPS,
    best_limit,
    cut_log,
    mean_interval,
    rate_factor,
    run_stage,
    score_model,
    summary,
    train_nano,
)


# ---- a stage that is stopped and started again
def small_stage(folder, stop_at=None, steps=8, every=2):
    "A stage of eight steps on a small network; it dies at the beginning of step `stop_at`."
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))

    def step(n):
        if n == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng(n).normal(size=(16, 4))).float()
        loss = (net(x)[:, 0] - x.prod(1)).square().mean()
        return loss, dict(loss=loss)

    run_stage("small", folder, dict(net=net), steps, step, 1e-2, every=every)


def same(a, b):
    "Whether two checkpoints hold the same, to the last bit; the minutes are the clock's."
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "minutes")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("stops", [(0,), (1,), (2,), (3,), (7,), (3, 5, 6)], ids=str)
def test_a_stage_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, stops):
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            small_stage(tmp_path / "b", stop)
    small_stage(tmp_path / "b")
    small_stage(tmp_path / "a")
    assert same(load(tmp_path / "a/small.pt"), load(tmp_path / "b/small.pt"))
    lines = [
        [
            {k: v for k, v in json.loads(x).items() if k != "minutes"}
            for x in (tmp_path / f / "small.jsonl").read_text().splitlines()
        ]
        for f in "ab"
    ]
    assert [x["step"] for x in lines[0]] == [2, 4, 6, 8] and lines[0] == lines[1]


def test_a_finished_stage_is_not_run_again(tmp_path):
    small_stage(tmp_path)
    before = (tmp_path / "small.pt").stat().st_mtime_ns
    small_stage(tmp_path, stop_at=0)
    assert (tmp_path / "small.pt").stat().st_mtime_ns == before


KILLED = """
import sys, torch
from vrshq_nb.nano_stages import Sam2ImageStage
from vrshq_nb.training import run_stage
torch.set_num_threads(1)
stage = Sam2ImageStage(sys.argv[1], 6, clips=1, frames=1, queries=2)
run_stage("sam2_image", sys.argv[1], stage.modules, 6, stage.step, stage.lr, every=1)
"""


def test_killed_in_the_middle_and_started_again(tmp_path):
    def start(folder):
        command = [sys.executable, "-c", KILLED, str(tmp_path / folder)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    log, process = tmp_path / "b/sam2_image.jsonl", start("b")
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    for folder in "ab":
        assert start(folder).wait() == 0
    assert same(*(load(tmp_path / f"{f}/sam2_image.pt") for f in "ab"))
    assert not list(tmp_path.rglob("*.part"))


def test_a_smoke_run_of_all_stages_makes_a_model_that_works(tmp_path):
    made = train_nano(tmp_path / "run", smoke=True)
    log = json.loads((made / "training_log.json").read_text())
    assert {stage: rows[-1]["step"] for stage, rows in log.items()} == dict.fromkeys(STEPS, 2)
    clip = make_clip("val", 9, 0, 64, 4)
    model = VRSHQ.from_pretrained(made)
    masks = model.segment(clip.frames, clip.expressions[0].text, gate=False).masks
    assert masks.shape == (4, 64, 64)
    assert sum(f.stat().st_size for f in made.iterdir()) < 25e6


def test_the_plan_holds_every_stage_once_and_after_what_it_needs():
    columns = [column for columns in ROUNDS for column in columns]
    assert sorted(name for column in columns for name in column) == sorted(STEPS)
    assert set(STEPS) == set(NANO_STAGES)
    chain = ["sam2_image", "sam2_memory", "sam2_image_fine", "sam2_memory_fine", "joint"]
    place = {}
    for number, row in enumerate(ROUNDS):
        for column in row:
            place |= {name: (number, k) for k, name in enumerate(column)}
    assert [place[name] for name in chain] == sorted(place[name] for name in chain)
    assert place["vision_tower"][0] < place["language"][0] < place["joint"][0]


# ---- schedule, log, scores
def test_the_learning_rate_rises_and_falls():
    rates = [rate_factor(n, 1000, 100, 0.1) for n in range(1000)]
    assert rates[0] == pytest.approx(0.01) and np.argmax(rates) in range(90, 110)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert rate_factor(5000, 1000, 100, 0.1) == pytest.approx(0.1)


def test_a_log_is_cut_to_its_checkpoint(tmp_path):
    log = tmp_path / "stage.jsonl"
    log.write_text("".join(json.dumps({"step": n}) + "\n" for n in (2, 4, 6)))
    cut_log(log, 4)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4]
    cut_log(tmp_path / "new.jsonl", 0)
    assert (tmp_path / "new.jsonl").read_text() == ""


def test_means_of_some_rows():
    rows = [dict(clip=c, family=f, JF=x) for c, f, x in (("a", "look", 0.2), ("b", "look", 0.4))]
    rows.append(dict(clip="b", family="time", JF=1.0))
    out = mean_interval(rows, family="look")
    assert out["JF"] == pytest.approx(0.3) and out["n"] == 2 and out["low"] <= 0.3 <= out["high"]
    assert mean_interval(rows, family="motion") is None


def test_scores_of_the_shipped_model_have_a_row_a_sentence():
    rows = score_model(VRSHQ.from_pretrained("nano"), n=1, size=64, n_frames=4, progress=False)
    assert rows and {"clip", "family", "J", "F", "JF", "found", "keyframe"} <= set(rows[0])
    assert all(r["JF"] == pytest.approx((r["J"] + r["F"]) / 2) for r in rows)


def test_summary_counts_sentences_about_nothing_apart():
    row = dict(clip="a", family="look", type_id=0, JF=0.5, found=True)
    rows = [
        row,
        dict(row, clip="b", JF=0.7),
        dict(row, clip="b", family="time", type_id=1, JF=0.2),
        dict(row, family="absent", type_id=2, JF=0.0),
        dict(row, clip="b", family="absent", type_id=2, JF=1.0, found=False),
    ]
    out = summary(rows)
    assert out["referring"]["JF"] == pytest.approx(0.6) and out["referring"]["n"] == 2
    assert out["reasoning"]["JF"] == pytest.approx(0.2) and out["absent, nothing shown"][
        "share"
    ] == pytest.approx(0.5)


# ---- the gate's limit
def test_the_best_limit_has_the_fewest_errors():
    rng = np.random.default_rng(0)
    there, absent = rng.normal(2, 1, 60), rng.normal(0, 1, 40)

    def errors(limit):
        return (there <= limit).mean() + (absent > limit).mean()

    limit = best_limit(there, absent)
    assert errors(limit) == min(errors(x) for x in np.linspace(-5, 7, 2001))
    assert best_limit([], absent) == best_limit(there, []) == 0


def test_the_limit_decides_what_is_shown():
    nano = VRSHQ.from_pretrained("nano")
    clip = make_clip("val", 9, 0, 256, 6)
    texts = [e.text for e in clip.expressions if e.targets][:2]
    for presence, shown in ((-1e9, True), (1e9, False)):
        nano.knowledge = replace(nano.knowledge, presence=presence)
        assert [s.found for s in nano.segment(clip.frames, texts)] == [shown] * 2

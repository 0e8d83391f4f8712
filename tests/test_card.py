"A model is measured clip by clip, and its card says what its files say."

import json
import shutil

import pytest

from vrshq_nb import MiniVRS, card, cli
from vrshq_nb.card import demo_table, remake, run_clips, weakest, write_card, wrong_answers
from vrshq_nb.files import VRSError
from vrshq_nb.folders import find_weights
from vrshq_nb.samples import SAMPLES

TINY = MiniVRS("val", 3, 1000, 64, 4, n_expressions=2)


@pytest.fixture
def nano(tmp_path):
    "A copy of the shipped model."
    return shutil.copytree(find_weights("nano"), tmp_path / "nano")


# ---- clip by clip
class Job:
    "A job that counts its calls, and is interrupted at one clip."

    __name__ = "count_job"

    def __init__(self, stop_at=None):
        self.done, self.stop_at = [], stop_at

    def __call__(self, folder, data, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.done.append(index)
        return [{"clip": index, "folder": str(folder)}, {"clip": index}]


def test_a_run_that_was_stopped_continues(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_clips(Job(stop_at=1), tmp_path, TINY, tmp_path, 1, False)
    job = Job()
    rows = run_clips(job, tmp_path, TINY, tmp_path, 1, False)
    assert job.done == [1, 2]
    assert [row["clip"] for row in rows] == [0, 0, 1, 1, 2, 2]
    run_clips(job, tmp_path, TINY, tmp_path, 1, False)
    assert job.done == [1, 2]


def test_rows_of_other_clips_are_not_taken(tmp_path):
    run_clips(Job(), tmp_path, TINY, tmp_path, 1, False)
    for other in (MiniVRS("val", 3, 1001, 64, 4), MiniVRS("val", 3, 1000, 128, 4)):
        job = Job()
        run_clips(job, tmp_path, other, tmp_path, 1, False)
        assert job.done == [0, 1, 2]


def test_other_weights_have_another_key(nano):
    before = card.run_key(nano)
    with (nano / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert card.run_key(nano) != before


def test_two_processes_find_what_one_finds(nano, tmp_path):
    few = MiniVRS("val", 2, 1000, 64, 4, n_expressions=1)
    both = run_clips(card.score_job, nano, few, tmp_path, 2, False)
    alone = [row for index in range(2) for row in card.score_job(nano, few, index)]
    for one, two in zip(alone, both, strict=True):
        # at 64 pixels a few pixels of a mask, flipped by rounding, are more than a hundredth
        assert one["text"] == two["text"] and one["JF"] == pytest.approx(two["JF"], abs=0.02)


# ---- one command
def test_one_command_measures_and_writes_the_card(nano, monkeypatch, tmp_path):
    monkeypatch.setattr(card.tempfile, "gettempdir", lambda: str(tmp_path))
    splits = {"val": TINY, "phrase": MiniVRS("phrase", 1, 1000, 64, 4, n_expressions=2)}
    folder = remake(nano, 1, False, splits, MiniVRS("val", 1, 2000, 64, 4), ["explicit"])
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) == {"val", "phrase", "about", "wrong"}
    assert scores["about"]["val"] == {"clips": 3, "seed": 1000, "frames": 4}
    n = sum(bool(e.targets) for clip in TINY for e in clip.expressions)
    assert scores["val"]["overall"]["n"] == n
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    assert (diagnosis["clips"], diagnosis["seed"]) == (1, 2000)
    demo = json.loads((folder / "demo.json").read_text())
    assert [row["name"] for row in demo] == ["explicit"] and (folder / "demo.jpg").stat().st_size
    assert not list(tmp_path.glob("vrshq_card_*"))
    text = write_card(folder).read_text()
    assert f"| overall | {scores['val']['overall']['JF']:.2f} |" in text
    assert "`phrase`" in text and "`long`" not in text


def test_a_card_names_the_numbers_of_its_files(nano):
    scores = json.loads((nano / "scores.json").read_text())
    scores["val"]["look"]["JF"] = 0.0123
    row = {"clip": "val_1000_00017", "text": "the small kite", "JF": 0.01, "found": True}
    scores["wrong"] = {"val": {"look": [row], "absent": []}}
    (nano / "scores.json").write_text(json.dumps(scores))
    rates = {"error_rates": {"a new word": {"rate": 0.25, "n": 8}}}
    (nano / "about.json").write_text(json.dumps(rates))
    text = write_card(nano, "a small machine", 3).read_text()
    assert "weakest families are look (0.01)" in text
    assert '| look | `MiniVRS("val", seed=1000)[17]` | the small kite | 0.01 |' in text
    assert "| a new word | 0.25 | 8 |" in text
    assert "on a small machine" in text and "seed 3." in text
    assert write_card(nano).read_text() == text  # machine and seed are kept


def test_what_is_not_known_is_left_out(nano):
    for name in ("scores", "diagnosis", "training_log", "about", "knowledge"):
        (nano / f"{name}.json").unlink(missing_ok=True)
    text = write_card(nano).read_text()
    assert "## Scores" not in text and "## Training" not in text and "points" not in text
    assert "| SAM 2 |" in text and "## Known failures" in text


def test_the_shipped_card_is_in_step_with_its_files(nano):
    shipped = (nano / "MODEL_CARD.md").read_text()
    assert write_card(nano).read_text() == shipped, "run `vrshq card vrshq_nb/weights/nano`"


def test_parameters_are_counted_in_the_model(nano):
    from vrshq_nb.describe import describe_model

    parts = card.architecture(nano)
    assert sum(n for *_, n in parts) == describe_model(nano)["parameters"]
    assert all(made for _, made, _ in parts)


def test_every_stage_of_the_log_has_a_line(nano):
    log = json.loads((nano / "training_log.json").read_text())
    table = card.stage_table(log)
    assert [row["name"] for row in table] == list(log)
    assert all(row["about"] and row["batch"] for row in table)
    assert {row["name"]: row["steps"] for row in table}["clip"] == log["clip"][-1]["step"]


def test_no_clip_of_the_scores_was_trained_on():
    used = {data.seed for data in (*card.SCORED.values(), card.DIAGNOSED)}
    assert not used & set(card.training_seeds().values())


# ---- what is chosen
def test_the_worst_answers_come_first():
    rows = [
        {"clip": f"val_1_{i:05d}", "family": "look", "text": str(i), "JF": jf, "found": True}
        for i, jf in enumerate((0.4, 0.9, 0.0, 0.49, 0.0, 0.5))
    ]
    assert [row["text"] for row in wrong_answers(rows)["look"]] == ["2", "4", "0"]
    assert wrong_answers(rows[1:2]) == {}


def test_the_weakest_families():
    groups = {
        "overall": {"JF": 0.1, "n": 90},
        "look": {"JF": 0.8, "n": 30},
        "time": {"JF": 0.3, "n": 30},
        "order": {"JF": 0.2, "n": 3},
        "absent, nothing shown": {"share": 0.0, "n": 30},
    }
    assert weakest(groups) == ["time", "look"] and weakest(groups, 1) == ["time"]
    assert weakest({"overall": groups["overall"]}) == []


@pytest.mark.parametrize(
    "words, text", [("", ""), ("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")]
)
def test_words_are_listed(words, text):
    assert card.listed(words) == text


def test_the_table_of_the_demo_says_what_is_wrong():
    row = {"text": "the cat", "J": 0.5, "F": 0.25, "found": True, "there": True, "right": True}
    bad = row | {"right": False}
    lines = demo_table([row, bad | {"there": False}, bad | {"found": False}]).splitlines()
    assert lines[2] == "| the cat | yes | 0.50 | 0.25 | right |"
    assert all(line.endswith("| **wrong** |") for line in lines[3:])
    assert "though there is none" in lines[3] and "though it is there" in lines[4]


def test_the_stored_demo_is_that_of_all_samples():
    path = find_weights("nano") / "demo.json"
    if not path.exists():
        pytest.skip("this model was not measured by `vrshq card --remake`")
    rows = json.loads(path.read_text())
    assert [(r["name"], r["text"]) for r in rows] == [(s.name, s.text) for s in SAMPLES]


# ---- refusals
def test_other_models_have_no_card(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    before = sorted(tmp_path.iterdir())
    for job in (write_card, remake):
        with pytest.raises(VRSError, match="'other'"):
            job(tmp_path)
    assert cli.main(["card", str(tmp_path)]) == 2
    assert "'other'" in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before


def test_a_model_without_a_teacher_is_refused_before_the_work(nano, monkeypatch):
    (nano / "teacher.safetensors").unlink()
    monkeypatch.setattr(card, "remake_demo", lambda *_: pytest.fail("the work began"))
    with pytest.raises(VRSError, match="teacher"):
        remake(nano)

"The command line: what it prints, what it writes, its exit codes, and all that it refuses."

import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vrshq_nb import cli
from vrshq_nb.samples import SAMPLES
from vrshq_nb.video import Video, write_video

PROGRAM = [sys.executable, "-c", "from vrshq_nb.cli import main; raise SystemExit(main())"]
SAMPLE_NAMES = [s.name for s in SAMPLES]


def frames_of(n, height=48, width=64):
    "A bright square that moves over a dark ground."
    frames = np.full((n, height, width, 3), 40, np.uint8)
    for t in range(n):
        frames[t, 10:30, 5 + 3 * t : 25 + 3 * t] = (220, 60, 60)
    return frames


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty current folder beside one that holds videos, good and bad."
    sources = tmp_path / "in"
    (sources / "empty").mkdir(parents=True)
    write_video(sources / "film.mp4", frames_of(4))
    whole = (sources / "film.mp4").read_bytes()
    (sources / "part.mp4").write_bytes(whole[: len(whole) // 2])
    (sources / "nothing.mp4").touch()
    (sources / "text.mp4").write_text("I am not a video, though my name says so.\n" * 20)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    return cwd


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def run(*words, **kwargs):
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=600, **kwargs
    )


def refused(capsys, *words):
    "The one line of a command that is refused; nothing may be written anywhere."
    assert cli.main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"vrshq: error: [^\n]+\n", err), err
    assert len(err) < 600
    return err


# ---- help ------------------------------------------------------------------------------
def test_help_and_version_need_no_torch(tmp_path):
    code = (
        "import sys, vrshq_nb.cli as c\n"
        "for line in ('--help', '--version', 'segment --help', 'segment', 'nonsense'):\n"
        "    c.main(line.split())\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'matplotlib', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_of_a_command_has_examples(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"vrshq {name}" in out and "examples:" in out
    examples = re.findall(rf"(?m)^  vrshq {name}\b", out)
    assert examples


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_examples_in_the_help_can_be_parsed(name):
    "What the help shows is not refused for its form."
    import shlex

    for line in cli.COMMANDS[name].examples:
        line = re.sub(
            r"^accelerate launch .* -m vrshq_nb ", "vrshq ", line.strip()
        )  # the same program in several processes
        words = shlex.split(re.split(r"\s{3,}\(| \| | < ", line)[0])
        assert words[:2] == ["vrshq", name]
        args = cli.build_parser().parse_args(words[1:])
        assert args.job is cli.COMMANDS[name].job


def test_version(capsys):
    import vrshq_nb

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vrshq {vrshq_nb.__version__}\n"


# ---- bad input -------------------------------------------------------------------------
BAD = {
    "no command": ("", "COMMAND"),
    "unknown command": ("segmnt ../in/film.mp4 x", "segmnt"),
    "no sentence": ("segment ../in/film.mp4", "TEXT"),
    "unknown option": ("segment ../in/film.mp4 x --fast", "--fast"),
    "missing file": ("segment ../in/no.mp4 x", "no file"),
    "empty file": ("segment ../in/nothing.mp4 x", "empty"),
    "cut-off file": ("segment ../in/part.mp4 x", "cut off"),
    "not a video": ("segment ../in/text.mp4 x", "text.mp4"),
    "empty folder": ("segment ../in/empty x", "no pictures"),
    "empty name": ("segment ||x", "no file"),
    "empty sentence": ("segment ../in/film.mp4 |", "sentence is empty"),
    "blank sentence": ("segment ../in/film.mp4 | \t ", "sentence is empty"),
    "one of two is empty": ("segment ../in/film.mp4 x|", "sentence is empty"),
    "endless sentence": ("segment ../in/film.mp4 |" + "kite " * 40_000, "characters"),
    "unknown model": ("segment ../in/film.mp4 x --model gigantic", "gigantic"),
    "folder without a model": ("segment ../in/film.mp4 x --model ../in", "holds no model"),
    "unknown device": ("segment ../in/film.mp4 x --device gpu", "gpu"),
    "absent device": ("segment ../in/film.mp4 x --device cuda:77", "cuda:77"),
    "unknown format": ("segment ../in/film.mp4 x --format avi", "avi"),
    "unknown ending": ("segment ../in/film.mp4 x -o x.webm", ".webm"),
    "ending against format": ("segment ../in/film.mp4 x -o x.gif --format mp4", "agree"),
    "output in a missing folder": ("segment ../in/film.mp4 x -o no/x.mp4", "no folder"),
    "output below a file": ("segment ../in/film.mp4 x -o ../in/film.mp4/x.mp4", "no folder"),
    "output in /proc": ("segment ../in/film.mp4 x -o /proc/x.mp4", "/proc/x.mp4"),
    "output is a folder": ("segment ../in/film.mp4 x -o ../in", "other files"),
    "output for files is missing": ("segment ../in/film.mp4 x -o no --format json", "no folder"),
    "output is the video": ("segment ../in/film.mp4 x -o ../in/film.mp4", "video itself"),
    "output has an endless name": ("segment ../in/film.mp4 x -o " + "n" * 300 + ".mp4", "name"),
    "too many candidates": ("segment ../in/film.mp4 x -k 65", "65"),
    "candidates in words": ("segment ../in/film.mp4 x -k many", "many"),
    "unknown sample": ("demo winds", "winds"),
    "demo below a file": ("demo -o ../in/film.mp4/x", "no folder"),
    "demo into a file": ("demo -o ../in/film.mp4", "it is a file"),
    "demo in /proc": ("demo -o /proc/x", "/proc/x"),
    "demo with an unknown model": ("demo --model gigantic", "gigantic"),
    "clips over other files": ("minivrs ../in", "other files"),
    "samples over other files": ("minivrs ../in --samples", "other files"),
    "unknown split": ("minivrs x --split test", "test"),
    "no clips": ("minivrs x --n 0", "'0'"),
    "clips in a missing folder": ("minivrs no/x", "no folder"),
    "unknown recipe": ("train micro", "micro"),
    "unknown stage": ("train nano --steps stage=3", "stage"),
    "steps without a number": ("train nano --steps language", "STAGE=N"),
    "training in a missing folder": ("train nano --out no/x", "no folder"),
    "info of an unknown model": ("info gigantic", "gigantic"),
}


def words_of(line):
    "Words of a line; after a `|`, all up to the next one is one word."
    first, *rest = line.split("|")
    return [*first.split(), *rest]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case, here, capsys):
    before = tree(here.parent)
    line, word = BAD[case]
    assert word in refused(capsys, *words_of(line))
    assert tree(here.parent) == before


@pytest.mark.parametrize(
    "stdin, word",
    [
        ("", "no sentence"),
        ("  \n\n", "no sentence"),
        ("the kite\n" + "kite " * 40_000, "characters"),
    ],
)
def test_bad_sentences_on_standard_input(stdin, word, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    assert word in refused(capsys, "segment", "../in/film.mp4", "-")
    assert tree(here) == []


@pytest.mark.parametrize("out", ["no/x.mp4", "/proc/x.gif", "x.webm", "../in", "../in/film.mp4"])
def test_output_is_checked_before_the_model_is_loaded(out, here, capsys, monkeypatch):
    import vrshq_nb.model

    monkeypatch.setattr(
        vrshq_nb.model.VRSHQ, "from_pretrained", lambda *_: pytest.fail("the work began")
    )
    refused(capsys, "segment", "../in/film.mp4", "the kite", "-o", out)


def test_bad_input_in_a_process_of_its_own(here):
    done = run("segment", "../in/part.mp4", "the kite")
    assert (done.returncode, done.stdout) == (2, "") and re.fullmatch(
        r"vrshq: error: .*cut off.*\n", done.stderr
    )
    assert tree(here) == []


# ---- exit codes ------------------------------------------------------------------------
def test_interrupt_is_130(here, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Video, "open", stop)
    assert cli.main(["segment", "../in/film.mp4", "the kite"]) == 130
    assert capsys.readouterr() == ("", "vrshq: stopped\n")


def test_mistakes_keep_their_traceback(here, monkeypatch):
    monkeypatch.setattr(Video, "open", lambda *_: np.zeros(3).reshape(2))
    with pytest.raises(ValueError, match="reshape"):
        cli.main(["segment", "../in/film.mp4", "the kite"])


def test_one_error_is_about_input(capsys):
    from vrshq_nb.tks import candidate_frames

    assert cli.exit_status(lambda: candidate_frames(9, 3, k=-1)) == 2
    assert capsys.readouterr().err.startswith("vrshq: error: ")

    def fail():
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="mistake"):
        cli.exit_status(fail)


@pytest.mark.parametrize("words", [["--help"], ["segment", "film.mp4", "x"], ["info"]])
def test_quick_commands_do_not_load_torch(words, tmp_path):
    code = (
        "import sys, vrshq_nb.cli as c\n"
        f"status = c.main({words!r})\n"
        "print(status, sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    loaded = "[]" if words[0] != "segment" else "[]"
    assert done.stdout.splitlines()[-1].endswith(loaded), done.stdout + done.stderr


def test_unquoted_words_get_a_note(here, capsys):
    from vrshq_nb.cli import read_sentences

    assert read_sentences(["the", "red", "kite"]) == ["the", "red", "kite"]
    assert "put a sentence in quotes" in capsys.readouterr().err
    assert read_sentences(["the red kite", "a dog"]) and capsys.readouterr().err == ""


def test_segment_takes_the_options_of_evaluate(here, capsys):
    refused(capsys, "segment", "../in/film.mp4", "x", "--set", "beta=1")
    refused(capsys, "segment", "../in/film.mp4", "x", "--set", "how=median")
    words = ["segment", "../in/film.mp4", "x y", "--json", "--format", "none"]
    assert cli.main([*words, "--set", "gate=false", "k=3"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) <= 4


def test_broken_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    job = "lambda: print('a line\\n' * 10_000)"
    code = f"from vrshq_nb.cli import exit_status; raise SystemExit(exit_status({job}))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=600
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# ---- segment ---------------------------------------------------------------------------
def test_segment_prints_one_json_document(here):
    done = run("segment", "../in/film.mp4", "The  red Square", "--json", "--rle", "-o", "out.json")
    assert done.returncode == 0 and done.stderr == ""
    record = json.loads(done.stdout)
    assert record["text"] == "the red square" and record["output"] == "out.json"
    assert record["video"] == dict(name="film.mp4", frames=4, width=64, height=48, fps=8.0)
    assert (
        record["keyframe"] in [c["frame"] for c in record["candidates"]]
        and {"similarity", "occlusion", "score"} <= record["candidates"][0].keys()
    )
    assert (
        isinstance(record["found"], bool)
        and isinstance(record["answer"], str)
        and all(v >= 0 for v in record["timings"].values())
    )
    from vrshq_nb.masks import load_masks

    saved = load_masks("out.json")
    assert (
        saved.shape == (4, 48, 64)
        and record["masks"] == json.loads((here / "out.json").read_text())["masks"]
    )
    assert math.isclose(saved.mean(), record["share"], abs_tol=1e-6) and tree(here) == ["out.json"]


def test_several_sentences_several_files(here, capsys):
    assert (
        cli.main(
            [
                "segment",
                "../in/film.mp4",
                "the square",
                "what moves?",
                "-o",
                "both.gif",
                "--json",
                "the square",
            ]
        )
        == 0
    )
    records = json.loads(capsys.readouterr().out)
    assert [r["text"] for r in records] == ["the square", "what moves?", "the square"]
    assert (
        [r["output"] for r in records] == tree(here) == ["both-1.gif", "both-2.gif", "both-3.gif"]
    )
    assert (
        all(len(Video.open(name)) == 4 for name in tree(here))
        and records[0]["share"] == records[2]["share"]
    )


def test_default_names_and_standard_input(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the square\n\nWhat moves?\n"))
    assert cli.main(["segment", "../in/film.mp4", "-", "-q"]) == 0
    out, err = capsys.readouterr()
    assert tree(here) == ["film_the_square.mp4", "film_what_moves.mp4"] and err == ""
    lines = [line for line in out.splitlines() if not line.startswith("  note: ")]
    assert len(lines) == 2 and all(name in out for name in tree(here))
    assert "  note: nano does not know the word 'square'" in out
    assert Video.open("film_the_square.mp4").frames([0]).shape == (1, 48, 64, 3)


def test_masks_as_png_and_again(here, capsys):
    for _ in range(2):  # over its own earlier result, too
        assert cli.main(["segment", "../in/film.mp4", "the square", "-o", "masks"]) == 0
    assert tree(here) == ["masks", *(f"masks/{t:05d}.png" for t in range(4))]
    (
        here / "masks" / "00004.png"
    ).touch()  # of a longer video: it would be mixed with the new ones, or lost
    capsys.readouterr()
    assert "00004.png" in refused(capsys, "segment", "../in/film.mp4", "the square", "-o", "masks")


def test_nothing_is_written_where_that_is_asked(here, capsys):
    assert (
        cli.main(
            [
                "segment",
                "../in/film.mp4",
                "the square",
                "--json",
                "--format",
                "none",
                "--device",
                "cpu",
                "-k",
                "2",
            ]
        )
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["output"] is None and len(record["candidates"]) <= 2 and tree(here) == []


@pytest.mark.parametrize("shape", [(1, 48, 64), (3, 47, 61), (1, 33, 17)], ids=str)
def test_short_and_odd_videos(shape, here, capsys):
    folder = here.parent / "in" / "frames"
    folder.mkdir()
    for t, frame in enumerate(frames_of(*shape)):
        Image.fromarray(frame).save(folder / f"{t}.png")
    assert cli.main(["segment", str(folder), "the square", "-o", "out.json"]) == 0
    from vrshq_nb.masks import load_masks

    assert load_masks("out.json").shape == shape
    assert cli.main(["segment", str(folder), "the square", "-o", "out.mp4"]) == 0
    assert len(Video.open("out.mp4")) == shape[0]


# ---- names -----------------------------------------------------------------------------
def test_planned_names():
    def plan(*args):
        paths = cli.plan_outputs("in/film.mp4", ["a b", "a, b?"], *args)
        return [path and path.as_posix() for path in paths]

    assert plan() == ["film_a_b.mp4", "film_a_b_2.mp4"]
    assert plan(None, "png") == ["film_a_b", "film_a_b_2"] and plan(None, "none") == [None, None]
    assert plan("x.json") == ["x-1.json", "x-2.json"] and plan("x") == plan("x", "png") == [
        "x-1",
        "x-2",
    ]
    assert plan("x", "gif") == ["x/film_a_b.gif", "x/film_a_b_2.gif"]


@pytest.mark.parametrize("text", ["???", "шляпа с пером", "a" * 500, "../../etc", "🪁"])
def test_slugs_are_names(text):
    name = cli.slug(text)
    assert name and len(name) <= 40 and not set(name) & set("/\\. ")


# ---- info ------------------------------------------------------------------------------
def test_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(about["parts"].values()) == about["parameters"] > 1e6
    assert 1 < about["megabytes"] < 25 and {"encoder", "sam2", "clip"} <= about["config"].keys()
    assert {"torch", "sam2", "transformers", "open_clip_torch", "python"} <= about[
        "versions"
    ].keys() and about["devices"][0].startswith("cpu")
    assert cli.main(["info"]) == 0
    assert f"{about['parameters']:,}" in capsys.readouterr().out


# ---- demo and samples ------------------------------------------------------------------
def test_demo(here, capsys):
    assert cli.main(["demo", "wind", "nothing", "-o", "new"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (
        err == ""
        and [line.split()[0] for line in lines[1:4]] == ["wind", "nothing", "mean"]
        and "new" in lines[5]
    )
    rows = json.loads((here / "new/results.json").read_text())
    right = [row["found"] and row["J"] >= 0.5 if row["there"] else not row["found"] for row in rows]
    assert [row["right"] for row in rows] == right
    assert [line.split()[-1] for line in lines[1:3]] == ["right" if r else "wrong" for r in right]
    assert f"{sum(right)} of 2 right" in lines[3] and Image.open("new/overview.jpg").width == 1200
    for line in lines[1:3]:
        j, f = map(float, re.findall(r" (\d\.\d\d)", line))
        assert 0 <= j <= 1 and 0 <= f <= 1
    assert tree(here) == [
        "new",
        "new/clips",
        "new/clips/nothing.mp4",
        "new/clips/wind.mp4",
        "new/nothing.mp4",
        "new/nothing.png",
        "new/overview.jpg",
        "new/results.json",
        "new/wind.mp4",
        "new/wind.png",
    ]
    assert len(Video.open("new/wind.mp4")) == 16 and Image.open("new/wind.png").width > 500


# ---- minivrs, train --------------------------------------------------------------------
def test_minivrs_writes_clips(here, capsys):
    assert (
        cli.main(["minivrs", "clips", "--n", "2", "--size", "64", "--frames", "4", "--seed", "3"])
        == 0
    )
    assert capsys.readouterr().out == "2 clips -> clips\n"
    videos = sorted((here / "clips").rglob("*.mp4"))
    assert len(videos) == 2 and all(len(Video.open(v)) == 4 for v in videos)
    assert any(p.name.startswith("meta_expressions") for p in (here / "clips").rglob("*.json"))


def test_train_hands_its_arguments_on(here, capsys, monkeypatch):
    import vrshq_nb.training

    got = {}

    def train_nano(folder, smoke, steps, seed, device, jobs):
        got.update(
            folder=folder.name, smoke=smoke, steps=steps, seed=seed, device=device.type, jobs=jobs
        )
        return folder / "nano"

    monkeypatch.setattr(vrshq_nb.training, "train_nano", train_nano)
    assert (
        cli.main(
            [
                "train",
                "nano",
                "--out",
                "new",
                "--smoke",
                "--seed",
                "4",
                "--jobs",
                "1",
                "--steps",
                "language=5",
                "joint=6",
            ]
        )
        == 0
    )
    assert got == dict(
        folder="new", smoke=True, steps=dict(language=5, joint=6), seed=4, device="cpu", jobs=1
    )
    assert "nano" in capsys.readouterr().out

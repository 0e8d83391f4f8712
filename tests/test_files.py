"Errors, safe writing, JSON and names: `vrshq_nb.files`."

import os
import subprocess
import sys

import pytest

from vrshq_nb.files import VRSError, atomic_path, explain, natural_key, read_json, reason


def error(call, *args, **kwargs):
    "The message of a VRSError: one line, of some length, that ends in what to do."
    with pytest.raises(VRSError) as e:
        call(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and len(text) > 20
    return text


def test_error_is_a_value_error():
    assert issubclass(VRSError, ValueError)


def test_only_the_standard_library_is_imported():
    code = "import sys, vrshq_nb.files; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- errors in one line
@pytest.mark.parametrize(
    "e, text",
    [
        (PermissionError(13, "Permission denied", "/a"), "permission denied"),
        (EOFError(), "eoferror"),
        (ValueError("First\nsecond"), "first"),
        (OSError("no number"), "no number"),
    ],
)
def test_reason(e, text):
    assert reason(e) == text


def test_explain_is_one_line_of_bounded_length():
    assert explain(RuntimeError("a\n\t b  c")) == "RuntimeError: a b c"
    assert explain(KeyError("k")) == "KeyError: 'k'"
    assert len(explain(ValueError("x" * 5000))) == len("ValueError: ") + 200


# ---- names
def test_natural_key():
    names = ["f10.jpg", "f9.jpg", "F1.jpg", "f100.jpg", "a2b10.png", "a2b9.png"]
    right = ["a2b9.png", "a2b10.png", "F1.jpg", "f9.jpg", "f10.jpg", "f100.jpg"]
    assert sorted(names, key=natural_key) == right


# ---- writing: all or nothing
def test_atomic_path_file(tmp_path):
    with atomic_path(tmp_path / "a.json") as p:
        p.write_text("1")
        assert p.parent == tmp_path and p.suffix == ".json" and not (tmp_path / "a.json").exists()
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(tmp_path / "a.json") as p:
            p.write_text("2")
            raise KeyboardInterrupt
    assert (tmp_path / "a.json").read_text() == "1" and os.listdir(tmp_path) == ["a.json"]


def test_atomic_path_folder(tmp_path):
    def put(*names):
        with atomic_path(tmp_path / "masks") as p:
            p.mkdir()
            for n in names:
                (p / n).write_text(n)

    put("0", "1")
    put("0", "1", "2")  # again, over files of the same names
    assert sorted(os.listdir(tmp_path / "masks")) == ["0", "1", "2"]
    assert "other files" in error(put, "7")
    (tmp_path / "new").mkdir()
    assert sorted(os.listdir(tmp_path / "masks")) == ["0", "1", "2"] and sorted(
        os.listdir(tmp_path)
    ) == ["masks", "new"]


def test_atomic_path_forgotten(tmp_path):
    def forget():
        with atomic_path(tmp_path / "a.txt"):
            pass

    error(forget)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_and_a_folder_do_not_replace_each_other(kind, tmp_path):
    path = tmp_path / "a"
    path.touch() if kind == "file" else path.mkdir()

    def put():
        with atomic_path(path) as p:
            p.mkdir() if kind == "file" else p.touch()

    assert f"it is a {kind}" in error(put)
    assert os.listdir(tmp_path) == ["a"] and path.is_dir() == (kind == "folder")


# ---- JSON
def test_read_json(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", dict) == {"name": "é"}
    (tmp_path / "b.json").write_text("3")
    assert read_json(str(tmp_path / "b.json")) == 3
    assert "holds a int, not a dict" in error(read_json, tmp_path / "b.json", dict)


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe\x00", b"{'a': 1}"])
def test_broken_json(data, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    text = error(read_json, tmp_path / "a.json")
    assert "a.json is not a JSON file" in text


def test_json_that_is_not_there(tmp_path):
    assert "no such file" in error(read_json, tmp_path / "a.json")
    assert "cannot be read" in error(read_json, tmp_path)

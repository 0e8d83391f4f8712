"""The installed package: complete, importable, light to import, and the same as the checkout."""

import configparser
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vrshq_nb

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(vrshq_nb.__file__).resolve().parent
PUBLIC = ["MiniVRS", "Segmentation", "VRSError", "VRSHQ", "Video"]
MODULES = sorted(
    ".".join(p.relative_to(ROOT / "vrshq_nb").with_suffix("").parts).removesuffix(".__init__")
    for p in (ROOT / "vrshq_nb").rglob("*.py")
    if p != ROOT / "vrshq_nb" / "__init__.py"
)
WEIGHTS_LIMIT = 25e6  # bytes of model inside the package


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser(delimiters=["="])
    assert parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def python(code, cwd):
    "What a fresh interpreter, started outside the checkout, prints for `code`."
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_tests_see_the_installed_package():
    assert ROOT not in PACKAGE.parents or ".venv" in PACKAGE.parts, (
        f"vrshq_nb comes from {PACKAGE}, the checkout, not from an installation: run `make pytest`"
    )


def test_installed_files_are_those_of_the_checkout():
    "A module or weight file that the build forgets, or an old one that stays behind, shows here."

    def files(folder):
        return {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith(".")
        }

    here, there = files(ROOT / "vrshq_nb"), files(PACKAGE)
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []


@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module):
    mod = importlib.import_module(f"vrshq_nb.{module}")
    missing = [name for name in getattr(mod, "__all__", []) if not hasattr(mod, name)]
    assert missing == []


def test_no_module_is_forgotten():
    found = pkgutil.walk_packages([str(PACKAGE)], "vrshq_nb.")
    assert sorted(m.name.removeprefix("vrshq_nb.") for m in found) == MODULES


@pytest.mark.parametrize("heavy", ["torch", "numpy", "transformers", "sam2", "matplotlib", "av"])
def test_import_is_lazy(heavy, tmp_path):
    assert python(f"import sys, vrshq_nb; print({heavy!r} in sys.modules)", tmp_path) == "False"


def test_cli_import_is_lazy(tmp_path):
    assert python("import sys, vrshq_nb.cli; print('torch' in sys.modules)", tmp_path) == "False"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name(name, tmp_path):
    assert name in vrshq_nb.__all__ and name in dir(vrshq_nb)
    assert (
        python(
            f"from vrshq_nb import {name}; print({name}.__name__, isinstance({name}, type))",
            tmp_path,
        )
        == f"{name} True"
    )


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Vidoe'"):
        vrshq_nb.Vidoe  # noqa: B018


def test_version_is_the_same_everywhere(settings):
    assert vrshq_nb.__version__ == settings["version"] == importlib.metadata.version("vrshq_nb")


def test_metadata(settings):
    meta = importlib.metadata.metadata("vrshq_nb")
    assert meta["Requires-Python"] == f">={settings['min_python']}"
    assert set(meta.get_all("Provides-Extra")) == {
        "lab",
        "train",
        "vlm",
        "chatunivi",
        "backbones",
        "dev",
    }
    needed = " ".join(meta.get_all("Requires-Dist"))
    assert all(
        name in needed for name in ("torch", "torchvision", "transformers", "sam2", "decord")
    )


def test_licence_is_in_the_installation():
    texts = [f for f in importlib.metadata.files("vrshq_nb") if f.name == "LICENSE"]
    assert len(texts) == 1 and "Apache License" in texts[0].read_text()


def test_console_script_help(tmp_path):
    [script] = importlib.metadata.entry_points(group="console_scripts", name="vrshq")
    assert script.value == "vrshq_nb.cli:main"
    program = Path(sys.executable).parent / "vrshq"
    done = subprocess.run(
        [program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert all(
        command in done.stdout for command in ("demo", "segment", "minivrs", "train", "info")
    )


def test_wordings_are_in_the_installation():
    names = {p.stem for p in (PACKAGE / "minivrs" / "wordings").iterdir()}
    assert names == {"facts", "motion", "time", "frames", "words", "unknown"}


def test_weights_are_in_the_installation():
    nano = PACKAGE / "weights" / "nano"
    names = {p.suffix for p in nano.rglob("*") if p.is_file()}
    assert {".safetensors", ".json", ".md"} <= names, (
        f"{nano} has {sorted(names)}: weights, configuration and model card are needed"
    )
    size = sum(p.stat().st_size for p in (PACKAGE / "weights").rglob("*") if p.is_file())
    assert 0 < size <= WEIGHTS_LIMIT

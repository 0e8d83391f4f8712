"""Shared by all tests. They run against the installed package, offline."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never fetches anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for what tests share: reference.py, tiny_vlms.py


def pytest_report_header():
    spec = importlib.util.find_spec("vrshq_nb")
    return f"vrshq_nb: {Path(spec.origin).parent if spec else 'not installed'}"


@pytest.fixture(scope="session")
def root():
    "The checkout: notebooks, settings, samples."
    return ROOT


@pytest.fixture(scope="session")
def data():
    "Small reference numbers kept beside the tests."
    return ROOT / "tests" / "data"

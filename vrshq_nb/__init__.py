"""Video reasoning segmentation, one notebook per stage: `VRSHQ`, `Video`, `MiniVRS`.

Importing the package is instant: a public name loads its module, and with it torch, at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["MiniVRS", "Segmentation", "VRSError", "VRSHQ", "Video"]

if TYPE_CHECKING:  # for editors and checkers only; never executed
    from .files import VRSError
    from .minivrs import MiniVRS
    from .model import VRSHQ, Segmentation
    from .video import Video

_HOME = {
    "MiniVRS": "minivrs",
    "Segmentation": "model",
    "VRSError": "files",
    "VRSHQ": "model",
    "Video": "video",
}


def __getattr__(name):
    "Load a public name from its module at first use (PEP 562)."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})

"""Datasets of video reasoning segmentation: one interface, and checks of their files."""

from vrshq_nb.datasets.base import (
    ExpressionSample,
    VideoEntry,
    VRSDataset,
    frame_names,
    picture_file,
)
from vrshq_nb.datasets.images import ReasonSeg, RefCOCO, RefCOCOg, RefCOCOPlus
from vrshq_nb.datasets.opening import DATASETS, check_folder, detect_dataset, open_dataset
from vrshq_nb.datasets.videos import MeViS, MiniVRSData, ReasonVOS, RefDAVIS17, RefYouTubeVOS, ReVOS

__all__ = [
    "DATASETS",
    "ExpressionSample",
    "MeViS",
    "MiniVRSData",
    "ReVOS",
    "ReasonSeg",
    "ReasonVOS",
    "RefCOCO",
    "RefCOCOPlus",
    "RefCOCOg",
    "RefDAVIS17",
    "RefYouTubeVOS",
    "VRSDataset",
    "VideoEntry",
    "check_folder",
    "detect_dataset",
    "frame_names",
    "open_dataset",
    "picture_file",
]

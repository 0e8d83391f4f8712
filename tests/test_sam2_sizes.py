"SAM 2 in its eight published sizes. Offline, random weights."

from importlib.resources import files

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vrshq_nb.files import VRSError
from vrshq_nb.mdp import sam2_from_config
from vrshq_nb.sam2_sizes import sam2_name, sam2_pretrained, sam2_settings, sam2_table

SIZES = sorted(sam2_table())
FRAME = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)


@pytest.mark.parametrize("name", SIZES)
def test_sam2_is_the_packages_own_build(name):
    with init_empty_weights():
        ours = sam2_from_config(sam2_settings(name))
        theirs = instantiate(OmegaConf.load(str(files("sam2") / sam2_table()[name][1])).model)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    flags = {
        k
        for k, v in vars(theirs).items()
        if isinstance(v, (bool, int, float)) and getattr(ours, k) != v
    } - {"training"}
    assert flags == {
        "multimask_output_in_sam",
        "multimask_output_for_tracking",
        "use_multimask_token_for_obj_ptr",
        "binarize_mask_from_pts_for_mem_enc",
    }
    for a, b in zip(ours.image_encoder.trunk.blocks, theirs.image_encoder.trunk.blocks):
        assert a.window_size == b.window_size


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_sam2_runs_on_a_small_frame(name):
    model = sam2_pretrained(name, image_size=128, weights=False)
    out = model.decode(model.encode(FRAME), 0, torch.randn(1, 256))
    assert out.logits.shape == (1, 32, 32) and out.raw.isfinite().all()


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda s: {"model": {k: v for k, v in s.items() if "no_mem" not in k}},
            r"2 missing \(no_mem_embed, no_mem_pos_enc\)",
        ),
        (lambda s: {"model": s | {"spare": torch.ones(1)}}, r"1 unexpected \(spare\)"),
        (lambda s: {"model": s | {"no_mem_embed": torch.ones(1, 1, 2)}}, "1 of another shape"),
        (lambda s: {"model": s | {"no_mem_embed": s["no_mem_embed"] * torch.nan}}, "1 not finite"),
        (lambda s: s, "no SAM 2 checkpoint"),
        (lambda s: torch.nn.Linear(1, 1), "no SAM 2 checkpoint"),
    ],
)
def test_files_that_are_not_sam2(tmp_path, change, match):
    state = sam2_pretrained("tiny", image_size=128, weights=False).state_dict()
    torch.save(change(state), tmp_path / "sam2.1_hiera_tiny.pt")
    with pytest.raises(VRSError, match=match):
        sam2_pretrained(tmp_path / "sam2.1_hiera_tiny.pt", image_size=128)


def test_sam2_names(tmp_path):
    assert (
        sam2_name("base_plus")
        == sam2_name("facebook/sam2.1-hiera-base-plus")
        == "sam2.1-hiera-base-plus"
    )
    assert sam2_name("sam2_hiera_small.pt") == "sam2-hiera-small"
    for bad in ("b+", "", "sam3"):
        with pytest.raises(VRSError, match="unknown SAM 2"):
            sam2_name(bad)
    with pytest.raises(VRSError, match="no file"):
        sam2_pretrained(tmp_path / "sam2_hiera_small.pt")
    (tmp_path / "x.pt").write_text("text")
    with pytest.raises(VRSError, match="no SAM 2 checkpoint"):
        sam2_pretrained(tmp_path / "x.pt", "tiny")


def test_the_hub_is_asked_and_says_no():
    with pytest.raises(VRSError, match="could not be fetched"):
        sam2_pretrained("large", image_size=128)

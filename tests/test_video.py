"Reading, writing and refusing: `vrshq_nb.video` against files made here."

import os
import pickle
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vrshq_nb.files import VRSError
from vrshq_nb.video import (
    ArrayReader,
    AVReader,
    DecordReader,
    GifReader,
    Video,
    av_frames,
    check_fps,
    check_indices,
    declared_bytes,
    open_reader,
    probe,
    sample_indices,
    write_video,
)


def make_clip(T=24, H=64, W=96, seed=0):
    "A ball on a smooth field with a little noise, so that no two frames are equal."
    y, x = np.mgrid[:H, :W]
    clip = np.empty((T, H, W, 3), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 20, clip.shape)
    for t in range(T):
        clip[t] = np.stack([60 + x, 80 + y, 150 + 0 * x], -1)
        clip[t][(x - 10 - (W - 20) * t // max(T - 1, 1)) ** 2 + (y - H // 2) ** 2 < 64] = [
            220,
            50,
            60,
        ]
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def write_raw(path, clip, codec="libx264", rotation=0, **options):
    "A file as other programs write it: any codec, not faststart, turned."
    with av.open(str(path), "w", options=options) as c:
        s = c.add_stream(codec, rate=8)
        (s.height, s.width), s.pix_fmt = clip.shape[1:3], "yuv420p"
        if rotation:
            s.set_display_rotation(rotation)
        for f in av_frames(clip, Fraction(8)):
            c.mux(s.encode(f))
        c.mux(s.encode(None))
    return path


def error(call, *args, **kwargs):
    "The message of a VRSError: one line, of some length, that ends in what to do."
    with pytest.raises(VRSError) as e:
        call(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and len(text) > 20
    return text


def cut(path, share, to):
    data = path.read_bytes()
    to.write_bytes(data[: int(len(data) * share)])
    return to


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def mp4(clip, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("v") / "clip.mp4", clip, fps=12)


def mean_error(a, b):
    return np.abs(a.astype(int) - b).mean()


# ---- frame numbers and frames
@pytest.mark.parametrize(
    "bad,hint",
    [
        (np.zeros((2, 4, 4, 3)), "uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels last"),
        (np.zeros((4, 4, 3), np.uint8), "image[None]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "at least one"),
        (np.zeros((2, 0, 4, 3), np.uint8), "nothing"),
        (np.zeros((2, 4, 4), np.uint8), "(T, H, W, 3)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "(T, H, W, 3)"),
        (np.zeros((2, 4, 4, 3), bool), "uint8"),
    ],
)
def test_bad_arrays(bad, hint):
    assert hint in error(Video.open, bad)


def test_tensor_and_list(clip):
    torch = pytest.importorskip("torch")
    assert (Video.open(torch.from_numpy(clip)).frames() == clip).all()
    assert (Video.open(list(clip[:3])).frames() == clip[:3]).all()
    assert "uint8" in error(Video.open, torch.zeros(2, 4, 4, 3))


@pytest.mark.parametrize(
    "bad", [[24], [-1], [0, 5, 99], [0.5], "x", ["a"], [True], object(), None.__class__]
)
def test_bad_indices(bad, mp4, clip):
    for video in (Video.open(mp4), Video.open(clip)):
        error(video.frames, bad)


@pytest.mark.parametrize(
    "good,n",
    [
        (None, 24),
        ([], 0),
        (3, 1),
        (np.int64(3), 1),
        ([3, 3, 0], 3),
        (range(4, 8), 4),
        (slice(20, None), 4),
        (np.array([1, 2]), 2),
    ],
)
def test_good_indices(good, n, mp4, clip):
    got = Video.open(mp4).frames(good)
    assert got.shape == (n, 64, 96, 3) and got.dtype == np.uint8
    assert (Video.open(clip).frames(good) == clip[check_indices(good, 24)]).all()


def test_indices_message():
    assert (
        error(check_indices, [24], 24, "a.mp4")
        == "frame 24 asked for, but a.mp4 has the frames 0 to 23"
    )


def test_sample_indices():
    for T in range(1, 40):
        for n in range(1, 45):
            got = sample_indices(T, n)
            assert (
                len(got) == min(n, T) == len(set(got))
                and got == sorted(got)
                and 0 <= got[0]
                and got[-1] < T
            )
            assert all(type(i) is int for i in got)
            if 1 < n:
                assert (got[0], got[-1]) == (0, T - 1)
    assert sample_indices(10, 4) == [0, 3, 6, 9] and sample_indices(5, 1) == [2]
    error(sample_indices, 5, 0)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "8", None, True])
def test_bad_fps(bad, tmp_path, clip):
    error(check_fps, bad)
    error(write_video, tmp_path / "a.mp4", clip, bad)
    assert not os.listdir(tmp_path)
    if bad is not None:
        error(Video.open, clip, bad)


# ---- the round trip
@pytest.mark.parametrize("ending,limit", [(".mp4", 12), (".gif", 6)])
@pytest.mark.parametrize(
    "size", [(64, 96), (63, 95), (1, 1), (2, 2), (17, 130), (64, 48), (64, 72)]
)
def test_round_trip(size, ending, limit, tmp_path):
    clip = make_clip(6, *size)
    v = Video.open(write_video(tmp_path / f"a{ending}", iter(clip), fps=8))
    h, w = (-(-s // 2) * 2 for s in size) if ending == ".mp4" else size
    assert (len(v), v.height, v.width, v.name) == (6, h, w, f"a{ending}")
    assert v.fps == pytest.approx(8, abs=0.1) and v.duration == pytest.approx(6 / v.fps)
    got = v.frames()
    assert got.shape == (6, h, w, 3) and mean_error(got[:, : size[0], : size[1]], clip) < limit
    if h > size[0]:
        assert mean_error(got[:, -1], got[:, -2]) < 12  # the last row is repeated


def test_smooth_colours_survive(tmp_path):
    flat = np.empty((3, 32, 32, 3), np.uint8)
    flat[:] = [200, 60, 90]
    assert mean_error(Video.open(write_video(tmp_path / "a.mp4", flat)).frames(), flat) < 4


def test_identical_frames_are_kept(tmp_path):
    same = np.full((9, 16, 16, 3), 77, np.uint8)
    for name in ("a.mp4", "a.gif"):
        assert len(Video.open(write_video(tmp_path / name, same))) == 9


def test_one_frame(tmp_path, clip):
    for name in ("a.mp4", "a.gif"):
        v = Video.open(write_video(tmp_path / name, clip[:1]))
        assert len(v) == 1 and v.frames().shape == (1, 64, 96, 3) and v.sample(5) == [0]


@pytest.mark.parametrize(
    "fps", [8, 29.97, 30000 / 1001, 60, 0.5, Fraction(24000, 1001), np.float32(12.5)]
)
def test_fps(fps, tmp_path, clip):
    assert Video.open(write_video(tmp_path / "a.mp4", clip[:5], fps=fps)).fps == pytest.approx(
        float(fps), rel=1e-3
    )


def test_mp4_plays_in_browsers(mp4):
    with av.open(str(mp4)) as c:
        s = c.streams.video[0]
        assert s.codec_context.name == "h264" and s.codec_context.pix_fmt == "yuv420p"
        f = next(c.decode(s))
        assert int(f.colorspace) == 6 and int(f.color_range) == 1
    data = mp4.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # faststart


def test_crf(tmp_path, clip):
    sizes = [write_video(tmp_path / "a.mp4", clip, crf=c).stat().st_size for c in (0, 18, 40)]
    assert sizes == sorted(sizes, reverse=True)
    error(write_video, tmp_path / "b.mp4", clip, crf=99)


def test_writing_streams(tmp_path):
    alive, most = 0, 0

    class Frame(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def frames():
        nonlocal alive, most
        for _ in range(60):
            f = np.zeros((16, 16, 3), np.uint8).view(Frame)
            alive += 1
            most = max(most, alive)
            yield f
            del f

    write_video(tmp_path / "a.mp4", frames())
    assert most < 30  # far fewer frames at once than there are


def test_a_video_can_be_written_again(tmp_path, mp4):
    again = Video.open(write_video(tmp_path / "b.mp4", Video.open(mp4), fps=12, crf=0))
    assert len(again) == 24 and mean_error(again.frames(), Video.open(mp4).frames()) < 5


# ---- reading
def test_video_object(mp4):
    v = Video.open(mp4)
    assert Video.open(v) is v and Video.open(str(mp4)).fps == 12 and Video.open(mp4, fps=5).fps == 5
    assert repr(v) == "Video('clip.mp4', 24 frames, 96x64, 12 fps, 2.0 s)"
    assert len(list(v)) == 24 and v.sample(3) == [0, 12, 23]


def test_chunks(mp4):
    v = Video.open(mp4)
    parts = list(v.chunks(10))
    assert [i for p, _ in parts for i in p] == list(range(24)) and [len(f) for _, f in parts] == [
        10,
        10,
        4,
    ]
    assert (np.concatenate([f for _, f in parts]) == v.frames()).all()
    with pytest.raises(VRSError):
        next(v.chunks(0))


@pytest.mark.parametrize("reader", [AVReader, DecordReader])
def test_any_order_gives_the_same_bits(reader, tmp_path):
    path = write_raw(tmp_path / "a.mp4", make_clip(60), g="12")
    with av.open(str(path)) as c:
        reference = np.stack([f.to_ndarray(format="rgb24") for f in c.decode(video=0)])
    r = reader(path)
    assert r.n_frames == 60 == len(reference)
    for i in [0, 59, 30, 31, 29, 0, 12, 11, 58]:
        assert (r.read(np.array([i]))[0] == reference[i]).all(), i
    v = Video.open(path)
    order = np.random.default_rng(0).integers(0, 60, 100)
    assert (v.frames(order) == reference[order]).all()


def test_lazy(tmp_path):
    "Opening decodes one frame at most, and frames that nobody asks for are never decoded."
    for i in range(50):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    v = Video.open(tmp_path)
    (tmp_path / "30.png").write_bytes((tmp_path / "30.png").read_bytes()[:45])
    assert len(v.frames([0, 29, 31])) == 3
    assert "30.png" in error(v.frames, [30])


def test_pickle(mp4, clip):
    for source in (mp4, clip):
        v = pickle.loads(pickle.dumps(Video.open(source, fps=5)))
        assert (
            v.fps == 5 and len(v) == 24 and (v.frames([7]) == Video.open(source).frames([7])).all()
        )


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_turned_videos_come_upright(rotation, tmp_path):
    "The note says how far the stored frames are turned counter-clockwise."
    stored = make_clip(5)
    v = Video.open(write_raw(tmp_path / "a.mp4", stored, rotation=rotation))
    upright = np.rot90(stored, rotation // 90 % 4, (1, 2))
    assert (v.height, v.width) == upright.shape[1:3]
    assert probe(tmp_path / "a.mp4")["rotation"] % 360 == rotation % 360
    assert v.frames().flags.c_contiguous or v.frames().copy().flags.c_contiguous
    assert (
        mean_error(v.frames(), upright) < 12 and mean_error(v.frames([4, 1]), upright[[4, 1]]) < 12
    )


@pytest.mark.parametrize("width", [2, 16, 24, 48, 72, 50])
def test_narrow_frames(width, tmp_path):
    "decord 0.6 gives the wrong number of channels for some of these."
    clip = make_clip(4, 64, width)
    path = write_video(tmp_path / "a.mp4", clip)
    assert mean_error(Video.open(path).frames(), clip) < 12
    assert (Video.open(path).frames([2]) == AVReader(path).read([2])).all()


def test_trimmed_video(tmp_path, mp4):
    "Frames that an edit list hides are not there."
    path = tmp_path / "a.mp4"
    with av.open(str(mp4)) as old, av.open(str(path), "w") as new:
        s = old.streams.video[0]
        t = new.add_stream_from_template(s)
        ticks = int(6 / (s.time_base * s.average_rate))
        for p in old.demux(s):
            if p.dts is not None:
                p.pts -= ticks
                p.dts -= ticks
                p.stream = t
                new.mux(p)
    v = Video.open(path)
    assert len(v) == 18 and (v.frames() == Video.open(mp4).frames()[6:]).all()


@pytest.mark.parametrize(
    "name,codec",
    [
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.mov", "libx264"),
        ("a.MP4", "libx264"),
    ],
)
def test_other_containers(name, codec, tmp_path, clip):
    v = Video.open(write_raw(tmp_path / name, clip, codec))
    assert len(v) == 24 and v.fps == pytest.approx(8) and v.frames([23, 0]).shape == (2, 64, 96, 3)


def test_without_decord(mp4):
    "Where decord is not to be had, PyAV reads, with the same bits."
    code = f"""
import sys
sys.modules["decord"] = None
from vrshq_nb.video import Video
video = Video.open({str(mp4)!r})
print(type(video.reader).__name__, int(video.frames([20, 3]).astype("int64").sum()))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == ["AVReader", str(int(Video.open(mp4).frames([20, 3]).astype("int64").sum()))]


def test_torch_bridge(mp4):
    decord = pytest.importorskip("decord")
    pytest.importorskip("torch")
    expected = Video.open(mp4).frames([3])
    decord.bridge.set_bridge("torch")
    try:
        assert (Video.open(mp4).frames([3]) == expected).all()
    finally:
        decord.bridge.set_bridge("native")


# ---- folders and pictures
def test_folder(tmp_path, clip):
    for i, f in enumerate(clip[:12]):
        Image.fromarray(f).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_text("neither")
    v = Video.open(tmp_path)
    assert (v.frames() == clip[:12]).all() and v.name == tmp_path.name and v.fps == 8


def test_folder_of_gray_and_palette(tmp_path):
    for i, mode in enumerate(("L", "P", "RGBA", "1", "RGB")):
        Image.new(mode, (6, 4)).save(tmp_path / f"{i}.png")
    assert Video.open(tmp_path).frames().shape == (5, 4, 6, 3)


def test_one_picture_is_a_video_of_one_frame(tmp_path, clip):
    Image.fromarray(clip[0]).save(tmp_path / "a.png")
    assert (Video.open(tmp_path / "a.png").frames() == clip[:1]).all()


def test_exif_turn(tmp_path, clip):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(clip[0]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    v = Video.open(tmp_path)
    assert (v.height, v.width) == (96, 64) and mean_error(v.frames()[0], np.rot90(clip[0], -1)) < 12


def test_gif_with_patches(tmp_path):
    "Pictures that only hold what changed, disposal included, come back whole."
    base = Image.new("RGB", (40, 30), (10, 120, 200))
    frames = [base]
    for i in range(1, 6):
        f = base.copy()
        f.paste((250, 240, 30), (5 * i, 5, 5 * i + 8, 15))
        frames.append(f)
    for disposal in (0, 1, 2):
        frames[0].save(
            tmp_path / "a.gif",
            save_all=True,
            append_images=frames[1:],
            duration=100,
            loop=0,
            disposal=disposal,
        )
        v = Video.open(tmp_path / "a.gif")
        assert len(v) == 6 and v.fps == 10
        for i in (5, 0, 3, 2):
            assert mean_error(v.frames([i])[0], np.asarray(frames[i])) < 2, (disposal, i)


def test_gif_under_another_name(tmp_path, clip):
    os.rename(write_video(tmp_path / "a.gif", clip[:4]), tmp_path / "a.mp4")
    assert isinstance(open_reader(tmp_path / "a.mp4")[0], GifReader)


# ---- broken sources: one clear line each
def test_missing(tmp_path):
    assert "there is no file" in error(Video.open, tmp_path / "no.mp4")
    assert "there is no file" in error(Video.open, "")
    for bad in (7, None, b"a.mp4", {"a": 1}):
        assert "no kind of video" in error(Video.open, bad)


def test_no_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.gif").touch()
    (tmp_path / "empty.png").touch()
    for name in ("empty.mp4", "empty.gif", "empty.png"):
        assert "empty" in error(Video.open, tmp_path / name)
    for name in ("text.mp4", "text.txt", "text.webm", "text.gif", "text.json"):
        (tmp_path / name).write_text("Dear reader, this is not a video.\n" * 40)
        error(Video.open, tmp_path / name)
    (tmp_path / "junk.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    error(Video.open, tmp_path / "junk.mp4")
    (tmp_path / "text.png").write_text("no picture")
    error(Video.open, tmp_path / "text.png")
    (tmp_path / "fake.gif").write_bytes(b"GIF89a")
    error(Video.open, tmp_path / "fake.gif")


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as c:
        s = c.add_stream("aac", rate=16000)
        f = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        f.rate = 16000
        c.mux(s.encode(f))
        c.mux(s.encode(None))
    assert "no pictures" in error(Video.open, tmp_path / "a.mp4")


def test_bad_folders(tmp_path, clip):
    assert "no pictures" in error(Video.open, tmp_path)
    Image.fromarray(clip[0]).save(tmp_path / "1.png")
    Image.fromarray(clip[0, ::2]).save(tmp_path / "2.png")
    text = error(Video.open, tmp_path)
    assert "1.png is 96x64" in text and "2.png is 96x32" in text
    (tmp_path / "2.png").write_bytes(b"no picture")
    assert "2.png" in error(Video.open, tmp_path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_cut_off_with_the_table_first(share, tmp_path, mp4):
    text = error(Video.open, cut(mp4, share, tmp_path / "a.mp4"))
    assert "cut off" in text and "again" in text
    if share >= 0.3:
        assert "of 24 could not be read" in text


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize(
    "name,codec",
    [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")],
)
def test_cut_off(name, codec, share, tmp_path, clip):
    path = write_raw(tmp_path / name, clip, codec)
    assert declared_bytes(path) <= path.stat().st_size and Video.open(path)
    assert "cut off" in error(Video.open, cut(path, share, tmp_path / f"cut{path.suffix}"))


def test_cut_gif(tmp_path, clip):
    path = cut(write_video(tmp_path / "a.gif", clip), 0.5, tmp_path / "b.gif")

    def read():
        Video.open(path).frames()

    assert "could not be read" in error(read) or "again" in error(read)


def test_zeros_at_the_end(tmp_path, clip):
    "A download that reserved its space: the size is right, the second half is not there."
    path = write_video(tmp_path / "a.mp4", make_clip(40))
    data = path.read_bytes()
    half = len(data) * 6 // 10
    path.write_bytes(data[:half] + bytes(len(data) - half))
    v = Video.open(path)
    assert len(v.frames([0, 1])) == 2  # what is there can be read
    text = error(v.frames)
    assert "could not be read" in text and "of 40" in text
    assert len(v.frames([0])) == 1  # and still afterwards


def test_cut_files_are_quiet(tmp_path, mp4):
    "Nothing but the error: no library talks on standard error."
    path = cut(mp4, 0.6, tmp_path / "a.mp4")
    code = f"""
from vrshq_nb.video import Video
from vrshq_nb.files import VRSError
try:
    Video.open({str(path)!r})
except VRSError as e:
    print(e)
Video.open({str(mp4)!r}).frames()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0",
        b"RIFF",
        b"RIFF\xff",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\x18\x53\x80\x67",
        b"\0\0\0\x01ftyp",
        b"\0\0\0\x08ftyp\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x04mdat" + bytes(20),
    ],
)
def test_declared_bytes_of_stumps(head, tmp_path):
    (tmp_path / "a").write_bytes(head)
    assert declared_bytes(tmp_path / "a") >= 0


# ---- writing: all or nothing
def failing(clip):
    yield from clip[:5]
    raise RuntimeError("the camera was disconnected")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_an_error_leaves_nothing(name, tmp_path, clip):
    with pytest.raises(RuntimeError, match="camera"):
        write_video(tmp_path / name, failing(clip))
    assert os.listdir(tmp_path) == []
    good = write_video(tmp_path / name, clip[:3]).read_bytes()
    for frames in ([], [clip[0], clip[1, ::2]], clip / 255, [clip[0], clip[1].astype(float)]):
        error(write_video, tmp_path / name, frames)
    with pytest.raises(RuntimeError):
        write_video(tmp_path / name, failing(clip))
    assert (
        os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == good
    )  # the old file is whole


def test_paths_that_cannot_be_written(tmp_path, clip):
    assert ".mp4 or .gif" in error(write_video, tmp_path / "a.avi", clip)
    assert ".mp4 or .gif" in error(write_video, tmp_path / "a", clip)
    assert "make it first" in error(write_video, tmp_path / "no" / "a.mp4", clip)
    (tmp_path / "file").touch()
    error(write_video, tmp_path / "file" / "a.mp4", clip)
    (tmp_path / "dir.mp4").mkdir()
    assert "folder" in error(write_video, tmp_path / "dir.mp4", clip)
    assert sorted(os.listdir(tmp_path)) == ["dir.mp4", "file"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_no_permission(tmp_path, clip):
    tmp_path.chmod(0o500)
    try:
        assert "permission" in error(write_video, tmp_path / "a.mp4", clip)
    finally:
        tmp_path.chmod(0o700)


def test_array_reader_does_not_copy(clip):
    assert ArrayReader(clip).array is clip


def test_table_of_frames_missing_exactly(tmp_path, clip):
    "All pictures are there, the box after them is not."
    path = write_raw(tmp_path / "a.mp4", clip)
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"moov") - 4])
    assert "cut off" in error(Video.open, path)

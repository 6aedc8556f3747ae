"""Colours are read as FFmpeg itself converts them.

The reference of these tests is FFmpeg's filter "scale", which is told matrix, range, primaries and
transfer by name. It does not read the tags of the file, and none of our code runs in it. It
converts YUV, transfer (with the system gamma of HLG) and primaries. For HDR it gives PQ of BT.709,
which is made linear by the formula of BT.2100; FFmpeg's filter "tonemap" maps the tones. Some
values of FFmpeg's filter "zscale" (zimg), which PyAV's wheels do not have, are written down below.
"""

import warnings
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.filter import Graph

from wanvae.video import HdrWarning, VideoError, probe, read_video, write_video
from wanvae.video.colour.primaries import BT709, BT2020, PRIMARIES, conversion

PATCH, ACROSS, DOWN = 16, 6, 4
WIDTH, HEIGHT = PATCH * ACROSS, PATCH * DOWN
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18
WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
# Names of the filter, by the numbers of H.273.
MATRIX = {1: "bt709", 6: "smpte170m", 9: "bt2020"}
RANGE = {LIMITED: "limited", FULL: "full"}
PRIMARY = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    11: "smpte431",
    12: "smpte432",
    22: "jedec-p22",
}
TRANSFER = {
    1: "bt709",
    6: "smpte170m",
    14: "bt2020-10",
    15: "bt2020-12",
    PQ: "smpte2084",
    HLG: "arib-std-b67",
}
FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def patches(values: np.ndarray) -> np.ndarray:
    """A picture (3, H, W) of flat patches, whose colours are (N, 3)."""
    grid = values.T.reshape(3, DOWN, ACROSS)
    return grid.repeat(PATCH, axis=1).repeat(PATCH, axis=2)


def middles(picture: np.ndarray) -> np.ndarray:
    """The colours (N, 3) of the patches."""
    return picture[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(3, -1).T


def colours_inside(primaries: int) -> np.ndarray:
    """Light of BT.709 in its gamut, as light (N, 3) of other primaries."""
    light = np.random.default_rng(7).uniform(0.3, 0.95, (ACROSS * DOWN, 3)) ** 2.4
    light[:3] = np.array([[0, 0, 0], [1, 1, 1], [0.2, 0.2, 0.2]])
    return light @ conversion(BT709, PRIMARIES[primaries]).T


def pq_of(light: np.ndarray) -> np.ndarray:
    """Code values of cd/m2, by BT.2100."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def light_of_pq(code: np.ndarray) -> np.ndarray:
    """cd/m2 of code values, by BT.2100."""
    root = code ** (1 / 78.84375)
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (
        1 / 0.1593017578125
    )


def hlg_of(scene: np.ndarray) -> np.ndarray:
    """Code values of light of the scene, by BT.2100."""
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def encoded(light: np.ndarray, transfer: int) -> np.ndarray:
    """Code values of colours, the same light for all kinds of SDR, brighter for HDR."""
    light = light.clip(0, 1)
    if transfer == PQ:
        return pq_of(light * 900)
    return hlg_of(light) if transfer == HLG else light ** (1 / 2.4)


def planes_of(rgb: np.ndarray, matrix: int, levels: int, bits: int, sub: str) -> list[np.ndarray]:
    """Y, Cb and Cr of code values (3, H, W), by the definition of the matrix."""
    kr, kb = WEIGHTS[matrix]
    luma = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    blue, red = (rgb[2] - luma) / (2 - 2 * kb), (rgb[0] - luma) / (2 - 2 * kr)
    if sub != "444":
        blue, red = ((c[:, ::2] + c[:, 1::2]) / 2 for c in (blue, red))
    if sub == "420":
        blue, red = ((c[::2] + c[1::2]) / 2 for c in (blue, red))
    unit, most = 2 ** (bits - 8), 2**bits - 1
    if levels == LIMITED:
        planes = [(16 + 219 * luma) * unit, (128 + 224 * blue) * unit, (128 + 224 * red) * unit]
    else:
        planes = [luma * most, blue * most + 2 ** (bits - 1), red * most + 2 ** (bits - 1)]
    kind = np.uint8 if bits == 8 else np.uint16
    return [plane.round().clip(0, most).astype(kind) for plane in planes]


def frame_of(planes: Sequence[np.ndarray], layout: str) -> av.VideoFrame:
    """A frame without tags."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], layout)
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // samples.itemsize), samples.dtype)
        rows[:, : samples.shape[1]] = samples
        plane.update(rows.tobytes())
    return frame


def write(path: Path, frame: av.VideoFrame, tags: tuple[int, int, int, int], codec="ffv1") -> Path:
    """Writes a frame with its tags: matrix, range, primaries, transfer."""
    options = {"crf": "0", "x264-params": "log-level=none"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        for target in (stream.codec_context, frame):
            target.colorspace, target.color_range = tags[:2]
            target.color_primaries, target.color_trc = tags[2:]
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def filtered(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.VideoFrame:
    """A frame through filters of FFmpeg."""
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    for name, options in (*filters, ("buffersink", "")):
        following = graph.add(name, options or None)
        last.link_to(following)
        last = following
    graph.configure()
    graph.push(frame)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    return result


def rgb_by_ffmpeg(
    frame: av.VideoFrame, matrix: int, levels: int, chroma: str = "center"
) -> np.ndarray:
    """Code values of RGB (3, H, W) as FFmpeg converts YUV."""
    options = (
        f"in_range={RANGE[levels]}:in_color_matrix={MATRIX[matrix]}:in_chroma_loc={chroma}"
        f":flags={FLAGS}"
    )
    picture = filtered(frame, ("scale", options), ("format", "gbrp16le"))
    # FFmpeg shifts samples up to 16 bits, so that white stays short of 65535.
    bits = frame.format.components[0].bits
    white = 255 << 8 if levels == LIMITED else (2**bits - 1) << (16 - bits)
    return (picture.to_ndarray().transpose(2, 0, 1) / white).clip(0, 1)


def sdr_by_ffmpeg(
    code: np.ndarray, primaries: int, transfer: int, peak: float = 1000
) -> np.ndarray:
    """Code values (3, H, W) of SDR of BT.709 as FFmpeg converts others."""
    hdr = transfer in (PQ, HLG)
    if not hdr and primaries == 1:
        return code
    # All kinds of SDR are shown alike.
    kind, shown = "smpte2084" if hdr else "bt709", TRANSFER[transfer] if hdr else "bt709"
    options = (
        f"in_primaries={PRIMARY[primaries]}:in_transfer={shown}:out_primaries=bt709"
        f":out_transfer={kind}:intent=relative_colorimetric"
    )
    samples = (code[[1, 2, 0]] * 65535).round().astype(np.uint16)
    picture = filtered(frame_of(samples, "gbrp16le"), ("scale", options), ("format", "gbrp16le"))
    code = picture.to_ndarray().transpose(2, 0, 1) / 65535
    if not hdr:
        return code
    light = (light_of_pq(code) / 203).astype(np.float32)
    linear = frame_of(light[[1, 2, 0]], "gbrpf32le")
    mapped = filtered(linear, ("tonemap", f"tonemap=mobius:desat=0:peak={peak / 203}"))
    return mapped.to_ndarray().transpose(2, 0, 1).clip(0, 1) ** (1 / 2.4)


def by_reader(path: Path) -> np.ndarray:
    """RGB (3, H, W) from 0 to 1 as the reader gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HdrWarning)
        return (read_video(path)[0][:, 0].double().numpy() + 1) / 2


LAYOUTS = list(product(RANGE, (8, 10, 12), ("420", "422", "444")))


def read_both(
    folder: Path, rgb: np.ndarray, matrix: int, primaries: int, transfer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, layouts, N) of patches: read, and code values by FFmpeg before conversion."""
    found, expected = [], []
    for levels, bits, sub in LAYOUTS:
        layout = f"yuv{sub}p" if bits == 8 else f"yuv{sub}p{bits}le"
        frame = frame_of(planes_of(rgb, matrix, levels, bits, sub), layout)
        expected.append(middles(rgb_by_ffmpeg(frame, matrix, levels)))
        tags = matrix, levels, primaries, transfer
        found.append(middles(by_reader(write(folder / "a.mkv", frame, tags))))
    return np.stack(found).transpose(2, 0, 1), np.stack(expected).transpose(2, 0, 1)


@pytest.mark.parametrize("transfer", [1, 6, 14, 15])
@pytest.mark.parametrize("matrix", MATRIX)
def test_every_matrix_range_depth_and_sampling_is_as_ffmpeg_converts_it(
    tmp_path: Path, matrix: int, transfer: int
) -> None:
    rgb = patches(encoded(colours_inside(1), transfer))
    found, expected = read_both(tmp_path, rgb, matrix, 1, transfer)
    difference = np.abs(found - expected).max(axis=(0, 2)) * 255
    assert difference.max() <= 1, dict(zip(LAYOUTS, difference, strict=True))


# BT.601, BT.709 and BT.2020 define matrix and primaries; others are with a matrix of BT.709.
DEFINED = [(m, m, t) for m, t in product(MATRIX, (1, PQ, HLG)) if (m, t) != (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("matrix", "primaries", "transfer"), [*DEFINED, (1, 5, 1), (1, 12, 1), (9, 12, PQ)]
)
def test_every_transfer_and_all_primaries_are_as_ffmpeg_converts_them(
    tmp_path: Path, matrix: int, primaries: int, transfer: int
) -> None:
    rgb = patches(encoded(colours_inside(primaries), transfer))
    found, code = read_both(tmp_path, rgb, matrix, primaries, transfer)
    expected = sdr_by_ffmpeg(code, primaries, transfer)
    difference = np.abs(found - expected).max(axis=(0, 2)) * 255
    assert difference.max() <= 2, dict(zip(LAYOUTS, difference, strict=True))


# Saturated colours, also outside of BT.709, by FFmpeg 9.0 with zimg:
# zscale=min=gbr:rin=full:pin=PRIMARIES:tin=TRANSFER:t=linear:npl=203:p=709:m=gbr:r=full,
# format=gbrpf32le,[tonemap=mobius:desat=0:peak=1000/203,]zscale=t=709:m=gbr:r=full
SATURATED = [
    (0.6, 0.2, 0.2),
    (0.2, 0.6, 0.2),
    (0.2, 0.2, 0.6),
    (0.58, 0.58, 0.58),
    (0.75, 0.7, 0.3),
    (0.1, 0.15, 0.4),
    (0.45, 0.4, 0.35),
    (0.05, 0.05, 0.06),
]
ZSCALE = {
    (9, PQ): [
        (0.9364, 0.0, 0.0),
        (0.0, 0.8938, 0.0),
        (0.0, 0.0596, 0.8923),
        (0.8498, 0.8498, 0.8498),
        (1.0, 0.7297, 0.0),
        (0.0, 0.1007, 0.4875),
        (0.6451, 0.4474, 0.3488),
        (0.0333, 0.0338, 0.0410),
    ],
    (9, 14): [
        (0.7323, 0.0, 0.1788),
        (0.0, 0.6298, 0.0),
        (0.0599, 0.1907, 0.6267),
        (0.58, 0.58, 0.58),
        (0.7962, 0.6955, 0.1490),
        (0.0, 0.1499, 0.4175),
        (0.4817, 0.3935, 0.3421),
        (0.0492, 0.0499, 0.0610),
    ],
    (12, 1): [
        (0.6493, 0.1440, 0.1770),
        (0.0, 0.6097, 0.0),
        (0.2, 0.2, 0.6222),
        (0.58, 0.58, 0.58),
        (0.7606, 0.6978, 0.1867),
        (0.0825, 0.1516, 0.4146),
        (0.4602, 0.3977, 0.3432),
        (0.05, 0.05, 0.0609),
    ],
    (6, 6): [
        (0.5857, 0.2181, 0.1982),
        (0.2464, 0.5920, 0.1952),
        (0.2107, 0.2168, 0.6014),
        (0.58, 0.58, 0.58),
        (0.7447, 0.6967, 0.2947),
        (0.1136, 0.1587, 0.4009),
        (0.4468, 0.4002, 0.3496),
        (0.0501, 0.0502, 0.0601),
    ],
}


@pytest.mark.parametrize(("primaries", "transfer"), ZSCALE)
def test_saturated_rgb_is_as_zscale_converts_it(
    tmp_path: Path, primaries: int, transfer: int
) -> None:
    values = np.array(SATURATED * 3)
    samples = (patches(values)[[1, 2, 0]] * 65535).round().astype(np.uint16)
    frame = frame_of(samples, "gbrp16le")
    path = write(tmp_path / "a.mkv", frame, (0, FULL, primaries, transfer))
    found = middles(by_reader(path))[: len(SATURATED)]
    assert np.abs(found - ZSCALE[primaries, transfer]).max() * 255 <= 1


def test_primaries_convert_as_bt2087_says() -> None:
    """The matrix from BT.2020 to BT.709 in ITU-R BT.2087 has four digits."""
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert np.abs(conversion(BT2020, BT709) - expected).max() < 1e-4
    for primaries in PRIMARIES.values():  # white stays white
        assert np.allclose(conversion(primaries, BT709).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("primaries", PRIMARIES)
def test_primaries_convert_as_the_filter_colorspace_does(primaries: int) -> None:
    """The reference is a filter of FFmpeg that shares no code with swscale; it adapts white too."""
    colours = np.random.default_rng(3).uniform(0.3, 0.7, (ACROSS * DOWN, 3))
    light = (colours + colours.mean(axis=1, keepdims=True)) / 2
    frame = frame_of(planes_of(patches(light), 1, LIMITED, 12, "444"), "yuv444p12le")
    frame.colorspace, frame.color_range = 1, LIMITED
    frame.color_primaries, frame.color_trc = primaries, 8
    options = (
        f"ispace=bt709:irange=tv:iprimaries={PRIMARY[primaries]}:itrc=linear:space=bt709:range=tv"
        ":primaries=bt709:trc=linear:format=yuv444p12"
    )
    expected = middles(rgb_by_ffmpeg(filtered(frame, ("colorspace", options)), 1, LIMITED))
    found = light @ conversion(PRIMARIES[primaries], BT709).T
    assert np.abs(found - expected).max() * 255 < 0.5


# Light and its metadata


def grays(values: Sequence[float], layout: str = "gray16le") -> av.VideoFrame:
    """A frame of gray bars of code values from 0 to 1."""
    row = (np.array(values).repeat(PATCH) * 65535).round().astype(np.uint16)
    return frame_of([np.tile(row, (PATCH, 1))], layout)


@pytest.mark.parametrize(
    ("transfer", "code", "light"),
    # Reference levels of ITU-R BT.2408, table 1: 18% gray and white of paper, in cd/m2.
    [(PQ, 0.3776, 26), (PQ, 0.5807, 203), (HLG, 0.3825, 26), (HLG, 0.75, 203)],
)
def test_reference_levels_of_bt2408(
    tmp_path: Path, transfer: int, code: float, light: float
) -> None:
    path = write(tmp_path / "a.mkv", grays([code] * 2), (2, FULL, 9, transfer))
    found = float(by_reader(path)[0, 8, 8])
    # Up to 0.3 of white nothing is mapped; white itself is mapped to 0.675 of light.
    expected = light / 203 if light < 60 else 0.676
    assert found**2.4 == pytest.approx(expected, rel=0.03)


def test_tone_mapping_keeps_order_and_fills_the_range(tmp_path: Path) -> None:
    codes = np.linspace(0, float(pq_of(np.array(1000.0))), 60)
    path = write(tmp_path / "a.mkv", grays(codes), (2, FULL, 9, PQ))
    row = by_reader(path)[0, 8, 8::PATCH]
    assert (np.diff(row) > 0).all()
    assert row[0] == 0 and row[-1] == pytest.approx(1, abs=2e-3)


def with_metadata(path: Path, peak: str, content: str) -> Path:
    """Writes HDR with the metadata of a display and of the content, in cd/m2."""
    display = f"G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L({peak},1)"
    options = {
        "x264-params": f"log-level=none:mastering-display={display}:cll={content}",
        "crf": "0",
    }
    value = round(0.7 * 876 + 64)
    planes = [np.full((64, 64), value, np.uint16), *[np.full((32, 32), 512, np.uint16)] * 2]
    frame = frame_of(planes, "yuv420p10le")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        for target in (stream.codec_context, frame):
            target.colorspace, target.color_range = 9, LIMITED
            target.color_primaries, target.color_trc = 9, PQ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("display", "content", "peak"),
    [("40000000", "0,0", 4000), ("40000000", "1200,200", 1200), ("1500000", "0,0", 203)],
)
def test_the_peak_of_pq_comes_from_its_metadata(
    tmp_path: Path, display: str, content: str, peak: float
) -> None:
    path = with_metadata(tmp_path / "a.mp4", display, content)
    with pytest.warns(HdrWarning, match=f"PQ, up to {peak} cd/m2"):
        image = read_video(path)[0][:, 0]
    assert probe(path).hdr == "PQ"
    expected = sdr_by_ffmpeg(np.full((3, 4, 4), 0.7), 1, PQ, peak)[0, 0, 0]
    assert float(image[0, 32, 32] + 1) / 2 == pytest.approx(float(expected), abs=2 / 255)


# What is assumed, and what is told


@pytest.mark.parametrize(
    ("size", "tags", "same_as"),
    [
        ((64, 480), (2, LIMITED, 2, 2), (6, LIMITED, 1, 1)),  # small: BT.601
        ((64, 720), (2, LIMITED, 2, 2), (1, LIMITED, 1, 1)),  # high definition: BT.709
        ((1280, 64), (2, LIMITED, 2, 2), (1, LIMITED, 1, 1)),  # a film in wide format
        ((64, 480), (2, LIMITED, 1, 1), (1, LIMITED, 1, 1)),  # its primaries tell
        ((64, 720), (2, LIMITED, 6, 6), (6, LIMITED, 6, 6)),
        ((64, 480), (2, LIMITED, 9, 14), (9, LIMITED, 9, 14)),
        ((64, 480), (9, LIMITED, 2, 2), (9, LIMITED, 9, 14)),
        ((64, 480), (2, LIMITED, 2, PQ), (9, LIMITED, 9, PQ)),
        ((64, 480), (1, 0, 1, 1), (1, LIMITED, 1, 1)),  # no range: limited
        ((64, 480), (1, LIMITED, 1, 13), (1, LIMITED, 1, 1)),  # sRGB is shown as BT.709
    ],
)
def test_what_tags_leave_open(tmp_path: Path, size, tags, same_as) -> None:
    width, height = size
    planes = [np.full((height, width), value, np.uint8) for value in (120, 90, 160)]
    frame = frame_of(planes, "yuv444p")
    found = by_reader(write(tmp_path / "a.mkv", frame, tags))[:, 0, 0]
    small = frame_of([plane[:32, :64] for plane in planes], "yuv444p")
    expected = by_reader(write(tmp_path / "b.mkv", small, same_as))[:, 0, 0]
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("tags", "name", "sentence"),
    [
        ((9, LIMITED, 9, 14), "BT.2020", "wide colours .BT.2020."),
        ((1, LIMITED, 12, 1), "P3", "wide colours .P3."),
        ((9, LIMITED, 9, HLG), "HLG", "HDR .HLG, up to 1000"),
        ((6, LIMITED, 6, 6), None, None),
        ((1, FULL, 1, 1), None, None),
    ],
)
def test_wide_colours_are_told_once(tmp_path: Path, tags, name, sentence) -> None:
    frame = frame_of([np.full((32, 64), 128, np.uint8)] * 3, "yuv444p")
    path = write(tmp_path / "a.mkv", frame, tags)
    assert probe(path).hdr == name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_video(path)
    assert len(caught) == (sentence is not None)
    if sentence is not None:
        with pytest.warns(HdrWarning, match=sentence):
            read_video(path)


def test_a_matrix_that_ffmpeg_does_not_convert_is_refused(tmp_path: Path) -> None:
    frame = frame_of([np.full((32, 64), 128, np.uint8)] * 3, "yuv444p")
    path = write(tmp_path / "a.mkv", frame, (8, LIMITED, 1, 1))
    with pytest.raises(VideoError, match="matrix YCgCo"):
        read_video(path)


@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p", "yuv420p10le"])
def test_chroma_lies_where_ffmpeg_takes_it_to_be(tmp_path: Path, layout: str) -> None:
    """H.264 has chroma at the left."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([0.5 + 0.4 * np.cos(x / a + y / b) for a, b in ((5, 9), (7, 4), (11, 6))])
    bits = 10 if layout.endswith("10le") else 8
    frame = frame_of(planes_of(rgb, 1, LIMITED, bits, layout[3:6]), layout)
    path = write(tmp_path / "a.mp4", frame, (1, LIMITED, 1, 1), "libx264")
    with av.open(str(path)) as container:
        expected = rgb_by_ffmpeg(next(container.decode(video=0)), 1, LIMITED, "left")
    assert np.abs(by_reader(path) - expected).max() * 255 <= 1


# There and back


@pytest.mark.parametrize(
    ("suffix", "alpha"),
    [("mp4", 0), ("mov", 0), ("mkv", 0), ("webm", 0), ("webm", 1), ("mov", 1)],
)
def test_stream_and_container_say_what_the_colours_are(
    tmp_path: Path, suffix: str, alpha: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, torch.zeros(3 + alpha, 2, 32, 32), Fraction(25))
    bt709 = 1, LIMITED, 1, 1
    with av.open(str(path)) as container:
        stream = container.streams.video[0].codec_context  # as the container says, before decoding
        said = stream.colorspace, stream.color_range, stream.color_primaries, stream.color_trc
        frame = next(container.decode(video=0))
    assert said == bt709
    found = frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
    assert found == bt709


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "webm"])
@pytest.mark.parametrize(
    "tags",
    [
        (1, LIMITED, 1, 1),
        (6, FULL, 6, 6),
        (9, LIMITED, 9, 14),
        (9, LIMITED, 9, PQ),
        (9, FULL, 9, HLG),
    ],
)
def test_colours_stay_on_the_way_there_and_back(tmp_path: Path, suffix: str, tags) -> None:
    """What is read is rounded to 8 bits of RGB, YUV and RGB again: at most 0.5 + 1.6 + 0.5."""
    matrix, levels, primaries, transfer = tags
    rgb = patches(encoded(colours_inside(primaries), transfer))
    frame = frame_of(planes_of(rgb, matrix, levels, 10, "420"), "yuv420p10le")
    source, target = write(tmp_path / "a.mkv", frame, tags), tmp_path / f"b.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HdrWarning)
        video, info = read_video(source)
    write_video(target, video, info.fps, crf=0)
    back = read_video(target)[0][:, 0].double().numpy()
    difference = np.abs(middles(back) - middles(video[:, 0].numpy())) * 127.5
    assert difference.max() <= 2.6
    assert probe(target).hdr is None


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_chroma_stays_where_it_is(tmp_path: Path, suffix: str) -> None:
    x = torch.arange(WIDTH).expand(HEIGHT, -1)
    video = torch.stack([0.5 * torch.cos(x / a) for a in (9, 13, 17)])[:, None]
    path = tmp_path / f"a.{suffix}"
    write_video(path, video, Fraction(25), crf=0)
    difference = (read_video(path)[0] - video)[..., 8:-8, 8:-8].abs().max() * 127.5
    assert difference <= 3

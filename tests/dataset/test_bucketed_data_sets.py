"""Data sets of several shapes and lengths: what is written, told and refused, in every layout."""

import json
import subprocess
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from hashlib import md5, sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from tests.commands import outputs_of
from tests.helpers import WAN22, launched, tiny
from wanvae import BucketBatches, LatentDataset, WanVAE
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD
from wanvae.commands.buckets import buckets_of_area
from wanvae.dataset.settings import DatasetOptions
from wanvae.errors import UserError
from wanvae.video import read_video, write_video

# Frames, height and width.
VIDEOS = {
    "flat.mp4": (27, 24, 40),
    "sub/tall.mkv": (6, 48, 24),
    "sub/square.mp4": (14, 40, 40),
    "wide.png": (1, 32, 60),
    "small.png": (1, 12, 10),
}
BUCKETS = "16x32,32x16,24x24"
OPTIONS = ["--buckets", BUCKETS, "--frames", "5,9,17"]
LAYOUTS = ["musubi", "ai-toolkit", "simpletuner", "diffusion-pipe", "comfyui"]
# Frames, height and width of the clips.
CLIPS = [
    *[("flat.mp4", 17, 16, 32), ("flat.mp4", 9, 16, 32), ("small.png", 1, 24, 24)],
    *[("sub/square.mp4", 9, 24, 24), ("sub/square.mp4", 5, 24, 24), ("sub/tall.mkv", 5, 32, 16)],
    ("wide.png", 1, 16, 32),
]

Run = Callable[..., str]


def noise(frames: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint vae.safetensors with the latents of Wan2.1, and a folder of videos."""
    folder = tmp_path_factory.mktemp("files")
    statistics = {"latents_mean": WAN21_MEAN, "latents_std": WAN21_STD}
    tiny(z_dim=16, **statistics).float().save_pretrained(folder / "vae.safetensors")
    (folder / "videos" / "sub").mkdir(parents=True)
    for seed, (name, size) in enumerate(VIDEOS.items()):
        write_video(folder / "videos" / name, noise(*size, seed), Fraction(16))
    return folder


def command(files: Path, target: Path, *options: object) -> list[str]:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu"]
    return [str(x) for x in ("encode-dataset", files / "videos", target, *model, *options)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], files: Path) -> Run:
    """Encode the videos; gives stdout, or stderr if it fails."""

    def run_command(target: Path, *options: object, status: int = 0) -> str:
        outputs = outputs_of(capsys, command(files, target, *options), status)
        return outputs[1 if status else 0]

    return run_command


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def clips_of(folder: Path) -> list[tuple[str, int, int, int]]:
    clips = LatentDataset(folder).clips
    return [(clip.source, clip.frames, clip.height, clip.width) for clip in clips]


# What is written


def test_each_video_goes_to_its_bucket(tmp_path: Path, files: Path, run: Run) -> None:
    out = run(tmp_path / "out", *OPTIONS)
    assert "7 clips written, 0 were there, 0 failed" in out
    assert clips_of(tmp_path / "out") == CLIPS
    assert "bucket 32x16: 1 of 5 frames\n" in out
    assert "bucket 24x24: 1 of 9 frames, 1 of 5 frames, 1 of 1 frames\n" in out
    assert "bucket 16x32: 1 of 17 frames, 1 of 9 frames, 1 of 1 frames\n" in out
    assert "note: 1 clips are smaller than their bucket, and are enlarged" in out
    dataset = LatentDataset(tmp_path / "out")
    assert dataset.shapes == [
        (16, 1 + (frames - 1) // 4, height // 8, width // 8) for _, frames, height, width in CLIPS
    ]
    # The frames are scaled to cover the bucket, and cropped in the middle.
    vae = WanVAE.from_pretrained(files / "vae.safetensors")
    video = read_video(files / "videos" / "flat.mp4")[0][:, :17]
    scaled = F.interpolate(video.transpose(0, 1), (19, 32), mode="bilinear", antialias=True)
    expected = vae.normalize(vae.encode(scaled[:, :, 1:17].transpose(0, 1)[None]).mode())[0]
    torch.testing.assert_close(dataset[0].latents, expected, atol=1e-5, rtol=1e-5)


def test_batches_of_one_shape(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", *OPTIONS)
    dataset = LatentDataset(tmp_path / "out")
    batches = BucketBatches(dataset.shapes, 2)
    sources: list[str] = []
    for clips in batches.track(DataLoader(dataset, batch_sampler=batches)):
        assert len(clips.latents) == len(clips.fps) == len(clips.source)
        sources += clips.source
    assert Counter(sources) == Counter(source for source, *_ in CLIPS)


def test_buckets_of_an_area(tmp_path: Path, run: Run) -> None:
    options = ["--area", "16x32", "--multiple", 8, "--aspects", 3]
    out = run(tmp_path / "out", *options)
    settings = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert settings["buckets"] == ["32x16", "16x32", "16x16"]
    assert "bucket 16x16: 1 of 13 frames, 1 of 1 frames\n" in out
    # By default, the sides are multiples of a patch of two latents.
    out = run(tmp_path / "more", "--area", "32x64")
    assert out.count("\nbucket ") == 5 and "bucket 48x32: " in out and "bucket 32x64: " in out
    run(tmp_path / "out", "--buckets", "16x16,16x32,32x16")


@pytest.mark.parametrize(("variant", "square"), [({}, "624x624"), (WAN22, "608x608")])
def test_sides_are_multiples_of_what_a_diffusion_model_needs(
    variant: dict[str, object], square: str
) -> None:
    arguments = Namespace(area="480x832", multiple=None, aspects=3)
    buckets = buckets_of_area(arguments, tiny(**variant).config)
    assert buckets == ("832x480", square, "480x832")


def test_lengths_alone(tmp_path: Path, run: Run) -> None:
    out = run(tmp_path / "out", "--frames", "9,17")
    assert "lengths: 1 of 17 frames, 2 of 9 frames, 2 of 1 frames\n" in out
    assert "left out, too small or too short: sub/tall.mkv: 6 frames of 24x48 pixels" in out
    settings = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert (settings["frames"], settings["shorter"]) == (17, [9])
    assert "\nbucket" not in out and "\nlengths" not in run(tmp_path / "one", "--frames", 9)


def test_options_come_from_a_file_too(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("frames: [5, 17, 9]\nbuckets: [24x24, 16x32, 32x16]\n")
    run(tmp_path / "out", "--config", config)
    assert clips_of(tmp_path / "out") == CLIPS
    config.write_text(f"frames: 17,5,9\nbuckets: {BUCKETS}\n")
    assert "0 clips written, 7 were there" in run(tmp_path / "out", "--config", config)


# However it comes about, the bytes are the same


@pytest.mark.slow
@pytest.mark.parametrize("container", ["files", "tar", "safetensors"])
def test_two_processes_write_the_same(
    tmp_path: Path, files: Path, run: Run, container: str
) -> None:
    options = [*OPTIONS, "--container", container, "--shard-size", "4KB"]
    one = run(tmp_path / "one", *options)
    arguments = command(files, tmp_path / "two", *options)
    result = subprocess.run(
        launched(*arguments), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [line for line in one.splitlines() if line.startswith("bucket")] == [
        line for line in result.stdout.splitlines() if line.startswith("bucket")
    ]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("container", ["files", "tar"])
def test_going_on_with_other_buckets_is_refused(tmp_path: Path, run: Run, container: str) -> None:
    options = ["--container", container]
    run(tmp_path / "out", *options, *OPTIONS)
    before = contents(tmp_path / "out")
    for changed, message in (
        (["--buckets", "16x32", "--frames", "5,9,17"], "buckets is ['32x16', "),
        (["--buckets", BUCKETS, "--frames", "17"], "shorter is [9, 5], not []"),
        (["--frames", "5,9,17"], "buckets is ['32x16', "),
    ):
        assert message in run(tmp_path / "out", *options, *changed, status=1)
    same = ["--buckets", "24x24,32x16,16x32,24x24", "--frames", "17,5,9"]
    assert "0 clips written, 7 were there" in run(tmp_path / "out", *options, *same)
    assert contents(tmp_path / "out") == before


def test_a_data_set_without_buckets_of_an_earlier_version_goes_on(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", "--frames", 5)
    path = tmp_path / "out" / "dataset.json"
    settings = json.loads(path.read_text())
    del settings["options"]["buckets"], settings["options"]["shorter"]
    path.write_text(json.dumps(settings))
    assert "0 clips written" in run(tmp_path / "out", "--frames", 5)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--buckets", "480x832,big"], "buckets must be a height and a width like 480x832, not 'b"),
        (["--buckets", "480"], "buckets must be a height and a width like 480x832, not '480'"),
        (["--buckets", "12x16"], "height and width must be multiples of 8, not 12x16"),
        (["--buckets", "16x16", "--resize", "16"], "buckets must be empty with resize"),
        (["--area", "16x16", "--resize", "16"], "leave out --buckets and --resize, or --area"),
        (["--area", "16x16", "--buckets", "16x16"], "leave out --buckets and --resize, or --area"),
        (["--area", "16"], "area must be a height and a width like 480x832, not '16'"),
        (["--area", "64x64", "--aspects", 2], "aspects must be an odd number, like 9, not 2"),
        (["--area", "64x64", "--multiple", 0], "multiple must be 1 or more, not 0"),
        (["--area", "96x96", "--multiple", 12], "height and width must be multiples of 8"),
        (["--multiple", 16], "--multiple is for --area, which is not given"),
        (["--buckets", "16x16", "--aspects", 3], "--aspects is for --area, which is not given"),
        (["--frames", "5,6"], "a clip must have 1 + 4n frames, not 6: drop frames to 5"),
        (["--frames", "5,"], "frames must be a whole number, or several like 17,49,81, not ''"),
        (["--frames", "-5"], "frames must be a whole number, or several like 17,49,81, not '-5'"),
        (["--frames", "many"], "frames must be a whole number, or several like 17,49,81, not 'm"),
    ],
)
def test_impossible_options(tmp_path: Path, run: Run, options: list[object], message: str) -> None:
    err = run(tmp_path / "out", *options, status=1)
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lengths_that_are_not_shorter() -> None:
    with pytest.raises(UserError, match="shorter must be less than frames, which is 5, not 9"):
        DatasetOptions(frames=5, shorter=(9,))
    with pytest.raises(UserError, match="shorter must be less than frames, which is None, not 9"):
        DatasetOptions(shorter=(9,))


# Layouts of other programs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_caches_of_other_programs_are_read_back(tmp_path: Path, run: Run, layout: str) -> None:
    """With the shape of the bucket, and in batches of one shape."""
    run(tmp_path / "out", *OPTIONS, "--layout", layout)
    clips = LatentDataset(tmp_path / "out").clips
    first = {source: (source, *shape) for source, *shape in CLIPS[::-1]}
    expected = CLIPS if layout in ("musubi", "comfyui") else sorted(first.values())
    assert sorted(clips_of(tmp_path / "out")) == sorted(expected)
    assert all(clip.shape[2:] == (clip.height // 8, clip.width // 8) for clip in clips)
    (tmp_path / "out" / "dataset.json").unlink()
    cache = LatentDataset(tmp_path / "out", scale="raw" if layout == "comfyui" else None)
    assert Counter(cache.shapes) == Counter(clip.shape for clip in clips)
    batches = BucketBatches(cache.shapes, 2)
    loader = DataLoader(cache, batch_sampler=batches)
    assert sum(len(batch.latents) for batch in batches.track(loader)) == len(clips)


def names_in(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob(pattern)}


def test_names_of_musubi_tuner(tmp_path: Path, run: Run) -> None:
    """The size of a bucket; of images, the size that they had."""
    run(tmp_path / "out", *OPTIONS, "--layout", "musubi")
    assert names_in(tmp_path / "out", "*.safetensors") == {
        *("flat_00000-017_0032x0016_wan.safetensors", "flat_00017-009_0032x0016_wan.safetensors"),
        *("small_0010x0012_wan.safetensors", "wide_0060x0032_wan.safetensors"),
        "square_00000-009_0024x0024_wan.safetensors",
        "square_00009-005_0024x0024_wan.safetensors",
        "tall_00000-005_0016x0032_wan.safetensors",
    }
    # It takes clips whose names have the same numbers into one batch.
    shapes: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
    for path in (tmp_path / "out").glob("*-*.safetensors"):
        (latents,) = load_file(path).values()
        frames, size, _ = path.stem.split("_")[1:]
        shapes.setdefault((frames.split("-")[1], size), set()).add(tuple(latents.shape))
    assert all(len(found) == 1 for found in shapes.values())


def test_names_of_ai_toolkit(tmp_path: Path, run: Run) -> None:
    """The hash has the bucket of each video, and the length of its clip as ``num_frames``."""
    run(tmp_path / "out", *OPTIONS, "--layout", "ai-toolkit")
    expected = set()
    for name, frames, scaled, crop in (
        ("flat.mp4", 17, (20, 32), (16, 32)),
        ("sub/square.mp4", 9, (24, 24), (24, 24)),
        ("sub/tall.mkv", 5, (32, 16), (32, 16)),
        ("small.png", None, (29, 24), (24, 24)),
        ("wide.png", None, (18, 32), (16, 32)),
    ):
        path = Path(name)
        settings = {
            **{"filename": path.name, "scale_to_width": scaled[1], "scale_to_height": scaled[0]},
            **{"crop_x": 0, "crop_y": (scaled[0] - crop[0]) // 2},
            **{"crop_width": crop[1], "crop_height": crop[0]},
            **{"latent_space_version": "wan21", "latent_version": 1},
            **({} if frames is None else {"num_frames": frames}),
        }
        text = json.dumps(settings, sort_keys=True).encode()
        digest = urlsafe_b64encode(md5(text).digest()).decode().rstrip("=")
        file = path.parent / "_latent_cache" / f"{path.stem}_{digest}.safetensors"
        expected.add(file.as_posix())
    assert names_in(tmp_path / "out", "**/*.safetensors") == expected


def test_names_of_simpletuner(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", *OPTIONS, "--layout", "simpletuner")
    shapes = {
        **{"flat": (16, 5, 2, 4), "small": (16, 1, 3, 3), "wide": (16, 1, 2, 4)},
        **{"sub/square": (16, 3, 3, 3), "sub/tall": (16, 2, 4, 2)},
    }
    assert len(names_in(tmp_path / "out", "**/*.pt")) == len(shapes)
    for name, shape in shapes.items():
        digest = sha256(Path(name).name.encode()).hexdigest()
        latents = torch.load((tmp_path / "out" / name).with_name(f"{digest}.pt"), weights_only=True)
        assert tuple(latents.shape) == shape


def test_folders_of_diffusion_pipe(tmp_path: Path, run: Run) -> None:
    """One for each size and length."""
    run(tmp_path / "out", *OPTIONS, "--layout", "diffusion-pipe")
    found = names_in(tmp_path / "out", "cache_*/latents/metadata.db")
    sizes = ("32x16x17", "24x24x9", "16x32x5", "24x24x1", "32x16x1")
    assert found == {f"cache_{size}/latents/metadata.db" for size in sizes}
    (tmp_path / "out" / "dataset.json").unlink()
    for size in sizes:
        width, height, frames = map(int, size.split("x"))
        cache = LatentDataset(tmp_path / "out" / f"cache_{size}")
        assert cache.shapes == [(16, 1 + (frames - 1) // 4, height // 8, width // 8)]


def test_names_of_comfyui(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", *OPTIONS, "--layout", "comfyui")
    assert names_in(tmp_path / "out", "*.latent") == {
        *("flat.mp4.00000.latent", "flat.mp4.00017.latent", "small.png.latent", "wide.png.latent"),
        *("sub_square.mp4.00000.latent", "sub_square.mp4.00009.latent"),
        "sub_tall.mkv.00000.latent",
    }

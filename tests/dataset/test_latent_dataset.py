"""LatentDataset: normalized latents of whatever is stored, in any container, ready for training."""

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.commands import without_notice
from tests.helpers import tiny
from wanvae import LatentDataset, WanVAE, cli
from wanvae.dataset.clip import LatentClip
from wanvae.dataset.own import OwnLatents
from wanvae.errors import UserError
from wanvae.video import read_video, write_video

CONTAINERS = ["files", "tar", "safetensors"]
NAMES = ["a.mp4", "b.mkv", "c.mp4"]

Encode = Callable[..., Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint vae.safetensors, and a folder of three videos."""
    folder = tmp_path_factory.mktemp("files")
    statistics = {"latents_mean": (0.5, -0.25), "latents_std": (2.0, 0.5)}
    tiny(**statistics).float().save_pretrained(folder / "vae.safetensors")
    (folder / "videos").mkdir()
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        video = torch.rand(3, 9, 16, 24, generator=generator) * 2 - 1
        write_video(folder / "videos" / name, video, Fraction(30000, 1001))
    return folder


@pytest.fixture
def encode(tmp_path: Path, files: Path) -> Encode:
    """Encode the videos with options; gives the folder of the data set."""

    def run(*options: object, name: str = "out") -> Path:
        arguments = [files / "videos", tmp_path / name, "--checkpoint", files / "vae.safetensors"]
        command = ["encode-dataset", *arguments, "--device", "cpu", *options]
        assert cli.main([str(argument) for argument in command]) == 0
        return tmp_path / name

    return run


def expected(files: Path) -> list[Tensor]:
    """The mean of the latents of each video, normalized."""
    vae = WanVAE.from_pretrained(files / "vae.safetensors")
    videos = (read_video(files / "videos" / name)[0] for name in NAMES)
    return [vae.normalize(vae.encode(video[None]).mode())[0] for video in videos]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("scale", ["raw", "normalized"])
@pytest.mark.parametrize("store", ["moments", "mean"])
def test_latents_are_normalized(
    files: Path, encode: Encode, store: str, scale: str, container: str
) -> None:
    options = ["--store", store, "--scale", scale, "--container", container]
    dataset = LatentDataset(encode(*options, "--shard-size", "1KB"))
    assert len(dataset) == 3
    for index, latents in enumerate(expected(files)):
        clip = dataset[index]
        assert isinstance(clip, LatentClip) and clip.latents.dtype is torch.float32
        torch.testing.assert_close(clip.latents, latents, atol=1e-5, rtol=1e-5)
        assert (clip.fps, clip.source) == (pytest.approx(30000 / 1001), NAMES[index])
    assert [clip.shape for clip in dataset.clips] == 3 * [(2, 3, 2, 3)]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-7), ("float16", 2**-9)])
def test_half_precision(
    files: Path, encode: Encode, dtype: str, tolerance: float, container: str
) -> None:
    folder = encode("--store-dtype", dtype, "--container", container, "--frames", 1)
    whole = LatentDataset(encode("--frames", 1, name="whole"))
    dataset = LatentDataset(folder)
    assert len(dataset) == 27
    for clip, other in zip(dataset, whole, strict=True):
        torch.testing.assert_close(clip.latents, other.latents, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scale", ["raw", "normalized"])
def test_samples_are_drawn_anew(encode: Encode, scale: str) -> None:
    folder = encode("--scale", scale)
    mean, drawing = LatentDataset(folder), LatentDataset(folder, sample=True)
    torch.manual_seed(0)
    first, second = drawing[0].latents, drawing[0].latents
    torch.manual_seed(0)
    assert torch.equal(drawing[0].latents, first) and not torch.equal(first, second)
    many = torch.stack([drawing[0].latents for _ in range(300)])
    raw = OwnLatents(encode(name="raw"), sample=False)
    logvar = raw.read_stored(raw.clips[0])[0][1]
    std = torch.exp(logvar / 2) / torch.tensor([2.0, 0.5])[:, None, None, None]
    assert ((many.mean(0) - mean[0].latents).abs() < 0.3 * std).all()
    assert (many.std(0) / std - 1).abs().max() < 0.25


def test_a_stored_sample_is_what_there_is(encode: Encode) -> None:
    raw, normalized = (
        LatentDataset(encode("--store", "sample", "--scale", scale, name=scale))
        for scale in ("raw", "normalized")
    )
    assert torch.equal(raw[0].latents, raw[0].latents)
    torch.testing.assert_close(raw[0].latents, normalized[0].latents)
    mean = LatentDataset(encode("--store", "mean", name="mean"))
    assert not torch.allclose(raw[0].latents, mean[0].latents, atol=1e-2)


@pytest.mark.parametrize("container", CONTAINERS)
def test_workers_load_batches(files: Path, encode: Encode, container: str) -> None:
    dataset = LatentDataset(encode("--container", container))
    assert len(pickle.dumps(dataset)) < 10_000
    (batch,) = DataLoader(dataset, batch_size=3, num_workers=1)
    assert isinstance(batch, LatentClip)
    torch.testing.assert_close(batch.latents, torch.stack(expected(files)), atol=1e-5, rtol=1e-5)
    assert batch.fps.tolist() == pytest.approx(3 * [30000 / 1001])
    assert list(batch.source) == NAMES


# What cannot be read


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the folder .*missing does not exist; check the path$"):
        LatentDataset(tmp_path / "missing")


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a data set of latents, .* no dataset\.json"):
        LatentDataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"of a data set of latents of this version .* missing keys",
    ):
        LatentDataset(tmp_path)


def test_no_index(encode: Encode) -> None:
    folder = encode()
    (folder / "index.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ValueError, match=r"index.jsonl is damaged .*; delete it, and run"):
        LatentDataset(folder)
    (folder / "index.jsonl").unlink()
    with pytest.raises(ValueError, match=r"is not complete, .* run wanvae encode-dataset again"):
        LatentDataset(folder)
    encode()
    assert len(LatentDataset(folder)) == 3


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_files_are_named(encode: Encode, container: str) -> None:
    folder = encode("--container", container)
    dataset = LatentDataset(folder)
    path = folder / dataset.clips[2].file
    path.write_bytes(path.read_bytes()[: dataset.clips[2].offset + 10])
    with pytest.raises(ValueError, match=rf"{path} ends too early; delete it, and run"):
        dataset[2]
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path} cannot be read: No such file"):
        dataset[2]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kept", [0, 4, 300, "most"])
def test_a_damaged_file_stops_the_next_run(
    encode: Encode, files: Path, capsys: pytest.CaptureFixture[str], container: str, kept: int | str
) -> None:
    folder = encode("--container", container)
    last = LatentDataset(folder).clips[-1]
    path = folder / last.file
    path.write_bytes(path.read_bytes()[: last.offset + 10 if kept == "most" else kept])
    capsys.readouterr()
    with pytest.raises(AssertionError):
        encode("--container", container)
    err = without_notice(capsys.readouterr().err, "encode-dataset")
    assert err.startswith(f"wanvae: {path} is damaged (") and err.count("\n") == 1
    path.unlink()
    encode("--container", container)
    assert torch.isfinite(LatentDataset(folder)[0].latents).all()


@pytest.mark.parametrize("store", ["mean", "sample"])
def test_nothing_to_sample_from(encode: Encode, store: str) -> None:
    folder = encode("--store", store)
    with pytest.raises(ValueError, match=f"stores a {store} .* again with --store moments"):
        LatentDataset(folder, sample=True)

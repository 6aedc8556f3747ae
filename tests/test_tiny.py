"""Tiny autoencoders against the public taehv.py, and the properties that all models have."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import random_video, tensors_in, tiny_autoencoder
from wanvae import TinyVAE, TinyVAEConfig, WanVAE
from wanvae.checkpoints.latent_statistics import WAN21_STD, WAN22_MEAN
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError
from wanvae.execution.budget import Planner
from wanvae.execution.cost import Workload
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan
from wanvae.execution.run import Runner
from wanvae.execution.sharding import share_out
from wanvae.nn.interval import Interval
from wanvae.nn.sequential import input_interval

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = [
    {},
    {"patch_size": 2, "network_latents": "raw"},
    {"pools": (1, 2, 2), "grows": (2, 2, 1), "blocks": 1},
    {"pools": (2,), "grows": (2,), "decoder_dims": (4, 3)},
]


def golden(name: str, path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with the weights of a golden model, under their published names; all tensors."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    torch.save(weights, path)
    return path, tensors


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("taew21_tiny", "1x3x1x16x24"),
        ("taew21_tiny", "1x3x9x24x16"),
        ("taew21_tiny", "2x3x5x16x16"),
        ("taew22_tiny", "1x3x9x32x16"),
    ],
)
def test_matches_the_public_code(name, case, tmp_path):
    path, tensors = golden(name, tmp_path / "taew.pth")
    vae = WanVAE.from_pretrained(path)
    assert isinstance(vae, TinyVAE)
    expected = {
        key: tensors[f"case.{case}.{key}"]
        for key in ("video", "latents", "decoder_input", "decoded")
    }
    posterior = vae.encode(expected["video"] * 2 - 1)
    latents = vae.normalize(posterior.mode())
    decoded = vae.decode(vae.denormalize(expected["decoder_input"]))
    torch.testing.assert_close(latents, expected["latents"], atol=1e-5, rtol=0)
    torch.testing.assert_close((decoded + 1) / 2, expected["decoded"], atol=1e-5, rtol=0)
    assert expected["decoded"].std() > 0.1
    torch.testing.assert_close(posterior.sample(), posterior.mean, atol=1e-5, rtol=0)


def test_lighttae_has_raw_latents(tmp_path):
    path, tensors = golden("taew21_tiny", tmp_path / "lighttaew2_1.pth")
    vae = WanVAE.from_pretrained(path)
    case = "case.1x3x9x24x16."
    decoded = vae.decode(tensors[f"{case}decoder_input"])
    torch.testing.assert_close((decoded + 1) / 2, tensors[f"{case}decoded"], atol=1e-5, rtol=0)
    latents = vae.encode(tensors[f"{case}video"] * 2 - 1).mode()
    torch.testing.assert_close(latents, tensors[f"{case}latents"], atol=1e-5, rtol=0)
    # Its latents have the statistics of Wan2.1 all the same.
    assert vae.config.latents_std == WAN21_STD


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("lighttaew2_1.safetensors", torch.float16, "raw"),
        ("taew2_1.safetensors", torch.float32, "normalized"),
        ("preview.safetensors", torch.float16, "normalized"),
        ("preview.safetensors", torch.bfloat16, "raw"),
    ],
)
def test_what_the_network_takes_is_told_by_name_then_dtype(name, dtype, kind, tmp_path):
    vae = tiny_autoencoder(z_dim=16)
    weights = {key: tensor.to(dtype) for key, tensor in vae.state_dict().items()}
    save_file(weights, tmp_path / name)
    loaded = WanVAE.from_pretrained(tmp_path / name, torch.float32)
    assert isinstance(loaded, TinyVAE)
    assert loaded.config.network_latents == kind
    loaded.set_network_latents("raw")
    assert loaded.config.network_latents == "raw"


def test_the_architecture_is_told_by_names_and_shapes(tmp_path):
    path, _ = golden("taew22_tiny", tmp_path / "taew2_2.pth")
    config = WanVAE.from_pretrained(path).config
    assert config == TinyVAEConfig(
        z_dim=48,
        encoder_dim=4,
        decoder_dims=(6, 5, 4, 3),
        patch_size=2,
        latents_mean=WAN22_MEAN,
        latents_std=config.latents_std,
    )
    published = TinyVAE(TinyVAEConfig()).state_dict()
    assert len(published) == 128 and published["decoder.22.weight"].shape == (3, 64, 3, 3)
    assert published["encoder.4.conv.0.weight"].shape == (64, 128, 3, 3)
    assert published["decoder.13.conv.weight"].shape == (256, 128, 1, 1)
    assert published["encoder.12.conv.weight"].shape == (64, 64, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.3.conv.3.weight": (4, 4, 1, 1)}, "super"),
        ({"decoder.1.weight": (6, 32, 3, 3)}, "32 channels, so it belongs to another"),
        ({"decoder.22.weight": (5, 2, 3, 3)}, "5 channels: no squares"),
        ({"decoder.1.weight": (6, 16, 3)}, "not the weight of a 2D convolution"),
        ({"decoder.8.weight": None}, "decoder.8.weight is missing"),
        ({"decoder.4.conv.0.weight": None}, "5 blocks for 3 stages"),
        ({"decoder.22.bias": None}, "1 missing: decoder.22.bias"),
        # Made for one frame per latent.
        ({"decoder.13.conv.weight": (4, 4, 1, 1)}, "pools"),
    ],
    ids=str,
)
def test_other_files_are_named(change, message, tmp_path):
    weights = tiny_autoencoder(z_dim=16).float().state_dict()
    index = {"decoder.22": "decoder.19", "decoder.13": "decoder.11", "decoder.8": "decoder.7"}
    for name, shape in change.items():
        layer = name.rsplit(".", 2 if ".conv." in name else 1)[0]
        name = name.replace(layer, index.get(layer, layer), 1)
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.zeros(shape)
    save_file(weights, tmp_path / "tae.safetensors")
    for old, new in index.items():
        message = message.replace(old, new)
    with pytest.raises(CheckpointError, match=message):
        WanVAE.from_pretrained(tmp_path / "tae.safetensors")


def test_a_decoder_alone_decodes(tmp_path):
    vae = tiny_autoencoder(z_dim=16).float()
    weights = {k: v for k, v in vae.state_dict().items() if k.startswith("decoder.")}
    save_file(weights, tmp_path / "taew.safetensors")
    loaded = WanVAE.from_pretrained(tmp_path / "taew.safetensors")
    latents = torch.randn(1, 16, 2, 2, 2)
    expected = TinyVAE(replace(loaded.config, encoder_dim=4))
    expected.load_state_dict(vae.state_dict())
    torch.testing.assert_close(loaded.decode(latents), expected.decode(latents))
    assert loaded.encode_dtype == loaded.decode_dtype
    with pytest.raises(UserError, match="no encoder"):
        loaded.encode(random_video(1).float())
    with pytest.raises(UserError, match="no encoder"):
        loaded.stream_encode()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_saved_and_loaded(variant, tmp_path):
    vae = tiny_autoencoder(**variant).float()
    vae.save_pretrained(tmp_path / "native.safetensors")
    loaded = WanVAE.from_pretrained(tmp_path / "native.safetensors")
    assert isinstance(loaded, TinyVAE) and loaded.config == vae.config
    latents = torch.randn(1, 4, 2, 2, 2)
    torch.testing.assert_close(loaded.decode(latents), vae.decode(latents))


def sides(vae, height, width):
    return height * vae.config.spatial_factor, width * vae.config.spatial_factor


def clip(vae, latents, height=2, width=2, batch=1):
    frames = 1 + (latents - 1) * vae.config.temporal_factor
    return random_video(frames, *sides(vae, height, width), batch=batch)


def latents_of(*shape):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=6)
@given(
    batch=st.integers(1, 2),
    latents=st.integers(1, 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tile=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    frames=st.sampled_from([1, 2, 4, 8]),
)
@torch.no_grad()
def test_tiles_and_steps_give_the_whole(variant, batch, latents, size, tile, frames):
    vae = tiny_autoencoder(**variant)
    inputs = clip(vae, latents, *size, batch=batch), latents_of(batch, 4, latents, *size)
    for network, x in zip((vae.encoder_network(), vae.decoder_network()), inputs, strict=True):
        whole = Runner(network, Limits(plan=Plan(None, None))).run(x)
        for plan in (Plan(None, frames), Plan(sides(vae, *tile), frames)):
            y = Runner(network, Limits(plan=plan)).run(x)
            torch.testing.assert_close(y, whole, rtol=0, atol=1e-10)


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    variant=st.sampled_from(VARIANTS),
    tiled=st.booleans(),
)
def test_any_pushes_encode_to_the_whole(lengths, variant, tiled):
    vae, frames = tiny_autoencoder(**variant), sum(lengths)
    video = random_video(frames, *sides(vae, 2, 2))
    session = vae.stream_encode(tile_size=sides(vae, 1, 2) if tiled else None)
    pieces = [session.push(piece) for piece in video.split(lengths, dim=2)]
    end = session.finish()
    padding = -(frames - 1) % vae.config.temporal_factor
    assert end.padded_frames == padding
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)
    encoded = torch.cat([p.mean for p in [*pieces, end.posterior] if p is not None], dim=2)
    torch.testing.assert_close(encoded, vae.encode(padded).mean, rtol=0, atol=1e-10)
    assert session.finish().posterior is None


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    variant=st.sampled_from(VARIANTS),
    tiled=st.booleans(),
)
def test_any_pushes_decode_to_the_whole(lengths, variant, tiled):
    vae = tiny_autoencoder(**variant)
    latents = latents_of(1, 4, sum(lengths), 2, 3)
    session = vae.stream_decode(tile_size=sides(vae, 1, 2) if tiled else None)
    decoded = [session.push(piece) for piece in latents.split(lengths, dim=2)]
    factor = vae.config.temporal_factor
    assert [d.shape[2] for d in decoded] == [
        factor * n - (0 if index else factor - 1) for index, n in enumerate(lengths)
    ]
    torch.testing.assert_close(torch.cat(decoded, 2), vae.decode(latents), rtol=0, atol=1e-10)


def test_a_stream_goes_on_from_its_state():
    vae = tiny_autoencoder()
    video = clip(vae, 4)
    session = vae.stream_encode()
    first = [session.push(video[:, :, :6])]
    session = vae.stream_encode(session.state)
    first.append(session.push(video[:, :, 6:]))
    first.append(session.finish().posterior)
    torch.testing.assert_close(torch.cat([p.mean for p in first], 2), vae.encode(video).mean)
    latents = latents_of(1, 4, 3, 2, 2)
    decoder = vae.stream_decode(clamp=False)
    start = decoder.push(latents[:, :, :2])
    assert start.std() > 0.1 and start.abs().max() > 1  # not clamped
    size = [tensor.numel() for tensor in tensors_in(decoder.state[3])]
    assert sum(size) < latents.numel() * 64
    end = vae.stream_decode(decoder.state, clamp=False).push(latents[:, :, 2:])
    whole = vae.decode(latents, clamp=False)
    torch.testing.assert_close(torch.cat([start, end], dim=2), whole)


def test_an_image_is_a_video_of_one_frame():
    vae = tiny_autoencoder()
    image = random_video(1, 16, 24)
    latents = vae.encode(image).mode()
    assert latents.shape == (1, 4, 1, 2, 3)
    assert vae.decode(latents).shape == image.shape
    session = vae.stream_encode()
    assert session.push(image) is None  # waits for the frames that it reads ahead
    torch.testing.assert_close(session.finish().posterior.mode(), latents)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_a_copy_has_its_own_layers(clone):
    vae = tiny_autoencoder()
    video, latents = clip(vae, 2), latents_of(1, 4, 2, 2, 2)
    encoded, decoded = vae.encode(video).mean, vae.decode(latents)
    other = clone(vae)
    assert other.state_dict().keys() == vae.state_dict().keys()
    torch.testing.assert_close(other.encode(video).mean, encoded)
    other.load_state_dict({k: torch.zeros_like(v) for k, v in vae.state_dict().items()})
    assert (other.decode(latents) == -1).all()
    torch.testing.assert_close(vae.decode(latents), decoded)
    other.load_state_dict(vae.state_dict(), assign=True)
    torch.testing.assert_close(other.decode(latents), decoded)


def test_compiled_steps_give_the_same_and_are_compiled_once():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    vae, plain = tiny_autoencoder(), tiny_autoencoder()
    vae.compile(backend=backend)
    video, latents = clip(vae, 4), latents_of(1, 4, 4, 2, 2)
    counts = []
    for _ in range(2):
        torch.testing.assert_close(vae.encode(video).mean, plain.encode(video).mean)
        torch.testing.assert_close(vae.decode(latents), plain.decode(latents))
        counts.append(len(compiled))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("decoding", [False, True])
def test_memory_and_work_are_planned(decoding):
    with torch.device("meta"):
        vae = TinyVAE(TinyVAEConfig())
    network = vae.decoder_network() if decoding else vae.encoder_network()
    planner = Planner(network)
    workload = Workload(1, 16 if decoding else 3, 6, 480, 832, torch.float32)
    whole, tiled = Plan(None, 2), Plan((240, 416), 2)
    assert planner.memory(workload, tiled) < planner.memory(workload, whole)
    work, more = (planner.costs.multiply_adds(workload, plan) for plan in (whole, tiled))
    assert work < more < 2.5 * work
    longer = Workload(1, workload.channels, 60, 480, 832, torch.float32)
    # Only the result grows with the length of a clip.
    result = 54 * (4 * 3 * 480 * 832 if decoding else 32 * 60 * 104) * 4
    grown = planner.memory(longer, whole) - planner.memory(workload, whole)
    assert grown == pytest.approx(result, rel=0.05)
    shares = share_out(network, whole, 480, 832, 2)
    assert len(shares.tiles) > 1 and min(shares.work) > 0


def test_the_memory_limit_is_kept_and_changes_nothing():
    vae = tiny_autoencoder().float()
    video = random_video(9, 128, 192).float()
    torch.testing.assert_close(
        vae.encode(video, max_memory="230MB").mean, vae.encode(video).mean, rtol=0, atol=1e-5
    )
    with pytest.raises(UserError, match="too little memory"):
        vae.encode(video, max_memory="1MB")


MEASURE = """
import sys, torch
from tools.measuring import measure_peak_resident_memory
from wanvae import TinyVAE, TinyVAEConfig
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan
from wanvae.execution.run import Runner
from wanvae.nn import use_channels_last

decoding = sys.argv[1] == "decoding"
vae = TinyVAE(TinyVAEConfig()).eval()
use_channels_last(vae)
vae.decode(vae.encode(torch.rand(1, 3, 5, 64, 64)).mean)
network = vae.decoder_network() if decoding else vae.encoder_network()
x = torch.randn(1, 16, 4, 60, 60) if decoding else torch.rand(1, 3, 13, 480, 480)
limits = Limits(plan=Plan(None, 2, lean=True))
with torch.no_grad():
    print(measure_peak_resident_memory(lambda: Runner(network, limits).run(x)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("task", ["decoding", "encoding"])
def test_predicted_memory_is_what_is_taken(task):
    command = [sys.executable, "-c", MEASURE, task]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    with torch.device("meta"):
        vae = TinyVAE(TinyVAEConfig())
    network = vae.decoder_network() if task == "decoding" else vae.encoder_network()
    workload = Workload(1, 16 if task == "decoding" else 3, 4, 480, 480, torch.float32)
    expected = Planner(network).memory(workload, Plan(None, 2))
    print(f"{task}: measured {int(run.stdout) / 2**20:.0f}, expected {expected / 2**20:.0f}")
    assert expected == pytest.approx(int(run.stdout), rel=0.25)


def test_each_frame_depends_on_what_the_layers_say():
    vae = tiny_autoencoder(blocks=1)
    latents = latents_of(1, 4, 6, 1, 1)
    whole = vae.decode(latents, clamp=False)
    layers = vae.decoder_network().layers
    for frame in range(whole.shape[2]):
        needed = input_interval(layers, Interval(frame, frame))
        first, last = max(0, int(needed.first)), int(needed.last)
        changed = latents.clone()
        changed[:, :, :first] += 1
        changed[:, :, last + 1 :] += 1
        y = vae.decode(changed, clamp=False)
        torch.testing.assert_close(y[:, :, frame], whole[:, :, frame])


@pytest.mark.parametrize(
    "changes",
    [
        {"z_dim": 0},
        {"encoder_dim": 0},
        {"decoder_dims": (4, 4)},
        {"grows": ()},
        {"pools": (2, 1, 1)},
        {"pools": (4,)},
        {"network_latents": "half"},
        {"latents_std": (1.0,)},
        {"latents_std": (0.0,) * 16},
    ],
    ids=str,
)
def test_impossible_configs_are_named(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        TinyVAEConfig(**changes)

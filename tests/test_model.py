"""The video VAE against the reference, and the properties streaming rests on."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WAN22, random_video, randomize, run_steps, tiny
from tools.golden import CASES, load_golden
from wanvae import WanVAE, WanVAEConfig
from wanvae.nn import BlockSpec, Decoder, Encoder
from wanvae.nn.coder import CoderSpec
from wanvae.nn.kernels import precision


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name, cases in CASES.items() if name.startswith("wan2") for case in cases],
)
@torch.no_grad()
def test_matches_the_official_model(name, case):
    vae, tensors = load_golden(name)
    expected = {
        key: tensors[f"case.{case}.{key}"] for key in ("video", "moments", "latents", "decoded")
    }
    posterior = vae.encode(expected["video"])
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    latents = vae.normalize(posterior.mode())
    decoded = vae.decode(vae.denormalize(expected["latents"]), clamp=False)
    torch.testing.assert_close(moments, expected["moments"], atol=1e-4, rtol=0)
    torch.testing.assert_close(latents, expected["latents"], atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded, expected["decoded"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        vae.decode(posterior.mode()), decoded.clamp(-1, 1), atol=1e-4, rtol=0
    )


@pytest.fixture
def qwen21() -> tuple[WanVAE, dict[str, torch.Tensor]]:
    """A small VAE of Qwen-Image 2.1, and what its own code computes with the same weights."""
    return load_golden("qwen21_tiny")


@pytest.mark.parametrize("case", CASES["qwen21_tiny"])
@torch.no_grad()
def test_matches_the_vae_of_qwen_image_21(qwen21, case):
    vae, tensors = qwen21
    names = ("video", "moments", "latents", "decoded")
    expected = {name: tensors[f"case.{case}.{name}"] for name in names}
    posterior = vae.encode(expected["video"])
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    torch.testing.assert_close(moments, expected["moments"], atol=1e-4, rtol=0)
    latents = vae.normalize(posterior.mode())
    torch.testing.assert_close(latents, expected["latents"], atol=1e-4, rtol=0)
    decoded = vae.decode(vae.denormalize(expected["latents"]), clamp=False)
    torch.testing.assert_close(decoded, expected["decoded"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_each_frame_of_an_image_model_with_stage_shortcuts_stands_alone(qwen21):
    vae, _ = qwen21
    video = random_video(3, 64, 48, batch=2, channels=4).float()
    latents = vae.encode(video).mode()
    assert latents.shape == (2, 4, 3, 4, 3)
    alone = [vae.encode(frame).mode() for frame in video.split(1, dim=2)]
    torch.testing.assert_close(latents, torch.cat(alone, dim=2), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.encode(video, tile_size=32).mode(), latents, atol=1e-5, rtol=0)
    whole = vae.decode(latents)
    torch.testing.assert_close(vae.decode(latents, tile_size=16), whole, atol=1e-5, rtol=0)
    session = vae.stream_decode()
    streamed = torch.cat([session.push(latent) for latent in latents.split(1, dim=2)], dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)


def test_what_an_image_model_only_stores_is_not_trained(qwen21):
    vae, _ = qwen21
    stored = [name for name, _ in vae.named_buffers()]
    assert stored and all(".time_conv." in name for name in stored)
    assert not any(".time_conv." in name for name, _ in vae.named_parameters())


def spec(ndim: int, temporal: tuple[bool, ...], kind: str, shortcuts: bool) -> CoderSpec:
    shortcuts = shortcuts and ndim == 3
    return CoderSpec(
        ndim=ndim,
        dim=4,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=temporal,
        attn_scales=() if shortcuts else (0.5,),
        attention_window=3,
        block=BlockSpec(kind=kind),
        stage_shortcuts=shortcuts,
    )


coders = st.builds(
    spec,
    st.sampled_from([1, 3]),
    st.sampled_from([(True, True), (False, True), (True, False), (False, False)]),
    st.sampled_from(["residual", "dense"]),
    st.booleans(),
)
plans = st.lists(st.integers(1, 3), min_size=1, max_size=4)
sizes = st.tuples(st.integers(1, 2), st.integers(1, 3))


@settings(max_examples=25)
@given(coder=coders, plan=plans, size=sizes)
@torch.no_grad()
def test_any_chunk_plan_equals_the_whole(coder, plan, size):
    factor = 2 ** sum(coder.temporal_downsample)
    encoder, decoder = Encoder(coder, 3, 4).double(), Decoder(coder, 2, 3).double()
    randomize(encoder)
    randomize(decoder)
    groups = sum(plan)
    space = tuple(4 * n for n in size) if coder.ndim == 3 else ()
    generator = torch.Generator().manual_seed(2)
    frames = 1 + factor * (groups - 1)
    video = torch.randn(1, 3, frames, *space, generator=generator, dtype=torch.float64)
    lengths = [factor * n for n in plan]
    lengths[0] -= factor - 1
    moments = run_steps(encoder.step, video.split(lengths, dim=2))
    assert moments.shape[2] == groups
    torch.testing.assert_close(moments, encoder(video))
    latents = moments[:, :2]
    decoded = run_steps(decoder.step, latents.split(plan, dim=2))
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded, decoder(latents))


@settings(max_examples=15)
@given(
    frame=st.integers(0, 8),
    temporal=st.sampled_from([(True, True), (False, True)]),
    variant=st.sampled_from([{}, WAN22]),
)
@torch.no_grad()
def test_the_past_does_not_depend_on_the_future(frame, temporal, variant):
    vae = tiny(dim_mult=(1, 2, 2), temporal_downsample=temporal, **variant)
    factor = vae.config.temporal_factor
    video = random_video(9)
    changed = video.clone()
    changed[:, :, frame:] += 0.5
    # The first latent that sees the frame: latent 0 holds frame 0, latent n the n-th group.
    latent = -(-frame // factor)
    before, after = vae.encode(video).mean, vae.encode(changed).mean
    assert torch.equal(before[:, :, :latent], after[:, :, :latent])
    assert not torch.equal(before[:, :, latent], after[:, :, latent])
    untouched = 1 + factor * (latent - 1) if latent else 0
    decoded, decoded_after = vae.decode(before, clamp=False), vae.decode(after, clamp=False)
    assert torch.equal(decoded[:, :, :untouched], decoded_after[:, :, :untouched])
    assert not torch.equal(decoded[:, :, untouched], decoded_after[:, :, untouched])


@pytest.mark.parametrize("variant", [{}, WAN22], ids=["wan21", "wan22"])
def test_gradients_through_chunks_equal_those_of_the_whole(variant):
    vae = tiny(**variant)
    video = random_video(9)

    def gradients(run):
        vae.zero_grad()
        run().square().sum().backward()
        return [parameter.grad.clone() for parameter in vae.parameters()]

    def in_chunks():
        latents = run_steps(vae.encode_step, video.split([1, 4, 4], dim=2))[:, :2]
        return run_steps(vae.decode_step, latents.split([2, 1], dim=2))

    for chunked, whole in zip(
        gradients(in_chunks), gradients(lambda: vae(video).video), strict=True
    ):
        torch.testing.assert_close(chunked, whole)


def test_training_forward_samples_and_evaluation_does_not():
    vae, video = tiny(), random_video(5)
    assert torch.equal(vae(video).video, vae(video).video)
    vae.train()
    assert not torch.equal(vae(video).video, vae(video).video)


@pytest.mark.parametrize("block", ["standard", "bottleneck", "preactivation", "dense"])
def test_any_block_can_be_chosen_and_trains(block):
    vae = WanVAE(WanVAEConfig(dim=4, z_dim=2, num_res_blocks=1, block=block))
    output = vae(random_video(5))
    (output.video.square().sum() + output.posterior.kl().sum()).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


@torch.no_grad()
def test_group_norm_runs_whole_and_says_that_it_cannot_stream():
    vae = tiny(norm="group")
    video = random_video(9, 128, 128)
    latents = vae.encode(video).mode()
    assert vae.decode(latents).shape == video.shape
    with pytest.raises(ValueError, match=r"cannot stream.*GroupNorm"):
        vae.stream_encode()
    with pytest.raises(ValueError, match=r"cannot stream.*GroupNorm"):
        vae.stream_decode()


def test_factors_follow_from_the_config():
    vae = tiny(dim_mult=(1, 2), temporal_downsample=(True,))
    assert (vae.config.spatial_factor, vae.config.temporal_factor) == (2, 2)
    latents = vae.encode(random_video(7, 6, 10)).mode()
    assert latents.shape == (1, 2, 4, 3, 5)
    assert vae.decode(latents).shape == (1, 3, 7, 6, 10)


@torch.no_grad()
def test_wan22_takes_multiples_of_16():
    vae = tiny(**WAN22)
    assert (vae.config.spatial_factor, vae.config.temporal_factor) == (16, 4)
    assert vae.encode(random_video(5, 16, 32)).mean.shape == (1, 2, 2, 1, 2)
    with pytest.raises(ValueError, match="multiples of 16, not 16x24: crop to 16x16 or pad to 16x"):
        vae.encode(random_video(5, 16, 24))
    with pytest.raises(ValueError, match=r"multiple of 16, not \(8, 8\)"):
        vae.encode(random_video(5, 16, 32), tile_size=8)


def test_an_upscaling_decoder_makes_twice_the_size():
    vae = tiny(upscale_factor=2)
    latents = vae.encode(random_video(5, 16, 24)).mean
    assert latents.shape == (1, 2, 2, 2, 3)
    assert (
        vae.decode(latents).shape == vae(random_video(5, 16, 24)).video.shape == (1, 3, 5, 32, 48)
    )
    torch.manual_seed(0)
    head = vae.decoder.head.step(torch.randn(1, 4, 1, 2, 3).double(), None)[0]
    shuffled = torch.nn.functional.pixel_shuffle(head[:, :, 0], 2)
    assert torch.equal(vae.decoder.patches(head)[:, :, 0], shuffled)


def test_half_precision_stays_close():
    vae = tiny().float()
    video = random_video(5).float()
    expected = vae.decode(vae.encode(video).mode())
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(vae).to(dtype)
        decoded = half.decode(half.encode(video).mode())
        assert decoded.dtype == dtype
        assert (decoded.float() - expected).abs().mean() < 0.05


@torch.no_grad()
def test_normalize_uses_the_statistics_of_the_config():
    vae = tiny(latents_mean=(1.0, -2.0), latents_std=(2.0, 4.0))
    latents = vae.encode(random_video(5)).mode()
    normalized = vae.normalize(latents)
    torch.testing.assert_close(normalized[:, 1], (latents[:, 1] + 2) / 4)
    torch.testing.assert_close(vae.denormalize(normalized), latents)
    assert torch.equal(tiny().normalize(latents), latents)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@torch.no_grad()
def test_copies_and_pickles(copier):
    vae, video = tiny(), random_video(5)
    assert torch.equal(copier(vae).encode(video).mean, vae.encode(video).mean)


@pytest.mark.parametrize("variant", [{}, WAN22], ids=["wan21", "wan22"])
@torch.no_grad()
def test_a_step_compiles_without_graph_breaks(variant):
    vae = tiny(dim_mult=(1, 1), temporal_downsample=(True,), **variant)
    step = torch.compile(vae.encode_step, fullgraph=True, backend="aot_eager")
    video = random_video(5, 4, 4)
    chunks = video.split([1, 2, 2], dim=2)
    torch.testing.assert_close(run_steps(step, chunks), run_steps(vae.encode_step, chunks))
    latents = vae.encode(video).mode()
    step = torch.compile(vae.decode_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        run_steps(step, latents.split(1, dim=2)), vae.decode(latents, clamp=False)
    )


def test_compile_takes_what_pytorch_takes():
    vae = tiny()
    assert not vae.compiled
    vae.compile(mode="reduce-overhead", fullgraph=True, dynamic=True, disable=True)
    assert vae.compiled
    assert copy.deepcopy(vae).compiled and pickle.loads(pickle.dumps(vae)).compiled
    with pytest.raises(TypeError, match="fast"):
        tiny().compile(fast=True)
    with pytest.raises(RuntimeError, match="mode or options"):
        tiny().compile(mode="default", options={"max_autotune": True})


def test_compiled_steps_reach_the_backend_that_is_asked_for():
    vae, video, graphs = (
        tiny(dim_mult=(1, 1), temporal_downsample=(True,)),
        random_video(1, 4, 4),
        [],
    )

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    expected = vae.encode(video).mean
    vae.compile(backend=backend)
    torch.testing.assert_close(vae.encode(video).mean, expected)
    steps = len(graphs)
    assert steps > 0
    # As ``nn.Module.compile`` does, it compiles calls of the model too.
    with torch.no_grad():
        vae(video)
    assert len(graphs) > steps


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 16, 16), r"1 \+ 4n frames, not 6: drop frames to 5, .* to 9"),
        ((1, 3, 5, 20, 16), r"multiples of 8, not 20x16: crop to 16x16 or pad to 24x16"),
        ((1, 4, 5, 16, 16), r"\(B, 3, T, H, W\).*\(1, 4, 5, 16, 16\)"),
        ((3, 5, 16, 16), r"\(B, 3, T, H, W\)"),
        ((1, 3, 0, 16, 16), "none of them 0"),
    ],
)
def test_a_wrong_video_is_refused_with_the_nearest_valid(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny().encode(torch.zeros(shape))


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"floating point, not torch\.uint8"):
        tiny().encode(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"latents must be \(B, 2"):
        tiny().decode(torch.zeros(1, 3, 2, 2, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("temporal_downsample", (True,)),
        ("dim_mult", ()),
        ("dropout", 1.0),
        ("block", "resnext"),
        ("ndim", 1),
        ("decoder_dim", 0),
        ("patch_size", 0),
        ("upscale_factor", 0),
        ("latents_mean", (1.0,)),
        ("latents_std", (0.0,) * 16),
    ],
)
def test_an_impossible_config_names_the_field_and_value(field, value):
    with pytest.raises(ValueError, match=field):
        WanVAEConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_scales": (0.5,)}, r"attn_scales must be \(\) with stage_shortcuts, not \(0.5,\)"),
        ({"upscale_factor": 2}, "upscale_factor must be 1 with patches, not 2"),
    ],
)
def test_what_wan22_cannot_have_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(WanVAEConfig(**WAN22), **changes)


def test_stage_shortcuts_need_channels_that_divide():
    with pytest.raises(ValueError, match="cannot make 12 equal groups of 4 channels"):
        tiny(dim_mult=(1, 3), temporal_downsample=(False,), stage_shortcuts=True)


def test_an_image_model_has_a_third_of_the_weights_in_its_3_convs():
    image, video = (tiny(ndim=ndim).state_dict() for ndim in (2, 3))
    assert image.keys() == {name for name in video if "time_conv" not in name}
    for name, tensor in image.items():
        thirds = 3 if tensor.shape[3:] == (3, 3) else 1
        assert video[name].numel() == thirds * tensor.numel(), name


@torch.no_grad()
def test_an_image_model_treats_frames_alone_however_it_runs():
    vae = tiny(ndim=2)
    video = random_video(5, 24, 16)
    images = video.unflatten(2, (5, 1)).movedim(2, 1).flatten(0, 1)
    latents = vae.encode(images).mean
    of_video = latents.movedim(2, 0).movedim(1, 2)
    torch.testing.assert_close(vae.encode(video).mean, of_video)
    torch.testing.assert_close(vae.encode(video, tile_size=8).mean, of_video)
    torch.testing.assert_close(vae.encode(video, max_memory="1GB").mean, of_video)
    session = vae.stream_encode()
    pushed = [session.push(piece).mean for piece in video.split([2, 3], dim=2)]
    torch.testing.assert_close(torch.cat(pushed, dim=2), of_video)
    assert session.finish().padded_frames == 0
    decoded = vae.decode(of_video, clamp=False)
    torch.testing.assert_close(decoded, vae(video).video)
    torch.testing.assert_close(vae.decode(of_video, clamp=False, tile_size=8), decoded)
    torch.testing.assert_close(vae.stream_decode(clamp=False).push(of_video), decoded)


def trained_with_a_frozen_encoder(vae: WanVAE) -> WanVAE:
    vae.train()
    vae.freeze_encoder()
    vae.train()
    vae(random_video(5)).video.square().sum().backward()
    return vae


def test_a_frozen_encoder_gets_no_gradients_and_the_decoder_does():
    vae = trained_with_a_frozen_encoder(tiny())
    for name, parameter in vae.named_parameters():
        frozen = name.startswith(("encoder.", "conv1."))
        assert (parameter.grad is None) == frozen, name
    assert not vae(random_video(5)).posterior.mean.requires_grad


def test_a_frozen_encoder_gives_the_latents_it_always_gave():
    untrained = tiny(dropout=0.5, norm="batch")
    vae = trained_with_a_frozen_encoder(copy.deepcopy(untrained))
    video = random_video(5)
    expected = untrained.encode(video).mean
    assert vae.decoder.training
    torch.testing.assert_close(vae(video).posterior.mean, expected)
    # Statistics of batches are part of it.
    for part in ("encoder", "conv1"):
        before = getattr(untrained, part).state_dict()
        after = getattr(vae, part).state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_frozen_encoder_gives_the_decoder_its_mode():
    vae = trained_with_a_frozen_encoder(tiny())
    video = random_video(5)
    assert torch.equal(vae(video).video, vae(video).video)
    expected = vae.decode_step(vae.encode(video).mode(), None)[0]
    torch.testing.assert_close(vae(video).video, expected)


def test_autocast_does_not_touch_the_latents_of_a_frozen_encoder():
    vae = trained_with_a_frozen_encoder(tiny().float())
    video = random_video(1).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = vae(video)
    assert torch.equal(output.posterior.mean, vae(video).posterior.mean)
    assert not torch.equal(output.video, vae(video).video)


def test_gradients_reach_the_video_through_a_frozen_encoder():
    vae = tiny()
    vae.freeze_encoder()
    video = random_video(5).requires_grad_()
    vae(video).video.sum().backward()
    assert video.grad.abs().max() > 0


def test_a_cpu_loads_half_types_that_it_emulates_in_float32(tmp_path, monkeypatch, caplog):
    half, path = tiny().half(), tmp_path / "half.safetensors"
    half.save_pretrained(path)
    load = WanVAE.from_pretrained

    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset({torch.float16}))
    vae = load(path)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert torch.equal(vae.conv2.weight, half.conv2.weight.float())
    (record,) = caplog.records
    assert "half.safetensors holds float16, which this CPU only emulates" in record.getMessage()

    caplog.clear()
    assert load(path, torch.float16).decode_dtype == torch.float16
    vae = load(path, encode_dtype=torch.float16, decode_dtype=torch.bfloat16)
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.float16, torch.bfloat16)
    assert load(path, device="meta").encode_dtype == torch.float16
    assert not caplog.records
    vae = load(path, encode_dtype=torch.float16)
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.float16, torch.float32)
    assert len(caplog.records) == 1

    caplog.clear()
    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset())
    assert load(path).encode_dtype == torch.float16
    assert not caplog.records


def test_import_is_light():
    code = (
        "import sys, wanvae; print({'accelerate', 'av', 'jsonargparse', 'torchmetrics', "
        "'diffusers', 'torchvision'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"

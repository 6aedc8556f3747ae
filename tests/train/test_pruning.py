"""A smaller half of a model from a larger one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers import QWEN21, WAN22, random_video, tiny
from wanvae import WanVAE
from wanvae.errors import UserError
from wanvae.train.pruning import (
    ChannelMap,
    Channels,
    Use,
    half_of,
    indices_of,
    map_channels,
    prune,
    tied,
)

VARIANTS = [
    {},
    {"attn_scales": (0.5, 1.0)},
    WAN22,
    QWEN21,
    {"dim_mult": (1, 2, 2), "temporal_downsample": (False, True), "stage_shortcuts": True},
    {"ndim": 2},
    {"block": "bottleneck", "dim": 8},
    {"block": "preactivation", "norm": "rms", "activation": "gelu"},
]
HALVES = ("decoder", "encoder")


def wider(vae: WanVAE, half: str) -> dict[str, int]:
    """The changes of the config that double the width of a half."""
    width = vae.config.decoder_dim or vae.config.dim
    return (
        {"dim": 2 * vae.config.dim, "decoder_dim": width}
        if half == "encoder"
        else {"decoder_dim": 2 * width}
    )


def places(channel_map: ChannelMap, small: dict[str, Tensor]) -> dict[Channels, Tensor]:
    """Random places of the channels of a small half among the channels of a larger one."""
    generator = torch.Generator().manual_seed(3)
    wanted = {
        part.found(): small[use.name].shape[use.axis] // len(use.parts)
        for use in channel_map.uses
        for part in use.parts
    }
    found = {}
    for groups in tied(channel_map, wanted):
        units = min(group.width for group in groups)
        count = min(wanted[group] for group in groups)
        chosen = torch.randperm(units, generator=generator)[:count].sort().values
        for group in groups:
            size = group.width // units
            found[group] = (chosen[:, None] * size + torch.arange(size)).flatten()
    return found


@torch.no_grad()
def with_dead_channels(vae: WanVAE, half: str) -> WanVAE:
    """A model twice as wide in a half, which computes the same: its other channels are always 0."""
    wide = WanVAE(replace(vae.config, **wider(vae, half))).double().eval()
    wide.load_state_dict(vae.state_dict() | empty(wide, half))
    small = half_of(vae, half).modules.state_dict()
    large = half_of(wide, half).modules.state_dict()
    channel_map = map_channels(half_of(wide, half))
    found = places(channel_map, small)
    by_name: dict[str, list[Use]] = {}
    for use in channel_map.uses:
        by_name.setdefault(use.name, []).append(use)
    for name, target in large.items():
        grids = [torch.arange(size) for size in target.shape]
        for use in by_name[name]:
            grids[use.axis] = indices_of(use, found)
        target[torch.meshgrid(*grids, indexing="ij")] = small[name]
    for name, _ in channel_map.gains:
        large[name] *= (len(small[name]) / len(large[name])) ** 0.5
    for name, channels in channel_map.attention:
        ratio = channels.width / len(found[channels.found()])
        for leaf in ("weight", "bias"):
            large[f"{name}.{leaf}"][: channels.width] *= ratio**0.5
    return wide


def empty(vae: WanVAE, half: str) -> dict[str, Tensor]:
    roots = {"decoder": ("decoder.", "conv2."), "encoder": ("encoder.", "conv1.")}[half]
    return {n: torch.zeros_like(t) for n, t in vae.state_dict().items() if n.startswith(roots)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", HALVES)
@torch.no_grad()
def test_channels_that_do_nothing_are_the_ones_that_are_pruned(half: str, variant: dict) -> None:
    small = tiny(**variant)
    teacher = with_dead_channels(small, half)
    side = 4 * small.config.spatial_factor
    video = random_video(5, side, side, channels=small.config.in_channels)
    latents = small.encode(video).mode()
    # The wide model computes the same, so the map of its channels is right.
    torch.testing.assert_close(teacher.encode(video).mode(), latents, rtol=0, atol=1e-9)
    torch.testing.assert_close(teacher.decode(latents), small.decode(latents), rtol=0, atol=1e-9)
    student = WanVAE(small.config).double()
    prune(teacher, student, half)
    expected = half_of(small, half).modules.state_dict()
    for name, tensor in half_of(student, half).modules.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", HALVES)
@torch.no_grad()
def test_a_student_of_the_same_size_is_the_teacher(half: str, variant: dict) -> None:
    teacher = tiny(**variant)
    student = WanVAE(teacher.config).double()
    prune(teacher, student, half)
    expected = half_of(teacher, half).modules.state_dict()
    for name, tensor in half_of(student, half).modules.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("variant", [{}, {"attn_scales": (0.5, 1.0)}, WAN22, QWEN21])
@torch.no_grad()
def test_more_blocks_than_the_teacher_has_start_as_the_identity(variant: dict) -> None:
    teacher = tiny(**variant)
    deeper = replace(teacher.config, decoder_res_blocks=teacher.config.blocks_of_decoder + 2)
    student = WanVAE(deeper).double().eval()
    prune(teacher, student, "decoder")
    latents = random_video(2, 4, 4, channels=teacher.config.z_dim)
    torch.testing.assert_close(student.decode(latents), teacher.decode(latents), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", [{}, WAN22])
@torch.no_grad()
def test_the_first_and_the_last_block_of_a_stage_are_kept(variant: dict) -> None:
    teacher = tiny(num_res_blocks=2, **variant)
    student = WanVAE(replace(teacher.config, decoder_res_blocks=2)).double()
    prune(teacher, student, "decoder")
    pairs = zip(half_of(teacher, "decoder").stages, half_of(student, "decoder").stages, strict=True)
    for theirs, ours in pairs:
        kept = [theirs[0], *theirs[2:]]  # three blocks became two
        assert len(ours) == len(kept)
        for layer, source in zip(ours, kept, strict=True):
            for name, tensor in source.state_dict().items():
                assert torch.equal(layer.state_dict()[name], tensor)


@torch.no_grad()
def test_the_kept_channels_have_the_largest_weights() -> None:
    teacher = tiny()
    block = teacher.decoder.middle[0].residual
    strong = torch.tensor([1, 3, 6, 7, 8, 10, 12, 15])  # of 16
    for layer, axis in ((block[2], 0), (block[6], 1)):
        layer.weight.data.movedim(axis, 0)[strong] *= 100
    student = WanVAE(replace(teacher.config, decoder_dim=2)).double()
    prune(teacher, student, "decoder")
    bias = student.decoder.middle[0].residual[2].bias
    assert torch.equal(bias, block[2].bias[strong])


def test_a_wider_student_cannot_be_pruned() -> None:
    teacher = tiny()
    student = WanVAE(replace(teacher.config, decoder_dim=6)).double()
    with pytest.raises(UserError, match=r"choose a smaller distill\.dim"):
        prune(teacher, student, "decoder")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"block": "dense"}, "blocks are dense"),
        ({"norm": "group"}, "norm is 'group'"),
        ({"alpha_decoder": True, "out_channels": 4}, "second decoder"),
    ],
)
def test_models_that_cannot_be_pruned_say_why(variant: dict, reason: str) -> None:
    teacher = tiny(**variant)
    with pytest.raises(UserError, match=reason):
        prune(teacher, WanVAE(teacher.config), "decoder")

"""The network that learns to distinguish reconstructions from originals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wanvae.engine.processes import mean_over_processes
from wanvae.nn import CausalConv, make_norm, use_channels_last

# Layers that halve time too: a logit spans four frames at least, as a latent does.
TEMPORAL_LAYERS = 2
LARGEST_MULTIPLE = 8
SLOPE = 0.2
# How much of the moving averages a step keeps, as in the experiments of Tseng et al.
AVERAGE_KEPT = 0.99


@dataclass(frozen=True)
class Verdict:
    """The logits of a discriminator, which are higher for what it takes for an original.

    Attributes:
        fake: logits of the reconstructions, ``(B, 1, t, h, w)``, one for each patch.
        real: logits of the originals, of the same shape; ``B`` is 0 without originals.
        fake_average: moving average of the logits of reconstructions, a scalar.
        real_average: moving average of the logits of originals, a scalar.
    """

    fake: Tensor
    real: Tensor
    fake_average: Tensor
    real_average: Tensor


class PatchDiscriminator3D(nn.Module):
    """PatchGAN (Isola et al., arXiv 1611.07004) with 3D convolutions: a logit for every patch.

    A clip ``(B, C, T, H, W)`` of any size has logits ``(B, 1, t, h, w)``, where t is T / 4
    (T / 2 with one layer) and h and w are H and W over 2 to the number of layers, all rounded up.
    The norm is over the channels of each position, so a logit depends on its patch alone: not
    on the batch, nor on which process has which clip, nor on the size of the frames.

    Args:
        in_channels: channels of the video.
        dim: channels of the first layer. They double from layer to layer, up to ``8 * dim``.
        layers: how many layers halve space.
    """

    fake_average: Tensor
    real_average: Tensor

    def __init__(self, in_channels: int, dim: int, layers: int) -> None:
        super().__init__()
        self.factors = (2 ** min(layers, TEMPORAL_LAYERS), 2**layers)
        widths = [dim * min(2**layer, LARGEST_MULTIPLE) for layer in range(layers + 1)]
        blocks: list[nn.Module] = [make_conv(in_channels, dim, 2, 2), nn.LeakyReLU(SLOPE)]
        for layer, (in_dim, out_dim) in enumerate(itertools.pairwise(widths), start=1):
            space = 2 if layer < layers else 1
            time = space if layer < TEMPORAL_LAYERS else 1
            blocks += [
                make_conv(in_dim, out_dim, time, space),
                make_norm("layer", 3, out_dim),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*blocks, make_conv(widths[-1], 1, 1, 1))
        self.register_buffer("fake_average", torch.zeros(()))
        self.register_buffer("real_average", torch.zeros(()))
        use_channels_last(self)

    def forward(self, fake: Tensor, real: Tensor | None = None) -> Verdict:
        """Judges reconstructions and, in the same pass, originals.

        With both, while training, the moving averages move: like the statistics of a batch norm,
        they are buffers, but the same on all processes.

        Args:
            fake: ``(B, C, T, H, W)`` in about [-1, 1].
            real: originals of the same shape; None if only the reconstructions matter.
        """
        videos = fake if real is None else torch.cat([fake, real])
        logits = self.layers(self.fill_patches(videos))
        verdict_of_fake, verdict_of_real = logits.tensor_split([len(fake)])
        if self.training and real is not None:
            self.move_averages(verdict_of_fake, verdict_of_real)
        averages = (self.fake_average.clone(), self.real_average.clone())
        return Verdict(verdict_of_fake, verdict_of_real, *averages)

    def fill_patches(self, video: Tensor) -> Tensor:
        """``video`` with its first frame, last row and last column repeated to whole patches."""
        time, space = self.factors
        frames, height, width = video.shape[2:]
        video = repeat_slice(video, 2, 0, -frames % time)
        video = repeat_slice(video, 3, height - 1, -height % space)
        return repeat_slice(video, 4, width - 1, -width % space)

    @torch.no_grad()
    def move_averages(self, fake: Tensor, real: Tensor) -> None:
        means = mean_over_processes(torch.stack([fake.float().mean(), real.float().mean()]))
        for average, mean in zip((self.fake_average, self.real_average), means, strict=True):
            average.lerp_(mean.to(average.dtype), 1 - AVERAGE_KEPT)


def repeat_slice(video: Tensor, axis: int, index: int, times: int) -> Tensor:
    """Repeats a slice of ``video`` where it is, ``times`` more times.

    ``F.pad`` gives wrong values for frames of 65536 pixels or more on Apple's GPUs (PyTorch 2.13).
    """
    if not times:
        return video
    repeats = video.narrow(axis, index, 1).expand(
        [times if each == axis else size for each, size in enumerate(video.shape)]
    )
    before, after = video.tensor_split([index], dim=axis)
    return torch.cat([before, repeats, after], dim=axis)


def make_conv(in_dim: int, out_dim: int, time: int, space: int) -> CausalConv:
    """A convolution with these strides; its kernel overlaps each neighbour's by 2."""
    stride = (time, space, space)
    kernel_size = (time + 2, space + 2, space + 2)
    return CausalConv(3, in_dim, out_dim, kernel_size, stride, causal=False)

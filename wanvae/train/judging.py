"""What a run is judged by besides the figures of every model: LPIPS, and how a page shows it."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from wanvae.metrics.columns import QUALITY, RATE
from wanvae.metrics.lpips import Lpips, load_lpips
from wanvae.train.losses import VideoLosses

# How the figures of evaluations are shown.
COLUMNS = {**QUALITY, "kl_bits": RATE["information"]}
PICTURES = "Frames of clips that are not trained on, above their reconstructions."
NO_EVALUATION = (
    "This run is not evaluated. Name clips that it is not trained on, as evaluation.folder, to see "
    "here whether it gets better."
)


def find_lpips(losses: VideoLosses, size: int) -> Lpips | str:
    """LPIPS for the evaluation, or why it is left out. Nothing is downloaded.

    It is the network of the loss, if this has one. Otherwise it is the network of the weights that
    the loss names, or AlexNet as in ``wanvae evaluate``.

    Args:
        size: height and width of the clips.
    """
    lpips = losses.lpips
    if lpips is None:
        config = losses.config
        network = "alex" if config.lpips_weights is None else config.lpips_network
        option = f"loss.lpips_weights, with loss.lpips_network {network}"
        lpips = load_lpips(network, config.lpips_weights, option)
    if isinstance(lpips, Lpips) and size < lpips.smallest_side:
        return f"it needs clips of {lpips.smallest_side} pixels or more (evaluation.size)"
    return lpips


def frame_lpips(lpips: Lpips, frames: Tensor, originals: Tensor) -> Tensor:
    """The mean LPIPS of frames ``(T, C, H, W)``, a scalar."""
    videos = (rearrange(x, "t c h w -> 1 c t h w") for x in (frames, originals))
    return lpips(*videos).mean()

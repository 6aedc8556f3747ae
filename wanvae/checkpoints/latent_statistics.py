"""Mean and standard deviation of the latents of published models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from wanvae.config import QWEN_IMAGE_21, WAN22, Half, VideoConfig, WanVAEConfig
from wanvae.engine.json_files import read_json
from wanvae.engine.text import first_sentence
from wanvae.errors import UserError
from wanvae.tiny_config import TinyVAEConfig

ConfigT = TypeVar("ConfigT", bound=WanVAEConfig | TinyVAEConfig)

WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
)
WAN22_MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
WAN22_STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
QWEN21_MEAN = (
    *(0.5126, 0.7721, -0.0631, 1.3506, -0.7855, -2.1025, -0.3458, 1.3722),
    *(1.8873, -1.7177, -0.651, 0.2732, 0.7562, -0.6163, -1.0277, 3.8363),
    *(2.021, 0.0472, 0.932, 2.0087, 2.4954, -0.1391, -1.4249, 1.8464),
    *(-0.5236, 1.2826, 3.7046, -1.3035, 2.7286, -1.4518, -1.9036, -1.9955),
    *(-0.0342, -1.0265, -0.7636, 3.0555, 0.0746, -3.0751, -0.1076, 1.7376),
    *(-1.0914, -1.9435, -0.2784, -1.368, 0.4809, -0.4433, 0.3764, 0.5729),
    *(-2.0595, 1.096, -1.326, -2.0211, -5.0179, 0.5275, 4.0162, 1.8505),
    *(0.3026, 1.9373, 1.4937, 0.2632, 0.5547, -1.7121, -0.1562, 0.0304),
)
QWEN21_STD = (
    *(3.2001, 3.2936, 3.4321, 3.0091, 3.1061, 4.0379, 4.0705, 3.791),
    *(3.0785, 3.65, 3.9308, 3.0904, 2.8778, 3.7675, 3.732, 5.0756),
    *(3.2864, 4.0397, 3.1317, 4.0443, 2.9249, 3.9454, 3.0988, 4.2489),
    *(3.4896, 3.8513, 3.9323, 3.4719, 3.7498, 4.283, 3.5694, 4.2467),
    *(3.9037, 3.2947, 5.077, 3.5075, 3.27, 3.4767, 2.8063, 5.1125),
    *(3.5327, 4.7833, 3.1286, 4.1819, 3.8527, 3.8312, 3.5605, 4.3875),
    *(3.9624, 4.0168, 3.5643, 4.055, 5.5614, 4.2963, 4.408, 3.4959),
    *(3.8747, 3.7608, 3.5735, 3.149, 3.7662, 3.6746, 3.4563, 3.8161),
)

# The beginning of each note on statistics.
STATISTICS_NOTE = "latent statistics: "
OFFICIAL_STATISTICS = "latent statistics: taken from Wan2.1, because the architecture is the same"
WAN22_STATISTICS = "latent statistics: taken from Wan2.2, because the architecture is the same"
NO_STATISTICS = "latent statistics: none, so mean 0 and standard deviation 1"
# The largest value of float32.
LARGEST = torch.finfo(torch.float32).max
# The fields of a config in which models with the same latents may differ.
FREE_FIELDS = (
    *("dim", "decoder_dim", "decoder_res_blocks", "in_channels", "out_channels", "upscale_factor"),
    *("dropout", "half"),
)
STATISTICS_FIELDS = ("latents_mean", "latents_std")


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel of latents.

    Attributes:
        mean: means; empty is 0.
        std: standard deviations; empty is 1.
        note: where they come from, for people.
        assumed: whether nothing in the file says that they are right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str
    assumed: bool = False


@dataclass(frozen=True)
class Published:
    """A published model whose latents other models share.

    Attributes:
        name: what people call it.
        config: its architecture.
        mean: means of its latents.
        std: standard deviations of its latents.
        pixels: in_channels, out_channels and upscale_factor of published models with its latents.
    """

    name: str
    config: WanVAEConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: tuple[tuple[int, int, int], ...]


PUBLISHED = (
    # Also Qwen-Image, with transparency, and with upscaling.
    Published("Wan2.1", WanVAEConfig(), WAN21_MEAN, WAN21_STD, ((3, 3, 1), (4, 4, 1), (3, 3, 2))),
    Published("Wan2.2", WAN22, WAN22_MEAN, WAN22_STD, ((3, 3, 1),)),
    Published("Qwen-Image-2.1", QWEN_IMAGE_21, QWEN21_MEAN, QWEN21_STD, ((4, 4, 1),)),
)


def known_statistics(config: WanVAEConfig) -> Statistics:
    """Returns the statistics of the published model with the same latents, for a file without any.

    Models of the same topology at any width share the latents of a published model, because
    smaller models are distilled from it. Then the statistics are assumed.
    """
    for published in PUBLISHED:
        if topology(config) != topology(published.config):
            continue
        if any(config == variant for variant in variants(published, config.half)):
            note = f"latent statistics: taken from {published.name}, because the architecture is "
            return Statistics(published.mean, published.std, f"{note}the same")
        note = (
            f"latent statistics: assumed to be the statistics of {published.name}, because the "
            "architecture differs only in width and in the channels of the video"
        )
        return Statistics(published.mean, published.std, note, assumed=True)
    return Statistics((), (), NO_STATISTICS, assumed=True)


def topology(config: WanVAEConfig) -> dict[str, object]:
    """Returns the fields that models with the same latents have in common."""
    free = (*FREE_FIELDS, *STATISTICS_FIELDS)
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in free}


def variants(published: Published, half: Half | None) -> Iterator[WanVAEConfig]:
    """Yields the architectures of published models with the same latents, or of their halves."""
    for first, last, scale in published.pixels:
        config = replace(
            published.config, in_channels=first, out_channels=last, upscale_factor=scale
        )
        yield config if half is None else config.only(half)


def with_known_statistics(config: WanVAEConfig) -> tuple[WanVAEConfig, str]:
    """Returns ``config`` with the statistics of its published model, if any, and a note."""
    statistics = known_statistics(config)
    return with_statistics(config, statistics), statistics.note


def with_statistics(config: ConfigT, statistics: Statistics) -> ConfigT:
    """Returns ``config`` with these statistics."""
    return replace(config, latents_mean=statistics.mean, latents_std=statistics.std)


def asked_statistics(asked: str | PathLike[str], config: VideoConfig) -> Statistics:
    """Returns the statistics that somebody names.

    Args:
        asked: "none", the name of a published model in any case, or a JSON file with latents_mean
            and latents_std, like the config.json of diffusers.
        config: the architecture that they are for.

    Raises:
        UserError: there are no such statistics, or they have another number of channels.
    """
    name = str(asked).lower()
    if name == "none":
        note = "latent statistics: mean 0 and standard deviation 1, as asked for"
        return Statistics((), (), note)
    for published in PUBLISHED:
        if name == published.name.lower():
            mean, std = published.mean, published.std
            break
    else:
        mean, std = read_statistics(Path(asked))
    if not len(mean) == len(std) == config.z_dim:
        raise UserError(
            f"the latent statistics of {asked} are {len(mean)} means and {len(std)} standard "
            f"deviations, but the model has {config.z_dim} channels of latents"
        )
    return Statistics(mean, std, f"latent statistics: of {asked}, as asked for")


def read_statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the means and standard deviations in a JSON file.

    Raises:
        UserError: the file cannot be read, or does not hold them.
    """
    names = ", ".join(["none", *(published.name.lower() for published in PUBLISHED)])
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(
            f"latent statistics must be {names} or a JSON file with latents_mean and latents_std, "
            f"but {path} cannot be read: {error.strerror}"
        ) from error
    except UserError as error:
        reason = first_sentence(error.__cause__ or error)
        raise UserError(f"the latent statistics {path} are no JSON ({reason})") from error
    values = [content.get(n) if isinstance(content, dict) else None for n in STATISTICS_FIELDS]
    for value in values:
        if not isinstance(value, list) or not all(is_number(n) for n in value):
            raise UserError(
                f"{path} must hold latents_mean and latents_std, lists of finite numbers"
            )
    mean, std = (tuple(map(float, value)) for value in values if value is not None)
    return mean, std


def is_number(value: object) -> bool:
    """Returns whether a value of a JSON file is a number that float32 can hold."""
    return isinstance(value, (int, float)) and type(value) is not bool and abs(value) <= LARGEST


def statistics_like(
    latents: Tensor, means: Sequence[float], stds: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation ``(z_dim, 1, 1, 1)``, in dtype and device of ``latents``.

    Args:
        means: mean of each channel; empty means 0.
        stds: standard deviation of each channel; empty means 1.
    """
    mean, std = (
        latents.new_tensor(values)[:, None, None, None]
        for values in (means or (0.0,), stds or (1.0,))
    )
    return mean, std

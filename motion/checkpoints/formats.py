"""The layouts of motion tokenizer checkpoints: detecting, reading and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from motion.checkpoints.architecture import BEAT2, Untold, infer_config
from motion.config import RVQVAEConfig
from motion.features.channels import check_skeleton
from motion.files.arrays import write_array
from motion.networks.resnet import rename_jukebox
from motion.skeleton.packaged import SMPLX
from motion.skeleton.tree import Skeleton
from wanvae.engine.checkpoint import (
    CheckpointError,
    TensorFile,
    check_tensors,
    read_tensors,
    write_pickle,
    write_tensors,
)
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.engine.hub import HubFiles, local_checkpoint
from wanvae.engine.text import first_few
from wanvae.errors import UserError

FORMAT = "wanvae-motion"
# What checkpoints are called in repositories of the Hugging Face Hub.
MOTION_TOKENIZER = HubFiles("motion tokenizer", (("wanvae-motion.safetensors",),))
# Beginnings of the names that tensors of native files had before, and what they are now.
RENAMED_TENSORS = {
    "normaliser.": "normalizer.",
    "quantizer.books.initialised": "quantizer.books.initialized",
}
# Keys under which published files hold the weights, beside optimizer states and counters.
WRAPPERS = ("vq_model", "net", "state_dict", "model_state", "model_state_dict", "model")
PROJECTION = ("embedding_proj.weight", "embedding_proj.bias")
FIRST_TENSOR = "encoder.model.0.weight"
# A part of the names of all tensors of Jukebox, and of Bailando, which has its networks.
JUKEBOX = ".level_blocks."
MOMASK_CODEBOOK = r"quantizer\.layers\.(\d+)\.codebook"
# Published files do not hold moving averages. This is the assumed number of latents of a batch that
# choose each code. It is high, so that further training does not replace codes too early.
ASSUMED_COUNT = 100.0
WITHOUT_NORMALIZER = "normalizer: not in the file, so features are assumed to be normalized already"
WITHOUT_SKELETON = "skeleton: not in the file, so motion files are not checked to have its joints"
# Dropout of MoMask, in residual blocks and in the quantizer.
DROPOUT = 0.2


class Layout(Enum):
    """How a checkpoint names its tensors and tells its architecture."""

    NATIVE = "native"
    MOMASK = "momask"
    T2M_GPT = "t2m-gpt"
    GESTURELSM = "gesturelsm"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any layout.

    Attributes:
        config: the architecture.
        tensors: the tensors by their native names, not yet checked against the architecture.
        layout: the layout of the file.
        notes: what was assumed, for people; one sentence each.
        skeleton: the skeleton whose motion the model knows; None if the file does not tell it, or
            the features are of HumanML3D or KIT.
    """

    config: RVQVAEConfig
    tensors: dict[str, Tensor]
    layout: Layout
    notes: tuple[str, ...]
    skeleton: Skeleton | None = None


def load(
    path: str | PathLike[str], untold: Untold | None = None, *, subfolder: str | None = None
) -> Checkpoint:
    """Reads a checkpoint, and detects its layout and architecture.

    Args:
        path: a native ``.safetensors``; or the tensors of MoMask, T2M-GPT, MotionGPT or GestureLSM
            in a ``.pth``, ``.tar``, ``.ckpt`` or ``.safetensors``; or, if there is no such path,
            the ``"org/name"`` of a repository of the Hugging Face Hub.
        untold: what to assume where published tensors do not tell it.
        subfolder: the folder of the repository that holds the checkpoint.

    Raises:
        CheckpointError: it cannot be read or downloaded, has none of these layouts, or ``untold``
            does not fit.
    """
    untold = untold or Untold()
    path = local_checkpoint(path, MOTION_TOKENIZER, subfolder)
    file = read_tensors(path, WRAPPERS)
    try:
        if file.metadata.get("format") == FORMAT:
            return read_native(file, untold)
        return read_published(file.tensors, untold)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copies the tensors of a native checkpoint into the parameters and buffers of ``model``.

    Raises:
        CheckpointError: as ``load``, or the tensors do not fit.
    """
    tensors = load(path).tensors
    check_tensors(model, tensors, path)
    model.load_state_dict(tensors)


def read_native(file: TensorFile, untold: Untold) -> Checkpoint:
    """Reads a file that ``save_native`` wrote; UserError if its config is not valid."""
    if untold.given:
        raise UserError(f"it says its architecture itself; do not give {', '.join(untold.given)}")
    config = from_json_dict(RVQVAEConfig, parse_json(file.metadata.get("config", "")))
    tensors = {new_tensor_name(name): tensor for name, tensor in file.tensors.items()}
    require_size(config, tensors)
    skeleton = read_skeleton(file.metadata, config)
    notes = () if normalizes(tensors) else (WITHOUT_NORMALIZER,)
    if skeleton is None and config.features is not None:
        notes += (WITHOUT_SKELETON,)
    return Checkpoint(config, tensors, Layout.NATIVE, notes, skeleton)


def read_skeleton(metadata: Mapping[str, str], config: RVQVAEConfig) -> Skeleton | None:
    """Returns the skeleton in the metadata of a native file; None if they have none.

    Raises:
        UserError: the skeleton is not valid, or does not fit the config.
    """
    text = metadata.get("skeleton")
    if text is None:
        return None
    skeleton = from_json_dict(Skeleton, parse_json(text))
    check_skeleton(config, skeleton)
    return skeleton


def normalizes(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the normalizer in the tensors of a native file changes features at all."""
    mean, std = (tensors.get(f"normalizer.{name}") for name in ("mean", "std"))
    return mean is None or std is None or bool(mean.any() or (std != 1).any())


def new_tensor_name(name: str) -> str:
    """The name that a tensor of a native file has today."""
    for old, new in RENAMED_TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def require_size(config: RVQVAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError if the model of a config is larger or deeper than its tensors.

    Called before the model is built, because that could take all memory.
    """
    resnet, wan = config.resnet, config.wan
    blocks, width = resnet.depth * resnet.down_t, resnet.width
    if config.network == "wan":
        blocks, width = wan.num_res_blocks * len(wan.dim_mult), wan.dim * max(wan.dim_mult)
    # Codes of other kinds are not stored.
    quantizer = config.quantizer
    stores = config.bottleneck == "quantizer" and quantizer.stores_codes
    stored = quantizer.codebook_size if stores else 1
    largest = max(width, config.channels, config.code_dim, stored)
    if blocks > len(tensors) or largest > sum(tensor.numel() for tensor in tensors.values()):
        raise UserError("its config describes a larger model than its tensors; save it again")


def read_published(tensors: Mapping[str, Tensor], untold: Untold) -> Checkpoint:
    """Reads tensors with the names of MoMask, T2M-GPT or GestureLSM, with any prefix."""
    tensors, notes = remove_prefix(tensors)
    tensors = rename_jukebox(tensors)
    networks = {n: t.float() for n, t in tensors.items() if not n.startswith("quantizer.")}
    networks |= {n: t for n, t in tensors.items() if n.endswith("num_batches_tracked")}
    rest = {name: t.float() for name, t in tensors.items() if name.startswith("quantizer.")}
    layout, books = read_books(rest)
    dropout = 0.0 if layout is Layout.T2M_GPT else DROPOUT
    config, of_config = infer_config(networks, books, untold, dropout)
    if len(books) > 1 and (books == books[0]).all():
        config = replace(config, quantizer=replace(config.quantizer, shared_codebook=True))
        books = books[:1]
        notes.append("codebooks: all the same, so the layers are assumed to share one codebook")
    notes.append("moving averages of the codes: not in the file, so training starts new ones")
    notes.append(WITHOUT_NORMALIZER)
    return Checkpoint(
        config,
        {
            **networks,
            "quantizer.books.codes": books,
            "quantizer.books.sums": books * ASSUMED_COUNT,
            "quantizer.books.counts": torch.full(books.shape[:2], ASSUMED_COUNT),
            "quantizer.books.initialized": torch.tensor(True),
            "normalizer.mean": torch.zeros(config.channels),
            "normalizer.std": torch.ones(config.channels),
        },
        layout,
        (*of_config, *notes),
        SMPLX if config.features == BEAT2 else None,
    )


def remove_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors of the tokenizer without their prefix, and a note on other tensors."""
    first = [name for name in tensors if name.endswith(FIRST_TENSOR)]
    if len(first) != 1:
        if any(JUKEBOX in name for name in tensors):
            raise UserError(
                "its networks are of Jukebox, as in Bailando, and begin and end with other layers, "
                "so no model of this package loads them; in Python, Resnet1D loads their residual "
                "blocks"
            )
        raise UserError(
            f"no layout of a motion tokenizer has tensors like {first_few(list(tensors))}; known "
            "are native (.safetensors written by this package), MoMask, T2M-GPT, MotionGPT and "
            f"GestureLSM, which have one {FIRST_TENSOR}"
        )
    prefix = first[0].removesuffix(FIRST_TENSOR)
    ours = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    others = [name for name in tensors if not name.startswith(prefix)]
    if not others:
        return ours, []
    return ours, [f"not read: {len(others)} tensors of other models, {first_few(others)}"]


def read_books(tensors: Mapping[str, Tensor]) -> tuple[Layout, Tensor]:
    """Returns the layout and the codebooks ``(Q, K, C)`` of the tensors of a quantizer."""
    if list(tensors) == ["quantizer.codebook"]:
        return Layout.T2M_GPT, stack_books([tensors["quantizer.codebook"]])
    numbers = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(MOMASK_CODEBOOK, name)))
    if not numbers or numbers != list(range(len(numbers))):
        raise UserError(
            "its codebooks must be quantizer.codebook, or quantizer.layers.0.codebook and so on "
            f"without a gap, not {first_few(sorted(tensors)) or 'missing'}"
        )
    projected = any("embedding_proj" in name for name in tensors)
    parts = ("codebook", *PROJECTION) if projected else ("codebook",)
    layers = [[f"quantizer.layers.{number}.{part}" for part in parts] for number in numbers]
    expected = {name for layer in layers for name in layer}
    for problem, names in (
        ("unexpected", tensors.keys() - expected),
        ("missing", expected - tensors.keys()),
    ):
        if names:
            raise UserError(f"tensors are {problem}: {first_few(sorted(names))}")
    books = stack_books([tensors[layer[0]] for layer in layers])
    if not projected:
        return Layout.MOMASK, books
    weights, biases = (torch.stack([tensors[layer[i]] for layer in layers]) for i in (1, 2))
    return Layout.GESTURELSM, books @ weights.mT + biases[:, None]


def stack_books(books: list[Tensor]) -> Tensor:
    """Returns ``(Q, K, C)`` of codebooks ``(K, C)``; UserError if they differ in shape."""
    shapes = sorted({tuple(book.shape) for book in books})
    if len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise UserError(f"its codebooks must all be (codes, channels), not {shapes}")
    return torch.stack(books)


def save_native(
    path: str | PathLike[str],
    config: RVQVAEConfig,
    tensors: Mapping[str, Tensor],
    skeleton: Skeleton | None = None,
) -> None:
    """Writes a native checkpoint: one ``.safetensors`` file with the config in its metadata.

    Args:
        skeleton: the skeleton whose motion the model knows, which is in the metadata too.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors, or cannot be written.
    """
    require_suffix(path, ".safetensors")
    metadata = {"format": FORMAT, "config": json.dumps(to_json_dict(config))}
    if skeleton is not None:
        metadata["skeleton"] = json.dumps(to_json_dict(skeleton))
    write_tensors(path, tensors, metadata)


def save_momask(
    path: str | PathLike[str], config: RVQVAEConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Writes the tensors that MoMask reads, to a ``.tar`` or ``.pth`` file.

    The layout has no config and no moving averages, so a reader must know the options of the
    network. It has no normalizer either. If the model has one, it is written beside the file, to
    files that end in ``_mean.npy`` and ``_std.npy``.

    Raises:
        CheckpointError: ``path`` has another suffix or cannot be written, or MoMask has no such
            network.
    """
    require_suffix(path, ".tar", ".pth")
    require_published(config)
    networks = {n: t for n, t in tensors.items() if n.startswith(("encoder.", "decoder."))}
    books = tensors["quantizer.books.codes"].expand(config.quantizer.num_quantizers, -1, -1)
    named = {f"quantizer.layers.{number}.codebook": book for number, book in enumerate(books)}
    write_pickle(path, networks | named, wrapper="vq_model")
    if normalizes(tensors):
        for file, name in zip(files_beside_momask(path), ("mean", "std"), strict=True):
            write_array(file, tensors[f"normalizer.{name}"])


def files_beside_momask(path: str | PathLike[str]) -> tuple[Path, Path]:
    """Returns the files that ``save_momask`` writes the mean and standard deviation to."""
    path = Path(path)
    return path.with_name(f"{path.stem}_mean.npy"), path.with_name(f"{path.stem}_std.npy")


def require_published(config: RVQVAEConfig) -> None:
    """Raises CheckpointError if the code of MoMask has no such network."""
    resnet, quantizer = config.resnet, config.quantizer
    refused = {
        "continuous latents": config.bottleneck != "quantizer",
        "network wan": config.network != "resnet",
        "causal convolutions": resnet.causal,
        "attention": resnet.attention,
        "other order of dilations": not resnet.reverse_dilation,
        "dilation growth that differs between stages": len(set(resnet.dilation_growth_rate)) > 1,
        "filter after the decoder": config.smoothing.smooths,
        "cosine metric": quantizer.metric != "euclidean",
        f"quantizer {quantizer.kind}": quantizer.kind != "ema",
        "groups of channels": quantizer.groups > 1,
        "codebook_dim": quantizer.codebook_dim is not None,
    }
    reasons = [reason for reason, applies in refused.items() if applies]
    if reasons:
        raise CheckpointError(
            f"the momask layout has no {', no '.join(reasons)}; use the native layout"
        )


def require_suffix(path: str | PathLike[str], *suffixes: str) -> None:
    """Raises CheckpointError if ``path`` has none of these suffixes."""
    if Path(path).suffix not in suffixes:
        raise CheckpointError(f"{path} must end in {' or '.join(suffixes)}; change its name")

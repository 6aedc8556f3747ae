"""Tensors and dtypes as people give them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE
from tests.helpers import tiny
from tests.motion.small_tokenizers import saved_tokenizer
from wanvae import Posterior, WanVAE
from wanvae.engine.tensors import parse_dtype
from wanvae.errors import UserError


@pytest.mark.parametrize("given", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtypes(given: object) -> None:
    assert parse_dtype(given) is torch.bfloat16


@pytest.mark.parametrize("given", ["bf17", "int8", torch.int64, 16, "nn", np.float32])
def test_what_is_no_floating_point_dtype(given: object) -> None:
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16"):
        parse_dtype(given)


def test_checkpoints_are_loaded_in_a_dtype_that_is_text(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "a.safetensors")
    for name in ("dtype", "torch_dtype"):
        vae = WanVAE.from_pretrained(tmp_path / "a.safetensors", **{name: "bfloat16"})
        assert vae.encode_dtype is vae.decode_dtype is torch.bfloat16
    vae = WanVAE.from_pretrained(tmp_path / "a.safetensors", "float32", decode_dtype="bfloat16")
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="give one of them"):
        WanVAE.from_pretrained(tmp_path / "a.safetensors", "float32", torch_dtype="float32")
    saved_tokenizer(tmp_path / "m.safetensors")
    for name in ("dtype", "torch_dtype"):
        motion = RVQVAE.from_pretrained(tmp_path / "m.safetensors", **{name: "bfloat16"})
        assert motion.dtype is torch.bfloat16
    with pytest.raises(UserError, match="give one of them"):
        RVQVAE.from_pretrained(tmp_path / "m.safetensors", "float32", torch_dtype="float32")


def test_what_is_no_tensor_is_named_with_what_to_do() -> None:
    vae = tiny()
    posterior = Posterior(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1))
    decode_step, encode_step = (
        partial(vae.decode_step, state=None),
        partial(vae.encode_step, state=None),
    )
    normalizing = vae.normalize, vae.denormalize
    for call in (vae.decode, decode_step, *normalizing, vae.stream_decode().push):
        with pytest.raises(UserError, match=r"latents must be .* not Posterior: .*mode\(\) or sam"):
            call(posterior)
    video = np.zeros((1, 3, 1, 8, 8), np.float32)
    for call in (vae.encode, vae, encode_step, vae.stream_encode().push):
        with pytest.raises(UserError, match=r"not ndarray: give torch\.from_numpy\(video\)"):
            call(video)
    with pytest.raises(UserError, match=r"not list: give video as a torch\.Tensor"):
        vae.encode([video])
    with pytest.raises(UserError, match=r"floating point, not torch\.uint8"):
        vae.encode(torch.from_numpy(video).to(torch.uint8))


def test_tokens_that_are_no_tensor_of_whole_numbers(tmp_path: Path) -> None:
    model = RVQVAE.from_pretrained(saved_tokenizer(tmp_path / "m.safetensors"))
    indices = np.zeros((1, 2, model.config.quantizer.num_quantizers), np.int64)
    for call in (model.decode, partial(model.decode_step, state=None)):
        with pytest.raises(UserError, match=r"not ndarray: give torch\.from_numpy\(indices\)"):
            call(indices)
        with pytest.raises(UserError, match=r"indices must be whole numbers, not torch\.float"):
            call(torch.from_numpy(indices).float())


def test_tiles_that_are_no_size() -> None:
    for tile_size in (16.0, (16, 16, 16), "16"):
        with pytest.raises(UserError, match="tile_size must be one number or a height and a width"):
            tiny().encode(torch.zeros(1, 3, 1, 8, 8), tile_size=tile_size)

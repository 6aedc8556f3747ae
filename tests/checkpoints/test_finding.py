"""A model is found wherever it is in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wanvae import WanVAE
from wanvae.checkpoints import formats
from wanvae.checkpoints.source import Source
from wanvae.engine.checkpoint import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
Nest = Callable[[dict[str, Tensor]], Mapping[str, object]]


def golden(name: str = "wan21_tiny") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a reference model, and one of its cases."""
    content = load_file(GOLDEN / f"{name}.safetensors")
    weights = {n.removeprefix("weights."): t for n, t in content.items() if n.startswith("weights")}
    case = "case.1x3x1x32x48."
    return weights, {n.removeprefix(case): t for n, t in content.items() if n.startswith(case)}


def prefixed(prefix: str) -> Nest:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def all_in_one(tensors: dict[str, Tensor]) -> dict[str, object]:
    others = ("model.diffusion_model.blocks.0.self_attn.q.weight", "text_encoders.umt5.shared")
    return {
        **{name: torch.ones(3) for name in others},
        "cond_stage_model.encoder.block.0.weight": torch.ones(2),
        **prefixed("first_stage_model.")(tensors),
    }


def nested(*keys: str, **beside: object) -> Nest:
    def nest(tensors: dict[str, Tensor]) -> dict[str, object]:
        content: dict[str, object] = dict(tensors)
        for key in reversed(keys):
            content = {key: content}
        return content | beside

    return nest


PREFIXES = ("model.", "vae.", "first_stage_model.", "module.", "_orig_mod.", "model._orig_mod.")
WRAPPERS = ("model_state", "state_dict", "model", "vae", "ema", "module", "generator", "gen_model")
WRAPPED_PARTS = {
    "encoder.": "encoder._orig_mod.",
    "decoder.upsamples.0.": "decoder.module.upsamples.0._checkpoint_wrapped_module.",
}


def wrapped_parts(tensors: dict[str, Tensor]) -> dict[str, object]:
    """Parts of a model are wrapped, by torch.compile, DistributedDataParallel and others."""
    return {wrapped(name): tensor for name, tensor in tensors.items()}


def wrapped(name: str) -> str:
    for part, named in WRAPPED_PARTS.items():
        if name.startswith(part):
            return f"vae.{named}{name.removeprefix(part)}"
    return f"vae.{name}"


NESTS: dict[str, Nest] = {
    **{prefix: prefixed(prefix) for prefix in PREFIXES},
    "all-in-one": all_in_one,
    **{wrapper: nested(wrapper, step=7, losses=[1.0]) for wrapper in WRAPPERS},
    "two wrappers": nested("state_dict", "module", optimizer={"state": {0: {"x": torch.ones(1)}}}),
    "wrapped parts": wrapped_parts,
    "list": lambda tensors: {"models": [tensors, [1.0]], "losses": [1.0, 2.0]},
    "both": lambda tensors: {"state_dict": prefixed("module.vae.")(tensors), "epoch": 1},
}


@pytest.mark.parametrize(
    ("nest", "name"), [*((nest, "wan21_tiny") for nest in NESTS), ("both", "wan22_tiny")]
)
def test_a_model_in_a_file_gives_the_same_numbers(tmp_path: Path, nest: str, name: str) -> None:
    weights, case = golden(name)
    content = NESTS[nest](weights)
    if all(isinstance(value, Tensor) for value in content.values()):
        path = tmp_path / "a.safetensors"
        save_file({n: t for n, t in content.items() if isinstance(t, Tensor)}, path)
    else:
        path = tmp_path / "a.pth"
        torch.save(content, path)
    vae = WanVAE.from_pretrained(path)
    posterior = vae.encode(case["video"])
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    assert torch.allclose(moments, case["moments"], atol=1e-4)
    decoded = vae.decode(posterior.mode(), clamp=False)
    assert torch.allclose(decoded, case["decoded"], atol=1e-4)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    weights, _ = golden()
    torch.save(nested("ema", step=3, note="x")(weights), tmp_path / "a.pth")
    notes = "\n".join(formats.load(tmp_path / "a.pth").notes)
    assert "without the prefix ema." in notes and "2 other entries: step, note" in notes


@pytest.mark.parametrize("zipped", [True, False])
def test_of_two_models_none_is_chosen_silently(tmp_path: Path, zipped: bool) -> None:
    weights, _ = golden()
    average = {name: tensor + 1 for name, tensor in weights.items()}
    path = tmp_path / "a.pth"
    content = {"generator": {"module": weights}, "ema": average}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        WanVAE.from_pretrained(path)
    message = str(caught.value)
    for part in ("2 models", "generator.module. (194 tensors, like generator.module.", "ema. ("):
        assert part in message
    assert "--key generator.module." in message and "key='generator.module.'" in message
    for key in ("ema", "ema."):
        vae = WanVAE.from_pretrained(path, key=key)
        assert torch.equal(vae.conv2.weight, average["conv2.weight"])
    for key in ("generator.module", "generator", "module"):
        vae = WanVAE.from_pretrained(Source(path, key))
        assert torch.equal(vae.conv2.weight, weights["conv2.weight"])
    with pytest.raises(CheckpointError, match=r"no model under the key 'vae', only: generator"):
        WanVAE.from_pretrained(path, key="vae")


def test_the_model_without_a_prefix_has_an_empty_key(tmp_path: Path) -> None:
    weights, _ = golden()
    save_file(weights | {f"ema.{n}": t + 1 for n, t in weights.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match='--key ""'):
        WanVAE.from_pretrained(tmp_path / "a.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "a.safetensors", key="")
    assert torch.equal(vae.conv2.weight, weights["conv2.weight"])


def test_a_key_of_a_file_of_one_model_is_refused(tmp_path: Path) -> None:
    weights, _ = golden()
    save_file(weights, tmp_path / "a.safetensors")
    WanVAE.from_pretrained(tmp_path / "a.safetensors").save_pretrained(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="holds one model"):
        WanVAE.from_pretrained(tmp_path / "b.safetensors", key="vae")


def test_a_file_of_very_many_models_is_refused(tmp_path: Path) -> None:
    tensors = {f"{n}.encoder.downsamples.0.residual.0.gamma": torch.ones(1) for n in range(200)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="holds 200 models, more than a checkpoint does"):
        WanVAE.from_pretrained(tmp_path / "a.safetensors")

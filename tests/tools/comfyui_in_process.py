"""What a process does in a real ComfyUI; it prints what it found as JSON in its last line.

Usage: python -m tests.tools.comfyui_in_process COMFYUI FOLDER TASK
"""

# ruff: noqa: E402 (ComfyUI reads its options when it is imported)

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

COMFYUI, FOLDER, TASK = sys.argv[1:]
os.chdir(COMFYUI)
sys.path.insert(0, COMFYUI)
sys.argv[1:] = []

import comfy.cli_args

comfy.cli_args.args.cpu = True

import comfy.model_management as management
import comfy.sd
import comfyui_version
import folder_paths
import nodes
import torch
from torch import Tensor

from tests.tools.comfyui_stand_in import NODES

VAE_FILE = "wan_2.1_vae.safetensors"


def load_nodes(path: Path) -> dict[str, type]:
    """Loads a folder of custom nodes with ComfyUI's own function; returns what it added."""
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(path)))
    return {
        name: kind
        for name, kind in nodes.NODE_CLASS_MAPPINGS.items()
        if before.get(name) is not kind
    }


def call(kind: type, *arguments: Any, **inputs: Any) -> Any:
    """Calls a node of either interface; returns its outputs."""
    if hasattr(kind, "define_schema"):
        return kind.EXECUTE_NORMALIZED(*arguments, **inputs).result
    return getattr(kind(), kind.FUNCTION)(*arguments, **inputs)


def load_ours(**inputs: Any) -> comfy.sd.VAE:
    loader = load_nodes(NODES)["LoadWanVAE"]
    defaults = {
        "name": VAE_FILE,
        "encode_dtype": "float32",
        "decode_dtype": "float32",
        "max_memory": "",
        "alpha": "none",
    }
    (vae,) = call(loader, **{**defaults, **inputs})
    assert isinstance(vae, comfy.sd.VAE)
    return vae


def load_native() -> comfy.sd.VAE:
    (vae,) = call(nodes.VAELoader, VAE_FILE)
    return vae


def make_frames(count: int, height: int, width: int) -> Tensor:
    """Returns frames of a picture that moves, ``(count, height, width, 3)`` in [0, 1]."""
    from PIL import Image

    picture = Image.open(Path(FOLDER) / "input" / "picture.png").resize((width, height))
    import numpy as np

    values = torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
    return torch.stack([values.roll(2 * index, 1) for index in range(count)])


def find_levels(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of two pictures, in levels of 8 bits."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return 255 * (found - expected).abs().max().item()


def find_error(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of two latents, relative to the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compare_nodes() -> dict[str, Any]:
    """Nodes of ComfyUI with its own VAE and with ours."""
    extras = load_extras("nodes_wan.py")
    ours, native = load_ours(), load_native()
    found: dict[str, Any] = {"version": comfyui_version.__version__}
    # An odd size and length, which both crop.
    video = make_frames(7, 70, 100)
    (expected,) = call(nodes.VAEEncode, native, video)
    (latents,) = call(nodes.VAEEncode, ours, video)
    found["VAEEncode"] = find_error(latents["samples"], expected["samples"])
    (tiled,) = call(nodes.VAEEncodeTiled, ours, video, 64, 16)
    found["VAEEncodeTiled against VAEEncode"] = find_error(tiled["samples"], expected["samples"])
    (images,) = call(nodes.VAEDecode, native, expected)
    (decoded,) = call(nodes.VAEDecode, ours, expected)
    found["VAEDecode"] = find_levels(decoded, images)
    (decoded,) = call(nodes.VAEDecodeTiled, ours, expected, 64, 16, 8, 4)
    found["VAEDecodeTiled against VAEDecode"] = find_levels(decoded, images)
    (decoded,) = call(nodes.VAEDecodeTiled, native, expected, 64, 16, 8, 4)
    found["native VAEDecodeTiled against VAEDecode"] = find_levels(decoded, images)
    batch = make_frames(4, 32, 32)
    (expected,) = call(nodes.VAEEncode, native, batch)
    (latents,) = call(nodes.VAEEncode, ours, batch)
    found["a batch of 4"] = find_error(latents["samples"], expected["samples"])
    conditioning = [[torch.zeros(1, 4, 8), {}]]
    for name, options in {
        "WanImageToVideo": {"start_image": video[:1]},
        "WanFirstLastFrameToVideo": {"start_image": video[:1], "end_image": video[-1:]},
        "WanVaceToVideo": {"strength": 1.0, "control_video": video, "reference_image": video[:1]},
    }.items():
        common = {"width": 64, "height": 48, "length": 5, "batch_size": 1}
        results = [
            call(extras[name], conditioning, conditioning, vae, **common, **options)
            for vae in (ours, native)
        ]
        found[name] = max(find_error(a, b) for a, b in zip(*map(latents_in, results), strict=True))
    mask = torch.zeros(1, 48, 64)
    results = [
        call(
            nodes.InpaintModelConditioning,
            conditioning,
            conditioning,
            video[:1, :48, :64],
            vae,
            mask,
        )
        for vae in (ours, native)
    ]
    found["InpaintModelConditioning"] = max(
        find_error(a, b) for a, b in zip(*map(latents_in, results), strict=True)
    )
    for name in dir(native):
        if not name.startswith("__"):
            assert hasattr(ours, name), name
    for name in (
        *("latent_channels", "latent_dim", "output_channels", "not_video", "crop_input"),
        *("upscale_index_formula", "downscale_index_formula", "extra_1d_channel"),
        *("device", "output_device", "vae_dtype"),
    ):
        assert getattr(ours, name) == getattr(native, name), name
    for name in (
        *("spacial_compression_encode", "spacial_compression_decode"),
        "temporal_compression_decode",
    ):
        assert getattr(ours, name)() == getattr(native, name)(), name
    for count in range(1, 20):
        assert ours.upscale_ratio[0](count) == native.upscale_ratio[0](count)
        assert ours.downscale_ratio[0](count) == native.downscale_ratio[0](count)
    assert ours.get_sd().keys() == native.get_sd().keys()
    assert all(torch.equal(x, ours.get_sd()[name]) for name, x in native.get_sd().items())
    return found


def load_extras(name: str) -> dict[str, type]:
    """Loads a file of nodes that ComfyUI ships beside its own."""
    return load_nodes(Path(COMFYUI) / "comfy_extras" / name)


def latents_in(values: Any) -> list[Tensor]:
    """Returns the tensors in what a node returns."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() and values.abs().max() > 0 else []
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, str | int | float | None):
        return []
    return [x for value in values for x in latents_in(value)]


def sample() -> dict[str, Any]:
    """An image becomes a video by a tiny diffusion model, from conditioning to pixels."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    torch.manual_seed(0)
    network = WanModel(
        model_type="i2v",
        in_dim=36,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=1,
        operations=comfy.ops.disable_weight_init,
        device="cpu",
        dtype=torch.float32,
    )
    weights = {name: 0.02 * torch.randn(x.shape) for name, x in network.state_dict().items()}
    model = comfy.sd.load_diffusion_model_state_dict(weights)
    assert model is not None
    extras = load_extras("nodes_wan.py")
    text = torch.randn(1, 4, 4096)
    results = []
    for vae in (load_ours(), load_native()):
        positive, negative, latent = call(
            extras["WanImageToVideo"],
            *([[text, {}]], [[-text, {}]], vae),
            width=64,
            height=48,
            length=5,
            batch_size=1,
            start_image=make_frames(1, 48, 64),
        )
        arguments = model, 0, 2, 3.0, "euler", "simple", positive, negative, latent
        (sampled,) = call(nodes.KSampler, *arguments)
        (images,) = call(nodes.VAEDecode, vae, sampled)
        results.append((sampled["samples"], images))
    (latents, images), (expected, wanted) = results
    return {"latents": find_error(latents, expected), "levels": find_levels(images, wanted)}


class Clip:
    """A stand-in for a text encoder: it keeps the images."""

    def tokenize(self, prompt: str, images: list[Tensor], **_: object) -> list[Tensor]:
        return images

    def encode_from_tokens_scheduled(self, tokens: list[Tensor]) -> list[Any]:
        return [[torch.zeros(1, 4, 8), {}]]


def edit() -> dict[str, Any]:
    """Nodes that edit with Qwen-Image encode a reference, which they scale to a megapixel."""
    extras = load_extras("nodes_qwen.py")
    vae = load_ours(name="small.safetensors")
    image = make_frames(1, 96, 128)
    found = {}
    (conditioning,) = call(extras["TextEncodeQwenImageEdit"], Clip(), "text", vae, image)
    (latents,) = conditioning[0][1]["reference_latents"]
    found["TextEncodeQwenImageEdit"] = [*latents.shape]
    (conditioning,) = call(
        extras["TextEncodeQwenImageEditPlus"], Clip(), "text", vae, image1=image, image2=image
    )
    found["TextEncodeQwenImageEditPlus"] = [
        [*latents.shape] for latents in conditioning[0][1]["reference_latents"]
    ]
    return found


def manage() -> dict[str, Any]:
    """ComfyUI loads, unloads and forgets the model; a person stops the work."""
    vae = load_ours(name="small.safetensors")
    found: dict[str, Any] = {}
    latents = torch.randn(1, 16, 3, 8, 8)
    assert management.loaded_models() == []
    images = vae.decode(latents)
    found["loaded"] = management.loaded_models() == [vae.patcher]
    management.unload_all_models()
    found["unloaded"] = management.loaded_models() == []
    assert torch.equal(vae.decode(latents), images)
    found["loaded again"] = management.loaded_models() == [vae.patcher]
    gc.collect()
    gc.disable()
    del vae
    found["forgotten"] = management.current_loaded_models == []
    gc.enable()
    vae = load_ours()
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.process_time())
        management.interrupt_current_processing()

    timer = threading.Timer(2, stop)
    timer.start()
    try:
        vae.decode(torch.randn(1, 16, 21, 32, 32))
    except management.InterruptProcessingException:
        found["CPU seconds to stop"] = time.process_time() - stopped[0]
    management.interrupt_current_processing(False)
    return found


def save() -> dict[str, Any]:
    """ComfyUI saves our VAE, and its own VAE loads the file."""
    import comfy.utils

    folder_paths.set_output_directory(str(Path(FOLDER) / "saved"))
    call(load_extras("nodes_model_merging.py")["VAESave"], load_ours(), "vae")
    (path,) = (Path(FOLDER) / "saved").iterdir()
    loaded, native = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path))), load_native()
    latents = native.encode(make_frames(1, 32, 48))
    return {"levels": find_levels(loaded.decode(latents), native.decode(latents))}


def third_interface() -> dict[str, Any]:
    """A folder that has nothing but an entry point is loaded through it."""
    folder = Path(FOLDER) / "third"
    folder.mkdir()
    lines = (
        "import importlib.util, sys",
        f"path = {str(NODES / '__init__.py')!r}",
        "spec = importlib.util.spec_from_file_location('third_nodes', path)",
        "module = importlib.util.module_from_spec(spec)",
        "sys.modules['third_nodes'] = module",
        "spec.loader.exec_module(module)",
        "comfy_entrypoint = module.comfy_entrypoint",
    )
    (folder / "__init__.py").write_text("\n".join(lines))
    first, third = load_nodes(NODES), load_nodes(folder)
    assert first.keys() == third.keys()
    # Both tell the interface the same.
    inputs = {name: kind.INPUT_TYPES()["required"] for name, kind in first.items()}
    for name, kind in third.items():
        told = kind.INPUT_TYPES()["required"]
        assert [*told] == [*inputs[name]]
        for given, (expected, options) in inputs[name].items():
            kind_of, told_options = told[given]
            choices = told_options.pop("options", kind_of)
            assert choices == expected
            assert told_options.items() >= options.items()
    limits = {"tile_size": 16, "max_memory": "", "latents": "raw, as ComfyUI has them"}
    results = []
    for kinds in (first, third):
        (vae,) = call(
            kinds["LoadWanVAE"],
            name="small.safetensors",
            encode_dtype="float32",
            decode_dtype="as ComfyUI chooses",
            max_memory="",
            alpha="none",
        )
        images = make_frames(3, 32, 48)
        encode, decode = kinds["EncodeWanVAE"], kinds["DecodeWanVAE"]
        (latents,) = call(encode, vae=vae, images=images, batch="separate images", **limits)
        results.append(call(decode, vae=vae, samples=latents, **limits)[0])
    assert results[0].shape == (3, 32, 48, 3)
    return {"equal": torch.equal(*results)}


def measure(vae: comfy.sd.VAE) -> dict[str, Any]:
    """CPU seconds and peak memory of a clip there and back, in a fresh process."""
    video = make_frames(9, 96, 128)
    found = {}
    latents = None
    for name in ("encode", "decode"):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before, start = read_memory("VmRSS"), time.process_time()
        if latents is None:
            latents = vae.encode(video)
        else:
            vae.decode(latents)
        found[f"{name} seconds"] = time.process_time() - start
        found[f"{name} MB"] = (read_memory("VmHWM") - before) / 1024
    return found


def read_memory(name: str) -> int:
    """Returns a number of KB from what the system says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1])


TASKS = {
    "compare": compare_nodes,
    "sample": sample,
    "edit": edit,
    "manage": manage,
    "save": save,
    "third": third_interface,
    "measure native": lambda: measure(load_native()),
    "measure ours": lambda: measure(load_ours()),
}


def main() -> None:
    folder_paths.add_model_folder_path("vae", str(Path(FOLDER) / "models" / "vae"))
    with torch.inference_mode():
        print(json.dumps(TASKS[TASK]()))


if __name__ == "__main__":
    main()

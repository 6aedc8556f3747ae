"""Stand-ins for the modules of ComfyUI that the nodes use, with a device that has little memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

NODES = Path(__file__).parents[2] / "tools" / "comfyui"
CPU = torch.device("cpu")
PLENTY = 2**40


class OutOfMemory(Exception):
    """What the device raises without memory."""


class Interrupted(Exception):
    """What ComfyUI raises when a person stops the work."""


@dataclass
class ComfyUI:
    """What the stand-ins know and do, for tests to set and to look at.

    Attributes:
        free: bytes that are free on the device.
        loads: the model and the memory of each request to load a model.
        bars: the values that each progress bar has shown.
        checks: how often somebody asked whether to stop.
        stop_after: the number of such questions after which the work is stopped.
        modules: the modules, by name.
    """

    free: int = PLENTY
    loads: list[tuple[ModelPatcher, int]] = field(default_factory=list)
    bars: list[list[int]] = field(default_factory=list)
    checks: int = 0
    stop_after: int | None = None
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def load_models_gpu(
        self, models: list[ModelPatcher], memory_required: float = 0, force_full_load: bool = False
    ) -> None:
        """Notes what is asked for."""
        assert force_full_load
        (patcher,) = models
        self.loads.append((patcher, int(memory_required)))

    def check_interrupted(self) -> None:
        """Stops the work if it is time to."""
        self.checks += 1
        if self.stop_after is not None and self.checks > self.stop_after:
            raise Interrupted


class ModelPatcher:
    """What loads and frees a model."""

    def __init__(
        self, model: nn.Module, load_device: torch.device, offload_device: torch.device
    ) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


class VAE:
    """The class whose objects ComfyUI's nodes take; it refuses what it does not know."""

    first_stage_model: nn.Module | None
    upscale_ratio: object
    downscale_ratio: object

    def __init__(self, sd: dict[str, Tensor]) -> None:
        raise AssertionError("its constructor knows no model of ours")

    def throw_exception_if_invalid(self) -> None:
        """Checks that there is a model."""
        assert self.first_stage_model is not None

    def spacial_compression_decode(self) -> int:
        """Returns the pixels for a latent, along one side."""
        return last(self.upscale_ratio)

    def spacial_compression_encode(self) -> int:
        """Returns the pixels for a latent, along one side."""
        return last(self.downscale_ratio)

    def temporal_compression_decode(self) -> int | None:
        """Returns the frames for a latent."""
        ratio = self.upscale_ratio
        return round(ratio[0](2**13) / 2**13) if isinstance(ratio, tuple) else None

    def get_sd(self) -> dict[str, Tensor]:
        """Returns the tensors of the model."""
        return self.first_stage_model.state_dict()


def last(ratio: object) -> int:
    return ratio[-1] if isinstance(ratio, tuple) else ratio


def make_modules(comfyui: ComfyUI, folder: Path) -> dict[str, ModuleType]:
    """Returns the stand-ins. Checkpoints are in ``folder``."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.current, self.shown = total, 0, []
            comfyui.bars.append(self.shown)

        def update_absolute(self, value: int) -> None:
            self.current = value
            self.shown.append(value)

    contents: dict[str, dict[str, object]] = {
        "folder_paths": {
            "get_filename_list": lambda kind: sorted(p.name for p in (folder / kind).iterdir()),
            "get_full_path_or_raise": lambda kind, name: str(folder / kind / name),
        },
        "comfy": {},
        "comfy.sd": {"VAE": VAE},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "OOM_EXCEPTION": OutOfMemory,
            "get_free_memory": lambda device: comfyui.free,
            "intermediate_device": lambda: CPU,
            "load_models_gpu": comfyui.load_models_gpu,
            "module_size": lambda module: sum(x.nbytes for x in module.state_dict().values()),
            "soft_empty_cache": lambda: None,
            "throw_exception_if_processing_interrupted": comfyui.check_interrupted,
            "vae_device": lambda: CPU,
            "vae_dtype": lambda device, allowed: allowed[0],
            "vae_offload_device": lambda: CPU,
        },
        "comfy_api": {},
        "comfy_api.latest": {"io": make_io(), "ComfyExtension": type("ComfyExtension", (), {})},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        comfyui.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(comfyui.modules[parent], child, module)
    return comfyui.modules


def make_io() -> ModuleType:
    """Returns the part of the third interface with types of inputs and outputs."""

    @dataclass
    class Declared:
        """An input or an output of a type."""

        type: str
        id: str = ""
        options: dict[str, object] = field(default_factory=dict)

    @dataclass
    class Schema:
        """What a node says of itself."""

        node_id: str
        display_name: str
        category: str
        description: str
        inputs: list[Declared]
        outputs: list[Declared]

    def make_type(name: str) -> type:
        def make(of: str) -> Callable[..., Declared]:
            return lambda id="", **options: Declared(of, id, options)

        return type(name, (), {"Input": make(name), "Output": make(name)})

    module = ModuleType("io")
    names = ("Vae", "Image", "Latent", "Combo", "Int", "String")
    vars(module).update({name: make_type(name.upper()) for name in names})
    module.Schema, module.ComfyNode, module.Input = Schema, type("ComfyNode", (), {}), Declared
    module.NodeOutput = lambda *values: values
    return module


def load_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Loads the nodes as ComfyUI does: a folder, under a name made of its path."""
    name = str(NODES).replace(".", "_x_")
    for known in [known for known in sys.modules if known.startswith(name)]:
        monkeypatch.delitem(sys.modules, known)
    spec = spec_from_file_location(name, NODES / "__init__.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module

"""Small models with random weights, and what the published code computes with them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = (
    "momask_tiny_relu_None",
    "momask_tiny_gelu_GN",
    "momask_tiny_silu_LN",
    "momask_tiny_relu_BN",
    "momask_tiny_shared",
    "gesturelsm_tiny",
    "t2mgpt_tiny",
)


@dataclass(frozen=True)
class Reference:
    """A file of golden tensors.

    Attributes:
        options: what the published code was built with.
        weights: its tensors, by their published names.
        cases: inputs and outputs, by shape and name.
    """

    options: dict
    weights: dict[str, Tensor]
    cases: dict[str, dict[str, Tensor]]


def read(name: str) -> Reference:
    weights, cases = {}, {}
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.startswith("weights."):
                weights[key.removeprefix("weights.")] = file.get_tensor(key)
            else:
                _, shape, part = key.split(".")
                cases.setdefault(shape, {})[part] = file.get_tensor(key)
        return Reference(json.loads(file.metadata()["config"]), weights, cases)


def save_published(reference: Reference, path: Path) -> Path:
    """As published: a pickle of the weights beside what training left."""
    content = {"vq_model" if "momask" in path.stem else "net": reference.weights}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 2e-4}]}
    torch.save({**content, "opt_vq_model": optimizer, "ep": 3, "total_it": 100}, path)
    return path


def untold(reference: Reference) -> dict:
    """What ``from_pretrained`` has to be told."""
    norm = reference.options["norm"]
    return {"activation": reference.options["activation"], "norm": norm if norm != "BN" else None}


def all_cases() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        for shape in read(name).cases:
            yield name, shape

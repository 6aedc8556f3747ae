"""The reference models of the tests, and files of them in layouts of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class Reference:
    """The weights of a reference model, and the results of the official code for a video."""

    weights: dict[str, Tensor]
    video: Tensor
    moments: Tensor
    decoded: Tensor


CASES = {
    "wan21_tiny": "1x3x1x32x48",
    "wan21_attn_tiny": "1x3x9x32x32",
    "wan22_tiny": "1x3x1x32x48",
}


def reference(name: str) -> Reference:
    content = load_file(GOLDEN / f"{name}.safetensors")
    weights = {n.removeprefix("weights."): t for n, t in content.items() if n.startswith("weights")}
    case = f"case.{CASES[name]}."
    results = [content[f"{case}{result}"] for result in ("video", "moments", "decoded")]
    return Reference(weights, *results)


def write_gguf(path: Path, tensors: dict[str, Tensor], kind: str, flat: str) -> dict[str, Tensor]:
    """Writes tensors with the library gguf; returns what they are after rounding.

    Args:
        kind: type of the weights that have whole blocks. Others are in F32.
        flat: how kernels of five axes are stored: "as they are", "original shape" flattened with
            their shape beside them, or "joined" in their first two axes.
    """
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    writer, expected = gguf.GGUFWriter(path, "wan"), {}
    writer.add_array("tokens", ["a", "bc"] * 20)
    writer.add_array("numbers", list(range(100)))
    for name, tensor in tensors.items():
        values = tensor.numpy()
        kernel = name.endswith(".weight") and tensor.dim() == 5
        rows = values.shape[-1] if flat != "original shape" or not kernel else 32
        block, _ = gguf.GGML_QUANT_SIZES[quantized]
        used = quantized if kernel and values.size % rows == 0 and rows % block == 0 else None
        if kernel and flat == "original shape" and values.size % 32 == 0:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(map(int, values.shape)))
            values = values.reshape(-1, 32)
        elif kernel and flat == "joined":
            values = values.reshape(-1, *values.shape[2:])
        if used is None or used is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(values))
            expected[name] = tensor
            continue
        data = gguf.quants.quantize(values, used)
        writer.add_tensor(name, data, raw_dtype=used)
        floats = gguf.quants.dequantize(data, used)
        expected[name] = torch.from_numpy(floats.copy()).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected

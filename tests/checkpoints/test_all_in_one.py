"""Of a file with much else in it, only the model is read."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from wanvae import WanVAE, WanVAEConfig

OTHERS = 8 * 2**30
# Read anew in each process: what loading adds to the memory, and how much of the file it reads.
MEASURE = """
import sys
from pathlib import Path
import torch
from wanvae import WanVAE

torch.set_num_threads(1)

def read_bytes():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0])

WanVAE.from_pretrained(sys.argv[1])  # what the first time alone takes
memory, read = peak(), read_bytes()
vae = WanVAE.from_pretrained(sys.argv[2])
print(peak() - memory, read_bytes() - read)
"""


def write_around(path: Path, content: bytes, prefix: str) -> None:
    """Writes a safetensors file with a hole of 8 GB before and after the tensors of another."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length

    def other(first: int) -> dict[str, object]:
        offsets = [first, first + OTHERS // 2]
        return {"dtype": "F16", "shape": [OTHERS // 4], "data_offsets": offsets}

    moved = {"model.diffusion_model.blocks.0.self_attn.q.weight": other(0)}
    for name, entry in header.items():
        offsets = [OTHERS // 2 + place for place in entry["data_offsets"]]
        moved[f"{prefix}{name}"] = entry | {"data_offsets": offsets}
    moved["text_encoders.umt5xxl.transformer.shared.weight"] = other(OTHERS // 2 + end)
    text = json.dumps(moved).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(OTHERS // 2, 1)
        file.write(content[8 + length :])
        file.seek(OTHERS // 2 - 1, 1)
        file.write(b"\0")


def measure(small: Path, path: Path) -> tuple[int, int]:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    memory, read = run.stdout.split()
    return int(memory), int(read)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts of Linux")
def test_an_all_in_one_of_8_gb_takes_the_memory_of_its_model(tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    WanVAE(WanVAEConfig(dim=4)).save_pretrained(small)
    with torch.device("meta"):
        names = WanVAE(WanVAEConfig(dim=64)).state_dict()
    tensors = {name: torch.rand(tensor.shape) for name, tensor in names.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    content = save(tensors)
    bare, whole = tmp_path / "bare.safetensors", tmp_path / "all.safetensors"
    bare.write_bytes(content)
    write_around(whole, content, "vae.")
    bare_memory, bare_read = measure(small, bare)
    memory, read = measure(small, whole)
    assert size > 150e6
    assert memory <= 1.3 * size and memory <= bare_memory + 0.1 * size
    assert read <= 1.05 * size and read <= bare_read + 1e6

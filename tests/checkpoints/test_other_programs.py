"""Files that we write, loaded by the code of other programs, which gives our values.

The programs are looked for among the installed packages, and in the folder that the environment
variable WANVAE_PROGRAMS names: in its subfolders, and in their folders ``src``. A subfolder is the
source of a program, or what ``pip install --no-deps --target`` writes. Programs that are not there
are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import random_video
from tests.other_programs import FILES, find
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints.formats import Layout
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD
from wanvae.commands.convert import convert

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "tests" / "other_programs.py"
# The files that a program loads, and how latents are scaled there.
LOADED = {
    "wan": (["official.pth"], "normalized"),
    "musubi-tuner": (["official.pth", "official.safetensors", "native.safetensors"], "normalized"),
    "diffsynth": (["official.pth", "official.safetensors"], "normalized"),
    "fastvideo": (["diffusers"], "raw"),
    "comfyui": (["official.pth", "official.safetensors", "native.safetensors"], "raw"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[WanVAE, Path]:
    """A model of full size, because programs have no other, in files of all layouts."""
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig(latents_mean=WAN21_MEAN, latents_std=WAN21_STD)).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    native = folder / "native.safetensors"
    vae.save_pretrained(native)
    convert(native, folder / "official.pth", Layout.WAN)
    convert(native, folder / "official.safetensors", Layout.WAN)
    convert(native, folder / "diffusers", Layout.DIFFUSERS)
    return vae, folder


def search_path() -> list[str]:
    """Where programs may be, besides the installed packages."""
    named = os.environ.get("WANVAE_PROGRAMS")
    folders = [f for f in Path(named).resolve().iterdir() if f.is_dir()] if named else []
    return [str(place) for folder in folders for place in (folder, folder / "src")]


def run(program: str, checkpoint: Path, inputs: dict[str, Tensor], folder: Path) -> dict:
    """What a program gives of these inputs."""
    save_file(inputs, folder / "inputs.safetensors")
    names = (folder / "inputs.safetensors", folder / "outputs.safetensors")
    command = [sys.executable, "-W", "ignore", RUNNER, program, checkpoint, *names]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(search_path())}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(names[1])


@pytest.mark.slow  # a model of full size
@pytest.mark.parametrize(
    ("program", "file"),
    [(program, file) for program, (files, _) in LOADED.items() for file in files],
)
def test_its_code_loads_our_files(
    program: str, file: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if find(FILES[program], [*search_path(), *sys.path]) is None:
        pytest.skip(f"{program} is not installed, nor in the folder of WANVAE_PROGRAMS")
    vae, folder = request.getfixturevalue("written")
    video = random_video(5, 32, 48).float().contiguous()
    raw = vae.encode(video).mode()
    latents = vae.normalize(raw) if LOADED[program][1] == "normalized" else raw
    outputs = run(program, folder / file, {"video": video, "latents": latents}, tmp_path)
    decoded = vae.decode(raw)
    assert latents.std() > 0.05 and decoded.std() > 0.05
    torch.testing.assert_close(outputs["latents"], latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs["video"], decoded, atol=2e-4, rtol=0)

"""What the package promises to those who install it."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import av
import numpy as np
import pytest

import motion
import wanvae
from wanvae import config, model, posterior

ROOT = Path(__file__).parent.parent
# What a wheel is built from.
SOURCES = ("LICENSE", "README.md", "configs", "motion", "pyproject.toml", "wanvae")


def test_the_names_of_wanvae() -> None:
    names = ["BucketBatches", "CUDAGraphs", "LatentDataset", "Posterior", "Reconstruction"]
    tiny = ["TinyVAE", "TinyVAEConfig"]
    assert wanvae.__all__ == [*names, *tiny, "WanVAE", "WanVAEConfig", "__version__"]


@pytest.mark.parametrize("package", [wanvae, motion])
def test_names_are_there_and_the_version_is_that_of_the_project(package: object) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None and package.__version__ == version[1]
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("module", [config, model, posterior])
def test_the_examples_in_docstrings_run(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def run(command: list[object], **options: object) -> str:
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, **options
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_wanvae_imports_little() -> None:
    heavy = ("accelerate", "av", "diffusers", "huggingface_hub", "jsonargparse", "transformers")
    code = f"import sys, wanvae; print([name for name in {heavy} if name in sys.modules])"
    assert run([sys.executable, "-c", code], cwd=ROOT) == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run([sys.executable, "-m", "pip", "wheel", source, *options])
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_all_that_is_needed(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    for folder in ("wanvae", "motion"):
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert {*modules, f"{folder}/py.typed"} <= {*names}
    assert {"wanvae/weights/demo.safetensors", "wanvae/configs/video/tiny.yaml"} <= {*names}
    assert "motion/configs/tiny.yaml" in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    # It shares the dependencies of this environment, but not its editable packages.
    packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps", "--no-index", "--ignore-installed"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel])

    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    here = {"cwd": tmp_path, "env": variables}
    code = "import motion, wanvae; print(wanvae.__file__, motion.__file__)"
    assert run([python, "-c", code], **here).count(packages) == 2
    assert "demo.safetensors: native layout" in run([scripts / "wanvae", "info"], **here)
    write_video(tmp_path / "in.mp4")
    assert "5 frames" in run([scripts / "wanvae", "reconstruct", "in.mp4", "out.mp4"], **here)
    assert (tmp_path / "out.mp4").stat().st_size > 0
    run([scripts / "wanvae-motion", "sample", "walk.bvh"], **here)
    run([scripts / "wanvae", "evaluate", "in.mp4", "--output", "report"], **here)
    assert (tmp_path / "report" / "report.html").stat().st_size > 0


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        for shade in range(5):
            picture = np.full((32, 32, 3), 40 * shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))

"""The nodes in a real ComfyUI.

The environment variable WANVAE_COMFYUI names a checkout of ComfyUI, and WANVAE_COMFYUI_PYTHON a
Python that has the requirements of ComfyUI and of wanvae; it is this Python if not given.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.pages import BROWSER, needs_browser
from tests.tools.comfyui_stand_in import NODES
from tests.tools.comfyui_workflows import EXAMPLES, check_links, read, to_prompt
from tests.tools.mosaic import mosaic
from wanvae import WanVAE
from wanvae.checkpoints.checkpoint import Layout
from wanvae.commands.convert import convert
from wanvae.demo import demo_weights
from wanvae.video import write_video

ROOT = NODES.parents[1]
CHECKOUT = os.environ.get("WANVAE_COMFYUI")
PYTHON = os.environ.get("WANVAE_COMFYUI_PYTHON", sys.executable)
PATIENCE = 900  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHECKOUT is None, reason="WANVAE_COMFYUI names no checkout of ComfyUI"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a person: models, input, and our nodes among the custom nodes."""
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("models/vae", "models/vae_approx", "input", "output", "custom_nodes"):
        (folder / name).mkdir(parents=True)
    full, small = folder / "full.safetensors", folder / "models" / "vae" / "small.safetensors"
    mosaic().save_pretrained(full)
    convert(full, folder / "models" / "vae" / "wan_2.1_vae.safetensors", Layout.WAN)
    full.unlink()
    vae = WanVAE.from_pretrained(demo_weights(), dtype="float32")
    vae.save_pretrained(small)
    shutil.copytree(NODES, folder / "custom_nodes" / "wanvae")
    picture = astronaut()[:96, 170:298]
    Image.fromarray(picture).save(folder / "input" / "picture.png")
    write_clip(folder / "input" / "clip.mp4", picture)
    return folder


def write_clip(path: Path, picture: np.ndarray) -> None:
    """Writes five frames of a picture that moves."""
    import torch

    values = torch.from_numpy(picture).movedim(-1, 0).float() / 127.5 - 1
    write_video(path, torch.stack([values.roll(2 * i, -1) for i in range(5)], dim=1), 24)


def run_task(folder: Path, task: str) -> dict[str, Any]:
    """Returns what a process in ComfyUI found."""
    command = [PYTHON, "-m", "tests.tools.comfyui_in_process", CHECKOUT, str(folder), task]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(task, found)
    return found


def test_nodes_of_comfyui_give_what_they_give_with_its_own_vae(folder: Path) -> None:
    found = run_task(folder, "compare")
    assert found.pop("version")
    assert found.pop("native VAEDecodeTiled against VAEDecode") > 1
    for name, difference in found.items():
        assert difference < (0.1 if "Decode" in name else 1e-4), name


def test_a_video_is_sampled_from_an_image(folder: Path) -> None:
    found = run_task(folder, "sample")
    assert found["latents"] < 1e-4 and found["levels"] < 0.1


def test_references_are_encoded_for_edits(folder: Path) -> None:
    found = run_task(folder, "edit")
    shape = found["TextEncodeQwenImageEdit"]
    assert shape[:3] == [1, 16, 1]
    assert 0.95 < 64 * shape[3] * shape[4] / 2**20 < 1.05
    assert len(found["TextEncodeQwenImageEditPlus"]) == 2


def test_comfyui_manages_the_model(folder: Path) -> None:
    found = run_task(folder, "manage")
    seconds = found.pop("CPU seconds to stop")
    assert found == dict.fromkeys(("loaded", "unloaded", "loaded again", "forgotten"), True)
    assert seconds < 1


def test_comfyui_saves_the_model(folder: Path) -> None:
    assert run_task(folder, "save") == {"levels": 0}


def test_the_third_interface(folder: Path) -> None:
    assert run_task(folder, "third") == {"equal": True}


def test_time_and_memory(folder: Path) -> None:
    native, ours = (run_task(folder, f"measure {whose}") for whose in ("native", "ours"))
    for name in native:
        assert ours[name] < native[name], name


@dataclass(frozen=True)
class Server:
    """A server of ComfyUI."""

    address: str
    folder: Path

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """Returns the answer to a request."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs a workflow; returns the files that it wrote, in the order of its nodes."""
        started = self.ask("/prompt", {"prompt": prompt})
        assert not started["node_errors"]
        number = started["prompt_id"]
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            history = self.ask(f"/history/{number}")
            if number in history and history[number]["status"]["completed"]:
                outputs = history[number]["outputs"]
                nodes = sorted(outputs, key=int)
                return [
                    each
                    for node in nodes
                    for files in outputs[node].values()
                    for each in files
                    if isinstance(each, dict)
                ]
            if number in history:
                raise AssertionError(history[number]["status"])
            time.sleep(0.2)
        raise AssertionError("the server did not finish")

    def path(self, written: dict[str, Any]) -> Path:
        """Returns where a file is that the server wrote."""
        return self.folder / "output" / written["subfolder"] / written["filename"]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(PYTHON, "main.py", "--cpu", "--port", str(port), "--disable-auto-launch"),
        *("--base-directory", str(folder)),
        *("--database-url", "sqlite:///:memory:"),
    ]
    log = folder / "server.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", folder)
    try:
        wait_for(server, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            server.ask("/system_stats")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


def test_a_server_has_our_nodes_and_examples(server: Server) -> None:
    told = server.ask("/object_info")
    assert {"LoadWanVAE", "LoadTinyVAE", "EncodeWanVAE", "DecodeWanVAE"} <= told.keys()
    known = {name: describe(told[name]) for name in told}
    for path in EXAMPLES:
        check_links(read(path), known)
    assert "wanvae" in server.ask("/workflow_templates")
    log = (server.folder / "server.log").read_text()
    assert "Unable to parse pyproject" not in log and f"Cannot import {server.folder}" not in log


def describe(told: dict[str, Any]) -> dict[str, Any]:
    """Returns the sockets of a node, of what a server tells of it."""
    inputs = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
    types = {name: given[0] for name, given in inputs.items() if isinstance(given[0], str)}
    return {"inputs": types, "outputs": told["output"]}


@needs_browser
def test_the_interface_loads_the_examples(server: Server) -> None:
    """In a browser; what the interface would send is what the other tests send."""
    fields = fields_of(server.ask("/object_info"))
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(server.address, wait_until="domcontentloaded")
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        for path in EXAMPLES:
            workflow = read(path)
            page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
            sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
            expected = to_prompt(workflow, fields)
            assert sent.keys() == expected.keys()
            for number, node in expected.items():
                assert sent[number]["class_type"] == node["class_type"]
                # A newer interface adds previews.
                assert sent[number]["inputs"].items() >= node["inputs"].items()
        browser.close()


def fields_of(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the inputs of each node, of what a server tells of all nodes."""
    return {
        name: {**each["input"].get("required", {}), **each["input"].get("optional", {})}
        for name, each in told.items()
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_server_runs_the_examples(server: Server, path: Path) -> None:
    prompt = to_prompt(read(path), fields_of(server.ask("/object_info")))
    (loader,) = (node for node in prompt.values() if node["class_type"] == "LoadWanVAE")
    loader["inputs"]["name"] = "small.safetensors"  # the same function, faster
    (written,) = server.run(prompt)
    assert server.path(written).stat().st_size > 1000


def test_pictures_of_a_server_are_those_of_its_own_vae(server: Server) -> None:
    def node(kind: str, **inputs: object) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    ours, native = ["2", 0], ["3", 0]
    loader = {
        "name": "wan_2.1_vae.safetensors",
        "encode_dtype": "float32",
        "decode_dtype": "as ComfyUI chooses",
        "max_memory": "",
        "alpha": "none",
    }
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    limits = {"tile_size": 32, "max_memory": "", "latents": "raw, as ComfyUI has them"}
    prompt = {
        "1": node("LoadImage", image="picture.png"),
        "2": node("LoadWanVAE", **loader),
        "3": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "4": node("VAEEncode", pixels=["1", 0], vae=native),
        "5": node("VAEDecode", samples=["4", 0], vae=native),
        "6": node("VAEEncode", pixels=["1", 0], vae=ours),
        "7": node("VAEDecode", samples=["6", 0], vae=ours),
        "8": node("VAEDecodeTiled", samples=["6", 0], vae=ours, **tiles),
        "9": node("DecodeWanVAE", samples=["4", 0], vae=ours, **limits),
    }
    for number, decoded in enumerate(("5", "7", "8", "9"), start=10):
        prompt[str(number)] = node("SaveImage", images=[decoded, 0], filename_prefix=decoded)
    written = server.run(prompt)
    expected, *found = (np.asarray(Image.open(server.path(each))).astype(int) for each in written)
    assert len(found) == 3 and expected.shape == (96, 128, 3) and expected.std() > 30
    for picture in found:
        assert abs(picture - expected).max() <= 1
    assert "Requested to load" in (server.folder / "server.log").read_text()

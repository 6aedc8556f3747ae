"""The folder that people copy to ComfyUI: what its registry reads, and the example workflows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tools.comfyui_stand_in import NODES, ComfyUI, load_package, make_modules
from tests.tools.comfyui_workflows import EXAMPLES, FIELDS, check_links, read, to_prompt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = NODES.parents[1]
# Sockets of nodes of ComfyUI in the examples, as ComfyUI 0.3.64 and 0.38 have them.
OF_COMFYUI = {
    "LoadImage": {"inputs": {}, "outputs": ["IMAGE", "MASK"]},
    "LoadVideo": {"inputs": {}, "outputs": ["VIDEO"]},
    "GetVideoComponents": {"inputs": {"video": "VIDEO"}, "outputs": ["IMAGE", "AUDIO", "FLOAT"]},
    "CreateVideo": {
        "inputs": {"images": "IMAGE", "audio": "AUDIO", "fps": "FLOAT"},
        "outputs": ["VIDEO"],
    },
    "SaveVideo": {"inputs": {"video": "VIDEO"}, "outputs": []},
    "SaveImage": {"inputs": {"images": "IMAGE"}, "outputs": []},
    "VAEEncode": {"inputs": {"pixels": "IMAGE", "vae": "VAE"}, "outputs": ["LATENT"]},
    "VAEDecodeTiled": {"inputs": {"samples": "LATENT", "vae": "VAE"}, "outputs": ["IMAGE"]},
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae_approx").mkdir()
    (tmp_path / "vae" / "wan_2.1_vae.safetensors").touch()
    for name, module in make_modules(ComfyUI(), tmp_path).items():
        monkeypatch.setitem(sys.modules, name, module)
    return load_package(monkeypatch)


def declared_inputs(package: ModuleType) -> dict[str, dict[str, Any]]:
    return {
        name: kind.INPUT_TYPES()["required"] for name, kind in package.NODE_CLASS_MAPPINGS.items()
    }


def test_examples_have_sockets_that_exist(package: ModuleType) -> None:
    known: dict[str, Any] = dict(OF_COMFYUI)
    for name, inputs in declared_inputs(package).items():
        types = {each: kind for each, (kind, _) in inputs.items() if isinstance(kind, str)}
        outputs = [*package.NODE_CLASS_MAPPINGS[name].RETURN_TYPES]
        known[name] = {"inputs": types, "outputs": outputs}
    assert EXAMPLES
    used = set()
    for path in EXAMPLES:
        workflow = read(path)
        check_links(workflow, known)
        used |= {node["type"] for node in workflow["nodes"]}
    assert {"LoadWanVAE", "EncodeWanVAE", "DecodeWanVAE"} <= used


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_fields_of_examples_are_values_that_nodes_take(package: ModuleType, path: Path) -> None:
    inputs = declared_inputs(package)
    workflow = read(path)
    ours = [node for node in workflow["nodes"] if node["type"] in inputs]
    assert ours
    for node in ours:
        fields = {
            name: (kind, options)
            for name, (kind, options) in inputs[node["type"]].items()
            if isinstance(kind, list) or kind in FIELDS
        }
        assert len(fields) == len(node["widgets_values"])
        for value, (kind, options) in zip(node["widgets_values"], fields.values(), strict=True):
            if isinstance(kind, list):
                assert value in kind
            elif kind == "INT":
                assert options["min"] <= value <= options["max"]
            else:
                assert isinstance(value, str)
        alone = {"nodes": [{**node, "inputs": []}], "links": []}
        (sent,) = to_prompt(alone, inputs).values()
        assert sent["inputs"].keys() == fields.keys()


def test_the_registry_finds_what_it_needs() -> None:
    """The fields that comfy-cli reads, in the form that it takes."""
    text = (NODES / "pyproject.toml").read_text()
    found = tomllib.loads(text)
    of_library = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    project, comfy = found["project"], found["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", project["name"])
    assert not project["name"].startswith("comfy")
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["version"] == of_library["version"]
    assert project["license"] == {"text": of_library["license"]}
    assert project["requires-python"] == of_library["requires-python"]
    assert project["dependencies"] == [f"{of_library['name']}>={of_library['version']}"]
    assert project["dependencies"] == (NODES / "requirements.txt").read_text().split()
    systems = [c for c in project["classifiers"] if c.startswith("Operating System :: ")]
    assert systems == ["Operating System :: OS Independent"]
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    # Nothing here changes how the repository is built or checked.
    assert found.keys() == {"project", "tool"} and found["tool"].keys() == {"comfy"}
    assert (NODES / project["readme"]).is_file()

"""Workflows as the interface of ComfyUI saves them, and as its server runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tools.comfyui_stand_in import NODES

EXAMPLES = sorted((NODES / "example_workflows").glob("*.json"))
# Inputs of these types have a field in the interface.
FIELDS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def read(path: Path) -> dict[str, Any]:
    """Returns a saved workflow."""
    return json.loads(path.read_text())


def to_prompt(workflow: dict[str, Any], known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what the interface sends to the server for a workflow.

    Args:
        known: what the server says of the inputs of nodes.
    """
    links = {link[0]: link for link in workflow["links"]}
    prompt: dict[str, dict[str, Any]] = {}
    for node in workflow["nodes"]:
        linked = {
            given["name"]: [str(links[given["link"]][1]), links[given["link"]][2]]
            for given in node["inputs"]
            if given["link"] is not None
        }
        values = iter(node["widgets_values"])
        fields = {}
        for name, declared in known[node["type"]].items():
            if isinstance(declared[0], list) or declared[0] in FIELDS:
                fields[name] = next(values)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**fields, **linked}}
    return prompt


def check_links(workflow: dict[str, Any], known: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that links and sockets say the same, as nodes of these types have them."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    for number, start, out, end, into, kind in workflow["links"]:
        output, given = nodes[start]["outputs"][out], nodes[end]["inputs"][into]
        assert number in output["links"] and given["link"] == number
        assert output["type"] == given["type"] == kind
    for node in nodes.values():
        types = known[node["type"]]
        for given in node["inputs"]:
            assert types["inputs"][given["name"]] == given["type"]
        assert [output["type"] for output in node["outputs"]] == types["outputs"]

"""The nodes for the first interface of ComfyUI: classes with ``INPUT_TYPES``."""

from __future__ import annotations

from typing import Any

from .nodes import Input, Node


def make_class(node: Node) -> type:
    """Returns the class of a node."""

    def input_types(cls: type) -> dict[str, Any]:
        return {"required": {each.name: declare(each) for each in node.inputs}}

    def run(self: object, **inputs: Any) -> tuple[Any]:
        return (node.run(**inputs),)

    members = {
        "__doc__": node.description,
        "DESCRIPTION": node.description,
        "CATEGORY": node.category,
        "FUNCTION": "run",
        "RETURN_TYPES": (node.output,),
        "INPUT_TYPES": classmethod(input_types),
        "run": run,
    }
    return type(node.name, (), members)


def declare(given: Input) -> tuple[Any, dict[str, Any]]:
    """Returns the type of an input, or its choices, and its options."""
    kind = given.kind if given.choices is None else given.choices()
    return kind, dict(given.options)

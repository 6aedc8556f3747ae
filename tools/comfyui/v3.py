"""The nodes for the third interface of ComfyUI: classes with a schema, in an extension."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES, Input, Node

TYPES = {
    "VAE": io.Vae,
    "IMAGE": io.Image,
    "LATENT": io.Latent,
    "COMBO": io.Combo,
    "INT": io.Int,
    "STRING": io.String,
}


def make_class(node: Node) -> type[io.ComfyNode]:
    """Returns the class of a node."""

    def define_schema(cls: type) -> io.Schema:
        return io.Schema(
            node_id=node.name,
            display_name=node.title,
            category=node.category,
            description=node.description,
            inputs=[declare(each) for each in node.inputs],
            outputs=[TYPES[node.output].Output()],
        )

    def execute(cls: type, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(node.run(**inputs))

    members = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.name, (io.ComfyNode,), {"__doc__": node.description, **members})


def declare(given: Input) -> io.Input:
    """Returns an input of a schema."""
    options = dict(given.options)
    if given.choices is not None:
        options["options"] = given.choices()
    return TYPES[given.kind].Input(given.name, **options)


class WanVAEExtension(ComfyExtension):
    """The nodes of wanvae."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the nodes."""
        return [make_class(node) for node in NODES]


async def comfy_entrypoint() -> ComfyExtension:
    """Returns the extension."""
    return WanVAEExtension()

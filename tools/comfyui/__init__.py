"""Nodes for ComfyUI: the VAE of Wan and Qwen-Image, with exact tiles within a memory limit.

ComfyUI takes the nodes from ``NODE_CLASS_MAPPINGS`` (its first interface), or asks
``comfy_entrypoint`` for them (its third interface, where it has one).
"""

from __future__ import annotations

from .nodes import NODES
from .v1 import make_class

NODE_CLASS_MAPPINGS: dict[str, type] = {node.name: make_class(node) for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.name: node.title for node in NODES}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

try:
    from .v3 import comfy_entrypoint
except ImportError:
    pass  # an older ComfyUI
else:
    __all__ += [comfy_entrypoint.__name__]

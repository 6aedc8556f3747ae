"""glTF 2.0 files: the skeleton as a tree of nodes, and one animation of its joints.

Programs such as Blender, Unity, Unreal and three.js read them. There is no skin and no mesh.
Lengths are metres, y points up, and rotations are quaternions, as the specification says (Khronos
Group, ISO/IEC 12113:2022). A .glb file is one binary file; a .gltf file is text, with the numbers
in it as base64.
"""

from __future__ import annotations

import base64
import json
import os
import struct

import numpy as np
import roma
import torch
from torch import Tensor

from motion.skeleton.clip import MotionClip
from wanvae.engine.files import atomic_path

GENERATOR = "wanvae motion"
FLOAT = 5126  # the code of float32 in files
SIZES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"


def write_glb(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a .glb file. If writing fails, no incomplete file is left.

    Joints keep their order and names. End sites are nodes with the name of their joint and "_end".

    Raises:
        FileError: the file cannot be written.
    """
    scene, numbers = describe(clip)
    text = json.dumps(scene, separators=(",", ":")).encode()
    # Chunks begin at multiples of 4 bytes: text ends in blanks, and all numbers have 4 bytes.
    text += b" " * (-len(text) % 4)
    chunks = make_chunk(JSON_CHUNK, text) + make_chunk(BINARY_CHUNK, numbers)
    with atomic_path(path) as temporary:
        temporary.write_bytes(MAGIC + struct.pack("<II", VERSION, 12 + len(chunks)) + chunks)


def write_gltf(path: str | os.PathLike[str], clip: MotionClip) -> None:
    """Writes a .gltf file as ``write_glb`` writes a .glb file.

    Raises:
        FileError: the file cannot be written.
    """
    scene, numbers = describe(clip)
    encoded = base64.b64encode(numbers).decode()
    scene["buffers"] = [
        {"byteLength": len(numbers), "uri": f"data:application/octet-stream;base64,{encoded}"}
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(scene, indent=1), encoding="utf-8")


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a .glb file."""
    return struct.pack("<I", len(content)) + kind + content


def describe(clip: MotionClip) -> tuple[dict[str, object], bytes]:
    """Returns the content of a file: its JSON, and the numbers of its only buffer."""
    buffer = NumberBuffer()
    times = buffer.add(
        torch.arange(len(clip), dtype=torch.float64)[:, None] / clip.fps, bounds=True
    )
    root = buffer.add(clip.root_positions)
    turns = [buffer.add(turn) for turn in to_quaternions(clip.rotations).unbind(1)]
    values = [(0, "translation", root), *((j, "rotation", turn) for j, turn in enumerate(turns))]
    animation = {
        "name": "motion",
        "channels": [
            {"sampler": index, "target": {"node": joint, "path": path}}
            for index, (joint, path, _) in enumerate(values)
        ],
        "samplers": [
            {"input": times, "output": output, "interpolation": "LINEAR"} for _, _, output in values
        ],
    }
    content = buffer.content
    return {
        "asset": {"version": "2.0", "generator": GENERATOR},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": describe_nodes(clip),
        "animations": [animation],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(content)}],
    }, content


def describe_nodes(clip: MotionClip) -> list[dict[str, object]]:
    """Returns the nodes of the joints in their order, and then of the end sites.

    The root rests where it is in the first frame, and all rotations are zero.
    """
    skeleton = clip.skeleton
    ends = range(skeleton.joints, skeleton.joints + len(skeleton.end_sites))
    places = [clip.root_positions[0].tolist(), *skeleton.offsets[1:]]
    nodes = []
    for joint, (name, place) in enumerate(zip(skeleton.names, places, strict=True)):
        own = [
            end for end, site in zip(ends, skeleton.end_sites, strict=True) if site.joint == joint
        ]
        children = [*skeleton.children[joint], *own]
        node: dict[str, object] = {"name": name, "translation": list(place)}
        nodes.append(node | ({"children": children} if children else {}))
    for site in skeleton.end_sites:
        name = f"{skeleton.names[site.joint]}_end"
        nodes.append({"name": name, "translation": list(site.offset)})
    return nodes


def to_quaternions(rotations: Tensor) -> Tensor:
    """Returns quaternions (x, y, z, w) of rotations (T, J, 3, 3), each near the one before it."""
    quaternions = roma.rotmat_to_unitquat(rotations.detach().cpu().double())
    # A quaternion and its negative are the same rotation, but players move between neighbours.
    flips = (quaternions[1:] * quaternions[:-1]).sum(dim=-1, keepdim=True) < 0
    signs = torch.cumprod(1.0 - 2.0 * flips.double(), dim=0)
    return torch.cat([quaternions[:1], quaternions[1:] * signs])


class NumberBuffer:
    """The numbers of a file, and where they are in it."""

    def __init__(self) -> None:
        self.accessors: list[dict[str, object]] = []
        self.views: list[dict[str, object]] = []
        self._parts: list[bytes] = []
        self._length = 0

    @property
    def content(self) -> bytes:
        """All numbers as float32, the first ones first."""
        return b"".join(self._parts)

    def add(self, values: Tensor, *, bounds: bool = False) -> int:
        """Adds numbers (T, C), and returns the index of their accessor.

        Args:
            bounds: whether the accessor says the smallest and the largest numbers.
        """
        array = np.ascontiguousarray(values.detach().cpu().numpy().astype("<f4"))
        self.views.append({"buffer": 0, "byteOffset": self._length, "byteLength": array.nbytes})
        accessor: dict[str, object] = {
            "bufferView": len(self.views) - 1,
            "componentType": FLOAT,
            "count": len(array),
            "type": SIZES[array.shape[1]],
        }
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        self.accessors.append(accessor)
        self._parts.append(array.tobytes())
        self._length += array.nbytes
        return len(self.accessors) - 1

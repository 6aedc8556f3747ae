"""What a checkpoint of any layout holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from wanvae.config import WanVAEConfig
from wanvae.engine.stored_tensors import StoredTensors
from wanvae.tiny_config import TinyVAEConfig


class Layout(Enum):
    """How a checkpoint names its tensors and stores its architecture."""

    NATIVE = "native"
    WAN = "wan"
    TINY = "taehv"
    DIFFUSERS = "diffusers"
    QWEN_IMAGE = "qwen-image"
    QWEN_IMAGE_21 = "qwen-image-2.1"


@dataclass(frozen=True)
class Storage:
    """How a file stores a model.

    Attributes:
        container: the kind of the file: safetensors, pickle or gguf.
        kinds: how many tensors are stored in each dtype or quantized type.
        prefix: what is before the names of the tensors.
    """

    container: str
    kinds: Mapping[str, int]
    prefix: str = ""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(self.kinds.items()))
        place = f", under {self.prefix}" if self.prefix else ""
        return f"{self.container}, tensors: {kinds}{place}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any layout.

    Attributes:
        config: the architecture.
        tensors: tensors by their official names, not yet checked against the architecture.
        layout: the layout of the file or directory.
        notes: what was assumed, for people; one sentence each.
        storage: how the tensors are stored.
        changes: the notes on what was left unread or converted, which people should know of even
            if they do not ask.
        assumed: the note on the latent statistics, if nothing says that they are right.
        decodes: of a decoder alone, the digests of the encoder whose latents it decodes, as
            ``digests_of_encoder`` returns them; empty if the file does not say.
    """

    config: WanVAEConfig | TinyVAEConfig
    tensors: StoredTensors
    layout: Layout
    notes: tuple[str, ...]
    storage: Storage = field(default_factory=lambda: Storage("memory", {}))
    changes: tuple[str, ...] = ()
    assumed: str | None = None
    decodes: tuple[str, ...] = ()

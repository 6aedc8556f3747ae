"""Finding a model among the tensors of a file, whatever is before the names of its tensors.

All-in-one files, training states and wrapped modules hold a model under a prefix, like ``vae.`` or
``state_dict.module.``. A family of models is recognized by names that only it has, so any prefix
is found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wanvae.engine.stored_tensors import StoredTensors
from wanvae.engine.text import shortened
from wanvae.errors import UserError

# Models that an error lists.
LISTED = 6


@dataclass(frozen=True)
class Family:
    """A family of models whose tensors have the same names.

    Attributes:
        name: what people call it.
        mark: matches whole names of tensors that only this family has.
        roots: beginnings of the names of its tensors. A tensor with such a name belongs to the
            model; other tensors beside it do not.
        never: names of tensors of other models that have such a mark too.
    """

    name: str
    mark: re.Pattern[str]
    roots: tuple[str, ...]
    never: tuple[str, ...] = ()


WAN = Family(
    "a Wan VAE with its official names",
    re.compile(
        r"(encoder\.downsamples|decoder\.upsamples)\.(\d+\.(down|up)samples\.)?\d+\."
        r"(residual\.\d+\.(gamma|weight|bias)|resample\.1\.(weight|bias))"
    ),
    ("encoder.", "decoder.", "conv1.", "conv2."),
)
DIFFUSERS = Family(
    "a Wan VAE with the names of diffusers",
    re.compile(
        r"(encoder\.down_blocks|decoder\.up_blocks)\.\d+\."
        r"((resnets\.\d+\.)?norm\d\.gamma"
        r"|(downsampler\.|upsampler\.|upsamplers\.0\.)?resample\.1\.(weight|bias))"
    ),
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
    # HunyuanVideo 1.5 has them.
    never=("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
)
# What torch.compile, DistributedDataParallel, FSDP and checkpoint_wrapper add to the names of the
# tensors in a part of a model that they wrap.
WRAPPER = re.compile(
    r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
HALF = re.compile(r"((?:.*\.)?(?:en|de)coder\.)(.*)")


@dataclass(frozen=True)
class Candidate:
    """A place in a file where a model is.

    Attributes:
        family: the family of the model.
        prefix: what is before the names of its tensors; "" or with a dot at the end.
    """

    family: Family
    prefix: str

    def owns(self, name: str) -> bool:
        """Returns whether a tensor with this name belongs to the model."""
        rest = name.removeprefix(self.prefix)
        return name.startswith(self.prefix) and rest.startswith(self.family.roots)


def find_candidates(names: Collection[str], families: Sequence[Family]) -> list[Candidate]:
    """Returns the models of some families among tensors with these names, in their order."""
    found: dict[Candidate, None] = {}
    marks = [(family, re.compile(rf"(.*\.)?({family.mark.pattern})")) for family in families]
    for name in names:
        for family, mark in marks:
            if match := mark.fullmatch(name):
                found[Candidate(family, match[1] or "")] = None
    held = set(names)
    return [c for c in found if held.isdisjoint(f"{c.prefix}{name}" for name in c.family.never)]


def names_without_wrappers(names: Collection[str]) -> dict[str, str]:
    """Returns the present name of each tensor by its name without wrappers in a half of a model.

    Names stay as they are if two of them would become the same.
    """
    found: dict[str, str] = {}
    for name in names:
        match = HALF.fullmatch(name)
        found[match[1] + WRAPPER.sub("", match[2]) if match else name] = name
    return found if len(found) == len(names) else {name: name for name in names}


def choose(candidates: Sequence[Candidate], tensors: StoredTensors, key: str | None) -> Candidate:
    """Returns the candidate that ``key`` names, or the only one.

    Args:
        candidates: at least one.
        tensors: the tensors of the file, for the error.
        key: the prefix of the wanted model, or the beginning or end of it; None takes the only one.

    Raises:
        UserError: none or several fit. The message names each, and how to choose.
    """
    fitting = [c for c in candidates if key is None or c.prefix == with_dot(key)]
    if key and not fitting:
        around = with_dot(key)
        fitting = [
            c
            for c in candidates
            if f".{c.prefix}".endswith(f".{around}") or c.prefix.startswith(around)
        ]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(describe(c, tensors) for c in (fitting or candidates)[:LISTED])
    more = len(fitting or candidates) - LISTED
    listed += f"; and {more} more" if more > 0 else ""
    if fitting:
        raise UserError(
            f"it holds {len(fitting)} models, and none is chosen silently: {listed}. Choose with "
            f"--key, like --key {shown(fitting[0].prefix)}, or "
            f"from_pretrained(..., key={fitting[0].prefix!r})"
        )
    raise UserError(f"it holds no model under the key {key!r}, only: {listed}")


def describe(candidate: Candidate, tensors: StoredTensors) -> str:
    """Returns the prefix of a candidate and what is there, for people."""
    names = [name for name in tensors if candidate.owns(name)]
    return f"{shown(candidate.prefix)} ({len(names)} tensors, like {shortened(names[0])})"


def with_dot(key: str) -> str:
    """Returns a prefix as candidates have it."""
    return key if not key or key.endswith(".") else f"{key}."


def shown(prefix: str) -> str:
    """Returns a prefix as people type it."""
    return shortened(prefix) or '""'

"""The caption among what describes a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The name of the row of a table among the descriptions of a video.
ROW = "metadata"
# Where a JSON object has the caption, the first that is there.
CAPTIONS = ("caption", "text", "prompt")


def caption_of(sidecars: Mapping[str, Any]) -> str | None:
    """Returns the caption of a video, without spaces around it; None if it has none.

    It is the first of these that is there: the ``.txt``, the ``.caption``, and the value "caption",
    "text" or "prompt" of the ``.json`` or of the row.
    """
    found = [sidecars.get("txt"), sidecars.get("caption")]
    for values in (sidecars.get("json"), sidecars.get(ROW)):
        if isinstance(values, Mapping):
            found += [values.get(name) for name in CAPTIONS]
    return next((text.strip() for text in found if isinstance(text, str)), None)

"""Files of Praat for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Words = Sequence[tuple[str, float, float]]


def write_long(path: Path, tiers: Mapping[str, Words], encoding: str = "utf-8") -> None:
    """Writes tiers of intervals (text, start, stop) in Praat's long format."""
    stop = max((word[2] for words in tiers.values() for word in words), default=0)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["xmin = 0 ", f"xmax = {stop} ", "tiers? <exists> ", f"size = {len(tiers)} "]
    lines += ["item []: "]
    for number, (name, words) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ']
        lines += [f'        name = "{name}" ', "        xmin = 0 ", f"        xmax = {stop} "]
        lines += [f"        intervals: size = {len(words)} "]
        for place, (text, first, last) in enumerate(words, start=1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{place}]:", f"            xmin = {first} "]
            lines += [f"            xmax = {last} ", f'            text = "{quoted}" ']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)

"""A page holds everything it shows, and works in a browser."""

import json
import math
import os
import re
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from tests.pages import colour, needs_browser, opened
from wanvae.engine.checkpoint import CheckpointError
from wanvae.report import (
    Column,
    Comparison,
    Curves,
    Picture,
    Pictures,
    Row,
    Section,
    StickFigures,
    Table,
    write_page,
)
from wanvae.report.parts import NOTHING
from wanvae.video import write_video

COLUMNS = (Column("clip"), Column("PSNR (dB)", better="higher"), Column("loss", 3, better="lower"))
TABLE = Table(COLUMNS, [Row(["b <i>", 20.0, 0.5], "second"), Row(["a", 31.256, math.nan])])
HOSTILE = "</script><script>console.log('ran')</script>"


def panels(*levels: tuple[float, float, float], frames: int, side: int = 64) -> torch.Tensor:
    """Squares of one colour each, side by side: ``(3, frames, side, n * side)`` in [-1, 1]."""
    squares = [
        torch.tensor(level).view(3, 1, 1, 1).expand(3, frames, side, side) for level in levels
    ]
    return torch.cat(squares, dim=3)


def write(path: Path, sections: list[Section]) -> Path:
    write_page(path, title="A page", facts={"model": HOSTILE}, sections=sections)
    return path


def figures() -> StickFigures:
    time, index = np.meshgrid(np.arange(30), np.arange(4), indexing="ij")
    points = np.stack([np.sin(time / 5) * index, index * 0.5, time * 0.1], axis=-1)
    return StickFigures(["first", "second"], np.stack([points, points + 0.1]), [(0, 1), (1, 2)], 30)


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    text = write(tmp_path / "page.html", [Section("Table", "table", [TABLE])]).read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "&lt;/script&gt;" in text and HOSTILE not in text
    assert "b &lt;i&gt;" in text and "31.26" in text


def test_the_best_number_of_a_column_is_found() -> None:
    assert TABLE.best(0) is None  # text
    assert TABLE.best(1) == 31.256
    assert TABLE.best(2) is None  # only one number
    alike = Table(COLUMNS[1:2], [Row([value]) for value in (20.0, 31.256, 31.258)])
    assert [alike.is_best(0, row.cells[0]) for row in alike.rows] == [False, True, True]
    assert not Table(COLUMNS[1:2], alike.rows[1:]).is_best(0, 31.258)  # nothing to choose
    shown = [COLUMNS[2].text(cell) for cell in (0.5, None, math.inf, "text")]
    assert shown == ["0.500", NOTHING, NOTHING, "text"]


def test_curves_have_gaps_where_there_are_no_numbers() -> None:
    curves = Curves("t", "x", "y", {"a": [1.0, math.nan, None, 1 / 3]})
    assert curves.data["lines"] == {"a": [1.0, None, None, 0.33333]}
    json.dumps(curves.data, allow_nan=False)


def test_points_of_figures_are_kept_to_a_tenth_of_a_millimetre() -> None:
    part = figures()
    numbers = np.frombuffer(part.media, "<i2").reshape(part.points.shape)
    kept = np.array(part.data["low"]) + (numbers + 32768.0) * part.data["step"]
    assert np.abs(kept - part.points).max() < 1e-4


def test_parts_are_made_one_after_the_other(tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    picture.write_bytes(os.urandom(2**20))

    def sections() -> Iterator[Section]:
        for number in range(20):
            yield Section(
                f"{number}", f"s{number}", (Pictures([Picture(picture, "")], 1) for _ in "x")
            )

    tracemalloc.start()
    write_page(tmp_path / "page.html", title="t", facts={}, sections=sections())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "page.html").stat().st_size > 20 * 2**20
    assert peak < 10 * 2**20


def test_an_unfinished_page_is_not_left(tmp_path: Path) -> None:
    def sections() -> Iterator[Section]:
        yield Section("a", "a", [])
        raise KeyboardInterrupt

    target = tmp_path / "page.html"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_page(target, title="t", facts={}, sections=sections())
    assert os.listdir(tmp_path) == ["page.html"] and target.read_text() == "before"
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_page(tmp_path / "missing" / "page.html", title="t", facts={}, sections=[])


@needs_browser
def test_tables_sort_and_links_open_what_is_folded(tmp_path: Path) -> None:
    sections = [Section("All", "all", [TABLE]), Section("b", "second", [TABLE], folded=True)]
    with opened(write(tmp_path / "page.html", sections)) as page:
        names = page.locator("#all tbody td.text")
        assert page.title() == "A page" and page.locator("nav a").all_inner_texts() == ["All"]
        page.locator("#all th button").nth(1).click()
        assert names.all_inner_texts() == ["b <i>", "a"]
        page.locator("#all th button").nth(1).click()
        assert names.all_inner_texts() == ["a", "b <i>"]
        assert page.locator("#all td.best").all_inner_texts() == ["31.26"]
        assert not page.locator("#second table").is_visible()
        page.locator("#all a").click()
        assert page.locator("#second table").is_visible()


@needs_browser
def test_the_slider_moves_between_moments_of_one_video(tmp_path: Path) -> None:
    red, green, blue = (0.8, -0.8, -0.8), (-0.8, 0.6, -0.8), (-0.8, -0.8, 0.8)
    frames = torch.cat([panels(red, green, frames=4), panels(blue, green, frames=4)], dim=1)
    write_video(tmp_path / "pair.mp4", frames, fps=Fraction(8), crf=4)
    part = Comparison(tmp_path / "pair.mp4", ["original", "model"], fps=8.0, first=10)
    curve = Curves("PSNR", "frame", "dB", {"model": [30.0] * 8}, range(10, 18), by_frame=True)
    path = write(tmp_path / "page.html", [Section("Clip", "clip", [part, curve])])
    with opened(path) as page:
        split, number = page.locator(".split"), page.locator("output")
        expect(number).to_contain_text("frame 10,")

        def left_and_right() -> list[int]:
            at = [colour(page, ".comparison .stage", across, 0.5) for across in (0.25, 0.75)]
            return [levels.index(max(levels)) for levels in at]

        assert left_and_right() == [0, 1]
        split.fill("1000")
        assert left_and_right() == [0, 0]
        box = split.bounding_box()
        page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
        assert left_and_right() == [1, 1]
        split.fill("500")
        # The last frames are blue at the left.
        page.locator("input.frame").fill("6")
        expect(number).to_contain_text("frame 16,")
        assert left_and_right() == [2, 1]
        page.locator("select.right").select_option(label="original")
        assert left_and_right() == [2, 2]
        # A picture differs from itself by nothing.
        page.locator(".difference").check()
        assert max(colour(page, ".comparison .stage", 0.75, 0.5)) < 8
        # A click on the curve shows that frame.
        svg = page.locator(".curves svg")
        svg.scroll_into_view_if_needed()
        curve_box = svg.bounding_box()
        page.mouse.click(curve_box["x"] + curve_box["width"] * 0.09, curve_box["y"] + 50)
        expect(number).to_contain_text("frame 10,")
        assert left_and_right()[0] == 0
        page.locator("button.play").click()
        expect(number).not_to_contain_text("frame 10,")


@needs_browser
def test_pictures_are_compared_without_a_time_bar(tmp_path: Path) -> None:
    red, green = (0.8, -0.8, -0.8), (-0.8, 0.6, -0.8)
    write_video(tmp_path / "pair.png", panels(red, green, frames=1), fps=Fraction(1))
    parts = [
        Comparison(tmp_path / "pair.png", ["original", "model"]),
        Pictures([Picture(tmp_path / "pair.png", HOSTILE)], 2),
    ]
    with opened(write(tmp_path / "page.html", [Section("Image", "image", parts)])) as page:
        expect(page.locator(".label.right")).to_have_text("model")
        assert page.locator(".time").count() == 0
        assert colour(page, ".stage", 0.25, 0.5)[0] > 200
        assert colour(page, ".stage", 0.75, 0.5)[1] > 180
        assert page.locator(".pictures img").evaluate("image => image.naturalWidth") == 128


@needs_browser
def test_figures_move_and_turn(tmp_path: Path) -> None:
    section = Section("Motion", "motion", [figures()])
    with opened(write(tmp_path / "page.html", [section])) as page:
        number, canvas = page.locator("output"), page.locator(".figures canvas")
        expect(number).to_contain_text("frame 0,")
        still = canvas.screenshot()
        page.locator("input.frame").fill("15")
        moved = canvas.screenshot()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 120)
        page.mouse.up()
        turned = canvas.screenshot()
        page.locator(".apart").uncheck()
        together = canvas.screenshot()
        assert len({still, moved, turned, together}) == 4
        page.locator("button.play").click()
        expect(number).not_to_contain_text("frame 15,")

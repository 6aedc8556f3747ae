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

from tests.pages import colour, finally_seen, needs_browser, opened, picture
from wanvae.engine.files import FileError
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
from wanvae.report.elements import NOTHING
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


def figures(**changes: float) -> StickFigures:
    time, index = np.meshgrid(np.arange(30), np.arange(4), indexing="ij")
    points = np.stack([np.sin(time / 5) * index, index * 0.5, time * 0.1], axis=-1)
    pair = np.stack([points, points + 0.1])
    return StickFigures(["first", "second"], pair, [(0, 1), (1, 2)], 30, **changes)


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    text = write(tmp_path / "page.html", [Section("Table", "table", [TABLE])]).read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "&lt;/script&gt;" in text and HOSTILE not in text
    assert "b &lt;i&gt;" in text and "31.26" in text


def test_the_best_number_of_a_column_is_found() -> None:
    # None of text, and of only one number.
    assert TABLE.best == [None, 31.256, None]
    alike = Table(COLUMNS[1:2], [Row([value]) for value in (20.0, 31.256, 31.258)])
    assert alike.best == [31.258]
    assert Table(COLUMNS[1:2], alike.rows[1:]).best == [None]  # nothing to choose
    shown = [COLUMNS[2].text(cell) for cell in (0.5, None, math.inf, "text")]
    assert shown == ["0.500", NOTHING, NOTHING, "text"]


def test_bars_are_as_wide_as_their_numbers(tmp_path: Path) -> None:
    table = Table(
        [Column("joint"), Column("error", bars=True)],
        [Row(["a", 5.0]), Row(["b", 20.0]), Row(["c", None]), Row(["d", 0.0])],
    )
    assert table.largest == [None, 20.0] and TABLE.largest == [None] * 3
    text = write(tmp_path / "page.html", [Section("Table", "table", [table])]).read_text()
    assert re.findall(r"--share: ([0-9.]+)", text) == ["0.2500", "1.0000", "0.0000"]


def test_curves_have_gaps_where_there_are_no_numbers() -> None:
    curves = Curves("t", "x", "y", {"a": [1.0, math.nan, None, 1 / 3]})
    assert curves.data["lines"] == {"a": [1.0, None, None, 0.33333]}
    json.dumps(curves.data, allow_nan=False)


@needs_browser
def test_lines_keep_their_order_and_colours(tmp_path: Path) -> None:
    names = [f"layer {number}" for number in range(2, 12)]
    curves = Curves("t", "x", "y", {name: [1.0, 2.0] for name in names}, first_colour=1)
    with opened(write(tmp_path / "page.html", [Section("a", "a", [curves])])) as page:
        assert page.locator(".legend span").all_inner_texts() == names
        assert "--line-1" in page.locator(".legend i").first.get_attribute("style")
        assert "--line-1" in page.locator(".curves path").first.get_attribute("style")


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
    with pytest.raises(FileError, match="cannot be written"):
        write_page(tmp_path / "missing" / "page.html", title="t", facts={}, sections=[])


@needs_browser
def test_tables_sort_and_links_open_what_is_folded(tmp_path: Path) -> None:
    sections = [Section("All", "all", [TABLE]), Section("b", "second", [TABLE], folded=True)]
    with opened(write(tmp_path / "page.html", sections)) as page:
        names = page.locator("#all tbody td.text")
        assert page.title() == "A page" and page.locator("nav a").all_inner_texts() == ["All", "b"]
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

        assert finally_seen(left_and_right, [0, 1]) == [0, 1]
        split.fill("1000")
        assert finally_seen(left_and_right, [0, 0]) == [0, 0]
        box = split.bounding_box()
        page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
        assert finally_seen(left_and_right, [1, 1]) == [1, 1]
        split.fill("500")
        # The last frames are blue at the left.
        page.locator("input.frame").fill("6")
        expect(number).to_contain_text("frame 16,")
        assert finally_seen(left_and_right, [2, 1]) == [2, 1]
        page.locator("select.right").select_option(label="original")
        assert finally_seen(left_and_right, [2, 2]) == [2, 2]
        # A picture differs from itself by nothing.
        page.locator(".difference").check()
        assert finally_seen(lambda: max(colour(page, ".comparison .stage", 0.75, 0.5)) < 8, True)
        # A click on the curve shows that frame.
        svg = page.locator(".curves svg")
        svg.scroll_into_view_if_needed()
        curve_box = svg.bounding_box()
        page.mouse.click(curve_box["x"] + curve_box["width"] * 0.09, curve_box["y"] + 50)
        expect(number).to_contain_text("frame 10,")
        assert finally_seen(lambda: left_and_right()[0], 0) == 0
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
        assert finally_seen(lambda: colour(page, ".stage", 0.25, 0.5)[0] > 200, True)
        assert finally_seen(lambda: colour(page, ".stage", 0.75, 0.5)[1] > 180, True)
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


@needs_browser
def test_figures_of_a_part_of_a_motion_keep_its_frames(tmp_path: Path) -> None:
    curve = Curves("error", "frame", "mm", {"a": list(range(30))}, range(60, 90), by_frame=True)
    parts = [figures(first=60, yaw=1.0), curve]
    with opened(write(tmp_path / "page.html", [Section("Motion", "motion", parts)])) as page:
        number, svg = page.locator("output"), page.locator(".curves svg")
        expect(number).to_contain_text("frame 60, 2.00 s")
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.97, box["y"] + 50)
        expect(number).to_contain_text("frame 89,")
        page.locator("input.frame").fill("10")
        expect(page.locator(".legend")).to_contain_text("frame 70")


@needs_browser
def test_figures_are_never_cut_off(tmp_path: Path) -> None:
    """Also one that walks away and reaches out only later, and one that goes elsewhere."""
    points = np.zeros((2, 40, 3, 3))
    points[:, :, 0, 0] = np.arange(40) * 0.2
    points[:, :, 1] = points[:, :, 0] + [0.0, 1.0, 0.0]
    points[:, :, 2] = points[:, :, 0] + [0.2, 0.5, 0.0]
    points[:, 30:, 2] += [0.9, 0.0, 0.0]
    points[1, :, :, 0] -= np.arange(40)[:, None] * 0.1
    part = StickFigures(["a", "b"], points, [(0, 1), (0, 2)], 30.0, yaw=0.0)

    def columns() -> list[np.ndarray]:
        """Those that have something of the first figure, which is blue, and of the second."""
        pixels = picture(page, ".figures canvas").astype(int)
        orange = pixels[..., 0] - pixels[..., 2]
        return [np.flatnonzero((shade > 60).any(0)) for shade in (-orange, orange)]

    with opened(write(tmp_path / "page.html", [Section("Motion", "motion", [part])])) as page:
        right_end = page.locator(".figures canvas").bounding_box()["width"] - 10
        for frame in (0, 39):
            page.locator("input.frame").fill(str(frame))
            (left, *_, right), (other_left, *_, other_right) = columns()
            assert 10 < left < right < other_left < other_right < right_end
        page.locator(".apart").uncheck()
        (left, *_, right), (other_left, *_, other_right) = columns()
        assert 10 < other_left < other_right < left < right < right_end


@needs_browser
def test_what_was_not_seen_is_printed(tmp_path: Path) -> None:
    """Figures, videos and pictures far down the page are drawn before anybody prints it."""
    green = panels((-0.8, 0.6, -0.8), (-0.8, 0.6, -0.8), frames=2)
    write_video(tmp_path / "pair.mp4", green, fps=Fraction(8), crf=4)
    write_video(tmp_path / "pair.png", green[:, :1], fps=Fraction(1))
    parts = [
        figures(),
        Comparison(tmp_path / "pair.mp4", ["original", "model"], 8.0),
        Pictures([Picture(tmp_path / "pair.png", "a picture")], 1),
        Curves("PSNR", "frame", "dB", {"model": [1.0, 2.0]}),
    ]
    far = Section("Far", "far", [*[TABLE] * 30, *parts])
    folded = Section("Folded", "folded", [figures()], folded=True)
    with opened(write(tmp_path / "page.html", [far, folded])) as page:
        expect(page.locator(".comparison output")).to_contain_text("frame 0,")
        assert page.evaluate("scrollY") == 0
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible()
        assert page.locator("output").count() == 2
        assert page.locator(".curves path").count() == 1
        assert page.locator("#far img").evaluate(
            "image => image.complete && image.naturalWidth > 0"
        )
        for canvas in page.locator("#far canvas").all():
            assert canvas.evaluate(
                "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
                ".data.some((value) => value > 0)"
            )
        page.emulate_media(media="screen")
        page.locator("summary").click()
        expect(page.locator("#folded output")).to_contain_text("frame 0,")


@needs_browser
def test_a_value_between_gaps_is_a_dot(tmp_path: Path) -> None:
    lines = {"a": [None, 3.0, None, 1.0, 2.0, None, None, 4.0], "b": [1.0, 2.0, 3.0, None]}
    curves = Curves("t", "x", "y", lines)
    with opened(write(tmp_path / "page.html", [Section("a", "a", [curves])])) as page:
        assert page.locator(".curves circle").count() == 2


@needs_browser
def test_ticks_close_together_have_numbers_of_their_own(tmp_path: Path) -> None:
    curves = Curves("t", "step", "", {"a": [0.185532, 0.185421]}, x=[120031, 120039])
    with opened(write(tmp_path / "page.html", [Section("a", "a", [curves])])) as page:
        ticks = [text for text in page.locator(".curves svg text").all_text_contents() if text]
        assert len(set(ticks)) == len(ticks) and "120032" in ticks and "0.18545" in ticks
        svg = page.locator(".curves svg").bounding_box()
        boxes = [text.bounding_box() for text in page.locator(".curves svg text").all()]
        assert all(box["x"] >= svg["x"] for box in boxes if box["width"])


@needs_browser
def test_a_phone_shows_everything(tmp_path: Path) -> None:
    """Nothing is off the screen, labels can be read, and the menu leads to every clip."""
    name = "Wan2.1_VAE_finetuned_step_00012345.safetensors"
    frames = panels((0.8, -0.8, -0.8), (-0.8, 0.6, -0.8), frames=4, side=256)
    write_video(tmp_path / "pair.mp4", frames, fps=Fraction(8))
    write_video(tmp_path / "pair.png", frames[:, :1], fps=Fraction(1))
    table = Table(
        [Column("clip"), *(Column(f"{metric} (dB)") for metric in range(9))],
        [Row([f"{name}-{row}", *map(float, range(9))]) for row in range(3)],
    )
    parts = [
        Comparison(tmp_path / "pair.mp4", ["original", name], 8.0),
        Curves("PSNR", "frame", "PSNR (dB)", {name: [20.0 + i for i in range(200)]}),
        Pictures([Picture(tmp_path / "pair.png", f"frame 1, {name}")] * 3, 3, name),
        figures(),
    ]
    clips = [
        Section(f"{name}, clip {n}", f"clip-{n}", parts, f"{name}: {name}", folded=n > 0)
        for n in range(20)
    ]
    path = tmp_path / "page.html"
    write_page(
        path,
        title=name,
        facts={"model": name},
        sections=[Section("Summary", "summary", [table]), *clips],
    )
    with opened(path, width=390, height=844) as page:
        expect(page.locator("#clip-0 .comparison output")).to_contain_text("frame 0,")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        off_screen = """() => [...document.querySelectorAll("body *")].filter(
            (part) => part.getBoundingClientRect().right > innerWidth + 1 && !part.closest(".table")
        ).map((part) => part.outerHTML.slice(0, 80))"""
        assert page.evaluate(off_screen) == []
        sizes = """() => [...document.querySelectorAll("svg text")].map((text) =>
            parseFloat(getComputedStyle(text).fontSize)
            * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))"""
        assert min(page.evaluate(sizes)) >= 11
        # Labels of figures are drawn: their height in pixels of the screen.
        canvas = page.locator("#clip-0 .figures canvas")
        height = canvas.evaluate(
            "canvas => parseFloat(canvas.getContext('2d').font) * canvas.clientWidth / canvas.width"
        )
        assert height >= 11
        menu = page.locator("nav a")
        assert menu.all_inner_texts() == ["Summary", *(f"{name}, clip {n}" for n in range(20))]
        assert page.locator("nav").bounding_box()["height"] < 0.15 * 844
        menu.last.click()
        expect(page.locator("#clip-19 .comparison output")).to_contain_text("frame 0,")
        box = page.locator("#clip-19 h2").bounding_box()
        assert page.locator("nav").bounding_box()["height"] <= box["y"] < 844
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

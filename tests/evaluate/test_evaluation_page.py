"""The report of an evaluation in a browser."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from tests.helpers import tiny
from tests.pages import colour, finally_seen, needs_browser, opened
from wanvae import cli
from wanvae.evaluate import page
from wanvae.video import write_video

# In file names a slash cannot be; the page escapes what it shows.
HOSTILE = "<img src=x onerror=alert(1)>.mp4"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that judges two models on two moving clips and an image."""
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        tiny().float().save_pretrained(folder / f"{name}.safetensors")
    videos = folder / "videos"
    videos.mkdir()
    colours = torch.tensor([0.8, -0.8, -0.8]).view(3, 1, 1, 1)
    write_video(videos / "a.mp4", colours.expand(3, 9, 33, 40), Fraction(25), crf=4)
    write_video(videos / HOSTILE, torch.zeros(3, 5, 32, 32), Fraction(25))
    write_video(videos / "image.png", colours.expand(3, 1, 32, 40), Fraction(1))
    (videos / "broken.mp4").write_text("no video")
    models = [str(folder / f"{name}.safetensors") for name in ("one", "two")]
    output = str(folder / "out")
    return ["evaluate", str(videos), "--output", output, "--device", "cpu", "--checkpoint", *models]


@pytest.fixture
def report(arguments: list[str]) -> Path:
    assert cli.main(arguments) == 0
    return Path(arguments[3]) / page.PAGE


def test_the_page_is_one_file_of_bounded_size(
    arguments: list[str], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = report.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "<img src=x" not in text
    assert text.count('class="comparison') == 3
    assert "Its video and pictures are in trials/" not in text
    monkeypatch.setattr(page, "MEDIA_LIMIT", 20_000)
    assert cli.main(arguments) == 0
    shorter = report.read_text()
    assert 0 < shorter.count('class="comparison') < 3
    assert "Its video and pictures are in trials/a-mp4-" in shorter
    # Of each moving clip, and their mean.
    assert shorter.count('class="curves') == text.count('class="curves') == 3


@needs_browser
def test_the_page_shows_tables_and_clips(report: Path) -> None:
    with opened(report) as shown:
        assert shown.title() == "Reconstruction of videos"
        quality = shown.locator("#summary table").first
        assert quality.locator("td.text").all_inner_texts() == ["one", "two"]
        assert quality.locator("td.best").count() >= 2
        expect(shown.locator("#summary .curves")).to_contain_text("the mean over 2 clips")
        expect(shown.locator("#summary .curves svg circle")).to_have_count(2 * 5)
        assert shown.locator("#clips tbody tr").count() == 6
        left_out = shown.locator("#notes td.text").all_inner_texts()
        assert "broken.mp4" in left_out and "rFVD" in left_out and "LPIPS" in left_out
        # The first clip is open; a link opens another.
        assert shown.locator(".comparison canvas:visible").count() == 1
        shown.locator("#clips a", has_text="a.mp4").first.click()
        expect(shown.locator(".comparison canvas:visible")).to_have_count(2)


@needs_browser
def test_the_slider_moves_over_models(report: Path) -> None:
    with opened(report) as shown:
        shown.locator("#clips a", has_text="a.mp4").first.click()
        section = shown.locator("details[open]")
        section.locator(".comparison").scroll_into_view_if_needed()
        expect(section.locator("output")).to_contain_text("frame 0,")
        where = "details[open] .comparison .stage"

        def at_left() -> list[int]:
            return colour(shown, where, 0.25, 0.5)

        red = finally_seen(lambda: at_left()[0] > 180 and max(at_left()[1:]) < 60, True)
        assert red  # the original
        seen = [at_left()]
        # Models of random weights make others of it.
        section.locator(".split").fill("0")
        assert finally_seen(lambda: at_left() not in seen, True)
        seen.append(at_left())
        section.locator("select.right").select_option(label="two")
        assert finally_seen(lambda: at_left() not in seen, True)
        assert section.locator(".label.right").inner_text() == "two"
        expect(section.locator(".curves svg path")).to_have_count(2)
        captions = section.locator(".pictures .grid figcaption").all_inner_texts()
        assert captions and len(captions) % 3 == 0
        assert captions[0].startswith("frame ") and "of 255 levels" in captions[2]
        sizes = section.locator(".pictures img").evaluate_all("all => all.map(x => x.naturalWidth)")
        assert set(sizes) == {40}

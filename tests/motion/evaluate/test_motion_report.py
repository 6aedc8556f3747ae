"""Tables, JSON, CSV and the page say what an evaluation found."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from motion import RVQVAE
from motion.evaluate.folder import FolderEvaluation
from motion.evaluate.page import FigureLimits, write_evaluation_page
from motion.evaluate.report import as_json, make_table, sort_joints, write_figures
from motion.files.formats import write_motion
from tests.motion.evaluate.evaluations import evaluation, folder_evaluation, movement
from tests.motion.small_tokenizers import WALK
from tests.pages import needs_browser, opened
from wanvae.engine.files import FileError

HOSTILE = """a"b</script><script>console.log('ran')</script>,&
.bvh"""


def walks(folder: Path, *names: str) -> FolderEvaluation:
    """Of walks that are there, with the errors of ``folder_evaluation``."""
    folder.mkdir()
    for name in names:
        write_motion(folder / name, WALK)
    return folder_evaluation(*(folder / name for name in names))


def write(
    folder: Path, model: RVQVAE, found: FolderEvaluation, limits: FigureLimits | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    write_figures(folder, found, "model.safetensors")
    page = folder / "report.html"
    write_evaluation_page(page, model, found, "model.safetensors", limits or FigureLimits())
    return page


def test_the_table_has_a_line_for_each_layer() -> None:
    frames, head, *rows, joints, aligned, change, jerk, feet = make_table(evaluation())
    assert frames == "10 frames"
    assert [row.split() for row in rows] == [
        ["1", "6.00", "2.000", "1.0", "1", "of", "4", "(25%)"],
        ["2", "2.00", "1.000", "4.0", "4", "of", "4", "(100%)"],
    ]
    # Numbers end where their headings do.
    for heading, number in (("(mm)", "6.00"), ("(degrees)", "2.000"), ("the last", "1.0")):
        assert head.index(heading) + len(heading) == rows[0].index(f" {number} ") + 1 + len(number)
    assert joints == "largest errors of joints (mm): left_toe 4.0, hip 1.0, right_toe 1.0"
    assert aligned == (
        "MPJPE with roots aligned: 15.00 mm; with poses aligned (Procrustes): 5.00 mm"
    )
    assert change == "error of acceleration: 3.00 m/s^2"
    assert jerk == "jerk: 4.00 m/s^3, 2.00 times as much; the original's 2.00"
    assert feet == "feet on the ground: 0.500 m/s, sliding 25.0%; the original's 0.100 m/s, 0.0%"
    assert list(make_table(evaluation(), joints=1))[4].endswith(": left_toe 4.0")


def test_what_is_not_known_is_not_said() -> None:
    still = movement(acceleration_frames=0, jerk_frames=0, contacts=0)
    assert len(list(make_table(evaluation(movement=still)))) == 6


def test_joints_are_sorted_by_their_errors() -> None:
    assert sort_joints(evaluation()) == [("left_toe", 4.0), ("hip", 1.0), ("right_toe", 1.0)]


def test_files_of_figures_agree(tmp_path: Path, model: RVQVAE) -> None:
    found = walks(tmp_path / "walks", "a.bvh", HOSTILE.replace("/", ""))
    write(tmp_path / "out", model, found)
    assert sorted(os.listdir(tmp_path / "out")) == [
        "evaluation.csv", "evaluation.json", "report.html",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == {"model": "model.safetensors", **json.loads(json.dumps(as_json(found)))}
    assert written["mpjpe_mm"] == [9.0, 3.0] and written["code_use"] == [0.25, 1.0]
    assert written["joint_errors_mm"] == [1.5, 6.0, 1.5]
    assert sum(map(sum, written["code_counts"])) == 2 * 28
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [file["file"] for file in written["files"]]
    for row, file in zip(rows, written["files"], strict=True):
        for name, value in file.items():
            if isinstance(value, list):
                assert [float(row[f"{name}_{layer}"]) for layer in (1, 2)] == value
            elif name != "file":
                assert float(row[name]) == value
    # The whole is the mean of files, which are as long as each other.
    mean = sum(float(row["mpjpe_mm_2"]) for row in rows) / 2
    assert mean == pytest.approx(written["mpjpe_mm"][1])


def test_what_is_not_known_is_empty(tmp_path: Path, model: RVQVAE) -> None:
    still = movement(jerk_frames=0, contacts=0)
    nothing = evaluation(joint_names=("hip", "a", "b"), movement=still)
    found = folder_evaluation(tmp_path / "a.bvh")
    found = replace(found, whole=nothing, files=(replace(found.files[0], summary=nothing.summary),))
    text = write(tmp_path / "out", model, found).read_text()
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["jerk_m_s3"] == row["sliding"] == "" and row["foot_contacts"] == "0"
    assert ">nan<" not in text and ">None<" not in text
    assert "names of the joints do not tell which joints are the feet" in text
    # The file has gone since: that is said, and the rest is there.
    assert re.search(r"<p>.*a\.bvh .*No such file", text) and "<canvas" not in text


def test_files_with_figures_are_spread_from_the_worst_to_the_best(
    tmp_path: Path, model: RVQVAE
) -> None:
    found = walks(tmp_path / "walks", *(f"{number}.bvh" for number in range(5)))
    page = write(tmp_path / "out", model, found, FigureLimits(files=3, frames=10))
    text = page.read_text()
    headings = re.findall(r"<h2>(\d\.bvh)</h2>", text)
    assert headings == ["4.bvh", "2.bvh", "0.bvh"]
    assert text.count('class="figures player"') == 3 and text.count("<details") == 2
    links = re.findall(r'<a href="#(file-\d)">(\d\.bvh)</a>', text)
    assert links == [("file-1", "4.bvh"), ("file-2", "2.bvh"), ("file-3", "0.bvh")]
    assert len(re.findall(r"Frames \d+ to \d+ of 41", text)) == 3
    assert '"frames": 10' in text
    page = write(tmp_path / "out", model, found, FigureLimits(files=0))
    assert "<canvas" not in page.read_text() and ">4.bvh<" in page.read_text()


def test_a_report_is_complete_or_not_there(tmp_path: Path, model: RVQVAE) -> None:
    found = folder_evaluation(tmp_path / "a.bvh")
    with pytest.raises(FileError, match=r"make the directory .*missing first"):
        write_figures(tmp_path / "missing", found, "model.safetensors")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(FileError, match=r"report\.html cannot be written"):
        write(tmp_path, model, found)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path, model: RVQVAE) -> None:
    found = walks(tmp_path / "walks", "a.bvh", HOSTILE.replace("/", ""))
    found = replace(found, window=8, failures=("bad <b>.bvh has no frames",))
    with opened(write(tmp_path / "out", model, found)) as page:
        assert page.title() == "Evaluation of walks"
        facts = page.locator(".facts").inner_text()
        assert "2, and 1 left out" in facts and "windows of 8 frames" in facts
        summary = page.locator("#summary")
        expect(summary).to_contain_text("In 8 cases a foot is on the ground")
        expect(summary.locator("tr", has_text="jerk")).to_contain_text("2.000\t4.000\t2.00")
        expect(page.locator("#joints td.text").first).to_have_text("left_toe")
        expect(page.locator("#left-out td")).to_have_text("bad <b>.bvh has no frames")
        expect(page.locator("#files td.text").first).to_contain_text("<script>console.log")
        # The worst file is open; a click on its curve shows that frame.
        first = page.locator("#file-1")
        first.scroll_into_view_if_needed()
        expect(first.locator("output")).to_contain_text("frame 0,")
        svg = first.locator(".curves svg").first
        svg.scroll_into_view_if_needed()
        svg.click(position={"x": 0.97 * svg.bounding_box()["width"], "y": 60})
        expect(first.locator("output")).to_contain_text("frame 40, 1.33 s")
        expect(first.locator(".legend").last).to_contain_text("reconstruction")
        assert not page.locator("#file-2 canvas").is_visible()
        page.locator("#files a").nth(1).click()
        assert page.locator("#file-2 canvas").is_visible()

"""Data sets of tokens in files of each format, whatever happens to their motion and captions."""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from webdataset.tariterators import group_by_keys, tar_file_iterator

from motion import RVQVAE
from motion.commands.tokenize import describe_records, tokenize_folder
from motion.dataset.containers import read_container
from motion.dataset.folder import FolderReport
from motion.dataset.plan import FolderOptions
from motion.dataset.records import INDEX, SETTINGS, Caption, TokenFormat, TokenRecord
from motion.tokens import read_tokens
from tests.motion.helpers import contents, in_processes
from tests.motion.small_tokenizers import WALKS, tiny_tokenizer, write_walks
from wanvae.engine.json_lines import JsonLines
from wanvae.errors import UserError

MANY = ("tar", "parquet")


def options_of(form: TokenFormat, clips: int = 3) -> FolderOptions:
    return FolderOptions(format=form, clips_per_file=clips)


def describe(folder: Path) -> None:
    """Gives captions to the first and the last walk, and a speaker to the second."""
    (folder / "a.txt").write_text("a person walks\na man goes#a/DET#0.1#0.4\n")
    row = {"file_name": "deep/er/d.npz", "text": "somebody walks"}
    rows = [row, {"file_name": "b.npz", "speaker": "anna"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def described(folder: Path) -> Path:
    describe(folder)
    return folder


def test_the_index(tmp_path: Path, described: Path, model: RVQVAE, processes: PartialState) -> None:
    report = tokenize_folder(model, described, tmp_path / "out", processes)
    assert report == FolderReport(4, 0, ())
    records = list(JsonLines(tmp_path / "out" / INDEX, TokenRecord, ""))
    assert tuple(records) == report.records
    assert [record.source for record in records] == list(WALKS)
    assert [record.name for record in records] == ["a", "b", "deep/c", "deep/er/d"]
    for number, record in enumerate(records):
        tokens = read_tokens(tmp_path / "out" / record.file)
        assert record.tokens == len(tokens.indices) and record.frames == 20 - 2 * number
    parts = Caption(text="a man goes", start=0.1, stop=0.4)
    assert records[0].captions == (Caption(text="a person walks"), parts)
    assert records[3].captions == (Caption(text="somebody walks"),)
    assert [record.speaker for record in records] == ["", "anna", "", ""]
    assert describe_records(records) == ["of 4 clips 2 with captions, 1 with a speaker"]
    # Captions alone change the index, and no file of tokens.
    before = contents(tmp_path / "out")
    (described / "a.txt").write_text("another caption")
    report = tokenize_folder(model, described, tmp_path / "out", processes)
    after = contents(tmp_path / "out")
    assert report == FolderReport(0, 4, ())
    assert {name for name in before if before[name] != after[name]} == {INDEX}


@pytest.mark.parametrize("form", MANY)
def test_files_of_many_clips_hold_what_single_files_hold(
    tmp_path: Path, described: Path, model: RVQVAE, processes: PartialState, form: TokenFormat
) -> None:
    single = tokenize_folder(model, described, tmp_path / "single", processes)
    options = options_of(form)
    report = tokenize_folder(model, described, tmp_path / "out", processes, options=options)
    shards = [f"shard-00000.{form}", f"shard-00001.{form}"]
    assert list(contents(tmp_path / "out")) == [SETTINGS, INDEX, *shards]
    clips = [clip for name in shards for clip in read_container(tmp_path / "out" / name)]
    assert tuple(clip.record for clip in clips) == report.records
    for clip, record in zip(clips, single.records, strict=True):
        tokens = read_tokens(tmp_path / "single" / record.file)
        assert torch.equal(clip.tokens.indices, tokens.indices) and clip.origin == tokens.origin
        assert clip.record.captions == record.captions and clip.record.name == record.name
    # The next run keeps all, and writes the same bytes.
    before = contents(tmp_path / "out")
    assert tokenize_folder(
        model, described, tmp_path / "out", processes, options=options
    ) == FolderReport(0, 4, ())
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("form", MANY)
def test_changes_are_followed(
    tmp_path: Path, described: Path, model: RVQVAE, processes: PartialState, form: TokenFormat
) -> None:
    """Of motion, captions, the number of files, and damage; a run goes on from what is there."""
    out, options = tmp_path / "out", options_of(form, 2)

    def run() -> FolderReport:
        return tokenize_folder(model, described, out, processes, options=options)

    def fresh() -> dict[str, bytes]:
        target = tmp_path / f"fresh{len(list(tmp_path.glob('fresh*')))}"
        tokenize_folder(model, described, target, processes, options=options)
        return contents(target)

    run()
    (described / "a.txt").write_text("another caption")
    assert run() == FolderReport(0, 4, ())
    assert contents(out) == fresh()
    # A file that comes first moves the others on to the next files.
    (described / "0.bvh").write_bytes((described / "a.bvh").read_bytes())
    assert run() == FolderReport(1, 4, ())
    assert contents(out) == fresh()
    shard = out / f"shard-00001.{form}"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    report = run()
    assert (report.written, report.kept, report.changed) == (2, 3, ())
    assert contents(out) == fresh()
    (described / "0.bvh").unlink()
    (described / "a.bvh").write_text("no motion")
    report = run()
    assert (report.written, report.kept, len(report.failures)) == (0, 3, 1)
    assert report.changed == (str(described / "a.bvh"),)
    assert contents(out) == fresh() and "shard-00002" not in str(list(out.iterdir()))


def test_a_tar_is_what_webdataset_reads(
    tmp_path: Path, described: Path, model: RVQVAE, processes: PartialState
) -> None:
    options = options_of("tar")
    report = tokenize_folder(model, described, tmp_path / "out", processes, options=options)
    samples = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with path.open("rb") as file:
            members = ({**member, "__url__": path.name} for member in tar_file_iterator(file))
            samples += group_by_keys(members)
    assert [sample["__key__"] for sample in samples] == [record.name for record in report.records]
    for sample, record in zip(samples, report.records, strict=True):
        indices = np.load(BytesIO(sample["npy"]))
        assert indices.shape == (record.tokens, 2) and indices.dtype == np.int8
        values = json.loads(sample["json"])
        assert values["frames"] == record.frames and values["fps"] == 30
        texts = [caption["text"] for caption in values["captions"]]
        assert texts == [caption.text for caption in record.captions]
        assert sample.get("txt") == (texts[0].encode() if texts else None)


def test_a_table_is_what_pyarrow_reads(
    tmp_path: Path, described: Path, model: RVQVAE, processes: PartialState
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    options = options_of("parquet", 9)
    report = tokenize_folder(model, described, tmp_path / "out", processes, options=options)
    rows = parquet.read_table(tmp_path / "out" / "shard-00000.parquet").to_pylist()
    assert [row["name"] for row in rows] == [record.name for record in report.records]
    assert [row["caption"] for row in rows] == ["a person walks", None, None, "somebody walks"]
    assert [row["speaker"] for row in rows] == ["", "anna", "", ""]
    assert all(np.shape(row["indices"]) == (row["tokens"], 2) for row in rows)


def test_without_pyarrow_nothing_is_written(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("wanvae.engine.parquet.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'wanvae\[parquet\]'"):
        tokenize_folder(model, folder, tmp_path / "out", processes, options=options_of("parquet"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    tokenize_folder(model, folder, tmp_path / "out", processes)
    with pytest.raises(UserError, match=r"out holds tokens as npz, not tar; name another folder"):
        tokenize_folder(model, folder, tmp_path / "out", processes, options=options_of("tar"))
    with pytest.raises(UserError, match="clips_per_file must be 1 or more, not 0"):
        options_of("tar", 0)
    with pytest.raises(UserError, match="speaker must have one group"):
        FolderOptions(speaker="a")


def test_an_interrupted_run_has_no_index(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would name tokens that have changed."""
    tokenize_folder(tiny_tokenizer(seed=1), folder, tmp_path / "out", processes)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenize_folder(model, folder, tmp_path / "out", processes)
    assert INDEX not in contents(tmp_path / "out")


@pytest.mark.parametrize("form", ["npz", "tar"])
def test_processes_write_what_one_process_writes(
    tmp_path: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
    form: TokenFormat,
) -> None:
    write_walks(tmp_path / "in")
    describe(tmp_path / "in")
    options = options_of(form, 1)
    one = tokenize_folder(model, tmp_path / "in", tmp_path / "one", processes, options=options)

    class Process:
        def __init__(self, index: int) -> None:
            self.process_index, self.num_processes = index, 3
            self.is_main_process = index == 0

    class Unlocked:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("motion.commands.tokenize.locked_by_run", lambda _: Unlocked())
    reports = in_processes(
        monkeypatch,
        3,
        lambda index: tokenize_folder(
            model, tmp_path / "in", tmp_path / "three", Process(index), options=options
        ),
        "motion.dataset.folder",
    )
    assert all(report == one and report.records == one.records for report in reports)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")

"""Tables of metadata, whose rows wait on disk."""

import json
from pathlib import Path

import pytest

from tests.full_disk import TOLD, fill_up
from wanvae.engine.storage.temporary_files import FullDiskError
from wanvae.folders.metadata import MetadataTables


def write_table(folder: Path, rows: int) -> None:
    lines = (json.dumps({"file_name": f"{number}.mp4", "n": number}) for number in range(rows))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_rows_wait_on_disk_until_the_tables_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_table(tmp_path, 1000)
    tables = MetadataTables(tmp_path, ["metadata.jsonl"])
    assert tables.row_of("999.mp4") == {"n": 999} and tables.row_of("0.mp4") == {"n": 0}
    assert tables.row_of("1000.mp4") == {}
    tables.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.jsonl"]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_full_folder_of_temporary_files_is_no_fault_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    write_table(tmp_path, rows)
    fill_up(monkeypatch)
    with pytest.raises(FullDiskError, match=TOLD):
        MetadataTables(tmp_path, ["metadata.jsonl"])

"""A data set of tokens gives the tokens of each caption with their sound, and batches go on."""

import logging
import pickle
import wave
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader

from motion import RVQVAE, TokenBatch, TokenClip, TokenDataset, TokenVocabulary, collate
from motion.commands.tokenize import tokenize_folder
from motion.dataset.plan import FolderOptions
from motion.dataset.reader import tokens_of_caption
from motion.dataset.records import (
    INDEX,
    AudioSpan,
    Caption,
    TokenFormat,
    TokenRecord,
    TokenSettings,
    Word,
)
from motion.tokens import read_tokens
from tests.motion.small_tokenizers import write_walks
from tests.motion.textgrids import write_long
from wanvae import BucketBatches
from wanvae.errors import UserError


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks of 20, 18, 16 and 14 frames, which have 5, 5, 4 and 4 tokens."""
    folder = tmp_path_factory.mktemp("recordings")
    write_walks(folder)
    # At 30 frames a second, from token 1 to before token 3; and a part that has no token.
    (folder / "a.txt").write_text("whole\npart#x#0.14#0.41\nshort#x#0.01#0.02\n")
    (folder / "deep" / "c.txt").write_text("third\n")
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(3000)
        file.writeframes(bytes(2 * 1900))
    words = [("", 0.0, 0.1), ("one", 0.1, 0.2), ("two", 0.2, 0.5), ("three", 0.5, 0.6)]
    write_long(folder / "a.TextGrid", {"words": words})
    return folder


@pytest.fixture(params=["npz", "safetensors", "tar", "parquet"])
def tokens(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    recordings: Path,
    model: RVQVAE,
    processes: PartialState,
) -> Path:
    form: TokenFormat = request.param
    options = FolderOptions(format=form, clips_per_file=3)
    tokenize_folder(model, recordings, tmp_path / "out", processes, options=options)
    return tmp_path / "out"


@pytest.fixture
def single(tmp_path: Path, recordings: Path, model: RVQVAE, processes: PartialState) -> Path:
    tokenize_folder(model, recordings, tmp_path / "single", processes)
    return tmp_path / "single"


def test_an_item_for_each_caption(
    tokens: Path, single: Path, recordings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = TokenDataset(tokens)
    assert "captions of parts without a token are left out: 1" in caplog.text
    captions = [clip.caption for clip in dataset]
    assert captions == ["whole", "part", "", "third", ""]
    assert [clip.name for clip in dataset] == ["a", "a", "b", "deep/c", "deep/er/d"]
    assert dataset.lengths == [len(clip.indices) for clip in dataset] == [5, 2, 5, 4, 4]
    whole = read_tokens(single / "a.npz").indices
    assert torch.equal(dataset[0].indices, whole) and dataset[0].indices.dtype == torch.int64
    assert torch.equal(dataset[1].indices, whole[1:3])
    sound = str(recordings / "a.wav")
    assert dataset[0].audio == AudioSpan(path=sound, rate=3000, start=0, stop=1900)
    assert dataset[1].audio == AudioSpan(path=sound, rate=3000, start=400, stop=1200)
    assert dataset[2].audio is None and dataset[2].words == ()
    assert [word.text for word in dataset[0].words] == ["one", "two", "three"]
    assert dataset[0].words[1] == Word("two", 0.2, 0.5)
    # Frames 4 to 11 of 30 a second; words begin with the part and end with it.
    assert [word.text for word in dataset[1].words] == ["one", "two"]
    times = [time for word in dataset[1].words for time in (word.start, word.stop)]
    assert times == pytest.approx([0, 0.2 - 4 / 30, 0.2 - 4 / 30, 8 / 30])
    assert dataset.codebook_sizes == (16, 16)
    in_worker = pickle.loads(pickle.dumps(dataset))[1]
    assert in_worker[1:] == dataset[1][1:] and torch.equal(in_worker[0], dataset[1][0])
    assert dataset[-1].name == "deep/er/d"
    with pytest.raises(IndexError):
        dataset[5]


def test_which_items_there_are(single: Path) -> None:
    first = TokenDataset(single, captions="first", window=2)
    assert first.lengths == [2, 2, 1, 2, 2, 1, 2, 2, 2, 2]
    assert [clip.caption for clip in first][:4] == ["whole"] * 3 + [""]
    parts = torch.cat([first[number].indices for number in range(3)])
    assert torch.equal(parts, TokenDataset(single)[0].indices)
    sounds = [first[number].audio for number in range(3)]
    assert [(x.start, x.stop) for x in sounds if x] == [(0, 800), (800, 1600), (1600, 1900)]
    walks = TokenDataset(single, select=lambda record: record.name.startswith("deep"))
    assert [clip.name for clip in walks] == ["deep/c", "deep/er/d"]
    elsewhere = TokenDataset(single, source="elsewhere")[0].audio
    assert elsewhere is not None and elsewhere.path == "elsewhere/a.wav"
    assert walks.shapes() == [(16,), (16,)] and walks.shapes(3) == [(6,), (6,)]


def test_parts_of_captions_are_as_published() -> None:
    """T2M-GPT and MoMask take tokens from int(start * fps / factor) to int(stop * fps / factor)."""
    settings = TokenSettings(
        format="npz",
        codebook_sizes=(8,),
        fps=20.0,
        factor=4,
        first_frames=4,
        model="",
        source="",
    )
    for tenth in range(200):
        seconds = tenth / 10
        assert settings.token_at(seconds) == int(seconds * 20 / 4)
    record = TokenRecord(name="a", source="a.npy", file="a.npz", tokens=9, frames=36)
    for start, stop, expected in ((0.0, None, (0, 9)), (0.2, None, (1, 9)), (0.5, 9.0, (2, 9))):
        caption = Caption(text="x", start=start, stop=stop)
        assert tokens_of_caption(caption, record, settings) == expected
    frames = [settings.first_frame_of(token) for token in range(4)]
    assert frames == [0, 4, 8, 12]
    # Wan's network has a first token of one frame.
    wan = TokenSettings(**{**vars(settings), "first_frames": 1})
    assert [wan.first_frame_of(token) for token in range(4)] == [0, 1, 5, 9]
    assert [wan.token_at(frame / 20) for frame in range(7)] == [0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("pattern", ["flattened", "parallel", "delay"])
def test_a_batch(single: Path, pattern: str) -> None:
    dataset = TokenDataset(single)
    vocabulary = TokenVocabulary(codebook_sizes=dataset.codebook_sizes, pattern=pattern)
    clips = list(dataset)
    batch = collate(clips, vocabulary)
    assert batch.lengths.tolist() == dataset.lengths
    assert torch.equal(vocabulary.decode(batch.ids), batch.indices)
    for row, clip in enumerate(clips):
        alone = vocabulary.encode(clip.indices)
        assert torch.equal(batch.ids[row][batch.mask[row]], alone)
        assert (batch.ids[row][~batch.mask[row]] == vocabulary.pad).all()
        assert torch.equal(batch.indices[row, : len(clip.indices)], clip.indices)
    assert batch.captions == [clip.caption for clip in clips]
    assert batch.words == [clip.words for clip in clips]
    assert (batch.speakers, batch.audio[2], batch.names[3]) == ([""] * 5, None, "deep/c")
    with pytest.raises(UserError, match="at least one clip"):
        collate([], vocabulary)


def test_training_goes_on_with_the_batch_after(single: Path, tmp_path: Path) -> None:
    """With accelerate, which reads ahead; an epoch that was broken off has the same batches."""

    def start() -> tuple[Accelerator, BucketBatches, DataLoader[TokenClip]]:
        dataset = TokenDataset(single, window=1)
        vocabulary = TokenVocabulary(codebook_sizes=dataset.codebook_sizes, pattern="delay")
        batches = BucketBatches(dataset.shapes(), 3, seed=1)
        loader = DataLoader(
            dataset, batch_sampler=batches, collate_fn=partial(collate, vocabulary=vocabulary)
        )
        accelerator = Accelerator(cpu=True)
        accelerator.register_for_checkpointing(batches)
        return accelerator, batches, accelerator.prepare(loader)

    def epochs(batches: BucketBatches, loader: DataLoader[TokenClip]) -> list[TokenBatch]:
        found = []
        while batches.epoch < 2:
            found += list(batches.track(loader))
        return found

    _, batches, loader = start()
    expected = epochs(batches, loader)
    assert {type(batch) for batch in expected} == {TokenBatch}
    assert all(len(batch.captions) == len(batch.ids) for batch in expected)
    accelerator, batches, loader = start()
    seen = []
    for batch in batches.track(loader):
        seen.append(batch)
        if len(seen) == 4:
            accelerator.save_state(str(tmp_path / "state"))
            break
    accelerator, batches, loader = start()
    accelerator.load_state(str(tmp_path / "state"))
    seen += epochs(batches, loader)
    assert len(seen) == len(expected) == 2 * 7
    assert all(
        torch.equal(one.ids, two.ids) and one.names == two.names
        for one, two in zip(seen, expected, strict=True)
    )


def test_what_cannot_be_read(single: Path, tmp_path: Path, recordings: Path) -> None:
    for folder in (tmp_path / "none", recordings):
        with pytest.raises(UserError, match=r"is no complete data set of tokens.*tokenize again"):
            TokenDataset(folder)
    with pytest.raises(UserError, match="window must be 1 or more tokens, not 0"):
        TokenDataset(single, window=0)
    with pytest.raises(UserError, match="captions must be each or first"):
        TokenDataset(single, captions="all")  # pyright: ignore
    with pytest.raises(UserError, match="has no tokens to use"):
        TokenDataset(single, select=lambda _: False)
    (single / "a.npz").write_bytes((single / "deep" / "c.npz").read_bytes())
    with pytest.raises(UserError, match=r"a\.npz is not the file that index\.jsonl names"):
        TokenDataset(single)[0]
    (single / "b.npz").unlink()
    with pytest.raises(UserError, match=r"b\.npz does not exist"):
        TokenDataset(single)[2]
    index = single / INDEX
    index.write_text(index.read_text().replace('"tokens"', '"token"'))
    with pytest.raises(UserError, match=r"is damaged \(line 1: .*run wanvae-motion tokenize"):
        TokenDataset(single)

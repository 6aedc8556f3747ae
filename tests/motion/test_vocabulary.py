"""Ids of a vocabulary: there and back is exact, and the patterns are the published ones."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import motion.vocabulary
from motion import TokenVocabulary
from wanvae.errors import UserError

PATTERNS = ("flattened", "parallel", "delay")


def random_clips(sizes: tuple[int, ...], lengths: list[int], seed: int, holes: bool) -> Tensor:
    """Indices (B, T, Q) of clips of these lengths, as the tokenizer gives them.

    Args:
        holes: some layers of some tokens have no code.
    """
    generator = torch.Generator().manual_seed(seed)
    clips = torch.full((len(lengths), max(lengths), len(sizes)), -1)
    for clip, length in enumerate(lengths):
        for layer, size in enumerate(sizes):
            clips[clip, :length, layer] = torch.randint(size, (length,), generator=generator)
        if holes and length > 1:
            clips[clip, : length - 1][
                torch.rand(length - 1, len(sizes), generator=generator) < 0.3
            ] = -1
    return clips


@given(
    pattern=st.sampled_from(PATTERNS),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple),
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    start=st.sampled_from([0, 32000]),
    begin=st.booleans(),
    end=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=200)
def test_there_and_back(
    pattern: str,
    sizes: tuple[int, ...],
    lengths: list[int],
    start: int,
    begin: bool,
    end: bool,
    holes: bool,
    seed: int,
) -> None:
    vocabulary = TokenVocabulary(codebook_sizes=sizes, pattern=pattern, start=start)
    clips = random_clips(sizes, lengths, seed, holes)
    ids = vocabulary.encode(clips, begin=begin, end=end)
    assert torch.equal(vocabulary.decode(ids), clips)
    assert ids.numel() == 0 or start <= int(ids.min()) <= int(ids.max()) < vocabulary.stop
    for clip, length, sequence in zip(clips, lengths, ids, strict=True):
        alone = vocabulary.encode(clip[:length], begin=begin, end=end)
        assert torch.equal(vocabulary.decode(alone), clip[:length])
        assert torch.equal(sequence[: len(alone)], alone)
        assert (sequence[len(alone) :] == vocabulary.pad).all()
        if begin and end:
            assert len(alone) == vocabulary.steps(length)
            assert (alone[0] == vocabulary.begin).all() and (alone[-1] == vocabulary.end).all()


def test_the_ids_of_each_pattern() -> None:
    """Ids 0 to 3 are pad, begin, end and mask; then 3 codes of layer 0, and 5 of layer 1."""
    indices = torch.tensor([[2, 0], [1, 4]])
    expected = {
        "flattened": [1, 6, 7, 5, 11, 2],
        "parallel": [[1, 1], [6, 7], [5, 11], [2, 2]],
        "delay": [[1, 1], [6, 1], [5, 7], [2, 11], [2, 2]],
    }
    for pattern, ids in expected.items():
        vocabulary = TokenVocabulary(codebook_sizes=(3, 5), pattern=pattern)
        assert vocabulary.encode(indices).tolist() == ids
        later = TokenVocabulary(codebook_sizes=(3, 5), pattern=pattern, start=100)
        assert torch.equal(later.encode(indices), torch.tensor(ids) + 100)
    assert (later.size, later.stop, later.layers) == (12, 112, 2)
    assert [*later.codes(0), *later.codes(1)] == list(range(104, 112))
    assert (later.pad, later.begin, later.end, later.mask) == (100, 101, 102, 103)


def test_delays_are_as_in_musicgen() -> None:
    """MusicGen has one id for padding, begin and end, and no step with ends alone."""
    musicgen = pytest.importorskip("transformers.models.musicgen.modeling_musicgen")
    layers, tokens = 4, 6
    vocabulary = TokenVocabulary(codebook_sizes=(8,) * layers, pattern="delay")
    clips = random_clips((8,) * layers, [tokens, tokens], 0, False)
    ids = vocabulary.encode(clips)
    special = (ids == vocabulary.begin) | (ids == vocabulary.end)
    ours = torch.where(special, -7, ids)
    first = torch.full((2, layers, 1), -7)
    codes = (
        clips.mT + torch.tensor([v.start for v in map(vocabulary.codes, range(layers))])[:, None]
    )
    stand_in = SimpleNamespace(num_codebooks=layers, config=SimpleNamespace(audio_channels=1))
    _, theirs = musicgen.MusicgenForCausalLM.build_delay_pattern_mask(
        stand_in, torch.cat([first, codes], dim=2).flatten(0, 1), -7, tokens + layers
    )
    assert torch.equal(ours[:, :-1], theirs.unflatten(0, (2, layers)).mT)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_sequence_that_was_cut_short_has_its_whole_tokens(pattern: str) -> None:
    vocabulary = TokenVocabulary(codebook_sizes=(5, 5, 5), pattern=pattern)
    (clip,) = random_clips((5, 5, 5), [6], 0, False)
    ids = vocabulary.encode(clip)
    lost = {"flattened": lambda steps: (steps - 1) // 3, "parallel": lambda steps: steps - 1}
    count = lost.get(pattern, lambda steps: steps - 3)
    for steps in range(len(ids)):
        found = vocabulary.decode(ids[:steps])
        assert torch.equal(found, clip[: max(0, min(6, count(steps)))])


def test_what_a_model_leaves_open_is_no_code() -> None:
    vocabulary = TokenVocabulary(codebook_sizes=(5, 5), pattern="parallel")
    ids = vocabulary.encode(torch.tensor([[1, 2], [3, 4]]))
    ids[1, 1] = vocabulary.mask
    assert vocabulary.decode(ids).tolist() == [[1, -1], [3, 4]]


def test_the_layer_that_ends_first_ends_the_clip() -> None:
    vocabulary = TokenVocabulary(codebook_sizes=(5, 5), pattern="delay")
    ids = vocabulary.encode(torch.tensor([[1, 2], [3, 4], [0, 0]]))
    ids[3, 1] = vocabulary.end
    assert vocabulary.decode(ids).tolist() == [[1, 2]]


def test_what_is_refused() -> None:
    vocabulary = TokenVocabulary(codebook_sizes=(3, 5))
    for indices, message in (
        (
            torch.zeros(2, 3, dtype=torch.int64),
            r"\(T, 2\) or \(B, T, 2\), for 2 layers, not \(2, 3",
        ),
        (torch.zeros(2, 2), "whole numbers, not torch.float32"),
        (torch.tensor([[3, 4]]), r"below \(3, 5\) in the layers; they are from 3, and to \(3, 4\)"),
        (torch.tensor([[-2, 0]]), "they are from -2"),
    ):
        with pytest.raises(UserError, match=message):
            vocabulary.encode(indices)
    with pytest.raises(UserError, match=r'"flattened" must be \(L,\) or \(B, L\), not \(1, 1, 1\)'):
        vocabulary.decode(torch.zeros(1, 1, 1, dtype=torch.int64))
    wrong = "id 7 of token 0, layer 0 of sequence 0 is no code of this layer, whose ids are 4 to 6"
    with pytest.raises(UserError, match=wrong):
        vocabulary.decode(torch.tensor([1, 7, 4, 2]))
    for sizes, start in (((), 0), ((0, 2), 0), ((2,), -1)):
        with pytest.raises(UserError):
            TokenVocabulary(codebook_sizes=sizes, start=start)
    with pytest.raises(UserError, match="pattern must be flattened or parallel or delay"):
        TokenVocabulary(codebook_sizes=(2,), pattern="late")  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integers_of_any_size(dtype: torch.dtype) -> None:
    """Also of a type that holds neither -1 nor the size of a codebook."""
    vocabulary = TokenVocabulary(codebook_sizes=(128, 300))
    indices = torch.tensor([[127, 2], [0, 1]])
    assert vocabulary.encode(indices.to(dtype)).equal(vocabulary.encode(indices))
    ids = vocabulary.encode(indices[1:, :])
    assert ids.max() > 127 and vocabulary.decode(ids.to(torch.int16)).equal(indices[1:])


def test_other_types_are_named() -> None:
    for sizes in (8, (8.0, 8), "88", (), None):
        with pytest.raises(UserError, match="codebook_sizes must be a size of at least 1 for each"):
            TokenVocabulary(codebook_sizes=sizes)  # pyright: ignore
    with pytest.raises(UserError, match=r"start must be a whole number, at least 0, not 1\.5"):
        TokenVocabulary(codebook_sizes=(8,), start=1.5)  # pyright: ignore
    vocabulary = TokenVocabulary(codebook_sizes=(8,))
    with pytest.raises(UserError, match=r"give torch\.from_numpy\(indices\)"):
        vocabulary.encode(torch.zeros(2, 1).long().numpy())
    with pytest.raises(UserError, match="ids must be a tensor, not list"):
        vocabulary.decode([1, 4, 2])  # pyright: ignore


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(motion.vocabulary)
    assert result.attempted > 0 and result.failed == 0

"""Residual vector quantization: against its definition, clause by clause."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motion import ResidualVQ
from motion.config import QuantizerConfig

DIM = 6
PLAIN = {"dropout": 0.0, "revive_below": 0.0}


def make(**changes: object) -> ResidualVQ:
    """A quantizer of 3 layers of 5 codes whose codebooks count as initialized."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(
        QuantizerConfig(**{"num_quantizers": 3, "codebook_size": 5, **PLAIN, **changes}), DIM
    )
    quantizer.books.initialized.fill_(True)
    return quantizer


def random_latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def defined(quantizer: ResidualVQ, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Latents ``(N, Q, C)`` as each layer is given them, and indices, by the definition."""
    left, given, indices = latents.movedim(1, 2).flatten(0, 1), [], []
    for layer in range(quantizer.config.num_quantizers):
        book = quantizer.books.codes[layer % len(quantizer.books.codes)]
        if quantizer.config.metric == "cosine":
            found = torch.cosine_similarity(left[:, None], book, dim=2).argmax(1)
        else:
            found = (left[:, None] - book).square().sum(2).argmin(1)
        given.append(left)
        indices.append(found)
        left = left - book[found]
    return torch.stack(given, 1), torch.stack(indices, 1), left


@pytest.mark.parametrize(("metric", "shared"), list(product(["euclidean", "cosine"], [0, 1])))
def test_each_layer_takes_the_nearest_code_of_what_is_left(metric, shared):
    quantizer = make(metric=metric, shared_codebook=bool(shared)).eval()
    latents = random_latents(4, DIM, 40)
    given, indices, left = defined(quantizer, latents)
    result = quantizer(latents)
    assert torch.equal(result.indices.flatten(0, 1), indices)
    quantized = latents - left.unflatten(0, (4, 40)).movedim(2, 1)
    torch.testing.assert_close(result.latents, quantized)
    errors = torch.cat([given[:, 1:], left[:, None]], 1).square().mean((0, 2))
    torch.testing.assert_close(result.commitment_loss, errors.mean())
    assert torch.equal(quantizer.encode(latents), result.indices)
    torch.testing.assert_close(quantizer.decode(result.indices), result.latents)


def test_many_latents_are_quantized_as_each_alone():
    """However many are searched at once."""
    quantizer = ResidualVQ(QuantizerConfig(num_quantizers=2, codebook_size=700), DIM).eval()
    latents = random_latents(2, DIM, 300)
    each = [quantizer.encode(latent[None, :, None]) for latent in latents.movedim(1, 2)[1]]
    assert torch.equal(quantizer.encode(latents)[1], torch.cat(each)[:, 0])


def test_the_gradient_passes_once_whatever_the_number_of_layers():
    latents = random_latents(2, DIM, 7).requires_grad_()
    wanted = random_latents(2, DIM, 7, seed=2)
    (make().eval()(latents).latents * wanted).sum().backward()
    assert torch.equal(latents.grad, wanted)


@pytest.mark.parametrize("lengths", [None, (3, 7)])
def test_the_commitment_loss_has_its_true_gradient(lengths):
    quantizer = make().eval()
    latents = random_latents(2, DIM, 7).requires_grad_()
    valid = None if lengths is None else torch.tensor(lengths)
    loss = quantizer(latents, valid).commitment_loss
    (gradient,) = torch.autograd.grad(2 * loss, latents)
    kept = torch.ones(2, 7) if lengths is None else (torch.arange(7) < valid[:, None])
    total = 0
    for layers in (1, 2, 3):
        codes = quantizer.decode(quantizer.encode(latents), layers)
        errors = (latents - codes).square().mean(1)
        total = total + errors[kept.bool()].mean() / 3
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(gradient, torch.autograd.grad(2 * total, latents)[0])


@pytest.mark.parametrize("shared", [False, True])
def test_codes_are_moving_averages_of_what_chose_them(shared):
    quantizer = make(shared_codebook=shared, decay=0.8)
    sums, counts = quantizer.books.sums.clone(), quantizer.books.counts.clone()
    for seed in range(3):
        latents = random_latents(3, DIM, 9, seed=seed)
        given, indices, _ = defined(quantizer, latents)
        for book in range(len(sums)):
            layers = slice(None) if shared else slice(book, book + 1)
            chosen = torch.nn.functional.one_hot(indices[:, layers].flatten(), 5).float()
            counts[book] = 0.8 * counts[book] + 0.2 * chosen.sum(0)
            sums[book] = 0.8 * sums[book] + 0.2 * chosen.T @ given[:, layers].flatten(0, 1)
        quantizer(latents)
        torch.testing.assert_close(quantizer.books.counts, counts)
        torch.testing.assert_close(quantizer.books.codes, sums / counts[:, :, None])


def test_codes_that_nothing_chooses_keep_their_place_for_ever():
    quantizer = make(decay=0.0)
    far = quantizer.books.codes[:, 0] = 1e3
    for seed in range(3):
        quantizer(random_latents(2, DIM, 20, seed=seed))
    assert (quantizer.books.codes[:, 0] == far).all()


def test_evaluation_learns_nothing():
    quantizer = make(dropout=1.0, temperature=1.0, revive_below=9.0).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    first, second = (quantizer(random_latents(2, DIM, 9)) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    assert (first.indices >= 0).all()
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_dead_codes_become_random_latents_and_start_anew():
    latents = random_latents(2, DIM, 30)

    def revived(seed: int) -> tuple[ResidualVQ, torch.Tensor]:
        quantizer = make(revive_below=0.5, decay=0.5)
        quantizer.books.codes[:, 1] = 1e3
        quantizer.books.counts[:, 1] = 0.1
        given, _, _ = defined(quantizer, latents)
        torch.manual_seed(seed)
        quantizer(latents)
        return quantizer, given

    quantizer, given = revived(0)
    for layer in range(3):
        code = quantizer.books.codes[layer, 1]
        assert ((given[:, layer] - code).abs().amax(1) < 1e-5).sum() == 1
    count = quantizer.books.counts[:, 1]
    assert (count > 0.5).all()
    torch.testing.assert_close(
        quantizer.books.sums[:, 1], quantizer.books.codes[:, 1] * count[:, None]
    )
    other, _ = revived(1)
    assert (other.books.codes[:, 1] != quantizer.books.codes[:, 1]).any(1).all()
    # The first latents of the batch are no likelier than others.
    assert len({revived(seed)[0].books.codes[0, 1].sum().item() for seed in range(8)}) > 4


@pytest.mark.parametrize("shared", [False, True])
def test_revival_fills_the_codebook(shared):
    """Where all codes but one lie far away, as after a collapse."""
    quantizer = make(shared_codebook=shared, codebook_size=32, revive_below=0.3, decay=0.9)
    quantizer.books.codes[:, 1:] += 1e3
    quantizer.books.sums.copy_(quantizer.books.codes)
    for seed in range(60):
        quantizer(random_latents(4, DIM, 64, seed=seed))
    assert (quantizer.books.counts > 0.3).float().mean() > 0.9


def test_dropout_is_drawn_for_each_clip():
    quantizer = make(dropout=0.5)
    result = quantizer(random_latents(200, DIM, 3))
    layers = (result.indices >= 0).sum(2)
    assert (layers == layers[:, :1]).all()
    few = (layers[:, 0, None] == torch.tensor([1, 2, 3])).float().mean(0)
    torch.testing.assert_close(few, torch.tensor([1 / 6, 1 / 6, 4 / 6]), atol=0.12, rtol=0)
    kept = torch.arange(3) < layers[:, :, None]
    assert torch.equal(result.indices >= 0, kept)


def test_a_clip_without_some_layers_is_what_the_others_make_of_it():
    quantizer = make(dropout=1.0, decay=1.0)
    latents = random_latents(30, DIM, 4)
    result = quantizer(latents)
    torch.testing.assert_close(quantizer.decode(result.indices), result.latents)
    whole = quantizer.encode(latents)
    assert torch.equal(result.indices, torch.where(result.indices < 0, -1, whole))
    losses = []
    for layer in range(3):
        kept = result.indices[:, :, layer] >= 0
        left = latents - quantizer.decode(whole, layer + 1)
        losses.append(left.square().mean(1)[kept].mean())
    torch.testing.assert_close(result.commitment_loss, torch.stack(losses).mean())


def test_layers_learn_only_from_clips_they_quantize():
    quantizer = make(dropout=1.0, decay=0.0)
    latents = random_latents(40, DIM, 4)
    given, _, _ = defined(quantizer, latents)
    result = quantizer(latents)
    indices = result.indices.flatten(0, 1)
    for layer, code in product(range(3), range(5)):
        chosen = given[indices[:, layer] == code, layer]
        if len(chosen):
            torch.testing.assert_close(quantizer.books.codes[layer, code], chosen.mean(0))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_codes_are_drawn_by_their_probabilities(metric):
    quantizer = make(num_quantizers=1, metric=metric, temperature=2.0, decay=1.0)
    latent = random_latents(1, DIM, 1)
    indices = quantizer(latent.expand(1, DIM, 20_000)).indices
    drawn = torch.bincount(indices.flatten(), minlength=5) / 20_000
    row, book = latent[0, :, 0], quantizer.books.codes[0]
    logits = -(row - book).square().sum(1)
    if metric == "cosine":
        logits = torch.cosine_similarity(row[None], book, dim=1)
    torch.testing.assert_close(drawn, (logits / 2).softmax(0), atol=0.02, rtol=0)


def clustered_latents() -> torch.Tensor:
    """Around 5 centres far apart."""
    centres = 10 * random_latents(5, DIM, seed=3)
    return (centres[torch.arange(200) % 5] + 0.1 * random_latents(200, DIM)).T[None]


def test_kmeans_finds_clusters():
    torch.manual_seed(1)
    config = QuantizerConfig(num_quantizers=1, codebook_size=20, initialization="kmeans", **PLAIN)
    quantizer = ResidualVQ(config, DIM)
    result = quantizer(clustered_latents())
    assert quantizer.books.initialized
    assert result.commitment_loss < 0.1**2


def test_sampled_codes_are_latents():
    torch.manual_seed(0)
    config = QuantizerConfig(
        num_quantizers=2, codebook_size=9, initialization="samples", decay=1.0, dropout=0.0
    )
    quantizer = ResidualVQ(config, DIM)
    latents = random_latents(2, DIM, 50)
    quantizer(latents)
    rows = latents.movedim(1, 2).flatten(0, 1)
    assert all((rows == code).all(1).any() for code in quantizer.books.codes[0])
    assert quantizer.books.codes[0].unique(dim=0).shape[0] == 9
    given, _, _ = defined(quantizer, latents)
    assert all((given[:, 1] - code).abs().amax(1).min() < 1e-5 for code in quantizer.books.codes[1])


@pytest.mark.parametrize("initialization", ["kmeans", "samples"])
def test_fewer_latents_than_codes_are_enough(initialization):
    config = QuantizerConfig(num_quantizers=2, codebook_size=16, initialization=initialization)
    quantizer = ResidualVQ(config, DIM)
    quantizer(random_latents(1, DIM, 3))
    assert quantizer.books.codes.isfinite().all()


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_padding_is_as_if_it_were_not_there(lengths, seed):
    whole, alone = make(), make()
    latents = random_latents(len(lengths), DIM, 8, seed=seed)
    clips = [clip[:, :length] for clip, length in zip(latents, lengths, strict=True)]
    padded = whole(latents, torch.tensor(lengths))
    joined = alone(torch.cat(clips, dim=1)[None])
    pieces = joined.indices[0].split(lengths)
    for number, (length, piece) in enumerate(zip(lengths, pieces, strict=True)):
        assert torch.equal(padded.indices[number, :length], piece)
        assert (padded.indices[number, length:] == -1).all()
        assert (padded.latents[number, :, length:] == 0).all()
    for name in ("commitment_loss", "perplexity", "code_use"):
        torch.testing.assert_close(getattr(padded, name), getattr(joined, name))
    torch.testing.assert_close(whole.books.codes, alone.books.codes)


def test_perplexity_and_use_count_codes():
    quantizer = make(num_quantizers=1, codebook_size=4).eval()
    quantizer.books.codes.copy_(torch.eye(4, DIM))
    rows = torch.eye(4, DIM)[[0, 0, 1, 1, 2, 2]]
    result = quantizer(rows.T[None])
    torch.testing.assert_close(result.perplexity, torch.tensor([3.0]))
    assert result.code_use.tolist() == [0.75]


def test_half_precision_is_left_outside():
    quantizer, exact = make(), make()
    latents = random_latents(2, DIM, 50).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(latents)
    expected = exact(latents.float())
    assert result.latents.dtype == torch.bfloat16
    assert result.commitment_loss.dtype == quantizer.books.codes.dtype == torch.float32
    assert torch.equal(result.indices, expected.indices)
    assert torch.equal(quantizer.books.codes, exact.books.codes)


def test_latents_that_are_not_finite_are_not_learnt_from():
    latents = random_latents(2, DIM, 9)
    latents[0, 0, 3] = torch.nan
    fresh = ResidualVQ(QuantizerConfig(num_quantizers=2, codebook_size=4), DIM)
    fresh(latents)
    assert not fresh.books.initialized
    for quantizer in (fresh, make()):
        before = quantizer.books.codes.clone()
        quantizer(latents)
        assert torch.equal(quantizer.books.codes, before)


def test_a_state_dict_goes_on_bit_for_bit():
    config = QuantizerConfig(num_quantizers=2, codebook_size=8, temperature=0.5, revive_below=0.5)
    torch.manual_seed(3)
    first = ResidualVQ(config, DIM)
    for seed in range(3):
        first(random_latents(4, DIM, 9, seed=seed))
    second = ResidualVQ(config, DIM)
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(4)
        quantizer(random_latents(4, DIM, 9, seed=5))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_indices_may_be_small_integers(dtype: torch.dtype) -> None:
    """Also of a type without -1, in which 255 would equal -1."""
    quantizer = ResidualVQ(dim=DIM, codebook_size=256, num_quantizers=1).eval()
    indices = torch.tensor([[[255], [3]]])
    assert torch.equal(quantizer.decode(indices.to(dtype)), quantizer.decode(indices))


def test_wrong_indices_are_refused():
    quantizer = make()
    right = torch.zeros(1, 4, 3, dtype=torch.long)
    for wrong, message in (
        (right[0], r"must be \(B, T, Q\)"),
        (torch.zeros(1, 4, 4, dtype=torch.long), "at most 3"),
        (right[:, :0], "none of them 0"),
        (right.float(), "whole numbers"),
        (right + 5, "from 0 to 4"),
        (right - 2, "from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            quantizer.decode(wrong)
    with pytest.raises(ValueError, match="from 1 to 3, not 0"):
        quantizer.decode(right, layers=0)


@pytest.mark.parametrize(
    "changes", [{"decay": 1.5}, {"codebook_size": 0}, {"metric": "angle"}, {"revive_below": -1.0}]
)
def test_impossible_configs_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        QuantizerConfig(**changes)

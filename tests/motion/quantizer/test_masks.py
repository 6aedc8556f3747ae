"""ResidualVQ by itself: made from a few numbers, with masks, and with channels last."""

import pytest
import torch

from motion import QuantizerConfig, ResidualVQ
from wanvae.errors import UserError

DIM = 6
MASK = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])


def make(*, channel_last: bool = False, seed: int = 0, **changes: object) -> ResidualVQ:
    """A quantizer of 3 layers of 5 codes whose codebooks count as initialized."""
    torch.manual_seed(seed)
    quantizer = ResidualVQ(
        QuantizerConfig(**{"dropout": 0.0, "revive_below": 0.0, **changes}),
        DIM,
        codebook_size=5,
        num_quantizers=3,
        channel_last=channel_last,
    )
    quantizer.books.initialized.fill_(True)
    return quantizer


def random_latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_few_numbers_are_enough():
    quantizer = ResidualVQ(dim=8, codebook_size=16, num_quantizers=4)
    assert quantizer.config == QuantizerConfig(codebook_size=16, num_quantizers=4)
    assert quantizer.books.codes.shape == (4, 16, 8)
    result = quantizer(random_latents(2, 8, 30))
    assert result.latents.shape == (2, 8, 30) and result.indices.shape == (2, 30, 4)
    assert quantizer.books.initialized
    whole = QuantizerConfig(num_quantizers=2, metric="cosine")
    assert ResidualVQ(whole, DIM, codebook_size=7).config.metric == "cosine"
    assert ResidualVQ(whole, DIM, codebook_size=7).books.codes.shape == (2, 7, DIM)


def test_masked_latents_count_nowhere():
    """Neither in codes, losses and figures, nor in gradients, whatever their values."""
    masked, alone = make(decay=0.5), make(decay=0.5)
    latents = random_latents(2, DIM, 5)
    rows = latents.movedim(1, 2)[MASK].T[None].clone().requires_grad_()
    latents.movedim(1, 2)[~MASK] = torch.nan
    latents.requires_grad_()
    found, expected = masked(latents, mask=MASK), alone(rows)
    assert torch.equal(found.indices[MASK], expected.indices[0])
    assert (found.indices[~MASK] == -1).all()
    assert torch.equal(found.latents.movedim(1, 2)[MASK], expected.latents[0].T)
    assert (found.latents.movedim(1, 2)[~MASK] == 0).all()
    for name in ("commitment_loss", "perplexity", "code_use"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(masked.books.codes, alone.books.codes)
    assert torch.equal(masked.encode(latents, mask=MASK)[MASK], alone.encode(rows)[0])
    (gradient,) = torch.autograd.grad(found.commitment_loss, latents)
    (of_rows,) = torch.autograd.grad(expected.commitment_loss, rows)
    torch.testing.assert_close(gradient.movedim(1, 2)[MASK], of_rows[0].T)
    assert (gradient.movedim(1, 2)[~MASK] == 0).all()


def test_a_mask_says_what_lengths_say():
    latents, lengths = random_latents(2, DIM, 5), torch.tensor([5, 2])
    mask = torch.arange(5) < lengths[:, None]
    first, second = make()(latents, lengths), make()(latents, mask=mask)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.latents, second.latents)


@pytest.mark.parametrize("initialized", [False, True])
def test_a_batch_of_nothing_but_padding_teaches_nothing(initialized):
    quantizer = make(revive_below=9.0, decay=0.9)
    quantizer.books.initialized.fill_(initialized)
    codes, nothing = quantizer.books.codes.clone(), torch.zeros(2, 5, dtype=torch.bool)
    result = quantizer(random_latents(2, DIM, 5), mask=nothing)
    assert torch.equal(quantizer.books.codes, codes)
    assert quantizer.books.initialized == initialized
    assert (result.indices == -1).all() and (result.latents == 0).all()
    assert result.commitment_loss == 0
    assert (quantizer.encode(random_latents(2, DIM, 5), mask=nothing) == -1).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_channels_may_come_last(mask, training):
    latents = random_latents(2, DIM, 5)
    first, last = make().train(training), make(channel_last=True).train(training)
    expected, found = first(latents, mask=mask), last(latents.mT, mask=mask)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.latents, expected.latents.mT)
    assert torch.equal(last.encode(latents.mT, mask=mask), first.encode(latents, mask=mask))
    assert torch.equal(last.decode(found.indices), first.decode(expected.indices).mT)
    torch.testing.assert_close(last.books.codes, first.books.codes)


def test_what_does_not_fit_is_refused():
    quantizer, latents = make(), random_latents(2, DIM, 5)
    with pytest.raises(UserError, match=r"\(B, 6, T\), as channel_last=False says.*\(2, 5, 6\)"):
        quantizer(latents.mT)
    with pytest.raises(UserError, match=r"\(B, T, 6\), as channel_last=True says"):
        make(channel_last=True).encode(latents)
    with pytest.raises(UserError, match="give one of them"):
        quantizer(latents, torch.tensor([5, 5]), mask=MASK)
    for wrong in (MASK.float(), MASK[:, :4], MASK[:, :, None]):
        with pytest.raises(UserError, match=r"mask must be bool \(2, 5\), \(B, T\), not"):
            quantizer(latents, mask=wrong)
    with pytest.raises(UserError, match="codebook_size must be a whole number, at least 1"):
        ResidualVQ(dim=4, codebook_size=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResidualVQ(256), "config must be a QuantizerConfig, not 256; .*dim=256"),
        (lambda: ResidualVQ(dim=0), "dim must be a whole number, at least 1, not 0"),
        (lambda: ResidualVQ(dim=4.0), "dim must be a whole number, at least 1, not 4.0"),
        (lambda: ResidualVQ(dim=4, codebook_size=8.0), "codebook_size must be a whole number"),
        (lambda: make()(torch.zeros(2, DIM, 5).long()), "latents must be floating point"),
        (lambda: make()(torch.zeros(2, DIM, 5).numpy()), "give torch.from_numpy"),
        (lambda: make()(random_latents(2, DIM, 5), mask=MASK.tolist()), "mask must be bool"),
        (lambda: make()(random_latents(2, DIM, 5), [6, 1]), r"from 0 to 5, .* not \[6, 1\]"),
        (lambda: make().encode(random_latents(2, DIM, 5), [5]), r"lengths must be 2 .* \[5\]"),
        (lambda: make()(random_latents(2, DIM, 5), torch.ones(2)), "lengths must be 2 whole"),
    ],
)
def test_other_types_and_sizes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_lengths_may_be_a_list():
    latents = random_latents(2, DIM, 5)
    found, expected = make()(latents, [5, 0]), make()(latents, torch.tensor([5, 0]))
    assert torch.equal(found.latents, expected.latents) and (found.indices[1] == -1).all()


def test_masks_are_those_of_vector_quantize_pytorch():
    """Indices, latents and losses of a masked batch, and the codes that it leaves behind."""
    library = pytest.importorskip("vector_quantize_pytorch")
    quantizer = make(channel_last=True, decay=0.8)
    peer = library.ResidualVQ(
        dim=DIM, codebook_size=5, num_quantizers=3, decay=0.8, threshold_ema_dead_code=0
    )
    for layer, codes in zip(peer.layers, quantizer.books.codes, strict=True):
        layer._codebook.embed.data.copy_(codes[None])
        layer._codebook.embed_avg.data.copy_(codes[None])
        layer._codebook.cluster_size.data.fill_(1)
    latents = random_latents(2, 5, DIM)
    found = quantizer(latents, mask=MASK)
    quantized, indices, losses = peer(latents, mask=MASK)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.latents, quantized)
    torch.testing.assert_close(found.commitment_loss, losses.mean())
    learnt = torch.stack([layer._codebook.embed[0] for layer in peer.layers])
    torch.testing.assert_close(quantizer.books.codes, learnt, atol=1e-4, rtol=1e-4)

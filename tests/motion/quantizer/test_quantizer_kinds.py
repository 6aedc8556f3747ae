"""What holds for quantizers of every kind."""

import pytest
import torch

from motion import ResidualVQ
from motion.quantizer_config import (
    BY_GRADIENT,
    FSQConfig,
    ImplicitConfig,
    LFQConfig,
    QuantizerConfig,
)
from wanvae.errors import UserError

DIM = 12
KINDS = {
    "ema": {},
    "cosine": {"metric": "cosine"},
    "rotation": {"estimator": "rotation"},
    "narrow": {"codebook_dim": 4, "metric": "cosine"},
    "shared": {"shared_codebook": True, "groups": 2},
    "learned": {"kind": "learned", "orthogonality": 0.1},
    "simvq": {"kind": "simvq", "estimator": "rotation"},
    "implicit": {"kind": "implicit", "implicit": ImplicitConfig(depth=1, hidden=8)},
    "implicit-narrow": {"kind": "implicit", "codebook_dim": 3},
    "fsq": {"kind": "fsq", "fsq": FSQConfig(levels=(4, 2))},
    "lfq": {"kind": "lfq"},
}
CASES = [(name, groups) for name in KINDS for groups in (1, 2)]


def make(name: str, groups: int = 1, **changes: object) -> ResidualVQ:
    """Returns a quantizer of 4 codes a token, of 8 each, in training."""
    torch.manual_seed(0)
    options = {"num_quantizers": 4, "codebook_size": 8, "groups": groups, "dropout": 0.0}
    return ResidualVQ(QuantizerConfig(**{**options, **KINDS[name], **changes}), DIM)


def learnt(name: str, groups: int = 1, **changes: object) -> ResidualVQ:
    """Returns a quantizer that has learnt from some batches."""
    quantizer = make(name, groups, **changes)
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, 0.01) if parameters else None
    for seed in range(4):
        result = quantizer(latents_of(8, 9, seed=seed))
        terms = [result.commitment_loss, result.codebook_loss, result.regularization]
        loss = sum(term for term in terms if term is not None) + result.latents.square().sum()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return quantizer


def latents_of(batch: int, length: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(batch, DIM, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_indices_are_all_that_the_latents_are_of(name, groups):
    quantizer = learnt(name, groups).eval()
    latents = latents_of(3, 20)
    result = quantizer(latents)
    indices = quantizer.encode(latents)
    assert torch.equal(result.indices, indices)
    assert indices.shape == (3, 20, 4)
    assert indices.min() >= 0 and indices.max() < 8
    exact = {"atol": 1e-6, "rtol": 1e-5} if "implicit" in name else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(quantizer.decode(indices), result.latents, **exact)


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_padding_changes_nothing_and_is_marked(name, groups):
    quantizer = learnt(name, groups).eval()
    latents, lengths = latents_of(2, 7), torch.tensor([3, 7])
    padded, alone = quantizer(latents, lengths), quantizer(latents[:1, :, :3])
    assert torch.equal(padded.indices[:1, :3], alone.indices)
    assert (padded.indices[0, 3:] == -1).all()
    assert (padded.latents[0, :, 3:] == 0).all()
    torch.testing.assert_close(padded.latents[:1, :, :3], alone.latents)
    assert torch.equal(quantizer.encode(latents, lengths), padded.indices)


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_layers_refine_each_other(name, groups):
    """Fewer codes are a rougher result, also where -1 stands for the others."""
    quantizer = learnt(name, groups).eval()
    indices = quantizer.encode(latents_of(4, 30))
    for layers in (1, 3):
        missing = indices.clone()
        missing[:, :, layers:] = -1
        torch.testing.assert_close(quantizer.decode(indices, layers), quantizer.decode(missing))
    bounded = quantizer._project(latents_of(4, 30))
    rows = bounded.movedim(1, 2).flatten(0, 1)
    flat = indices.flatten(0, 1)
    errors = [
        (rows - quantizer.books.look_up(flat[:, :layers])).square().mean() for layers in (2, 4)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", KINDS)
def test_clips_without_some_layers_are_marked(name):
    quantizer = learnt(name, 2, dropout=1.0)
    result = quantizer(latents_of(40, 3))
    used = (result.indices >= 0).sum(2)
    assert (used == used[:, :1]).all()
    assert set(used.flatten().tolist()) == {1, 2, 3, 4}
    eps = {"atol": 1e-5, "rtol": 1e-5}
    if name in ("fsq", "lfq"):
        torch.testing.assert_close(quantizer.decode(result.indices), result.latents, **eps)


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_gradients_reach_latents_and_codes(name, groups):
    quantizer = learnt(name, groups)
    latents = latents_of(3, 9).requires_grad_()
    result = quantizer(latents)
    (result.latents * latents_of(3, 9, seed=5)).sum().backward()
    assert latents.grad is not None and (latents.grad.abs().sum((1, 2)) > 0).all()
    assert (result.codebook_loss is not None) == (quantizer.config.kind in BY_GRADIENT)
    if result.codebook_loss is not None:
        quantizer.zero_grad()
        latents.grad = None
        result = quantizer(latents)
        result.codebook_loss.backward()
        assert latents.grad is None
        for parameter in quantizer.books.parameters():
            assert parameter.grad is not None and parameter.grad.any()
        torch.testing.assert_close(result.codebook_loss, result.commitment_loss)


@pytest.mark.parametrize("name", ["learned", "simvq", "implicit"])
def test_codes_come_closer_to_what_they_are_learnt_from(name):
    quantizer = make(name, revive_below=0.0, initialization="samples")
    latents = latents_of(16, 20)
    quantizer(latents)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = quantizer(latents).codebook_loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_a_saved_quantizer_is_the_same(name, groups):
    first, second = learnt(name, groups).eval(), make(name, groups).eval()
    second.load_state_dict(first.state_dict())
    latents = latents_of(2, 9)
    assert torch.equal(first(latents).latents, second(latents).latents)
    assert second.books.ready()


@pytest.mark.parametrize("name", KINDS)
def test_several_batches_are_learnt_as_one(name):
    """What codebooks learn outside of gradients."""
    one, several = learnt(name), learnt(name)
    latents = latents_of(6, 9)
    one(latents)
    parts = [several(part, learn=False) for part in latents.split(2)]
    usage = several.learn([part.choices for part in parts])
    assert usage.perplexity.shape == (4,)
    torch.manual_seed(0)
    for (key, value), other in zip(
        one.state_dict().items(), several.state_dict().values(), strict=True
    ):
        if "codes" not in key and "base" not in key and "sums" not in key:
            torch.testing.assert_close(value, other, msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_outside(name):
    quantizer = learnt(name).eval()
    latents = latents_of(2, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(latents)
    assert result.latents.dtype == torch.bfloat16
    assert torch.equal(result.indices, quantizer(latents.float()).indices)


def test_a_learned_code_that_nothing_chooses_becomes_a_latent():
    quantizer = learnt("learned", decay=0.5, revive_below=0.5)
    with torch.no_grad():
        quantizer.books.offsets[:, 1] = 1e3
        quantizer.books.counts[:, 1] = 0.0
    before = quantizer.books.offsets.detach().clone()
    latents = latents_of(8, 20)
    quantizer(latents)
    assert quantizer.books.table()[:, 1].abs().max() < 10
    # The optimizer's parameter is left alone.
    assert torch.equal(quantizer.books.offsets, before)
    rows = latents.movedim(1, 2).flatten(0, 1)
    code = quantizer.books.table()[0, 1]
    assert (rows - code).abs().amax(1).min() < 1e-4


def test_fsq_rounds_to_even_values():
    config = QuantizerConfig(
        kind="fsq", num_quantizers=1, codebook_size=15, fsq=FSQConfig(levels=(3, 5))
    )
    quantizer = ResidualVQ(config, 2).eval()
    latents = torch.linspace(-9, 9, 4001).repeat(2, 1)[None]
    result = quantizer(latents).latents[0]
    assert result[0].unique().tolist() == [-1, 0, 1]
    assert result[1].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    # c tanh(z / c) with c = 3 / 2 is half a step, 0.5, at z = 0.52.
    assert result[0, latents[0, 0] > 0.53].min() == 1
    assert result[0, latents[0, 0] < 0.51].max() == 0


@pytest.mark.parametrize("name", ["ema", "learned", "simvq", "implicit", "fsq", "lfq"])
def test_latents_that_are_not_numbers_are_told_by_loss_or_gradient(name):
    """A step of training can then be taken back, instead of an end of the run."""
    quantizer, latents = learnt(name), latents_of(2, 5)
    latents[0, 0, 3] = torch.nan
    result = quantizer(latents.requires_grad_())
    assert ((result.indices >= 0) & (result.indices < 8)).all()
    (result.latents.sum() + result.commitment_loss).backward()
    assert not latents.grad.isfinite().all()


def test_lfq_codes_are_signs():
    config = QuantizerConfig(kind="lfq", num_quantizers=2, codebook_size=8, dropout=0.0)
    quantizer = ResidualVQ(config, 3).eval()
    result = quantizer(torch.tensor([[[0.3], [-2.0], [1.1]]]))
    assert result.indices.tolist() == [[[0b101, 0b001]]]
    assert result.latents.flatten().tolist() == [0.5, -1.5, 1.5]


def test_the_entropy_loss_wants_sure_latents_and_all_codes():
    config = QuantizerConfig(
        kind="lfq",
        num_quantizers=1,
        codebook_size=4,
        dropout=0.0,
        lfq=LFQConfig(entropy=1.0, sharpness=1.0),
    )
    quantizer = ResidualVQ(config, 2)

    def loss(rows: list[list[float]]) -> float:
        return quantizer(torch.tensor(rows).float().T[None]).regularization.item()

    spread = loss([[9, 9], [9, -9], [-9, 9], [-9, -9]])
    assert spread == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-3)
    assert loss([[9, 9], [9, 9], [9, 9], [9, 9]]) == pytest.approx(0, abs=1e-3)
    assert spread < loss([[0.1, 0.1], [0.1, -0.1], [-0.1, 0.1], [-0.1, -0.1]])


def test_groups_are_quantized_on_their_own():
    quantizer = learnt("ema", 2).eval()
    latents = latents_of(2, 9)
    other = latents.clone()
    other[:, DIM // 2 :] += 1
    first, second = quantizer.encode(latents), quantizer.encode(other)
    assert torch.equal(first[:, :, ::2], second[:, :, ::2])
    assert not torch.equal(first[:, :, 1::2], second[:, :, 1::2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "vq"}, "kind must be ema or"),
        ({"kind": "fsq"}, r"codebook_size must be the product of fsq.levels \(8, 8, 8\), 512"),
        ({"kind": "lfq", "codebook_size": 12}, "codebook_size must be a power of 2"),
        ({"groups": 3}, "groups must be a divisor of num_quantizers, 4"),
        ({"groups": 0}, "groups must be a whole number, at least 1"),
        ({"kind": "lfq", "codebook_dim": 4}, "codebook_dim must be left as it is for lfq"),
        ({"kind": "implicit", "metric": "cosine"}, "metric must be left as it is for implicit"),
        ({"orthogonality": 1.0}, "orthogonality must be left as it is for ema"),
        ({"kind": "simvq", "shared_codebook": True}, "shared_codebook must be left"),
        ({"estimator": "turn"}, "estimator must be straight_through or rotation"),
    ],
)
def test_options_that_do_not_fit_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        QuantizerConfig(**{"num_quantizers": 4, "codebook_size": 8, **changes})


def test_groups_must_divide_the_channels():
    with pytest.raises(UserError, match="groups must be a divisor of 13 channels, not 2"):
        ResidualVQ(QuantizerConfig(groups=2), 13)

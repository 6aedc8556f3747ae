"""Against vector-quantize-pytorch, where it has the same quantizer.

The peer's layers each pass the gradient of the result to the latents, so with Q layers it is Q
times ours. Its losses are of each layer; ours are their mean.
"""

import pytest
import torch

from motion import ResidualVQ
from motion.quantizer.learned import orthogonality
from motion.quantizer_config import FSQConfig, ImplicitConfig, LFQConfig, QuantizerConfig

peer_library = pytest.importorskip("vector_quantize_pytorch")

DIM, SIZE, LAYERS = 6, 16, 3
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def make(layers: int = LAYERS, **options: object) -> ResidualVQ:
    config = {"num_quantizers": layers, "codebook_size": SIZE, "dropout": 0.0, "decay": 1.0}
    torch.manual_seed(0)
    quantizer = ResidualVQ(QuantizerConfig(**{**config, **options}), DIM)
    if hasattr(quantizer.books, "initialized"):
        quantizer.books.initialized.fill_(True)
    return quantizer


def make_peer(layers: int = LAYERS, **options: object) -> torch.nn.Module:
    plain = {"rotation_trick": False, "threshold_ema_dead_code": 0, "commitment_weight": 1.0}
    torch.manual_seed(1)
    return peer_library.ResidualVQ(
        dim=DIM, num_quantizers=layers, codebook_size=SIZE, **{**plain, **options}
    )


def example(seed: int = 2, scale: float = 1.0) -> torch.Tensor:
    """Latents ``(B, T, C)``, as the peer has them."""
    return scale * torch.randn(4, 30, DIM, generator=torch.Generator().manual_seed(seed))


def run(quantizer: ResidualVQ, latents: torch.Tensor) -> tuple:
    """Returns the result, its latents as the peer has them, and the latents with gradients."""
    given = latents.clone().requires_grad_()
    result = quantizer(given.mT)
    return result, result.latents.mT, given


def run_peer(peer: torch.nn.Module, latents: torch.Tensor, **options: object) -> tuple:
    given = latents.clone().requires_grad_()
    values, indices, *losses = peer(given, **options)
    return values, indices, losses[0] if losses else None, given


def gradient(values: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of some function of the values with respect to the latents."""
    wanted = torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((values * wanted).sum(), given, retain_graph=True)[0]


def books_of(peer: torch.nn.Module) -> torch.Tensor:
    return torch.stack([layer._codebook.embed[0].detach() for layer in peer.layers])


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_moving_averages(layers):
    ours, peer = make(layers), make_peer(layers)
    ours.books.codes.copy_(books_of(peer))
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example(), freeze_codebook=True)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(result.commitment_loss, losses.mean(), **CLOSE)
    torch.testing.assert_close(
        gradient(values, given), gradient(expected, theirs) / layers, **CLOSE
    )
    torch.testing.assert_close(
        torch.autograd.grad(result.commitment_loss, given)[0],
        torch.autograd.grad(losses.mean(), theirs)[0],
        **CLOSE,
    )


def test_the_rotation_trick():
    ours, peer = make(1, estimator="rotation"), make_peer(1, rotation_trick=True)
    ours.books.codes.copy_(books_of(peer))
    _, values, given = run(ours, example())
    expected, _, _, theirs = run_peer(peer, example(), freeze_codebook=True)
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(gradient(values, given), gradient(expected, theirs), **CLOSE)


def test_the_cosine():
    ours, peer = make(1, metric="cosine"), make_peer(1, use_cosine_sim=True)
    ours.books.codes.copy_(books_of(peer))
    result, values, _ = run(ours, example())
    expected, indices, _, _ = run_peer(peer, example(), freeze_codebook=True)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)


def test_learned_codes():
    ours = make(kind="learned")
    peer = make_peer(learnable_codebook=True, ema_update=False)
    ours.books.base.copy_(books_of(peer))
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example())
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    parameters = [layer._codebook.embed for layer in peer.layers]
    wanted = torch.autograd.grad(losses.mean(), [theirs, *parameters])
    found = torch.autograd.grad(
        result.commitment_loss + result.codebook_loss, [given, ours.books.offsets]
    )
    torch.testing.assert_close(found[0], wanted[0], **CLOSE)
    torch.testing.assert_close(found[1], torch.cat(wanted[1:]), **CLOSE)


def test_orthogonality():
    codes = torch.randn(3, SIZE, DIM)
    expected = peer_library.vector_quantize_pytorch.orthogonal_loss_fn(codes)
    torch.testing.assert_close(orthogonality(codes), expected, **CLOSE)


def test_a_projection_and_back():
    ours, peer = make(codebook_dim=3), make_peer(codebook_dim=3)
    ours.books.codes.copy_(books_of(peer))
    copy_projections(ours, peer)
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example(), freeze_codebook=True)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(result.commitment_loss, losses.mean(), **CLOSE)
    torch.testing.assert_close(
        gradient(values, given), gradient(expected, theirs) / LAYERS, **CLOSE
    )


def copy_projections(ours: ResidualVQ, peer: torch.nn.Module) -> None:
    for name in ("project_in", "project_out"):
        mine, theirs = getattr(ours, name), getattr(peer, name)
        mine.weight.data.copy_(theirs.weight[None])
        mine.bias.data.copy_(theirs.bias[None])


def test_groups():
    torch.manual_seed(1)
    peer = peer_library.GroupedResidualVQ(
        dim=DIM,
        groups=2,
        num_quantizers=LAYERS,
        codebook_size=SIZE,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    ours = make(2 * LAYERS, groups=2)
    books = torch.stack([books_of(rvq) for rvq in peer.rvqs], 1)
    ours.books.codes.copy_(books.flatten(0, 1))
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example(), freeze_codebook=True)
    assert torch.equal(result.indices.unflatten(2, (LAYERS, 2)), indices.permute(1, 2, 3, 0))
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(result.commitment_loss, losses.mean(), **CLOSE)
    torch.testing.assert_close(
        gradient(values, given), gradient(expected, theirs) / LAYERS, **CLOSE
    )


def test_simvq():
    torch.manual_seed(1)
    peer = peer_library.ResidualSimVQ(
        dim=DIM,
        num_quantizers=LAYERS,
        codebook_size=SIZE,
        rotation_trick=False,
        input_to_quantize_commit_loss_weight=0.25,
    )
    ours = make(kind="simvq")
    weights = [layer.code_transform.weight for layer in peer.layers]
    ours.books.fixed.copy_(torch.stack([layer.frozen_codebook for layer in peer.layers]))
    ours.books.matrices.data.copy_(torch.stack(weights))
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example())
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    total = result.codebook_loss + 0.25 * result.commitment_loss
    torch.testing.assert_close(total, losses.mean(), **CLOSE)
    found = torch.autograd.grad(total, [given, ours.books.matrices])
    wanted = torch.autograd.grad(losses.mean(), [theirs, *weights])
    torch.testing.assert_close(found[0], wanted[0], **CLOSE)
    torch.testing.assert_close(found[1], torch.stack(wanted[1:]), **CLOSE)


def test_implicit_codebooks():
    """The peer's networks also pass gradients to the latents, through the sum before them."""
    peer = make_peer(implicit_neural_codebook=True, mlp_kwargs={"depth": 2, "dim_hidden": 5})
    ours = make(kind="implicit", implicit=ImplicitConfig(depth=2, hidden=5))
    ours.books.base.copy_(books_of(peer))
    pairs = []
    for network, mlp in zip(ours.books.networks, peer.mlps, strict=True):
        pairs += [(network.mix, mlp.proj_in)]
        for block, layer in zip(network.blocks, mlp.layers, strict=True):
            pairs += [(block.inner, layer[0]), (block.outer, layer[2])]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())
    for network in ours.books.networks:
        # Ours adds the base code.
        network.mix.weight.data[:, DIM:] -= torch.eye(DIM)
    result, values, _ = run(ours, example())
    expected, indices, losses, _ = run_peer(peer, example())
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    torch.testing.assert_close(result.codebook_loss, losses.mean(), **CLOSE)
    mine = [ours.books.offsets, *(mine.weight for mine, _ in pairs)]
    theirs = [*(layer._codebook.embed for layer in peer.layers), *(one.weight for _, one in pairs)]
    found = torch.autograd.grad(result.codebook_loss, mine)
    wanted = torch.autograd.grad(losses.mean(), theirs)
    torch.testing.assert_close(found[0], torch.cat(wanted[:LAYERS]), **CLOSE)
    for number, (one, other) in enumerate(zip(found[1:], wanted[LAYERS:], strict=True)):
        torch.testing.assert_close(one, other, **CLOSE, msg=str(number))


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_fsq(layers):
    """A gradient is compared where the peer has one: within the values, for one layer."""
    levels = (8, 5, 3)
    torch.manual_seed(1)
    peer = peer_library.ResidualFSQ(levels=list(levels), num_quantizers=layers, dim=DIM)
    ours = make(layers, kind="fsq", codebook_size=120, fsq=FSQConfig(levels=levels))
    copy_projections(ours, peer)
    result, values, given = run(ours, example(scale=0.5))
    expected, indices, _, theirs = run_peer(peer, example(scale=0.5))
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    if layers == 1:
        bounded = ours._project(given.mT).abs().amax(1)
        inside = bounded < 1
        assert inside.sum() > 30
        found, wanted = gradient(values, given), gradient(expected, theirs)
        torch.testing.assert_close(found[inside], wanted[inside], **CLOSE)


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_lfq(layers):
    torch.manual_seed(1)
    peer = peer_library.ResidualLFQ(
        dim=DIM, num_quantizers=layers, codebook_size=SIZE, commitment_loss_weight=0.25
    )
    ours = make(layers, kind="lfq", lfq=LFQConfig(entropy=0.1))
    copy_projections(ours, peer)
    result, values, given = run(ours, example())
    expected, indices, losses, theirs = run_peer(peer, example())
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(values, expected, **CLOSE)
    total = result.regularization + 0.25 * result.commitment_loss
    torch.testing.assert_close(total, losses.mean(), **CLOSE)
    torch.testing.assert_close(
        gradient(values, given), gradient(expected, theirs) / layers, **CLOSE
    )
    torch.testing.assert_close(
        torch.autograd.grad(total, given)[0],
        torch.autograd.grad(losses.mean(), theirs)[0],
        **CLOSE,
    )

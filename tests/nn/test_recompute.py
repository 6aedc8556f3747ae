"""Blocks that are computed again for the backward pass."""

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import WAN22, random_video, tiny
from wanvae.nn import Decoder, Encoder
from wanvae.nn.coder import CoderSpec
from wanvae.nn.kernels.dispatch import PYTORCH, TABLE, Observer
from wanvae.nn.residual import BlockSpec

SPEC = CoderSpec(
    ndim=3,
    dim=4,
    dim_mult=(1, 2),
    num_res_blocks=1,
    temporal_downsample=(True,),
    block=BlockSpec(dropout=0.3),
)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, gradient in one.items():
        assert torch.equal(gradient, other[name]), name


@pytest.mark.parametrize("variant", [{}, WAN22], ids=["wan21", "wan22"])
@pytest.mark.parametrize("frames", [1, 5])
def test_recomputing_gives_the_same_loss_and_gradients(frames, variant):
    vae = tiny(dropout=0.3, **variant).train()
    video = random_video(frames, batch=2)

    def run(recompute: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        output = vae(video, recompute=recompute)
        loss = (output.video - video).abs().mean() + output.posterior.kl().mean()
        loss.backward()
        found = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
        vae.zero_grad()
        return loss, found

    (kept_loss, kept), (loss, again) = run(False), run(True)
    assert torch.equal(kept_loss, loss)
    assert kept.keys() == again.keys() and len(kept) > 40
    assert_same(kept, again)


@pytest.mark.parametrize("coder", [Encoder, Decoder])
def test_recomputing_keeps_the_state_of_a_stream(coder):
    module = coder(SPEC, 3, 3).double().train()
    chunks = random_video(5, 8, 8).split([1, 4], dim=2)

    def run(recompute: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        state, outputs = None, []
        for chunk in chunks:
            output, state = module.step(chunk, state, recompute=recompute)
            outputs.append(output)
        joined = torch.cat(outputs, dim=2)
        joined.square().sum().backward()
        return joined, gradients(module)

    (kept_output, kept), (output, again) = run(False), run(True)
    assert torch.equal(kept_output, output)
    assert_same(kept, again)


def test_recomputing_changes_the_statistics_of_batch_norm_once():
    spec = replace(SPEC, num_res_blocks=2, block=BlockSpec(norm="batch"))
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = Encoder(spec, 3, 3).train()
        output, _ = module.step(random_video(5, 8, 8).float(), None, recompute=recompute)
        output.square().sum().backward()
        found.append((gradients(module), dict(module.named_buffers())))
    (kept, statistics), (again, others) = found
    assert_same(kept, again)
    assert len(statistics) > 10
    assert_same(statistics, others)


class Results(TorchDispatchMode):
    """Remembers, without keeping them alive, the results of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.found[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes_alive(self) -> int:
        return sum(size for storage, size in self.found.values() if not storage.expired())


def test_recomputing_keeps_less_for_the_backward_pass(monkeypatch):
    vae = tiny(dim=8).train()
    video = random_video(5, 32, 32)

    def kept_bytes(recompute: bool) -> int:
        with Results() as results:
            output = vae(video, recompute=recompute)
        assert output.video.requires_grad
        return results.bytes_alive()

    again, kept = kept_bytes(True), kept_bytes(False)
    assert again < 0.6 * kept
    monkeypatch.setitem(TABLE[Observer.AUTOGRAD], "cpu", PYTORCH)
    assert again < 0.25 * kept_bytes(False)

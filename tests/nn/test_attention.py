"""Attention over positions and over time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wanvae.execution.meter import MemoryMeter
from wanvae.nn import AttentionBlock, TimeAttentionBlock, use_channels_last
from wanvae.nn.kernels.training.attention import attend_with_gradients


def randomized(block: nn.Module) -> nn.Module:
    """The block with an output projection that is not zero."""
    nn.init.normal_(block.proj.weight)
    return block.double()


def test_frames_do_not_see_each_other():
    block = randomized(AttentionBlock(4))
    x = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    y = block(x)
    for t in range(3):
        torch.testing.assert_close(y[:, :, t], block(x[:, :, t]))


def test_positions_of_a_frame_see_each_other():
    block = randomized(AttentionBlock(4))
    x = torch.randn(1, 4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    block(x)[0, 0, 0, 0, 0].backward()
    assert (x.grad[0, :, 0].abs().sum(0) > 0).all()


def test_attention_equals_its_definition():
    block = randomized(AttentionBlock(4))
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    q, k, v = (block.to_qkv(block.norm(x))[0].flatten(1).T).split(4, dim=1)
    mixed = torch.softmax(q @ k.T / 2, dim=-1) @ v
    expected = x + block.proj(mixed.T.reshape(1, 4, 2, 3))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("plan", [(7,), (1,) * 7, (3, 4), (2, 5)])
def test_a_causal_window_streams(window, plan):
    block = randomized(TimeAttentionBlock(4, causal=True, window=window))
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    state, outputs = None, []
    for chunk in x.split(plan, dim=2):
        output, state = block.step(chunk, state)
        outputs.append(output)
        (keys, _), _ = state
        assert keys.shape[2] <= window - 1
    torch.testing.assert_close(torch.cat(outputs, dim=2), block(x))


@pytest.mark.parametrize("frames", [1, 2])
def test_channels_are_innermost_in_queries_keys_and_values(frames, monkeypatch):
    """Kernels of CPUs take several times the memory where they are not."""
    strides = []

    def record(*tensors):
        strides.extend(x.stride(-1) for x in tensors)
        return attend(*tensors)

    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    block = AttentionBlock(8)
    use_channels_last(block)
    video = torch.randn(1, 8, frames, 16, 24).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        block.step(video, None)
    assert {*strides} == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_large_frames_no_scores_are_planned_for(dtype):
    with torch.device("meta"):
        block = AttentionBlock(8).to(dtype)
        frame = torch.empty(1, 8, 1, 256, 256, dtype=dtype)
    with torch.inference_mode(), MemoryMeter([frame, *block.parameters()]) as meter:
        block.step(frame, None)
    # The norm, keys and values, their copies for half types and the result; scores would be 64.
    copies = 2 if dtype == torch.bfloat16 else 0
    assert 4 + copies <= meter.peak / frame.nbytes < 6 + copies


@pytest.mark.parametrize("causal", [True, False])
def test_causal_attention_sees_no_future(causal):
    block = randomized(TimeAttentionBlock(4, causal=causal))
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 4:] += 1
    same = torch.equal(block(x)[:, :, :4], block(changed)[:, :, :4])
    assert same == causal


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_unseen(causal):
    block = randomized(TimeAttentionBlock(4, causal=causal))
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    y, lengths = block.forward_masked(x, torch.tensor([4, 6]))
    assert lengths.tolist() == [4, 6]
    torch.testing.assert_close(y[:1, :, :4], block(x[:1, :, :4]))
    torch.testing.assert_close(y[1:], block(x[1:]))


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_window_it_refuses_to_stream(causal):
    block = TimeAttentionBlock(4, causal=causal)
    _, state = block.step(torch.randn(1, 4, 3), None)
    with pytest.raises(ValueError, match="cannot continue a stream"):
        block.step(torch.randn(1, 4, 3), state)


def test_a_window_needs_causality():
    with pytest.raises(ValueError, match="causal"):
        TimeAttentionBlock(4, window=3)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_attention(check, masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 4, 3, dtype=torch.float64, generator=generator)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert check(lambda *x: attend_with_gradients(*x, mask if masked else None), inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_time_has_second_derivatives(causal):
    torch.manual_seed(0)
    block = randomized(TimeAttentionBlock(2, causal=causal, window=2 if causal else None))
    x = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(block, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_attention_are_those_of_pytorch(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 2, 1, 300, 8, generator=generator).to(dtype)
    inputs = [x.requires_grad_() for x in tensors.unbind()]
    functions = attend_with_gradients, F.scaled_dot_product_attention
    ours, plain = (torch.autograd.grad(f(*inputs).float().sin().sum(), inputs) for f in functions)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)

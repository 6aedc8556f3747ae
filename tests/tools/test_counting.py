"""The counter of the work of a GPU, on graphs that are counted by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tools.counting import Kernel, Kind, Work, count_work

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="only PyTorch for CUDA knows what a GPU would run"
)

HALF = 2  # bytes of a value
PRODUCT, BIAS, HIDDEN_COPY, OTHER = Kind
Rows = list[tuple[str, Kind, int, int]]


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


def cuda(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def channels_last(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    order = (0, *range(2, len(shape)), 1)
    return torch.empty_permuted(shape, order, dtype=dtype, device="cuda")


def count(call: Callable[[], object], *given: Tensor) -> Work:
    return count_work(call, given)


def rows(call: Callable[[], object]) -> Rows:
    """Each kernel of a call: its operator and kind, bytes read and written."""
    kernels = count(call).launches.elements()
    return [(one.operator, one.kind, one.read, one.written) for one in kernels]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_convolution_adds_its_bias_in_a_kernel_of_its_own(dtype: torch.dtype) -> None:
    x, weight = channels_last(1, 4, 3, 6, 5, dtype=dtype), channels_last(8, 4, 3, 3, 3, dtype=dtype)
    bias, result = cuda(8, dtype=dtype), []
    work = count(lambda: result.append(F.conv3d(x, weight, bias, padding=(0, 1, 1))))
    read, weights, written = 4 * 3 * 6 * 5, 8 * 4 * 27, 8 * 6 * 5
    products = Kernel(
        "convolution", "-", PRODUCT, HALF * (read + weights), HALF * written, 4 * 27 * written
    )
    adds = Kernel("convolution: bias", "-", BIAS, HALF * (written + 8), HALF * written)
    assert work.launches == {products: 1, adds: 1}
    assert work.multiply_adds == 4 * 27 * written
    assert work.kernels() == 2 and work.traffic([BIAS]) == adds.traffic
    # The layout of the output is cuDNN's, in bfloat16 too.
    assert result[0].shape == (1, 8, 1, 6, 5) and result[0].stride(1) == 1


def test_a_slice_that_is_not_dense_is_copied_before_a_convolution() -> None:
    x, weight = channels_last(1, 4, 3, 6, 5), channels_last(8, 4, 1, 1, 1)
    frames, lines = x[:, :, 1:], x[:, :, :, 1:]
    assert [kind for _, kind, *_ in rows(lambda: F.conv3d(frames, weight))] == [PRODUCT]
    copy, product = rows(lambda: F.conv3d(lines, weight))
    size = HALF * 4 * 3 * 5 * 5
    assert copy == ("convolution: copy of input", HIDDEN_COPY, size, size)
    assert product[1:3] == (PRODUCT, size + HALF * 8 * 4)


def test_input_and_weight_take_one_layout() -> None:
    size = HALF * 8 * 4 * 27
    copies = rows(lambda: F.conv3d(channels_last(1, 4, 3, 6, 5), cuda(8, 4, 3, 3, 3)))
    assert copies[0] == ("convolution: copy of weight", HIDDEN_COPY, size, size)
    size = HALF * 4 * 3 * 6 * 5
    copies = rows(lambda: F.conv3d(cuda(1, 4, 3, 6, 5), channels_last(8, 4, 3, 3, 3)))
    assert copies[0] == ("convolution: copy of input", HIDDEN_COPY, size, size)
    contiguous = rows(lambda: F.conv3d(cuda(1, 4, 3, 6, 5), cuda(8, 4, 3, 3, 3)))
    assert [kind for _, kind, *_ in contiguous] == [PRODUCT]
    # cuDNN has no channels last in float64.
    double = [make(2, 4, 6, 5, dtype=torch.float64) for make in (channels_last, cuda)]
    assert [kind for _, kind, *_ in rows(lambda: F.conv2d(*double))] == [HIDDEN_COPY, PRODUCT]


def test_views_and_allocations_launch_nothing() -> None:
    x = cuda(2, 3, 4)

    def call() -> None:
        x.transpose(0, 1)[1:].unsqueeze(2).expand(2, 2, 5, 4).detach()
        x.view(6, 4).chunk(2)
        x.contiguous(), x.to("cuda"), x.reshape(24)
        torch.empty_like(x), x.new_empty(3), torch.empty_permuted((2, 3), (1, 0), device="cuda")
        F.dropout(x, training=False)

    assert rows(call) == []


def test_zeros_are_written_and_not_read() -> None:
    x = cuda(2, 3)
    zeros = (lambda: x.new_zeros(2, 3), lambda: torch.zeros_like(x), lambda: x.zero_())
    for call in (*zeros, lambda: x.fill_(1), lambda: torch.zeros(3, device="cuda")):
        assert [(read, written) for *_, read, written in rows(call)] == [(0, 12)]


def test_pointwise_operations_read_all_inputs_and_write_one_output() -> None:
    x, column = cuda(2, 3), cuda(2, 1)
    assert rows(lambda: x + x.float()) == [
        ("_to_copy", OTHER, 12, 24),
        ("add", OTHER, 12 + 24, 24),
    ]
    assert rows(lambda: x.add_(column)) == [("add_", OTHER, 12 + 4, 12)]
    assert rows(lambda: x.mul(column.expand(2, 3))) == [("mul", OTHER, 12 + 4, 12)]
    assert rows(lambda: x.copy_(column)) == [("copy_", OTHER, 4, 12)]
    assert rows(lambda: x.sum(1)) == [("sum", OTHER, 12, 4)]
    assert rows(lambda: cuda(0, 3) + 1) == []


def test_cat_is_one_kernel_up_to_four_axes() -> None:
    small = [cuda(1, 2, 3, 4), cuda(1, 2, 1, 4)]
    assert rows(lambda: torch.cat(small, 2)) == [("cat", OTHER, 64, 64)]
    large = [cuda(1, 2, 3, 2, 2), cuda(1, 2, 0, 2, 2), cuda(1, 2, 1, 2, 2)]
    assert rows(lambda: torch.cat(large, 2)) == [("cat", OTHER, 48, 48), ("cat", OTHER, 16, 16)]
    assert rows(lambda: torch.stack(small[:1] * 2, 2)) == [("stack", OTHER, 96, 96)]


def test_padding_fills_and_copies() -> None:
    assert rows(lambda: F.pad(cuda(2, 3), (1, 0))) == [
        ("constant_pad_nd: fill", OTHER, 0, 16),
        ("constant_pad_nd: copy", OTHER, 12, 12),
    ]
    assert rows(lambda: F.pad(cuda(2, 3), (0, 0))) == [("constant_pad_nd: copy", OTHER, 12, 12)]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_upsampling_keeps_a_layout(mode: str) -> None:
    def double(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode=mode)

    results: list[Tensor] = []
    for x in (cuda(1, 4, 3, 5), channels_last(1, 4, 3, 5)):
        assert rows(lambda x=x: results.append(double(x))) == [("upsampling", OTHER, 120, 480)]
    assert [y.shape for y in results] == [(1, 4, 6, 10)] * 2
    assert [y.stride(1) for y in results] == [60, 1]
    copy, _ = rows(lambda: double(channels_last(1, 4, 3, 6)[..., 1:]))
    assert copy == ("upsampling: copy of input", HIDDEN_COPY, 120, 120)


def test_attention_is_one_kernel_that_keeps_no_scores() -> None:
    def attend(channels: int, dtype: torch.dtype) -> Work:
        q, k = cuda(2, 1, 6, channels, dtype=dtype), cuda(2, 1, 10, channels, dtype=dtype)
        return count(lambda: F.scaled_dot_product_attention(q, k, k), q, k)

    def sizes(channels: int) -> tuple[int, int]:
        return 2 * 6 * channels, 2 * 10 * channels

    q, k = sizes(64)
    (flash,) = attend(64, torch.bfloat16).launches
    assert flash.operator == "attention: flash"
    assert (flash.read, flash.written) == (HALF * (q + 2 * k), HALF * q)
    assert flash.multiply_adds == 2 * 6 * 10 * 64 * 2
    q, k = sizes(384)
    # The buffer in float32 is written and read.
    (wide,) = attend(384, torch.bfloat16).launches
    assert wide.operator == "attention: memory-efficient"
    assert (wide.read, wide.written) == (HALF * (q + 2 * k) + 4 * q, HALF * q + 4 * q)
    (single,) = attend(384, torch.float32).launches
    assert (single.read, single.written) == (4 * (q + 2 * k), 4 * q)
    assert attend(384, torch.bfloat16).peak == HALF * q + 4 * q


def test_attention_that_no_kernel_takes_is_plain_operations() -> None:
    q = cuda(2, 1, 8, 6).transpose(2, 3)  # channels are not innermost
    work = count(lambda: F.scaled_dot_product_attention(q, q, q))
    assert work.multiply_adds == 2 * 6 * 6 * 8 * 2
    assert work.kernels([PRODUCT]) == 2 and work.kernels([OTHER]) > 2


def test_matrix_products_add_a_vector_on_their_way() -> None:
    x, weight = cuda(6, 4), cuda(8, 4)
    product = ("addmm", PRODUCT, HALF * (8 + 24 + 32), HALF * 48)
    assert rows(lambda: F.linear(x, weight, cuda(8))) == [product]
    assert count(lambda: x @ weight.T).multiply_adds == 6 * 4 * 8
    assert count(lambda: cuda(3, 6, 4) @ cuda(3, 4, 8)).multiply_adds == 3 * 6 * 4 * 8
    copy, _ = rows(lambda: torch.addmm(cuda(6, 8), x, weight.T))
    assert copy == ("addmm: copy", OTHER, HALF * 48, HALF * 48)


def test_an_operator_of_a_library_reads_inputs_and_writes_outputs_once() -> None:
    with torch.library._scoped_library("counted", "DEF") as library:
        library.define("halve(Tensor x, Tensor? more) -> (Tensor, Tensor)")
        library.define("grow_(Tensor(a!) x, Tensor y) -> Tensor(a!)")
        halves = lambda x, more: (x[:1].clone(), x[:1].clone())  # noqa: E731
        torch.library.register_fake("counted::halve", halves, lib=library)
        torch.library.register_fake("counted::grow_", lambda x, y: x, lib=library)
        x = cuda(2, 3)
        assert rows(lambda: torch.ops.counted.halve(x, None)) == [
            ("counted::halve", OTHER, 12, 6 + 6)
        ]
        assert rows(lambda: torch.ops.counted.grow_(x, cuda(1, 3))) == [
            ("counted::grow_", OTHER, 12 + 6, 12)
        ]


def test_transfers_are_no_kernels() -> None:
    x = cuda(1, 3, 2)
    work = count(lambda: (x.cpu(), torch.empty(5, device="cpu").to("cuda")))
    assert (work.kernels(), work.transferred) == (0, 12 + 20)
    assert count(lambda: torch.empty(5, device="cpu") + 1).kernels() == 0
    converted = rows(lambda: torch.empty(1, 3, 2, device="cpu").copy_(x))
    assert converted == [("copy_: copy before transfer", HIDDEN_COPY, 12, 12)]
    assert len(rows(lambda: torch.empty(1, 2, 3, device="cpu").copy_(x.mT.float()))) == 2


def test_the_host_waits_for_values() -> None:
    x = cuda(3, dtype=torch.float32)
    work = count(
        lambda: (bool((x > 0).all()), x.sum().item(), float(torch.empty((), device="cpu")))
    )
    assert work.waits == 2


def test_the_peak_is_of_what_lives_at_once_on_the_device() -> None:
    x = cuda(100)

    def call() -> None:
        y = x + 1
        y = y.float()  # both live while one is computed from the other
        torch.empty(10**6, device="cpu")
        del y
        x.clone()

    assert count(call, x).peak == 200 + 400
    # The hidden copy of a slice lives as long as its convolution.
    images, weight = channels_last(1, 4, 5, 6), channels_last(8, 4, 1, 1)
    work = count(lambda: F.conv2d(images[..., 1:], weight), images, weight)
    assert work.peak == HALF * (4 * 25 + 8 * 25)


def test_layers_are_the_innermost_modules() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.SiLU()

        def step(self, x: Tensor) -> Tensor:
            return self.inner(x) + x

    work = count(lambda: Outer().step(cuda(2)))
    assert Counter({(one.layer, one.operator): n for one, n in work.launches.items()}) == {
        ("SiLU", "silu"): 1,
        ("Outer", "add"): 1,
    }
    assert {one.layer for one in count(lambda: cuda(2) + 1).launches} == {"-"}

"""Counts what eager CUDA code does, without a GPU.

``count_work`` runs code on PyTorch's fake tensors, which have a shape, strides, a dtype and a
device, but no values. It records each kernel that eager PyTorch would launch, with the bytes that
the kernel reads and writes and its multiply-adds, and the peak of live bytes.

The rules follow the source of PyTorch (``aten/src/ATen/native``):

- Views and allocations launch nothing. An operation that is composed of others counts as these.
- Every other operation is one kernel, which reads each input once and writes each output once.
  An operation in place reads and writes what it changes. ``copy_`` and ``fill_`` only write it.
  An axis that is only expanded is read once.
- A convolution is one kernel of cuDNN, in the layout that PyTorch chooses from the layouts of input
  and weight. PyTorch first copies an input or a weight that is not dense in this layout: a hidden
  copy, with a kernel of its own. It adds the bias afterwards, in a kernel that reads and writes the
  whole output.
- A matrix product is one kernel, which adds a vector on its way; a matrix to add is copied before.
- ``cat`` is one kernel for tensors of up to 4 axes. With more axes it is one copy for each input.
- ``constant_pad_nd`` fills the whole output, and then copies the input into it.
- Nearest upsampling first copies an input that is dense in no layout.
- Attention is one kernel: the flash kernel for up to 256 channels in a half type, else the
  memory-efficient kernel. The memory-efficient kernel sums outputs of a half type in a float32
  buffer for more than 128 channels; the buffer counts as written once and read once. Neither kernel
  keeps scores in memory. Layouts that both refuse take PyTorch's plain operations.
- An operator of a ``torch.library`` follows the same rule as PyTorch's operations, unless ``RULES``
  has a rule for its name.
- A copy between devices is a transfer. It has a kernel only if it changes the dtype or the layout
  on the device.
- If the host reads a value, it waits for the device. This counts as a wait, and the value is 1.

Not counted: what cuDNN does inside a convolution, such as a change of layout, and its workspace;
caches of the device, so each kernel reads its inputs from memory; the split of an operation on
more than 2 GiB into several kernels; rounding by the allocator.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wanvae.execution.meter import MemoryMeter

ModuleT = TypeVar("ModuleT", bound=nn.Module)

DEVICE = "cuda"
# The most axes that CUDA's kernel of ``cat`` takes.
AXES_OF_CAT = 4
# The most channels that the flash kernel takes, and that the memory-efficient kernel sums without
# a buffer.
FLASH_CHANNELS = 256
BUFFERLESS_CHANNELS = 128
HALF_DTYPES = (torch.bfloat16, torch.float16)


class Kind(Enum):
    """What a kernel does."""

    # A convolution, or a matrix product, which a convolution of one position is.
    PRODUCT = "product"
    BIAS = "bias"
    HIDDEN_COPY = "hidden copy"
    OTHER = "other"


# All other kinds are outside of convolutions.
OUTSIDE = (Kind.BIAS, Kind.HIDDEN_COPY, Kind.OTHER)


@dataclass(frozen=True)
class Kernel:
    """A kernel that is launched.

    Attributes:
        operator: the operation that launches it, by PyTorch's name.
        layer: the class of the innermost module that runs the operation; "-" outside of modules.
        read, written: bytes.
    """

    operator: str
    layer: str
    kind: Kind
    read: int
    written: int
    multiply_adds: int = 0

    @property
    def traffic(self) -> int:
        """Bytes that are read and written."""
        return self.read + self.written


@dataclass
class Work:
    """What a call does.

    Attributes:
        launches: how often each kernel is launched.
        peak: the peak of live bytes on the device, over those that existed before.
        waits: how often the host reads a value of the device.
        transferred: bytes that are copied between devices.
    """

    launches: Counter[Kernel] = field(default_factory=Counter)
    peak: int = 0
    waits: int = 0
    transferred: int = 0

    def sum(self, amount: Callable[[Kernel], float], kinds: Iterable[Kind] = Kind) -> float:
        """Returns the sum of an amount over all launches of some kinds."""
        chosen = set(kinds)
        return sum(
            amount(kernel) * times
            for kernel, times in self.launches.items()
            if kernel.kind in chosen
        )

    def kernels(self, kinds: Iterable[Kind] = Kind) -> int:
        """Returns how many kernels of some kinds are launched."""
        return int(self.sum(lambda kernel: 1, kinds))

    def traffic(self, kinds: Iterable[Kind] = Kind) -> int:
        """Returns the bytes that kernels of some kinds read and write."""
        return int(self.sum(lambda kernel: kernel.traffic, kinds))

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of convolutions, matrix products and attention."""
        return int(self.sum(lambda kernel: kernel.multiply_adds))


def count_work(call: Callable[[], object], given: Iterable[Tensor]) -> Work:
    """Returns the work of ``call`` on fake tensors of CUDA, without gradients.

    Args:
        given: tensors that existed before, such as parameters and inputs. Their memory is not
            counted.
    """
    meter = MemoryMeter(given, DEVICE)
    counter = KernelCounter(meter)
    # In inference mode PyTorch shows composed operations before it takes them apart.
    with torch.inference_mode(), meter, counter:
        call()
    return replace(counter.work, peak=meter.peak)


def move_to_fake_cuda(module: ModuleT) -> ModuleT:
    """Replaces the parameters and buffers of a module, inside a ``FakeTensorMode``.

    The fake parameters have the same shapes, strides and dtypes, and the device is CUDA.
    """
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(make_fake(parameter), requires_grad=False)
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = make_fake(buffer)
    return module


def make_fake(x: Tensor) -> Tensor:
    """Returns a tensor of CUDA with the shape, strides and dtype of ``x``."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)


class KernelCounter(TorchDispatchMode):
    """Counts the kernels of all operations inside ``with``, which run on fake tensors.

    Args:
        meter: a meter of the memory of the device, entered before.
    """

    def __init__(self, meter: MemoryMeter) -> None:
        super().__init__()
        self.work = Work()
        self.meter = meter

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False, because PyTorch would load its compiler to keep it away from the mode."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = find_name(function), kwargs or {}
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, function, *args, **kwargs)
        # "prim" has no operations, but tells the device of a fake tensor.
        if not name.startswith("prim::") and function._can_decompose():
            with self:
                return function.decompose(*args, **kwargs)
        return count_one_kernel(self, function, *args, **kwargs)

    def launch(
        self,
        operator: str,
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        kind: Kind = Kind.OTHER,
        multiply_adds: int = 0,
    ) -> None:
        """Counts a kernel, unless it writes nothing on the device."""
        written = count_bytes(writes)
        if written:
            kernel = Kernel(
                operator, find_layer(), kind, count_bytes(reads), written, multiply_adds
            )
            self.work.launches[kernel] += 1

    def copy_to_layout(self, what: str, x: Tensor, layout: torch.memory_format) -> int:
        """Counts a hidden copy if ``x`` is not dense in a layout; returns its bytes."""
        if x.is_contiguous(memory_format=layout):
            return 0
        self.launch(what, [x], [x], Kind.HIDDEN_COPY)
        return x.numel() * x.itemsize


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of the elements of tensors on the device; expanded axes count once."""
    return sum(
        tensor.itemsize
        * math.prod(
            size
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            if stride or not size
        )
        for tensor in tensors
        if tensor.device.type == DEVICE
    )


def find_name(function: Any) -> str:
    """Returns the name of an operator without its overload, like "aten::add_"."""
    return function.name().split(".")[0]


def find_layer() -> str:
    """Returns the class of the innermost module that is running now; "-" outside of modules."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                return type(owner).__name__
        frame = frame.f_back
    return "-"


def list_tensors(values: Any) -> list[Tensor]:
    """Returns the tensors among nested arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def list_changed(function: Any, args: Sequence[Any], kwargs: Any) -> list[Tensor]:
    """Returns the arguments that an operation changes."""
    arguments = function._schema.arguments
    given = [*zip(arguments, args, strict=False)]
    given += [(each, kwargs[each.name]) for each in arguments if each.name in kwargs]
    return [
        tensor
        for argument, value in given
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in list_tensors(value)
    ]


def is_among(x: Tensor, tensors: Iterable[Tensor]) -> bool:
    """Returns whether ``x`` has the memory of one of the tensors."""
    storage = x.untyped_storage()._cdata
    return any(storage == other.untyped_storage()._cdata for other in tensors)


# Rules: functions that get the counter, the operator and its arguments, count, and return results.


def count_one_kernel(
    counter: KernelCounter,
    function: Any,
    *args: Any,
    reads: bool = True,
    **kwargs: Any,
) -> Any:
    """Counts one kernel, or nothing for a view.

    Args:
        reads: whether the kernel reads its inputs.
    """
    result = function(*args, **kwargs)
    inputs, changed = list_tensors((args, kwargs)), list_changed(function, args, kwargs)
    created = [x for x in list_tensors(result) if not is_among(x, inputs)]
    name = find_name(function).removeprefix("aten::")
    counter.launch(name, inputs if reads else [], [*changed, *created])
    return result


def count_nothing(counter: KernelCounter, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Counts nothing, for an allocation."""
    return function(*args, **kwargs)


def count_convolution(
    counter: KernelCounter,
    function: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *others: Any,
) -> Tensor:
    """Counts a convolution of cuDNN, its hidden copies and its bias."""
    assert not transposed, "no rule for transposed convolutions"
    # Without a GPU, PyTorch's own fake convolution takes bfloat16 for a dtype that cuDNN does not
    # know, and gives the output another layout than on a GPU.
    layout = torch._C._conv_determine_backend_memory_format(x, weight, torch._C._ConvBackend.Cudnn)
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [
        (size + 2 * pad - apart * (k - 1) - 1) // step + 1 for size, k, step, pad, apart in axes
    ]
    shape = (len(x), len(weight), *sizes)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    copied = counter.copy_to_layout("convolution: copy of input", x, layout)
    copied += counter.copy_to_layout("convolution: copy of weight", weight, layout)
    counter.meter.count_for_now(copied)
    amount = y.numel() * math.prod(weight.shape[1:])
    counter.launch("convolution", [x, weight], [y], Kind.PRODUCT, amount)
    if bias is not None:
        counter.launch("convolution: bias", [y, bias], [y], Kind.BIAS)
    return y


def count_cat(
    counter: KernelCounter, function: Any, tensors: Sequence[Tensor], dim: int = 0
) -> Tensor:
    """Counts ``cat`` or ``stack``, which PyTorch computes by ``cat``."""
    result, filled = function(tensors, dim), [x for x in tensors if x.numel()]
    name = find_name(function).removeprefix("aten::")
    if max(x.dim() for x in tensors) <= AXES_OF_CAT:
        counter.launch(name, filled, [result])
    else:
        for x in filled:
            counter.launch(name, [x], [x])
    return result


def count_padding(
    counter: KernelCounter, function: Any, x: Tensor, pad: Sequence[int], value: float = 0
) -> Tensor:
    """Counts padding by a constant: a fill of the whole output, and a copy of the input."""
    result = function(x, pad, value)
    if max(pad) > 0:
        counter.launch("constant_pad_nd: fill", [], [result])
    kept = x if result.numel() >= x.numel() else result
    counter.launch("constant_pad_nd: copy", [kept], [kept])
    return result


def count_upsampling(
    counter: KernelCounter,
    function: Any,
    x: Tensor,
    size: Sequence[int] | None,
    scales: Sequence[float] | None,
) -> Tensor:
    """Counts nearest upsampling of images, and the hidden copy of its input."""
    layout = suggest_memory_format(x)
    if size is None:
        assert scales is not None
        size = [int(side * scale) for side, scale in zip(x.shape[2:], scales, strict=True)]
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)
    counter.meter.count_for_now(counter.copy_to_layout("upsampling: copy of input", x, layout))
    counter.launch("upsampling", [x], [y])
    return y


def count_attention(
    counter: KernelCounter,
    function: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Counts attention: one kernel, or plain operations where no kernel takes the inputs."""
    channels = q.shape[-1]
    half = q.dtype in HALF_DTYPES
    if any(x.stride(-1) != 1 for x in (q, k, v)) or channels % (8 if half else 4):
        with counter:
            plain = torch.ops.aten._scaled_dot_product_attention_math
            return plain(q, k, v, mask, *args, **kwargs)[0]
    # Both kernels write (B, T, heads, C).
    shape = (q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
    result = torch.empty(shape, dtype=q.dtype, device=q.device).transpose(1, 2)
    reads = [x for x in (q, k, v, mask) if x is not None]
    amount = math.prod(q.shape[:-1]) * k.shape[-2] * (channels + v.shape[-1])
    flash = half and mask is None and channels <= FLASH_CHANNELS
    buffers = []
    if half and not flash and channels > BUFFERLESS_CHANNELS:
        buffers.append(torch.empty(shape, dtype=torch.float32, device=q.device))
    name = "attention: flash" if flash else "attention: memory-efficient"
    counter.launch(name, [*reads, *buffers], [result, *buffers], multiply_adds=amount)
    return result


def count_copy(counter: KernelCounter, function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Counts a copy within the device, or a transfer."""
    result = function(*args, **kwargs)
    source = args[1] if find_name(function) == "aten::copy_" else args[0]
    name = find_name(function).removeprefix("aten::")
    if source.device == result.device:
        counter.launch(name, [source], [result])
        return result
    counter.work.transferred += result.nbytes
    if source.dtype != result.dtype or source.stride() != result.stride():
        on_device = source if source.device.type == DEVICE else result
        counter.launch(f"{name}: copy before transfer", [on_device], [on_device], Kind.HIDDEN_COPY)
    return result


def read_value(counter: KernelCounter, function: Any, x: Tensor) -> bool | float:
    """Counts a wait of the host for a value of the device."""
    counter.work.waits += x.device.type == DEVICE
    return True if x.dtype == torch.bool else 1


def count_product(counter: KernelCounter, function: Any, x: Tensor, y: Tensor, **_: Any) -> Tensor:
    """Counts a matrix product."""
    result = function(x, y)
    name = find_name(function).removeprefix("aten::")
    counter.launch(name, [x, y], [result], Kind.PRODUCT, x.numel() * y.shape[-1])
    return result


def count_added_product(
    counter: KernelCounter, function: Any, added: Tensor, x: Tensor, y: Tensor, **factors: Any
) -> Tensor:
    """Counts a matrix product with a vector added, or with a copy of what is added before it."""
    result = function(added, x, y, **factors)
    name = find_name(function).removeprefix("aten::")
    if added.dim() > 1:
        counter.launch(f"{name}: copy", [added], [result])
        added = result
    counter.launch(name, [added, x, y], [result], Kind.PRODUCT, x.numel() * y.shape[-1])
    return result


Rule = Callable[..., Any]
# Writes its result, or the argument that it changes, and reads nothing.
writes_only = partial(count_one_kernel, reads=False)

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("aten::empty", "aten::empty_like", "aten::empty_permuted", "aten::empty_strided"),
        count_nothing,
    ),
    **dict.fromkeys(("aten::new_empty", "aten::new_empty_strided"), count_nothing),
    **dict.fromkeys(("aten::fill_", "aten::zero_"), writes_only),
    **dict.fromkeys(("aten::zeros_like", "aten::ones_like", "aten::full_like"), writes_only),
    **dict.fromkeys(("aten::new_zeros", "aten::new_ones", "aten::new_full"), writes_only),
    **dict.fromkeys(("aten::mm", "aten::bmm"), count_product),
    **dict.fromkeys(("aten::addmm", "aten::baddbmm"), count_added_product),
    **dict.fromkeys(("aten::cat", "aten::stack"), count_cat),
    **dict.fromkeys(("aten::copy_", "aten::_to_copy"), count_copy),
    "aten::convolution": count_convolution,
    "aten::constant_pad_nd": count_padding,
    "aten::_upsample_nearest_exact2d": count_upsampling,
    "aten::upsample_nearest2d": count_upsampling,
    "aten::scaled_dot_product_attention": count_attention,
    "aten::_local_scalar_dense": read_value,
}

"""Models whose parameters, gradients and optimizers are shared out over the processes (FSDP2).

Accelerate's launcher asks for that. Accelerate itself does it on GPUs only, and keeps such models
in files of its own, so the loop calls PyTorch's ``fully_shard`` and gathers what it writes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from wanvae.engine.processes import copy_from_first_process, sum_over_processes


class Sharded:
    """A model whose parameters are shared out.

    A process has the whole parameters of one block at a time, and of what is in no block during
    the forward and the backward pass. All processes must call all methods.

    Args:
        model: becomes an ``FSDPModule``. Its parameters become others, in the same order.
        blocks: parts of the model, none inside another. The model calls their ``step``.

    Attributes:
        model: this model.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], accelerator: Accelerator
    ) -> None:
        self._plain = copy.deepcopy(model).to("meta")
        # Moves the model to its device, and lets autocast run it; wraps nothing.
        accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
        for parameter in model.parameters():
            parameter.data = copy_from_first_process(parameter.data).contiguous()
        self.mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        # Nobody changes the output of a model in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for block in blocks:
            fully_shard(block, mesh=self.mesh)
            register_fsdp_forward_method(block, "step")
        fully_shard(model, mesh=self.mesh)
        self.model = model
        self._units = [part for part in model.modules() if isinstance(part, FSDPModule)]
        # What is in no block stays whole until ``reshard``: losses ask for gradients of it, and
        # second derivatives need it after a first backward pass.
        self._root.set_reshard_after_backward(False, recurse=False)
        self._used = [False] * len(list(model.parameters()))
        self._watch_use()

    @property
    def _root(self) -> FSDPModule:
        assert isinstance(self.model, FSDPModule)
        return self.model

    def _watch_use(self) -> None:
        """Notes which parameters get gradients.

        Processes must exchange the gradients of the same parameters, so parameters without one get
        zeros, and ``reshard`` takes these away again.
        """
        self._root.set_reduce_scatter_unused_params(True)
        for unit in self._units:
            unit.unshard()
        for index, parameter in enumerate(self.model.parameters()):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_use(index))
        for unit in self._units:
            unit.reshard()

    def _note_use(self, index: int) -> Any:
        def note(_: Tensor) -> None:
            self._used[index] = True

        return note

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps gradients on each process for a while."""
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    def reshard(self) -> None:
        """Frees the whole parameters, so that each process has its share alone."""
        for unit in self._units:
            unit.reshard()

    def drop_unused_gradients(self) -> None:
        """Takes the gradients of parameters away that no process has used in this step."""
        device = self.mesh.device_type
        used = sum_over_processes(torch.tensor(self._used, dtype=torch.int32, device=device))
        for parameter, count in zip(self.model.parameters(), used.tolist(), strict=True):
            if not count:
                parameter.grad = None
        self._used[:] = [False] * len(self._used)

    def share_out(self, other: nn.Module) -> None:
        """Shares the parameters of a plain copy of the model out, as the model's are."""
        for name, parameter in list(other.named_parameters()):
            share = nn.Parameter(
                distribute(parameter.detach(), self.model.get_parameter(name)),
                requires_grad=parameter.requires_grad,
            )
            replace_parameter(other, name, share)

    @staticmethod
    def gather(value: Any) -> Any:
        """The whole of a tensor that is shared out; anything else stays as it is."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def gather_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer with whole tensors, as it is without sharding."""
        state = optimizer.state_dict()
        entries = {
            index: {name: self.gather(value) for name, value in entry.items()}
            for index, entry in state["state"].items()
        }
        return {**state, "state": entries}

    def distribute_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Shares such a state out, as the parameters of the optimizer are."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        entries = {
            index: {
                name: distribute(value.to(self.mesh.device_type), parameters[index])
                if isinstance(value, Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in entry.items()
            }
            for index, entry in state["state"].items()
        }
        return {**state, "state": entries}

    @contextmanager
    def whole(self, source: nn.Module, *, changes: bool = False) -> Iterator[nn.Module]:
        """Gives a plain model with the whole parameters of ``source``, for a while.

        Args:
            source: the model, or a copy that is shared out.
            changes: whether ``source`` gets the parameters that the plain model has at the end.
        """
        parameters = dict(source.named_parameters())
        for name, parameter in parameters.items():
            template = self._plain.get_parameter(name)
            tensor = torch.empty_like(template, device=parameter.device, requires_grad=False)
            tensor.copy_(self.gather(parameter.detach()))
            replace_parameter(self._plain, name, nn.Parameter(tensor, parameter.requires_grad))
        for name, buffer in source.named_buffers():
            owner, _, leaf = name.rpartition(".")
            self._plain.get_submodule(owner)._buffers[leaf] = buffer
        try:
            yield self._plain.train(source.training)
            if changes:
                for name, parameter in self._plain.named_parameters():
                    share = parameters[name].detach()
                    share.copy_(distribute(parameter.detach(), share))
        finally:
            self._plain.to("meta")


def distribute(value: Tensor, like: Tensor) -> Tensor:
    """Shares a tensor out as ``like`` is, if ``like`` is shared out; all processes have it."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def replace_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Puts a parameter in the place of another."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = parameter

"""Runs operators for GPUs: on a GPU, or without one, by Triton's interpreter.

The interpreter must be chosen before Triton is imported, and then it is chosen for the whole
process. So it has a process of its own, which this file also is: ``python -m`` with its name.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from contextlib import ExitStack
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

PROGRAMS = "wanvae.nn.kernels.gpu.programs"


class Interpreter:
    """A process that computes operators by Triton's interpreter."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def __call__(self, name: str, *arguments: Any, **constants: object) -> Any:
        """Returns the result of an operator; what it writes to its arguments appears in them.

        ``constants`` are values for names of the module that has the operator.
        """
        pickle.dump((name, arguments, constants), self.process.stdin)
        self.process.stdin.flush()
        result, after, error = pickle.load(self.process.stdout)
        assert not error, error
        write_back(arguments, after)
        return result

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate(timeout=60)


def run_on_gpu(name: str, *arguments: Any, **constants: object) -> Any:
    """Returns the result of an operator on the GPU, as ``Interpreter`` does."""
    there = tree_map_only(Tensor, lambda x: move(x, "cuda"), arguments)
    result = perform(name, there, constants)
    back = [tree_map_only(Tensor, lambda x: move(x, "cpu"), each) for each in (result, there)]
    write_back(arguments, back[1])
    return back[0]


def move(x: Tensor, device: str) -> Tensor:
    """Moves a tensor with all memory that it is a view of, so that its strides stay."""
    storage = x.untyped_storage().to(device=torch.device(device))
    return x.new_empty(0, device=device).set_(storage, x.storage_offset(), x.shape, x.stride())


def write_back(arguments: Any, after: Any) -> None:
    """Writes to the memory of tensors what is in the memory of others."""
    for old, new in zip(arguments, after, strict=True):
        if isinstance(old, Tensor):
            old.untyped_storage().copy_(new.untyped_storage())


def perform(name: str, arguments: Any, constants: dict[str, object]) -> Any:
    """Computes an operator by its program, with other values of constants."""
    operator = getattr(import_module(PROGRAMS), name)
    with ExitStack() as stack:
        for constant, value in constants.items():
            stack.enter_context(patch(f"{operator.__module__}.{constant}", value))
        return operator(*arguments)


def serve() -> None:
    """Computes what comes on the standard input, and answers on the standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    while True:
        try:
            name, arguments, constants = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result, error = None, None
        try:
            result = perform(name, arguments, constants)
        except Exception:
            error = traceback.format_exc()
        pickle.dump((result, arguments, error), answers)
        answers.flush()


if __name__ == "__main__":
    serve()

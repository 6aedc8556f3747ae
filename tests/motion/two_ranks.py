"""Train as ``motion.train.run`` does and write what each process holds in the end.

``python -m tests.motion.two_ranks OPTIONS`` takes the options of ``motion.train.run``; the state of
process n goes to ``rank-n.safetensors`` in the directory of the run.
"""

from pathlib import Path

import torch

from motion.train.run import MotionTraining, TrainConfig
from wanvae.engine.checkpoint import write_tensors
from wanvae.engine.command_line.arguments import parse_config
from wanvae.engine.training.loop import make_accelerator, train


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(TrainConfig, "two_ranks", "", arguments)
    accelerator = make_accelerator(config.trainer)
    torch.manual_seed(config.trainer.seed)
    task = MotionTraining(config, accelerator).task()
    train(task, config.trainer, accelerator)
    path = Path(config.trainer.run) / f"rank-{accelerator.process_index}.safetensors"
    write_tensors(path, task.model.state_dict(), {})
    accelerator.end_training()


if __name__ == "__main__":
    main()

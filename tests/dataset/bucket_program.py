"""What test_bucket_batches.py runs in two processes: a training on clips of several shapes."""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wanvae import BucketBatches

SHAPES = [(2, 1, 4, 6)] * 13 + [(2, 3, 4, 6)] * 9 + [(2, 3, 6, 4)] * 6 + [(2, 5, 6, 4)] * 3


class Clips(Dataset):
    """Clips of the shapes, with their numbers."""

    def __len__(self) -> int:
        return len(SHAPES)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return index, torch.randn(SHAPES[index], generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--drop_last", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)

    accelerator = Accelerator(cpu=True)
    set_seed(0)
    model = nn.Conv3d(2, 2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    batches = BucketBatches(SHAPES, 4, drop_last=arguments.drop_last)
    loader = DataLoader(Clips(), batch_sampler=batches)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(batches)
    if arguments.resume:
        accelerator.load_state(str(arguments.folder / "state"))

    seen: list[list[int]] = []
    while batches.epoch < 2 and len(seen) != arguments.stop:
        for numbers, latents in batches.track(loader):
            loss = (model(latents) - latents.roll(1, 1)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(numbers.tolist())
            if len(seen) == arguments.stop:
                accelerator.save_state(str(arguments.folder / "state"))
                break

    weights = [value.item() for p in model.parameters() for value in p.detach().flatten()]
    found = {"seen": seen, "weights": weights, "shapes": SHAPES}
    path = arguments.folder / f"seen-{accelerator.process_index}.json"
    path.write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main()

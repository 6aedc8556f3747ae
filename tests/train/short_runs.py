"""Short runs of training on a small video."""

import json
from pathlib import Path


def short_run(folder: Path, run: Path, steps: int) -> list[str]:
    """Options of a run without LPIPS that trains and evaluates on one folder."""
    return [
        f"--data.folder={folder}",
        "--data.size=16",
        f"--evaluation.folder={folder}",
        "--evaluation.frames=5",
        "--evaluation.size=16",
        "--loss.l1_reduction=mean",
        f"--trainer.run={run}",
        f"--trainer.steps={steps}",
        "--trainer.batch_size=2",
        "--trainer.warmup_steps=2",
        "--trainer.learning_rate=1e-2",
        "--trainer.log_every=1",
        "--trainer.tracker=none",
        "--trainer.workers=0",
    ]


def lines(run: Path) -> list[dict]:
    """The log of a run."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

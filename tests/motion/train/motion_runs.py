"""Short runs of motion.train, for tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState

CONFIGS = Path(__file__).parents[3] / "configs" / "motion"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without plots, and with a fresh accelerate."""
    monkeypatch.setattr("wanvae.engine.training.log.find_spec", lambda name: None)
    yield
    reset()


def reset() -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()


def options(folder: Path, run: Path, steps: int, *changes: str) -> list[str]:
    """The options of a run of a small model; later ones replace earlier ones."""
    return [
        f"--config={CONFIGS / 'tiny.yaml'}",
        f"--data.folder={folder}",
        "--data.window=16",
        "--model.code_dim=8",
        "--model.resnet.width=16",
        "--model.resnet.depth=1",
        "--model.quantizer.num_quantizers=2",
        "--model.quantizer.codebook_size=16",
        f"--trainer.run={run}",
        f"--trainer.steps={steps}",
        "--trainer.batch_size=4",
        "--trainer.warmup_steps=5",
        "--trainer.log_every=1",
        "--trainer.tracker=none",
        "--trainer.workers=0",
        *changes,
    ]


def lines_of(run: Path) -> list[dict[str, float]]:
    """The figures of a run, a line for each step."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

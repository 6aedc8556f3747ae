"""Trains a small transformer that writes motion from text, on tokens of ``motion tokenize``.

A caption is read byte by byte, and the tokens follow in the pattern "delay": each step has one code
of each layer. It learns a few clips by heart in a minute on a CPU, and is meant to be read and
changed. Run it again to go on after an interruption.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from motion import RVQVAE, TokenDataset, TokenVocabulary, collate
from motion.commands.detokenize import detokenize
from motion.features.recording import check_output
from motion.tokens import Tokens
from wanvae import BucketBatches
from wanvae.errors import UserError

# Numbers after the 256 bytes: the first of each text, and padding.
FIRST, PADDING = 256, 257


def read_bytes(captions: Sequence[str], device: torch.device) -> Tensor:
    """Returns the bytes of captions, (B, S)."""
    texts = [torch.tensor([FIRST, *caption.encode()]) for caption in captions]
    return pad_sequence(texts, batch_first=True, padding_value=PADDING).to(device)


class TextToMotion(nn.Module):
    """Predicts the next step of tokens from a caption and the steps before."""

    def __init__(
        self, vocabulary: TokenVocabulary, width: int = 128, depth: int = 4, longest: int = 2048
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.bytes = nn.Embedding(PADDING + 1, width)
        self.ids = nn.Embedding(vocabulary.stop, width)
        self.places = nn.Embedding(longest, width)
        block = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary.streams * vocabulary.stop)

    def forward(self, text: Tensor, ids: Tensor) -> Tensor:
        """Returns scores (B, L, Q, ids) of the steps after each of ``ids`` (B, L, Q)."""
        places = torch.arange(max(text.shape[1], ids.shape[1]), device=ids.device)
        places = self.places(places)
        words = self.bytes(text) + places[: text.shape[1]]
        steps = self.ids(ids).sum(dim=2) + places[: ids.shape[1]]
        x = torch.cat([words, steps], dim=1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        padding = F.pad(text == PADDING, (0, ids.shape[1]))
        x = self.blocks(x, mask=future, src_key_padding_mask=padding)[:, text.shape[1] :]
        return self.head(x).unflatten(2, (self.vocabulary.streams, -1))

    @torch.no_grad()
    def sample(self, caption: str, tokens: int, temperature: float = 1.0) -> Tensor:
        """Returns indices (T, Q) of at most so many tokens; temperature 0 takes the likeliest."""
        vocabulary, layers = self.vocabulary, self.vocabulary.layers
        device = self.head.weight.device
        text = read_bytes([caption], device)
        allowed = torch.zeros(layers, vocabulary.stop, dtype=torch.bool, device=device)
        for layer in range(layers):
            allowed[layer, list(vocabulary.codes(layer))] = True
        allowed[:, vocabulary.end] = True
        ids = torch.full((1, 1, layers), vocabulary.begin, device=device)
        while ids.shape[1] < vocabulary.steps(tokens) and (ids[0, -1] != vocabulary.end).any():
            scores = self(text, ids)[0, -1].masked_fill(~allowed, -torch.inf)
            if temperature > 0:
                # Gumbel noise makes the highest score a draw.
                noise = torch.empty_like(scores).exponential_().log()
                scores = scores / temperature - noise
            step = scores.argmax(dim=1)
            step[ids.shape[1] :] = vocabulary.begin  # layers that have not begun
            ids = torch.cat([ids, step[None, None]], dim=1)
        return vocabulary.decode(ids)[0].cpu()


def train(folder: Path, run: Path, steps: int, batch_size: int, rate: float) -> TextToMotion:
    """Trains a model on a folder of tokens, and returns it."""
    accelerator = Accelerator(project_dir=run)
    dataset = TokenDataset(folder)
    vocabulary = TokenVocabulary(codebook_sizes=dataset.codebook_sizes, pattern="delay")
    batches = BucketBatches(dataset.shapes(), batch_size)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=partial(collate, vocabulary=vocabulary)
    )
    torch.manual_seed(0)
    model = TextToMotion(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(batches)
    per_epoch = len(batches) // batches.processes
    if (run / "state").exists():
        accelerator.load_state(str(run / "state"))
    while batches.epoch * per_epoch < steps:
        for batch in batches.track(loader):
            scores = model(read_bytes(batch.captions, accelerator.device), batch.ids[:, :-1])
            there = batch.mask[:, 1:]
            loss = F.cross_entropy(scores[there].flatten(0, 1), batch.ids[:, 1:][there].flatten())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        step = batches.epoch * per_epoch
        if step % 100 < per_epoch or step >= steps:
            accelerator.print(f"step {step}: loss {loss.item():.4f}")
            accelerator.save_state(str(run / "state"))
    return accelerator.unwrap_model(model).eval()


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Returns the options of the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokens", type=Path, help="folder that motion tokenize wrote")
    parser.add_argument("output", type=Path, help="motion file to write, like walk.bvh")
    parser.add_argument("--caption", required=True, help="what the person does")
    parser.add_argument("--checkpoint", required=True, help="the tokenizer of the tokens")
    parser.add_argument("--run", type=Path, default=Path("runs/text_to_motion"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--longest", type=int, default=200, help="tokens")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    tokenizer = RVQVAE.from_pretrained(options.checkpoint)
    check_output(options.output, tokenizer.config)
    model = train(options.tokens, options.run, options.steps, options.batch_size, options.rate)
    indices = model.sample(options.caption, options.longest, options.temperature)
    recording = detokenize(tokenizer, Tokens(indices, None))
    recording.write(options.output, recording.features)
    print(f"{options.output}: {len(indices)} tokens, {len(recording)} frames")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"text_to_motion: {error}")

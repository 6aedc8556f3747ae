"""Folders of evaluators as they are published, with small random weights; and by NumPy alone."""

import pickle
from pathlib import Path

import numpy as np
import torch

WORDS = ("unk", "sos", "eos", "a", "person", "walk", "jog", "slowly", "left", "table")
# Channels of a word, parts of speech, channels inside, of a movement, and of a vector.
WORD, PARTS, WIDTH, MOVEMENT, SIZE = 7, 15, 6, 5, 8


def random_weights(channels: int = 263, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """The three networks of a file, by the published names of their parameters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.5 * torch.randn(*shape, generator=generator)

    def linear(name: str, given: int, size: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": draw(size, given), f"{name}.bias": draw(size)}

    def sequence(given: int) -> dict[str, torch.Tensor]:
        gru = {
            f"gru.{kind}_l0{end}": draw(3 * WIDTH, *[WIDTH] * kind.startswith("weight"))
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for end in ("", "_reverse")
        }
        output = linear("output_net.0", 2 * WIDTH, WIDTH) | linear("output_net.3", WIDTH, SIZE)
        norm = {"output_net.1.weight": draw(WIDTH), "output_net.1.bias": draw(WIDTH)}
        return (
            linear("input_emb", given, WIDTH) | gru | output | norm | {"hidden": draw(2, 1, WIDTH)}
        )

    movement = {
        "main.0.weight": draw(WIDTH, channels - 4, 4) / 8,
        "main.0.bias": draw(WIDTH),
        "main.3.weight": draw(MOVEMENT, WIDTH, 4),
        "main.3.bias": draw(MOVEMENT),
    }
    return {
        "movement_encoder": movement | linear("out_net", MOVEMENT, MOVEMENT),
        "motion_encoder": sequence(MOVEMENT),
        "text_encoder": sequence(WORD) | linear("pos_emb", PARTS, WORD),
    }


def write_evaluators(folder: Path, channels: int = 263, seed: int = 0) -> Path:
    """Writes ``checkpoints/t2m`` (or ``kit``) and ``glove`` to a folder; returns the first."""
    home = folder / "checkpoints" / {263: "t2m", 251: "kit"}[channels]
    weights = home / "text_mot_match" / "model" / "finest.tar"
    weights.parent.mkdir(parents=True)
    others = {
        "epoch": 3,
        "iter": 7,
        "opt_text_encoder": {"state": {}, "param_groups": [{"lr": 1.0}]},
    }
    torch.save(random_weights(channels, seed) | others, weights)
    generator = np.random.default_rng(seed)
    meta = home / "Comp_v6_KLD01" / "meta"
    meta.mkdir(parents=True)
    np.save(meta / "mean.npy", generator.normal(size=channels).astype(np.float32))
    np.save(meta / "std.npy", generator.uniform(0.5, 2, size=channels).astype(np.float32))
    glove = folder / "glove"
    glove.mkdir(exist_ok=True)
    np.save(glove / "our_vab_data.npy", generator.normal(size=(len(WORDS), WORD)))
    rows = {word: len(WORDS) - 1 - row for row, word in enumerate(WORDS)}
    (glove / "our_vab_words.pkl").write_bytes(pickle.dumps(list(WORDS)))
    (glove / "our_vab_idx.pkl").write_bytes(pickle.dumps(rows))
    return home


class NumpyEvaluators:
    """The vectors of motion and text, one at a time and in float64, by the definitions."""

    def __init__(self, home: Path) -> None:
        content = torch.load(home / "text_mot_match" / "model" / "finest.tar", weights_only=True)
        self.nets = {
            net: {name: tensor.double().numpy() for name, tensor in content[net].items()}
            for net in ("movement_encoder", "motion_encoder", "text_encoder")
        }
        meta = home / "Comp_v6_KLD01" / "meta"
        self.mean, self.std = (
            np.load(meta / f"{name}.npy").astype(float) for name in ("mean", "std")
        )
        glove = home.parents[1] / "glove"
        self.table = np.load(glove / "our_vab_data.npy").astype(np.float32).astype(float)
        self.rows = pickle.loads((glove / "our_vab_idx.pkl").read_bytes())

    def motion(self, motion: np.ndarray) -> np.ndarray:
        """The vector of features (T, D), padded to 196 frames."""
        net = self.nets["movement_encoder"]
        x = np.zeros((196, motion.shape[1]))
        x[: len(motion)] = (motion - self.mean) / self.std
        x = x[:, :-4]
        for layer in ("main.0", "main.3"):
            x = leaky(halve(x, net[f"{layer}.weight"], net[f"{layer}.bias"]))
        x = x @ net["out_net.weight"].T + net["out_net.bias"]
        return last_states(x[: len(motion) // 4], self.nets["motion_encoder"])

    def text(self, words: list[tuple[str, int]]) -> np.ndarray:
        """The vector of words, each with the number of its part of speech."""
        net = self.nets["text_encoder"]
        x = np.stack(
            [
                self.table[self.rows[word]] + net["pos_emb.weight"][:, part] + net["pos_emb.bias"]
                for word, part in words
            ]
        )
        return last_states(x, net)


def halve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A convolution (O, C, 4) of (T, C), of stride 2, with a zero at both ends."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    frames = range(0, len(x), 2)
    return np.stack([np.einsum("kc,ock->o", padded[t : t + 4], weight) + bias for t in frames])


def last_states(x: np.ndarray, net: dict[str, np.ndarray]) -> np.ndarray:
    """The vector of steps (T, C)."""
    x = x @ net["input_emb.weight"].T + net["input_emb.bias"]
    states = []
    for direction, end in enumerate(("", "_reverse")):
        given, kept = net[f"gru.weight_ih_l0{end}"], net[f"gru.weight_hh_l0{end}"]
        first, second = net[f"gru.bias_ih_l0{end}"], net[f"gru.bias_hh_l0{end}"]
        state = net["hidden"][direction, 0]
        for step in x[::-1] if direction else x:
            r, z, n = np.split(given @ step + first, 3)
            kept_r, kept_z, kept_n = np.split(kept @ state + second, 3)
            r, z = 1 / (1 + np.exp(-(r + kept_r))), 1 / (1 + np.exp(-(z + kept_z)))
            state = (1 - z) * np.tanh(n + r * kept_n) + z * state
        states.append(state)
    x = np.concatenate(states) @ net["output_net.0.weight"].T + net["output_net.0.bias"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    x = leaky(x * net["output_net.1.weight"] + net["output_net.1.bias"])
    return x @ net["output_net.3.weight"].T + net["output_net.3.bias"]


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)

"""The evaluators in the folders that people download: finding, reading and running them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from motion.errors import MotionError
from motion.evaluate.evaluators.captions import Caption
from motion.evaluate.evaluators.networks import (
    FRAMES_OF_MOVEMENT,
    MotionEncoder,
    MovementEncoder,
    TextEncoder,
)
from motion.evaluate.evaluators.words import FILES, WordVectors
from motion.features.humanml3d import CONTACT_CHANNELS
from motion.features.statistics import FeatureStatistics
from motion.files.arrays import read_array
from wanvae.engine.pickles import load_pickle
from wanvae.errors import UserError

Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = Path("text_mot_match", "model", "finest.tar")
# Folders for the two kinds of features, by their number of channels.
DATA_SETS = {263: "t2m", 251: "kit"}
# Folders beside the weights with the mean and standard deviation that the evaluators were trained
# with, in the order they are looked for. Publications name them differently.
STATISTICS = ("Comp_v6_KLD01", "Comp_v6_KLD005", "VQVAEV3_CB1024_CMT_H1024_NRES3", "")
# Motion is padded to so many frames, as in training.
LONGEST = 196
WHERE = (
    "the evaluators are published with https://github.com/EricGuo5513/text-to-motion, and "
    "prepare/download_evaluator.sh and prepare/download_glove.sh of "
    "https://github.com/EricGuo5513/momask-codes download them. Unpack them, and name the folder "
    "that holds text_mot_match, such as checkpoints/t2m, or the folder above it"
)


@dataclass(frozen=True, eq=False)
class Evaluators:
    """Networks that turn motion and descriptions into vectors ``(E,)``; near ones belong together.

    Attributes:
        folder: where they come from.
        movement, motion: the networks for motion.
        text: the network for descriptions.
        statistics: the mean and the standard deviation of the features in training.
        words: the vectors of words; None if descriptions are not judged.
    """

    folder: Path
    movement: MovementEncoder
    motion: MotionEncoder
    text: TextEncoder
    statistics: FeatureStatistics
    words: WordVectors | None

    @torch.no_grad()
    def embed_motions(self, motions: Sequence[Tensor]) -> Tensor:
        """Returns the vectors ``(N, E)`` of motions, on the CPU.

        Args:
            motions: ``(T, D)`` each, features in their own units. They are padded by zeros to 196
                frames once they are normalized, and 4 frames are one step, as published.

        Raises:
            UserError: a motion has fewer than 4 frames, more than 196, or other features.
        """
        channels = len(self.statistics.mean)
        for motion in motions:
            if motion.dim() != 2 or motion.shape[1] != channels:
                raise UserError(f"motion must be (T, {channels}), not {tuple(motion.shape)}")
            if not FRAMES_OF_MOVEMENT <= len(motion) <= LONGEST:
                raise UserError(
                    f"motion must have {FRAMES_OF_MOVEMENT} to {LONGEST} frames, not {len(motion)}"
                )
        device = self.device
        padded = torch.zeros(len(motions), LONGEST, channels, device=device)
        mean, std = self.statistics.mean.to(device), self.statistics.std.to(device)
        for row, motion in zip(padded, motions, strict=True):
            row[: len(motion)] = (motion.to(device) - mean) / std
        steps = torch.tensor([len(motion) // FRAMES_OF_MOVEMENT for motion in motions])
        return self.motion(self.movement(padded[:, :, :-CONTACT_CHANNELS]), steps).cpu()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[Caption]) -> Tensor:
        """Returns the vectors ``(N, E)`` of captions, on the CPU.

        Raises:
            UserError: there are no vectors of words.
        """
        if self.words is None:
            raise UserError("the evaluators were loaded without vectors of words")
        found = [self.words.look_up(caption.tokens) for caption in captions]
        lengths = torch.tensor([len(words) for words, _ in found])
        words, parts = (
            nn.utils.rnn.pad_sequence([*rows], batch_first=True).to(self.device)
            for rows in zip(*found, strict=True)
        )
        return self.text.embed(words, parts, lengths).cpu()

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.motion.hidden.device


def load_evaluators(
    folder: str | os.PathLike[str],
    channels: int,
    *,
    texts: bool = False,
    device: torch.device | str = "cpu",
) -> Evaluators:
    """Reads the published evaluators of HumanML3D (263 channels) or KIT (251). Nothing is run.

    Args:
        folder: what holds ``text_mot_match/model/finest.tar``, or the folder above it with a folder
            ``t2m`` or ``kit``. The mean and standard deviation are beside it, in
            ``Comp_v6_KLD01/meta`` or a folder like it; and the vectors of words in a folder
            ``glove``, in this folder or at most two folders above.
        channels: the number of channels of the features to judge.
        texts: read the vectors of words, too.
        device: where to compute.

    Raises:
        MotionError: files are missing or damaged, or other features have so many channels.
    """
    folder = Path(folder)
    if channels not in DATA_SETS:
        raise MotionError(
            f"evaluators judge features of HumanML3D, 263 channels, and of KIT, 251, not the "
            f"{channels} channels of this model"
        )
    places = folder, folder / DATA_SETS[channels]
    home = next((place for place in places if (place / WEIGHTS).is_file()), None)
    if home is None:
        missing = "has" if folder.exists() else "does not exist, so it has"
        raise MotionError(f"{folder} {missing} no {WEIGHTS}: {WHERE}")
    weights = home / WEIGHTS
    content = load_pickle(weights)
    if not isinstance(content, dict):
        raise MotionError(f"{weights} holds no networks; {WHERE}")
    movement = load_network(weights, content, "movement_encoder", MovementEncoder.of_weights)
    expected = channels - CONTACT_CHANNELS
    if movement.channels != expected:
        raise MotionError(
            f"{weights} is for features of {movement.channels + CONTACT_CHANNELS} "
            f"channels, but the model has {channels}: name the folder of the other data set"
        )
    evaluators = Evaluators(
        folder=home,
        movement=movement,
        motion=load_network(weights, content, "motion_encoder", MotionEncoder.of_weights),
        text=load_network(weights, content, "text_encoder", TextEncoder.of_weights),
        statistics=read_statistics(home, channels),
        words=read_words(home) if texts else None,
    )
    for network in (evaluators.movement, evaluators.motion, evaluators.text):
        network.to(device)
    return evaluators


def load_network(
    path: Path,
    content: Mapping[str, object],
    name: str,
    make: Callable[[Mapping[str, Tensor]], Network],
) -> Network:
    """Returns one of the networks of a file in evaluation mode; MotionError if it does not fit.

    Args:
        make: returns the network of its tensors, with other weights.
    """
    tensors = content.get(name)
    try:
        if not isinstance(tensors, dict):
            raise KeyError(name)
        network = make(tensors)
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise MotionError(
            f"{path} holds no {name} of the evaluators ({problem}); {WHERE}"
        ) from error
    return network.float().eval()


def read_statistics(home: Path, channels: int) -> FeatureStatistics:
    """Reads the mean and the standard deviation beside the weights.

    Raises:
        MotionError: they are missing, or do not fit.
    """
    folder = first_with(["mean.npy", "std.npy"], (home / name / "meta" for name in STATISTICS))
    if folder is None:
        folders = ", ".join(str(Path(name, "meta")) for name in STATISTICS)
        raise MotionError(f"{home} has no mean.npy and std.npy in one of {folders}: {WHERE}")
    mean, std = (read_array(folder / name, 1) for name in ("mean.npy", "std.npy"))
    if len(mean) != channels or len(std) != channels:
        raise MotionError(f"mean.npy and std.npy of {folder} are not of {channels} channels")
    return FeatureStatistics(mean, std)


def read_words(home: Path) -> WordVectors:
    """Reads the vectors of words in the folder of the weights, or above it.

    Raises:
        MotionError: they are missing, or damaged.
    """
    above = (home, *home.absolute().parents[:2])
    folder = first_with(FILES, (place / name for place in above for name in ("glove", "")))
    if folder is None:
        raise MotionError(f"{home} has no folder glove with {', '.join(FILES)}: {WHERE}")
    return WordVectors.load(folder)


def first_with(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """Returns the first folder that has all these files; None if there is none."""
    names = list(names)
    return next((f for f in folders if all((f / name).is_file() for name in names)), None)

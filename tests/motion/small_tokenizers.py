"""Small tokenizers with random networks whose codebooks fit a walk."""

from pathlib import Path

import torch

from motion import RVQVAE, FeatureSpec, MotionVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.features.rotations import extract_features
from motion.features.statistics import FeatureStatistics
from motion.files.formats import write_motion
from motion.skeleton.clip import MotionClip
from motion.skeleton.sample import walk

WALK = walk(41)
# The files that ``write_walks`` writes.
WALKS = ("a.bvh", "b.npz", "deep/c.bvh", "deep/er/d.npz")
# 330 channels of 55 joints, as BEAT2's; and 333, with the root.
ROOTLESS = FeatureSpec(rot6d="rows", root=False)
ROOTED = FeatureSpec(rot6d="rows")


def tiny_tokenizer(
    features: FeatureSpec | None = ROOTLESS,
    *,
    channels: int = 0,
    seed: int = 0,
    layers: int = 2,
    clip: MotionClip = WALK,
) -> RVQVAE:
    """One of so many layers of 16 codes, and 4 frames a token.

    Args:
        features: of the clip; or None and the number of channels.
        clip: motion that the codebooks fit.
    """
    if features is None:
        motion = torch.randn(41, channels, generator=torch.Generator().manual_seed(seed))
    else:
        motion = extract_features(clip, features).float()
    config = RVQVAEConfig(
        channels=motion.shape[1],
        code_dim=4,
        resnet=ResnetConfig(width=8, depth=1, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=layers, codebook_size=16, dropout=0.0),
        features=features,
        fps=20.0 if features is None else 30.0,
    )
    torch.manual_seed(seed)
    model = RVQVAE(config, None if features is None else clip.skeleton)
    model.normalizer.set(FeatureStatistics.fit([motion]))
    model.train()
    model(motion[None])  # makes the codebooks
    return model.eval()


def tiny_vae(features: FeatureSpec = ROOTLESS, *, causal: bool = True) -> MotionVAE:
    """One of latents of 4 numbers, each of 4 frames of the walk."""
    motion = extract_features(WALK, features).float()
    config = RVQVAEConfig(
        channels=motion.shape[1],
        code_dim=4,
        bottleneck="gaussian",
        resnet=ResnetConfig(width=8, depth=1, dropout=0.0, causal=causal),
        features=features,
        fps=30.0,
    )
    torch.manual_seed(0)
    model = MotionVAE(config, WALK.skeleton)
    model.normalizer.set(FeatureStatistics.fit([motion]))
    return model.eval()


def write_walks(folder: Path) -> None:
    """Writes parts of the walk, of several lengths, to a folder."""
    for number, name in enumerate(WALKS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_motion(path, WALK[3 * number : 20 + number])


def saved_tokenizer(path: Path, features: FeatureSpec | None = ROOTLESS) -> Path:
    tiny_tokenizer(features, channels=263).save_pretrained(path)
    return path

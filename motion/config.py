"""The architecture of a motion tokenizer, and the features it is of, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from motion.quantizer_config import QuantizerConfig
from wanvae.engine.config import check, check_option
from wanvae.nn.coder import CoderSpec
from wanvae.nn.norm import NormKind
from wanvae.nn.residual import ActivationKind, BlockKind, BlockSpec

MotionNorm = Literal["LN", "GN", "BN"]
NetworkKind = Literal["resnet", "wan"]
BottleneckKind = Literal["quantizer", "gaussian"]
MatrixLines = Literal["rows", "columns"]
HeadingKind = Literal["world", "relative"]


@dataclass(frozen=True, kw_only=True)
class ResnetConfig:
    """The encoder and decoder of the published models; the defaults are MoMask's.

    Attributes:
        width: channels between the first convolution and the last.
        depth: residual blocks a stage.
        dilation_growth_rate: one number for each stage of the encoder, which halves time; the
            decoder has them in reverse. Block d of a stage has the dilation growth ** d.
        reverse_dilation: whether the block of the largest dilation comes first, in encoder and
            decoder.
        activation: nonlinearity of the residual blocks.
        norm: their normalization: none, or LN, GN or BN (layer, group, batch).
        dropout: probability of dropping a value at the end of a residual block, while training.
        causal: convolutions see only the past: such a model can stream.
        attention: one attention block over time between the stages and the codebooks.
        attention_window: latents it looks back on; all if None, which cannot stream.
    """

    width: int = 512
    depth: int = 3
    dilation_growth_rate: tuple[int, ...] = (3, 3)
    reverse_dilation: bool = True
    activation: ActivationKind = "relu"
    norm: MotionNorm | None = None
    dropout: float = 0.2
    causal: bool = False
    attention: bool = False
    attention_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        growth = self.dilation_growth_rate
        expected = "one number of at least 1 for each stage"
        check(bool(growth) and min(growth) >= 1, "dilation_growth_rate", growth, expected)
        check_option("activation", self.activation, ActivationKind)
        if self.norm is not None:
            check_option("norm", self.norm, MotionNorm)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        window = self.attention_window
        if window is not None:
            expected = "at least 1, of a causal model with attention"
            check(
                window >= 1 and self.causal and self.attention, "attention_window", window, expected
            )

    @property
    def down_t(self) -> int:
        """How often time is halved."""
        return len(self.dilation_growth_rate)


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Wan's encoder and decoder, in one dimension; causal.

    The first frame stands for itself, as in video: 1 + 4n frames have 1 + n latents.

    Attributes:
        dim: channels at the full rate.
        dim_mult: channels of each stage, in multiples of dim; time halves from stage to stage.
        num_res_blocks: residual blocks a stage of the encoder; the decoder has one more.
        attention_window: latents that the attention in the middle looks back on; all if None,
            which cannot stream.
        block: body of the residual blocks.
        norm: normalization. "group" needs whole clips.
        activation: nonlinearity.
        dropout: dropout probability inside residual blocks, while training.
    """

    dim: int = 128
    dim_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attention_window: int | None = None
    block: BlockKind = "residual"
    norm: NormKind = "rms"
    activation: ActivationKind = "silu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dim", "num_res_blocks"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        multiples = self.dim_mult
        expected = "two or more positive whole numbers, one for each stage"
        check(len(multiples) > 1 and min(multiples) >= 1, "dim_mult", multiples, expected)
        # A step up in time halves the channels.
        halves = all(self.dim * multiple % 2 == 0 for multiple in multiples[1:])
        check(halves, "dim", self.dim, "such that stages after the first have even widths")
        window = self.attention_window
        check(window is None or window >= 1, "attention_window", window, "at least 1")
        check_option("block", self.block, BlockKind)
        check_option("norm", self.norm, NormKind)
        check_option("activation", self.activation, ActivationKind)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    @property
    def down_t(self) -> int:
        """How often time is halved."""
        return len(self.dim_mult) - 1

    @property
    def coder(self) -> CoderSpec:
        """The shape of encoder and decoder."""
        return CoderSpec(
            ndim=1,
            dim=self.dim,
            dim_mult=self.dim_mult,
            num_res_blocks=self.num_res_blocks,
            temporal_downsample=(True,) * self.down_t,
            attention_window=self.attention_window,
            block=BlockSpec(
                kind=self.block, norm=self.norm, activation=self.activation, dropout=self.dropout
            ),
        )


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """A filter that smooths the output of the decoder: a weighted mean of neighboring frames.

    Attributes:
        before, after: the number of frames before and after each frame; 0 and 0 is no filter. In a
            stream the output comes ``after`` frames later.
        learned: whether the weights are trained. They start as binomial coefficients.
    """

    before: int = 0
    after: int = 0
    learned: bool = False

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")

    @property
    def smooths(self) -> bool:
        """Whether there is a filter."""
        return self.before + self.after > 0


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Which numbers describe a frame, in the order of the fields.

    Attributes:
        rot6d: the two lines of each rotation matrix that are kept, one after the other: "rows" as
            BEAT2, "columns" as HumanML3D have it. 6 J channels.
        root: velocity (x, z) of the root in m/s, from the frame before, and its height in metres.
            3 channels. Without it, motion stays where it is.
        heading: in which axes rotations of the root, velocities and positions are: of the "world",
            or "relative" to the heading of the person (see :mod:`motion.features.heading`). Then to
            turn a clip about the vertical changes no feature. The root has one more channel before
            its others: the rate of its turn in rad/s, from the frame before. Without the root, the
            heading is not in the features.
        positions: of all joints in metres, (x, z) from the root's, y from the ground. 3 J channels.
        velocities: of all joints in m/s, from the frame before. 3 J channels.
        contacts: 1 where a contact joint is about to move less than the threshold, else 0. A
            channel for each.
        contact_joints: indices; the default is ankles and feet of SMPL-X, as EMAGE has it.
        contact_threshold: metres per frame, as EMAGE has it.
    """

    rot6d: MatrixLines
    root: bool = True
    heading: HeadingKind = "world"
    positions: bool = False
    velocities: bool = False
    contacts: bool = False
    contact_joints: tuple[int, ...] = (7, 8, 10, 11)
    contact_threshold: float = 0.01

    def __post_init__(self) -> None:
        check_option("rot6d", self.rot6d, MatrixLines)
        check_option("heading", self.heading, HeadingKind)
        check(self.contact_threshold > 0, "contact_threshold", self.contact_threshold, "above 0")

    def channels(self, joints: int) -> int:
        """The number of channels, D, for a skeleton of ``joints`` joints."""
        per_joint = 6 + 3 * self.positions + 3 * self.velocities
        contacts = len(self.contact_joints) * self.contacts
        return per_joint * joints + self.root_channels + contacts

    @property
    def relative(self) -> bool:
        """Whether features are relative to the heading."""
        return self.heading == "relative"

    @property
    def root_channels(self) -> int:
        """The number of channels of the root, which come after the rotations."""
        return (3 + self.relative) * self.root

    def find_root(self, channels: int) -> slice:
        """Returns where the channels of the root are among all ``channels``, which come from
        ``channels()``.
        """
        joints = (channels - self.channels(0)) // (self.channels(1) - self.channels(0))
        return slice(6 * joints, 6 * joints + self.root_channels)


@dataclass(frozen=True, kw_only=True)
class RVQVAEConfig:
    """Architecture of a :class:`~motion.RVQVAE`; the defaults are MoMask's for HumanML3D.

    With ``bottleneck: gaussian`` it is the architecture of a :class:`~motion.MotionVAE`.

    Attributes:
        channels: of the motion features, D.
        code_dim: channels of the latents and codes.
        network: which encoder and decoder: resnet, of the published models, or wan.
        resnet: the networks of the published models.
        wan: Wan's networks.
        bottleneck: what is between them: a quantizer, or a Gaussian distribution of continuous
            latents, as in a VAE.
        quantizer: the residual vector quantizer.
        smoothing: the filter after the decoder; none by default.
        path_rounds: how often ``encode`` feeds the errors of path and heading back (see
            :mod:`motion.steering`), so that they do not add up. Each round takes as long as to
            encode and decode once more. It needs features with a root, and no causal network,
            because a stream cannot go back.
        features: what the channels mean in motion files with rotations (BVH, SMPL-X). None for
            HumanML3D and KIT, which the number of channels tells, and for unknown features.
        fps: frames per second of the motion; files of other rates are converted.
    """

    channels: int = 263
    code_dim: int = 512
    network: NetworkKind = "resnet"
    resnet: ResnetConfig = field(default_factory=ResnetConfig)
    wan: WanConfig = field(default_factory=WanConfig)
    bottleneck: BottleneckKind = "quantizer"
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    path_rounds: int = 0
    features: FeatureSpec | None = None
    fps: float = 20.0

    def __post_init__(self) -> None:
        for name in ("channels", "code_dim"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check_option("network", self.network, NetworkKind)
        check_option("bottleneck", self.bottleneck, BottleneckKind)
        check(0 < self.fps < float("inf"), "fps", self.fps, "above 0")
        check(self.path_rounds >= 0, "path_rounds", self.path_rounds, "at least 0")
        if self.path_rounds:
            steers = self.features is not None and self.features.root and not self.causal
            expected = "0, unless the features have a root and the network is not causal"
            check(steers, "path_rounds", self.path_rounds, expected)

    @property
    def causal(self) -> bool:
        """Whether the network sees only the past."""
        return self.network == "wan" or self.resnet.causal

    @property
    def num_layers(self) -> int:
        """The number of layers that a result can be decoded from: 1 without a quantizer."""
        return self.quantizer.num_quantizers if self.bottleneck == "quantizer" else 1

    @property
    def moments(self) -> int:
        """Channels of the encoder's output: latents, or their means and log-variances."""
        return self.code_dim if self.bottleneck == "quantizer" else 2 * self.code_dim

    @property
    def factor(self) -> int:
        """Frames a token: 4 for the published models."""
        return 2 ** (self.resnet if self.network == "resnet" else self.wan).down_t

    @property
    def first_frames(self) -> int:
        """Frames of the first token: as of any other, but 1 in Wan's network."""
        return self.factor if self.network == "resnet" else 1

    def tokens_of(self, frames: int) -> int:
        """Tokens that so many frames, at least one, have: T / factor, rounded up."""
        return 1 + (frames - self.first_frames + self.factor - 1) // self.factor

    def frames_of(self, tokens: int) -> int:
        """Frames that so many tokens, at least one, have."""
        return self.first_frames + (tokens - 1) * self.factor

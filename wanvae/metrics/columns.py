"""How figures are shown in tables: heading with the unit, digits, direction and meaning."""

from __future__ import annotations

from wanvae.report import Column

QUALITY = {
    "psnr": Column("PSNR (dB)", 2, "higher", "peak signal-to-noise ratio, the mean over frames"),
    "ssim": Column("SSIM", 4, "higher", "structural similarity, 11 pixels, the mean over frames"),
    "ms_ssim": Column(
        "MS-SSIM",
        4,
        "higher",
        "SSIM at five scales, the mean over frames with sides of 176 pixels or more",
    ),
    "lpips": Column(
        "LPIPS", 4, "lower", "how different frames look to a trained network, the mean over frames"
    ),
    "alpha": Column("alpha (levels)", 2, "lower", "mean absolute error of alpha, in levels of 255"),
    "rfvd": Column(
        "rFVD", 1, "lower", "Frechet distance between I3D features of originals and reconstructions"
    ),
    "temporal": Column(
        "change (levels)",
        3,
        "lower",
        "mean absolute error of the differences between consecutive frames, in levels of 255",
    ),
    "flicker": Column(
        "flicker",
        3,
        "lower",
        "this error where groups of frames begin, over the error inside groups; 1 is no flicker",
    ),
}
RATE = {
    "compression": Column(
        "compression", 1, explanation="values of the video per value of the latents"
    ),
    "bits": Column("bits per pixel", 3, explanation="of latents stored in 16 bits; a video has 24"),
    "information": Column(
        "KL (bits per pixel)",
        3,
        explanation="divergence of the latents from N(0, 1): their information",
    ),
    "encode_fps": Column("encoded per second", 2, "higher", "frames, without reading them"),
    "decode_fps": Column("decoded per second", 2, "higher", "frames, without writing them"),
}

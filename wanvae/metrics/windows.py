"""The windows of SSIM: how alike two images are in each, as means over all windows of an image.

SSIM follows Wang et al. 2004 and scikit-image: its windows lie inside the image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Images have values from -1 to 1.
RANGE = 2.0
# Side of a window in pixels, and the standard deviation of its Gaussian weights.
WINDOW, SIGMA = 11, 1.5
GAUSSIAN = [math.exp(-((place - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for place in range(WINDOW)]
WEIGHTS = [value / sum(GAUSSIAN) for value in GAUSSIAN]
# Constants that keep the quotients of flat windows finite.
LUMINANCE, CONTRAST = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2

# A window reaches so many pixels beyond its first.
_REACH = WINDOW - 1
# Windows that a CPU compares at a time, so that they stay in its cache; columns are a multiple of
# the windows of a matrix product. Products of this size are too small for a library to share among
# threads, which would compete with a model that works at the same time.
_ROWS, _COLUMNS, _TILE = 8, 1024, 16


def similarity(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of SSIM, and of its second factor, over the windows of each image.

    SSIM is the product of two factors. The first compares luminance, the second contrast and
    structure. On a CPU, all is done in the thread that calls.

    Args:
        images, originals: ``(N, C, H, W)`` in [-1, 1], with sides of at least 11 pixels.

    Returns:
        Two tensors ``(N,)``, float64 on the CPU.
    """
    if images.device.type != "cpu":
        luminance, contrast = _factors(images, originals)
        means = [
            factor.mean((1, 2, 3), dtype=torch.float64)
            for factor in (luminance * contrast, contrast)
        ]
        return means[0].cpu(), means[1].cpu()
    arrays = [x.detach().float().numpy() for x in (images, originals)]
    means = [_means_on_cpu(image, original) for image, original in zip(*arrays, strict=True)]
    whole, contrast = torch.tensor(means, dtype=torch.float64).unbind(1)
    return whole, contrast


def _factors(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two factors of SSIM in each window, ``(N, C, H - 10, W - 10)``."""
    products = images * images, originals * originals, images * originals
    means = _average(torch.cat([images, originals, *products])).chunk(5)
    image, original, square, original_square, product = means
    mean_squares, mean_product = image**2 + original**2, image * original
    luminance = (2 * mean_product + LUMINANCE) / (mean_squares + LUMINANCE)
    covariance, variances = product - mean_product, square + original_square - mean_squares
    return luminance, (2 * covariance + CONTRAST) / (variances + CONTRAST)


def _average(x: Tensor) -> Tensor:
    """Returns the weighted mean of ``(N, C, H, W)`` in each window, ``(N, C, H - 10, W - 10)``.

    This is neither a convolution nor a matrix product, because GPUs round the inputs of both, and
    variances are small differences of large numbers.
    """
    for axis in (2, 3):
        count = x.shape[axis] - _REACH
        mean = torch.zeros_like(x.narrow(axis, 0, count))
        for place, weight in enumerate(WEIGHTS):
            mean.add_(x.narrow(axis, place, count), alpha=weight)
        x = mean
    return x


def _means_on_cpu(image: np.ndarray, original: np.ndarray) -> tuple[float, float]:
    """Returns the mean of SSIM, and of its second factor, of images ``(C, H, W)``."""
    channels, height, width = image.shape
    height, width = height - _REACH, width - _REACH
    step = -(-width // -(-width // _COLUMNS))
    piece = _Piece(channels, step)
    whole = contrast = 0.0
    for left in range(0, width, step):
        columns = slice(left, min(left + step, width) + _REACH)
        for top in range(0, height, _ROWS):
            rows = slice(top, min(top + _ROWS, height) + _REACH)
            sums = piece.compare(image[:, rows, columns], original[:, rows, columns])
            whole, contrast = whole + sums[0], contrast + sums[1]
    windows = channels * height * width
    return whole / windows, contrast / windows


class _Piece:
    """The memory for some rows of windows, which are compared again and again.

    Args:
        channels: channels of an image.
        columns: the most windows of a row.
    """

    def __init__(self, channels: int, columns: int) -> None:
        tiles = -(-columns // _TILE)
        columns = tiles * _TILE
        width = columns + _REACH
        # Of four maps: image, original, the sum of their squares, and their product.
        self._maps = np.zeros((4, channels, _ROWS + _REACH, width), np.float32)
        self._averaged = np.empty((4, channels, _ROWS, width), np.float32)
        self._means = np.empty((4, channels, _ROWS, columns), np.float32)
        self._scratch = np.empty((channels, _ROWS, columns), np.float32)
        self._down, self._across = _band(_ROWS), _band(_TILE).T.copy()
        # The rows of all maps, cut to pieces that overlap, and where their windows are.
        rows, item = self._means[..., 0].size, self._averaged.itemsize
        self._tiles = np.lib.stride_tricks.as_strided(
            self._averaged, (tiles, rows, _TILE + _REACH), (_TILE * item, width * item, item)
        )
        self._results = self._means.reshape(rows, tiles, _TILE).swapaxes(0, 1)

    def compare(self, image: np.ndarray, original: np.ndarray) -> tuple[float, float]:
        """Returns the sum of SSIM, and of its second factor, over windows of ``(C, H, W)``."""
        _, height, width = image.shape
        windows = np.s_[:, : height - _REACH, : width - _REACH]
        images, originals, squares, products = self._maps
        images[:, :height, :width], originals[:, :height, :width] = image, original
        np.multiply(images, images, out=squares)
        np.multiply(originals, originals, out=products)
        squares += products
        np.multiply(images, originals, out=products)
        np.matmul(self._down, self._maps, out=self._averaged)
        np.matmul(self._tiles, self._across, out=self._results)

        mean, original_mean, square, product = self._means
        mean_product = np.multiply(mean, original_mean, out=self._scratch)
        product -= mean_product  # the covariance
        mean *= mean
        original_mean *= original_mean
        mean += original_mean
        square -= mean  # the sum of both variances
        product += np.float32(CONTRAST / 2)
        square += np.float32(CONTRAST)
        product /= square
        contrast = 2 * float(product[windows].sum())
        mean_product += np.float32(LUMINANCE / 2)
        mean += np.float32(LUMINANCE)
        product *= mean_product
        product /= mean
        return 4 * float(product[windows].sum()), contrast


def _band(count: int) -> np.ndarray:
    """Returns the matrix ``(count, count + 10)`` that averages neighbours to ``count`` windows."""
    matrix = np.zeros((count, count + _REACH), np.float32)
    for row in range(count):
        matrix[row, row : row + WINDOW] = WEIGHTS
    return matrix

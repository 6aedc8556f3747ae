"""The shortcuts across stages: which values they average, and how a stream starts."""

import torch

from wanvae.nn import AverageDown, DuplicateUp


def test_averages_are_of_groups_in_the_order_channel_frame_row_column():
    x = torch.arange(32.0).view(1, 2, 4, 2, 2)
    y, state = AverageDown(2, 4, 2, 2).step(x, state=())
    # Four values a group: those of one frame of one channel.
    assert y.shape == (1, 4, 2, 1, 1) and state == ()
    assert y.flatten().tolist() == [1.5, 9.5, 5.5, 13.5, 17.5, 25.5, 21.5, 29.5]


def test_the_first_frame_is_averaged_with_zeros():
    x = torch.ones(1, 2, 3, 2, 2)
    assert AverageDown(2, 2, 2, 2)(x).flatten(2).tolist() == [[[0.5, 1], [0.5, 1]]]


def test_duplicates_fill_frames_rows_and_columns():
    x = torch.arange(4.0).view(1, 4, 1, 1, 1)
    y, _ = DuplicateUp(4, 2, 2, 2).step(x, state=())
    # Four values a channel: those of one frame.
    assert y.shape == (1, 2, 2, 2, 2)
    assert y.flatten(3).tolist() == [[[[0] * 4, [1] * 4], [[2] * 4, [3] * 4]]]
    y, _ = DuplicateUp(4, 4, 1, 2).step(x, state=())
    assert y[0, :, 0].flatten(1).tolist() == [[n] * 4 for n in range(4)]


def test_of_the_first_frame_one_copy_stays():
    x = torch.arange(2.0).view(1, 1, 2, 1, 1).expand(1, 4, 2, 1, 1)
    assert DuplicateUp(4, 1, 2, 2)(x)[0, 0, :, 0, 0].tolist() == [0, 1, 1]

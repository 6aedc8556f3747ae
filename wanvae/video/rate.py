"""Frame rates as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from wanvae.errors import UserError
from wanvae.video.common import RATES


def parse_rate(text: str) -> Fraction:
    """Returns frames per second from a text like "25", "29.97" or "30000/1001".

    Exponents are not allowed, because "1e999999999" would take forever.

    Raises:
        UserError: the text is not such a rate.
    """
    number = re.fullmatch(r"\d{1,10}(\.\d{1,10}|/0*[1-9]\d{0,9})?", text, re.ASCII)
    lowest, highest = RATES
    if number is None or not lowest <= Fraction(text) <= highest:
        raise UserError(
            f"fps must be a rate like 25 or 30000/1001, from {lowest} to {highest}, not {text!r}"
        )
    return Fraction(text)

"""Reports for people: one HTML file that holds everything it shows."""

from wanvae.report.elements import (
    Column,
    Comparison,
    Curves,
    Picture,
    Pictures,
    Row,
    Section,
    StickFigures,
    Table,
)
from wanvae.report.page import write_page
from wanvae.report.rows import write_rows

__all__ = [
    "Column",
    "Comparison",
    "Curves",
    "Picture",
    "Pictures",
    "Row",
    "Section",
    "StickFigures",
    "Table",
    "write_page",
    "write_rows",
]

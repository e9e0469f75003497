"""How pictures of the evidence look: one small size, one style, equal bytes from equal numbers."""

from io import BytesIO
from typing import Any


def new_figure(columns: int = 1) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes (an array of them for more than one column)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 if columns == 1 else 4.6 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, columns)
    for each in [axes] if columns == 1 else axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Any) -> bytes:
    """Return a figure as PNG, without the date and version that would change its bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

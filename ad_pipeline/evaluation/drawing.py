"""How a picture for people is made here: one palette, one figure without pyplot, one PNG writer.

Colours are Okabe and Ito's, which people with any colour vision tell apart; what differs in colour
also differs in line, marker or hatch, so a grey print still reads. The ground is white and opaque:
the UI's dark theme shows it as it is. matplotlib is imported inside the functions, since it costs
half a second that no other reader of a room should pay. What is drawn stands in the ``plots``
modules of the rooms.
"""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.clocks import SECOND_US

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#595959"
PALE = "#BFBFBF"


WIDTH = 8.8
"""Of a figure, inches: as PNG it fits the UI's dialog on a laptop's screen."""


def blank_figure(width: float, height: float) -> "Figure":
    """Return an empty figure on the Agg canvas, sizes in inches.

    Without pyplot, whose global state leaks between runs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: "Figure") -> bytes:
    """Return a figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    # The software's version would make equal figures differ in bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def saying(figure: "Figure", text: str) -> "Figure":
    """Write one sentence into a figure that has nothing to draw, and return it."""
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, color=GREY)
    return figure


def dated(axes: "Axes") -> None:
    """Write dates below an axis of moments, and draw its grid."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=9, tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC, show_offset=False))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def framed(axes: "Axes", always: Sequence[float] = ()) -> None:
    """Show all values but far outliers, which would press the others into a line."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]
    drawn = np.concatenate([*lines, np.empty(0)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return
    first, third = np.percentile(drawn, [25, 75])
    reach = 4 * (third - first)
    near = drawn[(drawn >= first - reach) & (drawn <= third + reach)]
    kept = np.append(near, always)
    room = 0.05 * (kept.max() - kept.min())
    if room > 0:
        axes.set_ylim(kept.min() - room, kept.max() + room)


def moment_of(us: int) -> datetime:
    """Return a moment of the log as matplotlib takes it, UTC."""
    return datetime.fromtimestamp(us / SECOND_US, tz=UTC)

"""`Panels`: a figure of small plots side by side that share one legend; every figure of the report is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

__all__ = ["Panels", "rounded"]

ACROSS = 3
HEIGHT = 290
"""Height of a panel [px]."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


class Panels:
    """Plots side by side; what is added goes to the current one, `next` begins another.

    Args:
        titles: One a panel.
        across: Panels in a row.
        height: Of a panel [px].
    """

    def __init__(self, titles: Sequence[str], *, across: int = ACROSS, height: int = HEIGHT) -> None:
        self._across = min(across, len(titles))
        rows = -(-len(titles) // self._across)
        self._place = 0
        self.figure: go.Figure = make_subplots(
            rows,
            self._across,
            subplot_titles=titles,
            horizontal_spacing=0.27 / self._across,
            vertical_spacing=0.34 / rows if rows > 1 else 0,
        )
        self.figure.update_layout(
            template="none",
            height=rows * height + 150,
            margin={"l": 76, "r": 16, "t": 60, "b": 130},
            modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a9099", "activecolor": "#0072b2"},
            font={"family": FONT, "size": 13},
            paper_bgcolor="white",
            plot_bgcolor="white",
            hovermode="closest",
            hoverlabel={"align": "left", "bgcolor": "white"},
            legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        )
        self.figure.update_annotations(font_size=12)
        self.figure.update_xaxes(showline=True, ticks="outside", ticklen=4, gridcolor="#e6e9ec", zeroline=False)
        self.figure.update_yaxes(showline=True, ticks="outside", ticklen=4, gridcolor="#e6e9ec", zeroline=False)

    def next(self) -> None:
        """Go on to the next panel."""
        self._place += 1

    def add(self, trace: Any) -> None:
        """Add a trace; of those with the same name in all panels the legend shows one."""
        trace.showlegend = not any(trace.name == other.name for other in self.figure.data)
        trace.legendgroup = trace.name
        self.figure.add_trace(trace, **self._at)

    def area(self, ends: Sequence[float], between: tuple[float, float], name: str, colour: str, opacity: float) -> None:
        """Shade the values from one end to the other, over the whole height."""
        (low, high), (bottom, top) = ends, between
        self.fan([low, high], [bottom, bottom], [top, top], name, colour, opacity)

    def fan(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, name: str, colour: str, opacity: float = 0.24) -> None:
        """Shade between two curves over x."""
        x, low, high = (np.asarray(values, float) for values in (x, low, high))
        self.add(
            go.Scatter(
                x=rounded(np.concatenate([x, x[::-1]])),
                y=rounded(np.concatenate([low, high[::-1]]), 7),
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, {opacity})",
                name=name,
                hoverinfo="skip",
            )
        )

    def line(self, x: ArrayLike, y: ArrayLike, name: str, colour: str, dash: str = "solid") -> None:
        """A curve."""
        self.add(
            go.Scatter(
                x=rounded(x),
                y=rounded(y, 7),
                mode="lines",
                line={"color": colour, "width": 2, "dash": dash},
                name=name,
                hoverinfo="skip",
            )
        )

    def points(
        self,
        x: ArrayLike,
        y: ArrayLike,
        name: str,
        colour: str,
        *,
        symbol: str = "circle",
        size: int = 8,
        hover: Sequence[str],
        x_intervals: Sequence[Sequence[float]] | None = None,
        y_intervals: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Points with a text each for whoever points at them, and intervals where they have some."""
        errors = {
            f"error_{axis}": _error(values, ends, colour)
            for axis, values, ends in (("x", x, x_intervals), ("y", y, y_intervals))
            if ends is not None
        }
        self.add(
            go.Scatter(
                x=rounded(x),
                y=rounded(y, 7),
                mode="markers",
                name=name,
                marker={"symbol": symbol, "color": colour, "size": size, "opacity": 0.85},
                text=list(hover),
                hovertemplate="%{text}<extra></extra>",
                **errors,
            )
        )

    def axes(
        self,
        *,
        x: str,
        y: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        log: str = "",
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_text: Callable[[float], str] = "{:.5g}".format,
        y_text: Callable[[float], str] = "{:.5g}".format,
    ) -> None:
        """Titles, ranges and scales of the current panel.

        Args:
            x, y: Titles.
            x_range, y_range: What is shown.
            log: Which of the axes are logarithmic: ``""``, ``"x"``, ``"y"``, ``"xy"``.
            x_ticks, y_ticks: Where the ticks are; at round numbers unless given.
            x_text, y_text: How a tick is written.
        """
        for axis, title, ends, ticks, text, update in (
            ("x", x, x_range, x_ticks, x_text, self.figure.update_xaxes),
            ("y", y, y_range, y_ticks, y_text, self.figure.update_yaxes),
        ):
            logarithmic = axis in log
            places = list(ticks) if ticks is not None else _ticks(*ends, logarithmic)
            update(
                type="log" if logarithmic else "linear",
                range=[math.log10(end) for end in ends] if logarithmic else list(ends),
                title={"text": title, "standoff": 8, "font": {"size": 12}},
                tickvals=places,
                ticktext=[text(place) for place in places],
                tickangle=0,
                **self._at,
            )

    @property
    def _at(self) -> dict[str, int]:
        return {"row": self._place // self._across + 1, "col": self._place % self._across + 1}


def rounded(values: Iterable[float] | ArrayLike, digits: int = 6) -> list[float]:
    """Values to so many significant digits: figures travel in pages and journals."""
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, float)]


def _error(values: ArrayLike, ends: Sequence[Sequence[float]], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "array": rounded([max(0.0, high - value) for value, (_, high) in zip(np.asarray(values), ends, strict=True)]),
        "arrayminus": rounded(
            [max(0.0, value - low) for value, (low, _) in zip(np.asarray(values), ends, strict=True)]
        ),
        "color": colour,
        "thickness": 1.6,
        "width": 5,
    }


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three to seven round numbers inside the range."""
    if logarithmic and high / low > 4:
        for mantissas in ((1,), (1, 3), (1, 2, 5)):
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            places = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
            if len(places) >= 3:
                return places[:: -(-len(places) // 7)]
    for step in sorted(m * 10.0**d for d in range(-9, 22) for m in (1, 2, 5)):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first + 1 <= 6:
            return [step * n for n in range(first, last + 1)]
    return [low, high]

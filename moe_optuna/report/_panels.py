"""`Panels`: a figure of small plots side by side that share one legend; every figure of the report is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

__all__ = ["Panels", "rounded"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
AXIS = {
    "showline": True, "linecolor": "#5a6570", "ticks": "outside", "ticklen": 4, "tickangle": 0, "gridcolor": "#e6e9ec",
    "zeroline": False,
}  # fmt: skip
GAPS = 0.27, 0.45
"""Room between panels for their titles and ticks, as shares of a panel's width and height."""
ABOVE, BELOW = 60, 130
"""Room for the buttons and for the legend [px]."""


class Panels:
    """Plots side by side: `begin` one, add to it, begin another, and take the figure.

    A figure is put together as plain data and validated once: plotly's own way takes ten times as long.

    Args:
        across: Panels in a row.
        height: Of a panel with its titles [px].
    """

    def __init__(self, *, across: int = 3, height: int = 300) -> None:
        self._across = across
        self._height = height
        self._titles: list[str] = []
        self._traces: list[dict[str, Any]] = []
        self._axes: dict[str, dict[str, Any]] = {}

    def begin(self, title: str) -> None:
        """Begin a panel."""
        self._titles.append(title)

    def figure(self, **layout: Any) -> go.Figure | None:
        """The figure, with more of the layout where it is given; ``None`` where there is no panel."""
        if not self._titles:
            return None
        across = min(self._across, len(self._titles))
        rows = -(-len(self._titles) // across)
        width, height = (1 / (n + gap * (n - 1)) for n, gap in zip((across, rows), GAPS, strict=True))
        for place, title in enumerate(self._titles):
            left = place % across * width * (1 + GAPS[0])
            top = 1 - place // across * height * (1 + GAPS[1])
            x, y = _names(place)
            self._axes[x] |= {"domain": [left, left + width], "anchor": y.replace("axis", "")}
            self._axes[y] |= {"domain": [max(0.0, top - height), top], "anchor": x.replace("axis", "")}
            layout.setdefault("annotations", []).append(
                {
                    "text": title, "x": left + width / 2, "y": top, "xref": "paper", "yref": "paper",
                    "xanchor": "center", "yanchor": "bottom", "showarrow": False, "font": {"size": 12},
                }
            )  # fmt: skip
        layout = {
            "template": "none",
            "height": rows * self._height + ABOVE + BELOW - 60,
            "margin": {"l": 76, "r": 16, "t": ABOVE, "b": BELOW},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8a9099", "activecolor": "#0072b2"},
            "font": {"family": FONT, "size": 13},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "hovermode": "closest",
            "hoverlabel": {"align": "left", "bgcolor": "white"},
            "legend": {
                "orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "traceorder": "normal"
            },
            **self._axes,
            **layout,
        }  # fmt: skip
        return go.Figure({"data": self._traces, "layout": layout})

    def add(self, *, type: str = "scatter", name: str, **trace: Any) -> None:
        """Add a trace; of those with the same name in all panels the legend shows one."""
        x, y = (each.replace("axis", "") for each in _names(len(self._titles) - 1))
        first = not any(name == other["name"] for other in self._traces)
        self._traces.append(
            {"type": type, "name": name, "legendgroup": name, "showlegend": first, "xaxis": x, "yaxis": y, **trace}
        )

    def area(self, ends: Sequence[float], between: tuple[float, float], name: str, colour: str, opacity: float) -> None:
        """Shade the values from one end to the other, over the whole height."""
        (low, high), (bottom, top) = ends, between
        self.fan([low, high], [bottom, bottom], [top, top], name, colour, opacity)

    def fan(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, name: str, colour: str, opacity: float = 0.24) -> None:
        """Shade between two curves over x."""
        x, low, high = (np.asarray(values, float) for values in (x, low, high))
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        self.add(
            name=name,
            x=rounded(np.concatenate([x, x[::-1]])),
            y=rounded(np.concatenate([low, high[::-1]]), 7),
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=f"rgba({red}, {green}, {blue}, {opacity})",
            hoverinfo="skip",
        )

    def line(self, x: ArrayLike, y: ArrayLike, name: str, colour: str) -> None:
        """A curve."""
        line = {"color": colour, "width": 2}
        self.add(name=name, x=rounded(x), y=rounded(y, 7), mode="lines", line=line, hoverinfo="skip")

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
        errors: dict[str, Any] = {
            f"error_{axis}": _error(values, ends, colour)
            for axis, values, ends in (("x", x, x_intervals), ("y", y, y_intervals))
            if ends is not None
        }
        self.add(
            name=name,
            x=rounded(x),
            y=rounded(y, 7),
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": size, "opacity": 0.85},
            text=list(hover),
            hovertemplate="%{text}<extra></extra>",
            **errors,
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
        for name, title, ends, ticks, text in zip(
            _names(len(self._titles) - 1), (x, y), (x_range, y_range), (x_ticks, y_ticks), (x_text, y_text), strict=True
        ):
            logarithmic = name[0] in log
            places = list(ticks) if ticks is not None else _ticks(*ends, logarithmic)
            self._axes[name] = {
                **AXIS,
                "type": "log" if logarithmic else "linear",
                "range": [math.log10(end) for end in ends] if logarithmic else list(ends),
                "title": {"text": title, "standoff": 8, "font": {"size": 12}},
                "tickvals": places,
                "ticktext": [text(place) for place in places],
            }


def _names(place: int) -> tuple[str, str]:
    """The keys of a panel's axes in the layout."""
    number = str(place + 1) if place else ""
    return f"xaxis{number}", f"yaxis{number}"


def rounded(values: Iterable[float] | ArrayLike, digits: int = 6) -> list[float]:
    """Values to so many significant digits: figures travel in pages and journals."""
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, float)]


def _error(values: ArrayLike, ends: Sequence[Sequence[float]], colour: str) -> dict[str, Any]:
    x, low, high = np.asarray(values, float), *np.asarray(ends, float).T
    above, below = np.maximum(high - x, 0.0), np.maximum(x - low, 0.0)
    lengths = {"array": rounded(above), "arrayminus": rounded(below)}
    return {"type": "data", "symmetric": False, **lengths, "color": colour, "thickness": 1.6, "width": 5}


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers inside the range, five or six of them at most."""
    if logarithmic and high / low > 4:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for mantissas in ((1,), (1, 3), (1, 2, 5)):
            places = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
            if len(places) >= 3:
                return places[:: -(-len(places) // 6)]
    size = math.floor(math.log10(high - low))
    for step in (m * 10.0**d for d in (size - 1, size, size + 1) for m in (1, 2, 5)):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < 5:
            return [step * n for n in range(first, last + 1)]
    return [low, high]

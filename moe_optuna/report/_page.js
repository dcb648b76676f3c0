// Draws the figures in the page's own colours, light or dark.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const themed = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "font.color": colour("--ink"),
    "modebar.color": colour("--soft"),
    "hoverlabel.bgcolor": colour("--card"),
    "hoverlabel.font.color": colour("--ink"),
  };
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    themed[axis + ".gridcolor"] = colour("--grid");
    themed[axis + ".linecolor"] = colour("--soft");
    themed[axis + ".tickcolor"] = colour("--soft");
    themed[axis + ".zerolinecolor"] = colour("--soft");
  }
  return themed;
}

for (const [name, figure] of Object.entries(figures)) {
  const place = document.getElementById("plot-" + name);
  Plotly.newPlot(place, figure.data, figure.layout, {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: name },
  }).then(() => Plotly.relayout(place, colours(figure.layout)));
  dark.addEventListener("change", () => Plotly.relayout(place, colours(figure.layout)));
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");
const figures = JSON.parse(document.getElementById("figures").textContent);

// Returns a layout in the colors of the page, for the width that it has.
function dressed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, quiet, rule] = ["--ink", "--quiet", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, automargin: true };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13 },
    margin: { l: 8, r: 8, t: narrow.matches ? 12 : 36, b: 8 },
    legend: { orientation: "h", x: 0, y: 0, xref: "container", yref: "container", yanchor: "bottom" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: quiet, activecolor: ink },
    hovermode: "closest",
    dragmode: narrow.matches ? false : "zoom",
  };
}

function draw() {
  for (const [name, { data, layout }] of Object.entries(figures)) {
    const options = { responsive: true, displaylogo: false, displayModeBar: !narrow.matches };
    Plotly.react(document.getElementById(`plot-${name}`), data, dressed(layout), options);
  }
}

// Numbers in order, then what is no number by its letters; empty cells last whichever the order.
function sorted(rows, column, sign) {
  const value = (row) => row.cells[column].dataset.value;
  const number = (text) => Number(text.replace(/^(-?)inf$/, "$1Infinity"));
  const empty = (text) => text === "" || text === "nan";
  return rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    const [p, q] = [number(x), number(y)];
    if (Number.isNaN(p) && Number.isNaN(q)) return sign * x.localeCompare(y);
    if (Number.isNaN(p) || Number.isNaN(q)) return sign * (Number.isNaN(p) - Number.isNaN(q));
    return p === q ? 0 : sign * (p < q ? -1 : 1);
  });
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const body = header.closest("table").tBodies[0];
    const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    body.append(...sorted([...body.rows], header.cellIndex, order === "ascending" ? 1 : -1));
  });
}

draw();
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);

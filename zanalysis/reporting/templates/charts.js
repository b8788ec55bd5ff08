// ---- charts ----

const state = { range: null, logSteps: false, hidden: new Set() };
const charts = new Map(); // plot element -> { build, drawn, stale, near }
let watcher = null;

// Short gaps: a gap in a line is a missing number.
const DASHES = ["solid", "9px,3px", "3px,3px", "9px,3px,3px,3px", "16px,3px", "16px,3px,3px,3px"];
const svgDash = (i) => (i ? DASHES[i].replaceAll("px", "").replaceAll(",", " ") : "");
const color = (i) => css(`--c${i % 6}`);
const dash = (i) => (i + Math.floor(i / 6)) % 6; // the seventh line has the first color, but not the first dash

function config() {
  return { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset" };
}

function axes() {
  const look = { gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--grid"), tickcolor: css("--line") };
  const x = { ...look, type: state.logSteps ? "log" : "linear", title: { text: plain(data.axis) }, exponentformat: "power", tickformat: ",d" };
  const [low, high] = state.range ?? everything;
  const margin = state.range ? 0 : (high - low) * 0.02 || 1;
  x.range = state.logSteps ? [Math.log10(Math.max(low, firstPositive)), Math.log10(Math.max(high, firstPositive + 1))] : [low - margin, high + margin];
  return { x, look };
}

function baseLayout() {
  const { x, look } = axes();
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 58, r: 14, t: 12, b: 44 }, showlegend: false, hovermode: "closest",
    // A finger that drags across a chart scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { bgcolor: css("--soft"), bordercolor: css("--line"), font: { color: css("--text") } },
    xaxis: x, yaxis: { ...look, automargin: true },
  };
}

function draw(plot) {
  const chart = charts.get(plot);
  if (!chart.near || (chart.drawn && !chart.stale)) return;
  const { traces, layout } = chart.build();
  const first = !chart.drawn;
  chart.drawn = true;
  chart.stale = false;
  Plotly.react(plot, traces, layout, config());
  if (first) plot.on("plotly_relayout", (change) => zoomed(change));
}

function zoomed(change) {
  if ("xaxis.range[0]" in change) {
    const ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]].map((end) => (state.logSteps ? 10 ** end : end));
    setRange(ends.map(Math.round));
  } else if (change["xaxis.autorange"] || change["xaxis.range"]) {
    setRange(null);
  }
}

function setRange(range) {
  state.range = range && range[1] > range[0] ? range : null;
  [$("from").value, $("to").value] = state.range ?? everything;
  redraw();
}

function redraw() {
  for (const [plot, chart] of charts) {
    chart.stale = true;
    draw(plot);
  }
}

function addChart(parent, { title, wide, alternative, build, captions = [] }) {
  const plot = make("div", { className: "plot" });
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", alternative);
  const figure = make("figure", { className: wide ? "wide" : "" }, make("h3", {}, make("bdi", { textContent: title })), plot);
  if (captions.length) figure.append(make("figcaption", {}, ...captions));
  parent.append(figure);
  charts.set(plot, { build, drawn: false, stale: false, near: false });
  watcher.observe(plot);
  return plot;
}

function clearCharts(parent) {
  for (const plot of parent.querySelectorAll(".plot")) {
    watcher.unobserve(plot);
    if (charts.get(plot)?.drawn) Plotly.purge(plot);
    charts.delete(plot);
  }
  parent.replaceChildren();
}

// ---- lines ----

const steps = (line) => line.x ?? data.steps;

function gapTraces(line) {
  if (!line.gaps.length) return [];
  const x = [], y = [], text = [];
  for (const [first, last, count, word] of line.gaps) {
    const said = plain(first === last ? `step ${first}: ${word}` : `steps ${first} to ${last}: ${word}, ${count} records`);
    x.push(first, last, null); y.push(0.02, 0.02, null); text.push(said, said, "");
  }
  const stroke = css("--gap");
  return [{ x, y, text, yaxis: "y2", mode: "lines+markers", line: { color: stroke, width: 5 }, marker: { color: stroke, symbol: "x", size: 7 }, hovertemplate: "no number<br>%{text}<extra></extra>", name: "no number" }];
}

function lineTraces(line, { style, name, whole, log, depth, count }) {
  const x = steps(line), y = log ? line.y.map((v) => (v > 0 ? v : null)) : line.y;
  const few = line.n <= 25;
  const stroke = color(style);
  const trace = {
    x, y, name: plain(name), mode: few ? "lines+markers" : "lines", connectgaps: false,
    line: { color: stroke, dash: DASHES[dash(style)], width: 1.7 + 1.6 * (count - 1 - depth), shape: whole ? "hv" : "linear" },
    marker: { color: stroke, size: 4 + 1.6 * (count - 1 - depth) },
    hovertemplate: "step %{x}<br>%{y:.6~g}<extra>%{fullData.name}</extra>", hoverlabel: { namelength: 40 },
  };
  // A line that never changes has its maximum everywhere.
  const moves = y.some((v) => v !== null && v !== line.max[1]);
  const maximum = moves && {
    x: [line.max[0]], y: [line.max[1]], mode: "markers", name: plain(`maximum, ${name}`), cliponaxis: false,
    marker: { symbol: "circle-open", size: 11, color: stroke, line: { width: 2, color: stroke } },
    hovertemplate: "maximum %{y:.6~g}<br>at step %{x}<extra>%{fullData.name}</extra>",
  };
  return maximum ? [trace, maximum] : [trace];
}

function lineLayout(lines, { log: wanted, whole, unit, bound }) {
  const log = wanted && lines.some((line) => line.max?.[1] > 0); // an axis without a number breaks
  const layout = baseLayout();
  const highest = Math.max(...lines.map((line) => line.max?.[1] ?? -Infinity));
  Object.assign(layout.yaxis, { type: log ? "log" : "linear", title: { text: plain(unit) }, exponentformat: "power", minexponent: log ? 3 : 5 });
  if (whole && !log) Object.assign(layout.yaxis, { rangemode: "tozero", tickformat: ",d", ...(highest < 6 ? { dtick: 1 } : {}) });
  if (bound && !log) layout.yaxis.rangemode = "tozero";
  layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
  if (bound && near(bound, highest)) {
    layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: bound[0], y1: bound[0], line: { color: css("--muted"), width: 1.5, dash: "dash" } }];
    layout.annotations = [{ xref: "paper", x: 1, xanchor: "right", y: log ? Math.log10(bound[0]) : bound[0], yanchor: "bottom", yshift: 3, showarrow: false, text: plain(`${bound[1]} = ${shown(bound[0])}`), font: { size: 11, color: css("--muted") } }];
    if (!log) layout.yaxis.range = [Math.min(0, ...lines.flatMap((line) => line.y.filter((y) => y !== null))), Math.max(highest, bound[0]) * 1.14];
  }
  return layout;
}

// Step 0 has no place on a logarithmic axis, and a heat map on one must not have it.
const columns = (x, values) => (state.logSteps ? values.filter((_, i) => x[i] > 0) : values);

// A bound far above the line would press it to the floor: the caption names it instead.
const near = (bound, highest) => highest >= 0.35 * bound[0];

function course(line) {
  const gap = line.gaps.reduce((sum, one) => sum + one[2], 0);
  const words = [`${shown(line.first[1])} at step ${shown(line.first[0])}`];
  if (line.n > 1) words.push(`${shown(line.last[1])} at step ${shown(line.last[0])}`);
  if (line.max) words.push(`maximum ${shown(line.max[1])} at step ${shown(line.max[0])}`);
  if (gap) words.push(`no number at ${shown(gap)} of ${shown(line.n)} records (${[...new Set(line.gaps.map((one) => one[3]))].join(", ")})`);
  return words.join("; ");
}

function lineCaptions(named, bound, highest) {
  const captions = [];
  if (bound && !near(bound, highest)) captions.push(make("div", { textContent: `Bound ${bound[1]} = ${shown(bound[0])}, above the picture.` }));
  const reasons = new Map();
  for (const { line } of named) for (const [, , count, word] of line.gaps) reasons.set(word, Math.max(reasons.get(word) ?? 0, count));
  if (reasons.size) captions.push(make("div", { className: "gap", textContent: `Gaps: ${[...reasons.keys()].join(", ")}.` }));
  const list = make("ul", {}, ...named.map(({ name, line }) => make("li", {}, make("bdi", { textContent: name }), `: ${course(line)}.`)));
  captions.push(make("details", {}, make("summary", { textContent: "In numbers" }), list));
  return captions;
}

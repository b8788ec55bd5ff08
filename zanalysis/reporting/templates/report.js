"use strict";
// Names from the file reach the page by textContent only. Plotly reads a little HTML in its texts, so they are
// escaped for it (`plain`), and never stand in a template of hover texts, where %{…} means something.

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clipped = (text, most) => (text.length > most ? "…" + text.slice(-(most - 1)) : text);
const shown = (value) => {
  if (value === null || value === undefined) return "no number";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return String(Number(value.toPrecision(4)));
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// ---- theme ----

const THEMES = ["auto", "light", "dark"];

function startTheme(changed) {
  const button = $("theme");
  const kept = () => { try { return localStorage.getItem("zanalysis-theme"); } catch { return null; } };
  let theme = THEMES.includes(kept()) ? kept() : "auto";
  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    changed();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("zanalysis-theme", theme); } catch { /* a page from a disk may not keep anything */ }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  apply();
}

// ---- table ----

function startTable() {
  if (!$("values")) return;
  const body = $("values").tBodies[0];
  const rows = [...body.rows];
  const headers = [...$("values").tHead.rows[0].cells];
  const cellKey = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.key === undefined) return cell.textContent;
    return cell.dataset.key === "" ? null : Number(cell.dataset.key);
  };
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const sort = (column) => {
    const descending = headers[column].getAttribute("aria-sort") === "ascending";
    headers.forEach((header) => header.hasAttribute("aria-sort") && header.setAttribute("aria-sort", "none"));
    headers[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keyed = rows.map((row, place) => ({ row, place, key: cellKey(row, column) }));
    keyed.sort((a, b) => {
      // What is no number comes last, whichever way the others go.
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      const order = typeof a.key === "number" ? a.key - b.key : compare(a.key, b.key);
      return (descending ? -order : order) || a.place - b.place;
    });
    body.append(...keyed.map((one) => one.row));
  };
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const words = $("row-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const metric = $("row-metric").value, odd = $("row-odd").checked;
    let count = 0;
    rows.forEach((row, i) => {
      const fits = words.every((word) => texts[i].includes(word)) && (!metric || row.cells[1].textContent === metric) &&
        (!odd || row.cells[9].textContent !== "ok");
      row.hidden = !fits;
      count += fits;
    });
    $("row-count").textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  headers.forEach((header, column) => header.querySelector("button")?.addEventListener("click", () => sort(column)));
  for (const id of ["row-filter", "row-metric", "row-odd"]) $(id).addEventListener("input", filter);
  $("choose-rows").addEventListener("submit", (event) => event.preventDefault());
  filter();
}

// ---- charts ----

const state = { range: null, logSteps: false, hidden: new Set() };
const charts = new Map(); // plot element -> { build, drawn, stale, near }
let watcher = null;

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SVG_DASHES = ["", "7 4", "2 3", "8 3 2 3", "12 4", "12 3 2 3"];
const color = (i) => css(`--c${i % 6}`);

function config() {
  return { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset" };
}

function axes() {
  const look = { gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--grid"), tickcolor: css("--line") };
  const x = { ...look, type: state.logSteps ? "log" : "linear", title: { text: plain(data.axis), standoff: 6 }, exponentformat: "power" };
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

function lineTraces(line, { style, name, whole, depth, count }) {
  const x = steps(line);
  const few = line.n <= 60;
  const stroke = color(style);
  const trace = {
    x, y: line.y, name: plain(name), mode: few ? "lines+markers" : "lines", connectgaps: false,
    line: { color: stroke, dash: DASHES[style % 6], width: 1.7 + 1.9 * (count - 1 - depth), shape: whole ? "hv" : "linear" },
    marker: { color: stroke, size: 4 + 2 * (count - 1 - depth) }, opacity: 1,
    hovertemplate: "step %{x}<br>%{y:.6~g}<extra>%{fullData.name}</extra>", hoverlabel: { namelength: 40 },
  };
  const maximum = line.max && {
    x: [line.max[0]], y: [line.max[1]], mode: "markers", name: plain(`maximum, ${name}`),
    marker: { symbol: "circle-open", size: 12 + 3 * (count - 1 - depth), color: stroke, line: { width: 2, color: stroke } },
    hovertemplate: "maximum %{y:.6~g}<br>at step %{x}<extra>%{fullData.name}</extra>",
  };
  return maximum ? [trace, maximum] : [trace];
}

function lineLayout(lines, { log, whole, unit, bound }) {
  const layout = baseLayout();
  const highest = Math.max(...lines.map((line) => line.max?.[1] ?? -Infinity));
  Object.assign(layout.yaxis, { type: log ? "log" : "linear", title: { text: plain(unit), standoff: 6 }, exponentformat: "power" });
  if (whole && !log) Object.assign(layout.yaxis, { rangemode: "tozero", tickformat: ",d", ...(highest < 6 ? { dtick: 1 } : {}) });
  if (bound && !log) layout.yaxis.rangemode = "tozero";
  layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
  if (bound && near(bound, highest)) {
    layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: bound[0], y1: bound[0], line: { color: css("--muted"), width: 1.5, dash: "dash" } }];
    layout.annotations = [{ xref: "paper", x: 1, xanchor: "right", y: log ? Math.log10(bound[0]) : bound[0], yanchor: "bottom", showarrow: false, text: plain(`${bound[1]} = ${shown(bound[0])}`), font: { size: 11, color: css("--muted") } }];
    if (!log) layout.yaxis.range = [Math.min(0, ...lines.flatMap((line) => line.y.filter((y) => y !== null))), Math.max(highest, bound[0]) * 1.14];
  }
  return layout;
}

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

// ---- trajectories ----

const PAGE = 12;
let panelsShown = PAGE;

function chosenSeries() {
  const kind = $("kind").value, words = $("layer").value.toLowerCase();
  return data.series.filter((one) => (kind === "all" || one.k === Number(kind)) && data.layers[one.l].toLowerCase().includes(words));
}

function panelsOf(series) {
  const panels = new Map();
  for (const one of series) {
    const key = `${one.l} ${one.k}`;
    if (!panels.has(key)) panels.set(key, []);
    panels.get(key).push(one);
  }
  return [...panels.values()];
}

function trajectoryPanel(parent, members) {
  const kind = data.kinds[members[0].k], all = $("kind").value === "all";
  const layer = data.layers[members[0].l];
  const title = all ? `${layer} · ${kind.metric}${kind.tensor === "weight" ? "" : ` of ${kind.tensor}`}` : layer;
  const named = members.map((line) => ({ line, name: data.combos[line.c] }));
  // The lowest bound is the one that binds; a theorem's holds for the residual only, and says so.
  const bound = members.map((line) => line.bound).filter(Boolean).sort((a, b) => a[0] - b[0])[0] ?? null;
  const visible = () => members.filter((line) => !state.hidden.has(line.c));
  const log = () => $("log-values").checked;
  const highest = Math.max(...members.map((line) => line.max?.[1] ?? -Infinity));
  const alternative = `${kind.metric} of the ${kind.tensor} of ${layer} over ${data.axis}. ` +
    named.map(({ name, line }) => `${name}: ${course(line)}`).join(". ") + (bound ? `. Bound ${bound[1]} = ${bound[0]}.` : ".");
  addChart(parent, {
    title, alternative, captions: lineCaptions(named, bound, highest),
    build: () => {
      const lines = visible();
      const lowest = lines.map((line) => line.bound).filter(Boolean).sort((a, b) => a[0] - b[0])[0] ?? null;
      const traces = lines.flatMap((line, depth) => lineTraces(line, { style: line.c, name: data.combos[line.c], whole: kind.whole, depth, count: lines.length }));
      return { traces: [...traces, ...lines.flatMap(gapTraces)], layout: lineLayout(lines, { log: log(), whole: kind.whole, unit: kind.unit, bound: lowest }) };
    },
  });
}

function showLegend(series) {
  const combos = [...new Set(series.map((one) => one.c))].sort((a, b) => a - b);
  const ns = "http://www.w3.org/2000/svg";
  $("legend").replaceChildren(...combos.map((combo) => {
    const svg = document.createElementNS(ns, "svg"), path = document.createElementNS(ns, "path");
    svg.setAttribute("viewBox", "0 0 44 14");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", "M1 7H43");
    path.setAttribute("stroke", `var(--c${combo % 6})`);
    path.setAttribute("stroke-width", "3");
    path.setAttribute("stroke-dasharray", SVG_DASHES[combo % 6]);
    svg.append(path);
    const button = make("button", { type: "button" }, svg, make("bdi", { textContent: data.combos[combo] }));
    button.setAttribute("aria-pressed", String(!state.hidden.has(combo)));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(combo)) state.hidden.add(combo);
      button.setAttribute("aria-pressed", String(!state.hidden.has(combo)));
      redraw();
    });
    return button;
  }));
}

function showOverview(series) {
  clearCharts($("overview"));
  const kind = data.kinds[Number($("kind").value)];
  const combo = series[0]?.c;
  const members = series.filter((one) => one.c === combo);
  if (!kind || members.length < 3 || data.overview.length < 2) return;
  const relative = members.every((one) => one.bound);
  const log = kind.log && !relative;
  const value = (one, v) => (v === null ? null : relative ? v / one.bound[0] : log ? (v > 0 ? Math.log10(v) : null) : v);
  const what = relative ? `${kind.metric} / bound` : log ? `log₁₀ ${kind.metric}` : kind.metric;
  const plot = addChart($("overview"), {
    title: `All layers: ${what}, ${data.combos[combo]}`, wide: true,
    alternative: `Heat map of ${what} for ${members.length} layers over ${data.axis}; the table of latest values has the numbers.`,
    captions: [make("div", { textContent: `${data.overview.length} records of each layer. Blank: no number.` })],
    build: () => {
      const layout = baseLayout();
      const names = members.map((one) => plain(clipped(data.layers[one.l], 26)));
      const sparse = Math.ceil(members.length / 40);
      const ticks = names.map((_, i) => i).filter((i) => i % sparse === 0);
      Object.assign(layout.yaxis, { autorange: "reversed", tickvals: ticks, ticktext: ticks.map((i) => names[i]), showgrid: false });
      const trace = {
        type: "heatmap", x: data.overview, y: names.map((_, i) => i), z: members.map((one) => one.o.map((v) => value(one, v))),
        customdata: members.map((one) => one.o.map((v) => [shown(v), plain(data.layers[one.l])])),
        colorscale: "Cividis", hoverongaps: false, colorbar: { thickness: 12, outlinewidth: 0 }, ...(relative ? { zmin: 0, zmax: 1 } : {}),
        hovertemplate: "%{customdata[1]}<br>step %{x}: %{customdata[0]}<extra></extra>",
      };
      return { traces: [trace], layout };
    },
  });
  plot.style.height = `${Math.min(620, 110 + 15 * members.length)}px`;
}

function showTrajectories() {
  const series = chosenSeries(), panels = panelsOf(series);
  const kind = data.kinds[Number($("kind").value)];
  $("says").textContent = kind ? `${kind.metric}: ${kind.says}. Unit: ${kind.unit}.` : "";
  showLegend(series);
  showOverview(series);
  clearCharts($("panels"));
  for (const members of panels.slice(0, panelsShown)) trajectoryPanel($("panels"), members);
  const left = panels.length - Math.min(panels.length, panelsShown);
  $("panel-count").textContent = `${Math.min(panels.length, panelsShown)} of ${panels.length} panels.`;
  $("more").hidden = $("every").hidden = left === 0;
  $("more").textContent = `Show ${Math.min(PAGE, left)} more`;
}

function startTrajectories() {
  if (!$("kind")) return;
  const options = data.kinds.map((kind, i) => make("option", { value: String(i), textContent: kind.tensor === "weight" ? kind.metric : `${kind.metric} of the ${kind.tensor}` }));
  $("kind").append(...options, make("option", { value: "all", textContent: "all quantities" }));
  const rank = data.kinds.findIndex((kind) => kind.metric === "rank" && kind.tensor === "weight");
  $("kind").value = new Set(data.series.map((one) => one.l)).size === 1 ? "all" : String(Math.max(0, rank));
  const kindChanged = () => {
    panelsShown = PAGE;
    $("log-values").checked = data.kinds[Number($("kind").value)]?.log ?? false;
    showTrajectories();
  };
  $("kind").addEventListener("change", kindChanged);
  $("layer").addEventListener("input", () => { panelsShown = PAGE; showTrajectories(); });
  $("log-values").addEventListener("change", redraw);
  $("more").addEventListener("click", () => { panelsShown += PAGE; showTrajectories(); });
  $("every").addEventListener("click", () => { panelsShown = Infinity; showTrajectories(); });
  $("choose").addEventListener("submit", (event) => event.preventDefault());
  kindChanged();
}

// ---- logged scalars ----

function startLogged() {
  for (const line of data.logged) {
    addChart($("logged-panels"), {
      title: line.name + (line.log ? " (logarithmic)" : ""),
      alternative: `${line.name} over ${data.axis}: ${course(line)}.`,
      captions: lineCaptions([{ line, name: line.name }], null, 0),
      build: () => ({
        traces: [...lineTraces(line, { style: 0, name: line.name, whole: false, depth: 0, count: 1 }), ...gapTraces(line)],
        layout: lineLayout([line], { log: line.log, whole: false, unit: clipped(line.name, 30), bound: null }),
      }),
    });
  }
}

// ---- spectra ----

const DECADES = 8;
let spectraShown = PAGE;

function spectrumTrace(one) {
  const positive = one.z.flat().filter((v) => v !== null && v > 0);
  const top = positive.length ? Math.log10(Math.max(...positive)) : 0;
  const floor = positive.length ? Math.max(Math.log10(Math.min(...positive)), top - DECADES) : -1;
  const decades = [];
  for (let d = Math.ceil(floor); d <= Math.floor(top); d += Math.ceil((top - floor) / 6) || 1) decades.push(d);
  const log = (v) => (v === null ? null : v > 0 ? Math.max(Math.log10(v), floor) : floor);
  return {
    type: "heatmap", x: one.x, y: one.z.map((_, i) => i + 1), z: one.z.map((row) => row.map(log)), customdata: one.z,
    colorscale: "Cividis", zmin: floor, zmax: top > floor ? top : floor + 1, hoverongaps: false,
    colorbar: { thickness: 12, outlinewidth: 0, title: { text: "σ", side: "right" }, ...(decades.length > 1 ? { tickvals: decades, ticktext: decades.map((d) => `10<sup>${d}</sup>`) } : { tickvals: [floor, top], ticktext: [floor, top].map((d) => shown(10 ** d)) }) },
    hovertemplate: "step %{x}<br>σ<sub>%{y}</sub> = %{customdata:.4~g}<extra></extra>",
  };
}

function showSpectra() {
  const kind = $("spectrum-kind").value, words = $("spectrum-layer").value.toLowerCase();
  const chosen = data.spectra.filter((one) => `${one.tensor}, ${one.reference}` === kind && data.layers[one.l].toLowerCase().includes(words));
  clearCharts($("spectrum-panels"));
  for (const one of chosen.slice(0, spectraShown)) {
    const rows = one.z.length, last = one.z.map((row) => row[row.length - 1]);
    const numbers = last.filter((v) => v !== null).map(shown).join(", ") || "none";
    const captions = one.nan ? [make("div", { className: "gap", textContent: `No spectrum at ${shown(one.nan)} of ${shown(one.n)} records.` })] : [];
    captions.push(make("details", {}, make("summary", { textContent: "In numbers" }), make("div", { textContent: `At step ${shown(one.x[one.x.length - 1])}: ${numbers}.` })));
    addChart($("spectrum-panels"), {
      title: data.layers[one.l], captions,
      alternative: `Heat map of the ${rows} largest singular values of ${data.layers[one.l]} over ${data.axis}. At the last record: ${numbers}.`,
      build: () => {
        const layout = baseLayout();
        Object.assign(layout.yaxis, { autorange: "reversed", title: { text: "singular value", standoff: 6 }, dtick: rows > 10 ? 5 : rows > 5 ? 2 : 1, tick0: 1, showgrid: false });
        return { traces: rows ? [spectrumTrace(one)] : [], layout };
      },
    });
  }
  $("spectrum-count").textContent = `${Math.min(chosen.length, spectraShown)} of ${chosen.length} spectra.`;
  $("more-spectra").hidden = chosen.length <= spectraShown;
}

function startSpectra() {
  if (!$("spectrum-kind")) return;
  const kinds = [...new Set(data.spectra.map((one) => `${one.tensor}, ${one.reference}`))];
  $("spectrum-kind").append(...kinds.map((kind) => make("option", { value: kind, textContent: kind })));
  const changed = () => { spectraShown = PAGE; showSpectra(); };
  $("spectrum-kind").addEventListener("change", changed);
  $("spectrum-layer").addEventListener("input", changed);
  $("more-spectra").addEventListener("click", () => { spectraShown += PAGE; showSpectra(); });
  $("choose-spectra").addEventListener("submit", (event) => event.preventDefault());
  showSpectra();
}

// ---- steps ----

let data = null, everything = [0, 1], firstPositive = 1;

function startSteps() {
  const all = [...data.overview, ...data.logged.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]), ...data.spectra.flatMap((one) => [one.x[0], one.x[one.x.length - 1]])].filter(Number.isFinite);
  everything = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const seen = [...(data.steps ?? []), ...data.overview, ...data.logged.flatMap((line) => line.x)].filter((step) => step > 0);
  firstPositive = seen.reduce((least, step) => Math.min(least, step), Infinity);
  if (!Number.isFinite(firstPositive)) firstPositive = 1;
  [$("from").value, $("to").value] = everything;
  $("steps-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setRange([Number($("from").value), Number($("to").value)]);
  });
  $("all-steps").addEventListener("click", () => setRange(null));
  $("log-steps").addEventListener("change", () => { state.logSteps = $("log-steps").checked; redraw(); });
}

async function start() {
  startTheme(redraw);
  startTable();
  if (!$("steps-form")) return;
  if (typeof DecompressionStream === "undefined") {
    $("too-old").textContent = "This browser is too old to draw the charts (it cannot unpack them); everything else is here.";
    $("too-old").hidden = false;
    return;
  }
  const [numbers, library] = await Promise.all([unpacked("data"), unpacked("drawing")]);
  document.head.append(make("script", { textContent: library }));
  data = JSON.parse(numbers);
  watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!charts.has(entry.target)) continue;
      charts.get(entry.target).near = entry.isIntersecting;
      draw(entry.target);
    }
  }, { rootMargin: "400px" });
  startSteps();
  startTrajectories();
  startLogged();
  startSpectra();
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  $("too-old").textContent = `The charts could not be drawn: ${error.message}`;
  $("too-old").hidden = false;
  throw error;
});

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
      const traces = lines.flatMap((line, depth) => lineTraces(line, { style: styles.get(line.c), name: data.combos[line.c], whole: kind.whole, log: log(), depth, count: lines.length }));
      return { traces: [...traces, ...lines.flatMap(gapTraces)], layout: lineLayout(lines, { log: log(), whole: kind.whole, unit: kind.unit, bound: lowest }) };
    },
  });
}

const styles = new Map(); // of each combo that is shown, its place in the legend

function showLegend(series) {
  const combos = [...new Set(series.map((one) => one.c))].sort((a, b) => a - b);
  styles.clear();
  combos.forEach((combo, place) => styles.set(combo, place));
  const ns = "http://www.w3.org/2000/svg";
  $("legend").replaceChildren(...combos.map((combo) => {
    const svg = document.createElementNS(ns, "svg"), path = document.createElementNS(ns, "path");
    svg.setAttribute("viewBox", "0 0 44 14");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", "M1 7H43");
    path.setAttribute("stroke", `var(--c${styles.get(combo) % 6})`);
    path.setAttribute("stroke-width", "3");
    path.setAttribute("stroke-dasharray", svgDash(dash(styles.get(combo))));
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
        type: "heatmap", x: columns(data.overview, data.overview), y: names.map((_, i) => i),
        z: members.map((one) => columns(data.overview, one.o).map((v) => value(one, v))),
        customdata: members.map((one) => columns(data.overview, one.o).map((v) => [shown(v), plain(data.layers[one.l])])),
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
        traces: [...lineTraces(line, { style: 0, name: line.name, whole: false, log: line.log, depth: 0, count: 1 }), ...gapTraces(line)],
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
    type: "heatmap", x: columns(one.x, one.x), y: one.z.map((_, i) => i + 1), z: one.z.map((row) => columns(one.x, row).map(log)),
    customdata: one.z.map((row) => columns(one.x, row)),
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
        Object.assign(layout.yaxis, { autorange: "reversed", title: { text: "singular value" }, dtick: rows > 10 ? 5 : rows > 5 ? 2 : 1, tick0: 1, showgrid: false });
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
  const [first, second, ...rest] = data.overview;
  state.logSteps = rest.length > 6 && rest.at(-1) - rest.at(-2) > 20 * (second - first);
  $("log-steps").checked = state.logSteps;
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

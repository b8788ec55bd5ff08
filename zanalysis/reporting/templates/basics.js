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
    if (cell.dataset.key === undefined) return cell.dataset.metric ?? cell.textContent;
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
      const fits = words.every((word) => texts[i].includes(word)) && (!metric || row.cells[1].dataset.metric === metric) &&
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

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const by = id => document.getElementById(id);
const state = { text: "", dataset: "", accuracy: "top1", together: true, metric: "", sort: ["top1", -1] };
const HUES = ["#2f6fae", "#c9752d", "#4f8a5b", "#8064a2", "#a83f4b", "#3d8f94", "#8c6d31", "#c05a9d"];
const SHAPES = ["circle", "square", "triangle", "diamond"];
const methods = [...new Set(data.runs.map(r => r.compressor))];
const models = [...new Set(data.runs.map(r => r.model))];
const hue = method => HUES[Math.max(0, methods.indexOf(method)) % HUES.length];
const shape = model => SHAPES[Math.max(0, models.indexOf(model)) % SHAPES.length];
const known = v => v !== null && v !== undefined;

// -- numbers as text
const percent = v => `${+v.toFixed(2)} %`;
const bytes = v => v >= 1e6 ? `${+(v / 1e6).toPrecision(3)} MB` : v >= 1e3 ? `${+(v / 1e3).toPrecision(3)} kB` : `${v} B`;
const ms = v => `${+v.toPrecision(3)} ms`;
const plain = v => `${+v.toPrecision(4)}`;

// -- rows: one per run, or one per setting with the mean and the ends over its seeds
const NUMBERS = ["val_top1", "top1", "top5", "before_top1", "float_top1", "pfr", "bytes", "ratio", "ms", "speedup"];
function grouped(runs) {
  if (!state.together) return runs.map(r => ({ ...r, runs: [r], ends: {} }));
  const groups = new Map();
  for (const r of runs) groups.set(r.setting, [...(groups.get(r.setting) || []), r]);
  return [...groups.values()].map(members => {
    const row = { ...members[0], runs: members, ends: {} };
    for (const key of NUMBERS) {
      const values = members.map(m => m[key]).filter(known);
      row[key] = values.length ? values.reduce((a, b) => a + b) / values.length : null;
      if (values.length > 1) row.ends[key] = [Math.min(...values), Math.max(...values)];
    }
    if (members.length > 1) row.run = `${row.run} (${members.length} seeds)`;
    return row;
  });
}
function visible() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return data.runs.filter(r => {
    const text = [r.run, r.compressor, r.model, r.dataset, r.form, r.target].join(" ").toLowerCase();
    return (!state.dataset || r.dataset === state.dataset) && words.every(w => text.includes(w));
  });
}

// -- drawing
const SVG = "http://www.w3.org/2000/svg";
function node(name, attributes = {}, parent = null, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
function mark(kind, x, y, size, attributes, parent) {
  const s = size;
  if (kind === "circle") return node("circle", { cx: x, cy: y, r: s, ...attributes }, parent);
  const corners = { square: [[-s, -s], [s, -s], [s, s], [-s, s]], triangle: [[0, -1.2 * s], [1.1 * s, s], [-1.1 * s, s]],
    diamond: [[0, -1.3 * s], [1.3 * s, 0], [0, 1.3 * s], [-1.3 * s, 0]] }[kind];
  return node("polygon", { points: corners.map(([a, b]) => `${x + a},${y + b}`).join(" "), ...attributes }, parent);
}
function ticks(low, high, log, count = 5) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of high / low < 30 ? [1, 2, 5] : [1]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
    return found.length > 1 ? found : [low, high];
  }
  const raw = (high - low || 1) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * unit).find(s => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) found.push(+v.toPrecision(12));
  return found;
}
/** Axes over all marks: {x, y}. `scale(x, y)` gives pixels. */
function chart(place, marks, { log = false, fx = plain, fy = plain, xlabel, ylabel }) {
  place.replaceChildren();
  const xs = marks.map(m => m.x), ys = marks.flatMap(m => m.ends ? [m.y, ...m.ends] : [m.y]);
  if (!xs.length) { place.append(Object.assign(document.createElement("div"), { className: "empty", textContent: "Nothing to show: no run in view has these numbers." })); return null; }
  const width = Math.max(280, place.clientWidth), height = 320, left = 74, right = 14, top = 10, bottom = 44;
  const svg = node("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${ylabel} against ${xlabel}` }, place);
  const t = log ? Math.log10 : v => v, back = log ? v => 10 ** v : v => v;
  const pad = (low, high, share) => { const d = (high - low) * share || Math.abs(high) * .05 || 1; return [low - d, high + d]; };
  const [x0, x1] = pad(Math.min(...xs.map(t)), Math.max(...xs.map(t)), .06), [y0, y1] = pad(Math.min(...ys), Math.max(...ys), .08);
  const px = v => left + (t(v) - x0) / (x1 - x0) * (width - left - right), py = v => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
  const few = width < 420 ? 3 : 6;
  let shown = ticks(back(x0), back(x1), log, few);
  while (shown.length > few + 2) shown = shown.filter((_, k) => k % 2 === 0);
  for (const v of shown) {
    node("line", { class: "grid", x1: px(v), x2: px(v), y1: top, y2: height - bottom }, svg);
    node("text", { x: px(v), y: height - bottom + 17, "text-anchor": "middle" }, svg, fx(v));
  }
  for (const v of ticks(y0, y1, false)) {
    node("line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) }, svg);
    node("text", { x: left - 7, y: py(v) + 4, "text-anchor": "end" }, svg, fy(v));
  }
  node("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, svg, xlabel);
  node("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)` }, svg, ylabel);
  return { svg, px, py };
}
function point(drawn, row, x, y, ends) {
  const link = node("a", row.link ? { href: row.link } : {}, drawn.svg);
  link.dataset.run = row.key;
  node("title", {}, link, `${row.run}\n${row.compressor}, ${row.model}, ${row.dataset}\ntop-1 ${known(row.top1) ? percent(row.top1) : "–"}, ${bytes(row.bytes)}${row.link ? "\nclick: report" : ""}`);
  if (ends) node("line", { x1: drawn.px(x), x2: drawn.px(x), y1: drawn.py(ends[0]), y2: drawn.py(ends[1]), stroke: hue(row.compressor), "stroke-width": 2 }, link);
  mark(shape(row.model), drawn.px(x), drawn.py(y), 5, { class: "point", fill: hue(row.compressor) }, link);
}
function hollow(drawn, p, x, y) {
  const g = node("g", {}, drawn.svg);
  node("title", {}, g, `${p.paper}: ${p.method}, ${p.model}\ntop-1 ${percent(p.top1)}${known(p.pfr) ? `, pruned ${percent(p.pfr)}` : ""}`);
  mark(shape(p.model), drawn.px(x), drawn.py(y), 5, { fill: "none", stroke: methods.includes(p.method) ? hue(p.method) : "var(--pale)", "stroke-width": 1.5 }, g);
}
function against(id, rows, key, options, grey = [], papers = []) {
  const y = state.accuracy, mine = rows.filter(r => known(r[key]) && known(r[y]));
  const theirs = papers.filter(p => known(p[key]));
  const marks = [...mine.map(r => ({ x: r[key], y: r[y], ends: r.ends[y] })), ...grey.map(g => ({ x: g[key], y: g.top1 })), ...theirs.map(p => ({ x: p[key], y: p.top1 }))];
  const drawn = chart(by(id), mine.length ? marks : [], { fy: percent, ylabel: y === "top1" ? "top-1 on test images" : "top-1 on held-out images", ...options });
  if (!drawn) return;
  for (const g of grey) {
    const made = node("g", {}, drawn.svg);
    node("title", {}, made, `${g.method} (${g.year}), ${g.network}: ${percent(g.top1)}, ${bytes(g.bytes)} (${g.certainty})`);
    mark("diamond", drawn.px(g[key]), drawn.py(g.top1), 4, { class: "grey" }, made);
  }
  for (const p of theirs) hollow(drawn, p, p[key], p.top1);
  if (y === "val_top1") {  // a front is a choice: only on held-out images
    const best = mine.filter(r => !mine.some(o => o[key] <= r[key] && o[y] >= r[y] && (o[key] < r[key] || o[y] > r[y])));
    best.sort((a, b) => a[key] - b[key]);
    node("polyline", { points: best.map(r => `${drawn.px(r[key])},${drawn.py(r[y])}`).join(" "), fill: "none", stroke: "var(--mark)", "stroke-dasharray": "4 3" }, drawn.svg);
  }
  for (const r of mine) point(drawn, r, r[key], r[y], r.ends[y]);
}
function pruned(rows, papers) {
  const y = state.accuracy, mine = rows.filter(r => known(r.pfr) && known(r[y]));
  const theirs = papers.filter(p => known(p.pfr));
  const marks = [...mine.map(r => ({ x: r.pfr, y: r[y], ends: r.ends[y] })), ...theirs.map(p => ({ x: p.pfr, y: p.top1 }))];
  const drawn = chart(by("pruned"), mine.length ? marks : [], { fx: percent, fy: percent, xlabel: "pruned, of the method's units", ylabel: "top-1" });
  if (!drawn) return;
  const lines = new Map();
  for (const r of mine) { const k = [r.compressor, r.model, r.dataset].join(); lines.set(k, [...(lines.get(k) || []), r]); }
  for (const line of lines.values()) {
    const places = new Map();  // settings of nearly the same ratio: their mean
    for (const r of line) { const k = Math.round(r.pfr); places.set(k, [...(places.get(k) || []), r]); }
    const mean = (rs, k) => rs.reduce((s, r) => s + r[k], 0) / rs.length;
    const path = [...places.values()].map(rs => [mean(rs, "pfr"), mean(rs, y)]).sort((a, b) => a[0] - b[0]);
    node("polyline", { points: path.map(([a, b]) => `${drawn.px(a)},${drawn.py(b)}`).join(" "), fill: "none", stroke: hue(line[0].compressor), "stroke-width": 1.5, opacity: .6 }, drawn.svg);
  }
  for (const p of theirs) hollow(drawn, p, p.pfr, p.top1);
  for (const r of mine) point(drawn, r, r.pfr, r[y], r.ends[y]);
}
function stages(rows) {
  const runs = rows.flatMap(r => r.runs.map(m => ({ ...m, key: r.key }))).filter(m => m.curves[state.metric]);
  const share = /top1|top5|pfr$/.test(state.metric), factor = share ? 100 : 1;
  const marks = runs.flatMap(m => m.curves[state.metric].map(([x, y]) => ({ x, y: factor * y })));
  const drawn = chart(by("stages"), marks, { xlabel: "epoch of the run", ylabel: state.metric, fy: share ? percent : plain });
  if (!drawn) return;
  for (const m of runs) {
    const link = node("a", m.link ? { href: m.link } : {}, drawn.svg), line = m.curves[state.metric];
    link.dataset.run = m.key;
    node("title", {}, link, `${m.run}, seed ${m.seed}`);
    node("polyline", { class: "point", points: line.map(([x, y]) => `${drawn.px(x)},${drawn.py(factor * y)}`).join(" "), fill: "none", stroke: hue(m.compressor), "stroke-width": 1.5 }, link);
    for (const [start, name] of m.stages) {
      const first = line.find(([x]) => x >= start);
      if (first) node("title", {}, mark("circle", drawn.px(first[0]), drawn.py(factor * first[1]), 3, { fill: hue(m.compressor) }, link), `${m.run}: ${name} begins`);
    }
  }
}
function layers(rows) {
  const place = by("layers"), mine = rows.filter(r => r.layers.length);
  place.replaceChildren();
  if (!mine.length) { place.append(Object.assign(document.createElement("div"), { className: "empty", textContent: "Nothing to show: layers are known of run folders only." })); return; }
  const width = Math.max(280, place.clientWidth), named = width < 520 ? 0 : 240, high = 22, most = Math.max(...mine.map(r => r.layers.length));
  const svg = node("svg", { class: "chart", viewBox: `0 0 ${width} ${high * mine.length + 20}` }, place), wide = (width - named) / most;
  mine.forEach((r, k) => {
    if (named) node("text", { class: "label", x: 0, y: k * high + 15 }, svg, r.run.length > 36 ? `${r.run.slice(0, 35)}…` : r.run);
    r.layers.forEach(([name, left, full], n) => {
      const cell = node("rect", { x: named + n * wide, y: k * high + 2, width: Math.max(1, wide - 1.5), height: high - 4, rx: 2, fill: `rgba(var(--strip), ${.08 + .92 * left / full})` }, svg);
      node("title", {}, cell, `${r.run}\n${name}: ${left} of ${full} filters`);
    });
  });
  node("text", { x: named, y: high * mine.length + 15 }, svg, "first layer");
  node("text", { x: width, y: high * mine.length + 15, "text-anchor": "end" }, svg, "last");
}

// -- table
const COLUMNS = [["run", "Run", null], ["compressor", "Method", null], ["model", "Network", null], ["dataset", "Data", null], ["form", "Form", null],
  ["val_top1", "Held-out", percent], ["top1", "Test", percent], ["before_top1", "Unpruned", percent], ["float_top1", "Float", percent], ["pfr", "Pruned", percent],
  ["bytes", "Bytes", v => Math.round(v).toLocaleString("en")], ["ratio", "Ratio", v => `${+v.toFixed(1)}×`], ["ms", "Latency", ms], ["speedup", "× torch fp32", v => `${+v.toFixed(2)}×`]];
function table(rows) {
  const [key, way] = state.sort, made = document.createElement("tbody");
  const sorted = [...rows].sort((a, b) => !known(a[key]) ? 1 : !known(b[key]) ? -1 : way * (typeof a[key] === "string" ? a[key].localeCompare(b[key]) : a[key] - b[key]));
  for (const r of sorted) {
    const line = made.insertRow();
    line.dataset.run = r.key;
    for (const [k, , format] of COLUMNS) {
      const cell = line.insertCell(), text = !known(r[k]) ? "–" : format ? format(r[k]) : r[k];
      if (!format) cell.className = k === "run" ? "t name" : "t";
      if (k === "run") cell.title = text;
      if (k === "run" && r.link) cell.append(Object.assign(document.createElement("a"), { href: r.link, textContent: text }));
      else cell.textContent = text;
      if (r.ends[k] && r.ends[k][0] !== r.ends[k][1]) cell.title = `${format(r.ends[k][0])} to ${format(r.ends[k][1])} over ${r.runs.length} seeds`;
    }
  }
  const head = document.createElement("thead"), line = head.insertRow();
  for (const [k, text, format] of COLUMNS) {
    const cell = Object.assign(document.createElement("th"), { textContent: text, className: format ? "" : "t", tabIndex: 0 });
    if (k === key) cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const sort = () => { state.sort = [k, k === key ? -way : format ? -1 : 1]; draw(); };
    cell.onclick = sort;
    cell.onkeydown = e => { if (e.key === "Enter") sort(); };
    line.append(cell);
  }
  by("table").replaceChildren(head, made);
}

// -- all together
function highlight(key) {
  for (const e of document.querySelectorAll("[data-run]")) {
    const on = key !== null && e.dataset.run === key;
    if (e.tagName === "TR") e.classList.toggle("on", on);
    else { e.classList.toggle("off", key !== null && !on); for (const m of e.querySelectorAll(".point")) m.classList.toggle("on", on); }
  }
}
function draw() {
  const runs = visible(), rows = grouped(runs).map((r, k) => ({ ...r, key: String(k) }));
  const inView = new Set(runs.map(r => r.dataset)), kinds = new Set(runs.map(r => r.model));
  const papers = state.accuracy === "top1" ? data.papers.filter(p => inView.has(p.dataset) && kinds.has(p.model)) : [];
  const grey = state.accuracy === "top1" ? data.published.filter(p => inView.has(p.dataset)) : [];
  by("count").textContent = `${runs.length} of ${data.runs.length} runs in view` + (rows.length < runs.length ? `, ${rows.length} settings` : "");
  against("bytes", rows, "bytes", { log: true, fx: bytes, xlabel: "bytes on disk" }, grey, papers);
  against("latency", rows, "ms", { log: true, fx: ms, xlabel: "milliseconds an image" });
  pruned(rows, papers);
  stages(rows);
  layers(rows);
  table(rows);
}
function start() {
  const names = [...new Set(data.runs.map(r => r.dataset))];
  by("dataset").append(new Option("all", ""), ...names.map(n => new Option(n, n)));
  const metrics = [...new Set(data.runs.flatMap(r => Object.keys(r.curves)))];
  state.metric = metrics.includes("val_top1") ? "val_top1" : metrics[0] || "";
  by("metric").append(...metrics.map(m => new Option(m, m, false, m === state.metric)));
  for (const [id, key] of [["text", "value"], ["dataset", "value"], ["accuracy", "value"], ["metric", "value"], ["together", "checked"]])
    by(id).addEventListener("input", e => { state[id] = e.target[key]; draw(); });
  by("controls").addEventListener("submit", e => e.preventDefault());
  for (const m of methods) {
    const item = document.createElement("li"), svg = node("svg", { viewBox: "0 0 12 12" });
    node("circle", { cx: 6, cy: 6, r: 5, fill: hue(m) }, svg);
    item.append(svg, m);
    by("legend").append(item);
  }
  for (const m of models) {
    const item = document.createElement("li"), svg = node("svg", { viewBox: "0 0 12 12" });
    mark(shape(m), 6, 6, 4, { fill: "none", stroke: "currentColor", "stroke-width": 1.5 }, svg);
    item.append(svg, m);
    by("legend").append(item);
  }
  document.addEventListener("mouseover", e => highlight(e.target.closest?.("[data-run]")?.dataset.run ?? null));
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 120); });
  draw();
}
start();

"use strict";
// Draws the report from the data in the page. What comes from the trace is only ever set as text.
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  // ---- numbers, as datacrumbs/units.py writes them ----
  const threeDigits = (v) => (v < 9.995 ? v.toFixed(2) : v < 99.95 ? v.toFixed(1) : v.toFixed(0));
  function scaled(v, step, units, separator) {
    let at = -1;
    while (v >= step - 0.5 && at < units.length - 1) {
      v /= step;
      at += 1;
    }
    return threeDigits(v) + separator + units[at];
  }
  const BYTES = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const bytes = (v) => (v < 1023.5 ? `${v.toFixed(0)} B` : scaled(v, 1024, BYTES, " "));
  const count = (v) => (v < 1e6 ? String(Math.round(v)) : scaled(v, 1000, ["k", "M", "G", "T", "P", "E"], ""));
  const perSecond = (v) => (v < 1e3 ? `${threeDigits(v)}/s` : `${scaled(v, 1000, ["k", "M", "G", "T"], "")}/s`);
  const rate = (v) => `${bytes(v)}/s`;
  const two = (v) => String(v).padStart(2, "0");
  function ns(v) {
    if (v < 999.5) return `${v.toFixed(0)} ns`;
    if (v >= 99.95e9) {
      const seconds = Math.round(v / 1e9), minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
      if (hours >= 24) return `${Math.floor(hours / 24)} d ${two(hours % 24)} h`;
      return hours ? `${hours} h ${two(minutes % 60)} min` : `${minutes} min ${two(seconds % 60)} s`;
    }
    for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "us"]]) {
      if (v >= 0.9995 * size) return `${threeDigits(v / size)} ${unit}`;
    }
    return "";
  }
  function share(part) {
    const p = 100 * part;
    if (p > 0 && p < 0.1) return "< 0.1 %";
    if (p > 0 && p < 9.95) return `${p.toFixed(1)} %`;
    return p >= 99.5 && p < 100 ? "> 99 %" : `${p.toFixed(0)} %`;
  }
  const power = (v) => {
    let at = 0;
    while (v >= 1024 && at < BYTES.length) {
      v /= 1024;
      at += 1;
    }
    return `${v} ${["B", ...BYTES][at]}`;
  };
  const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : /(s|ss)$/.test(word) ? "es" : "s"}`;

  // ---- elements ----
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const say = (text) => { byId("live").textContent = text; };
  const nothing = (id, text) => byId(id).replaceChildren(el("p", { class: "none" }, text));

  function buttons(label, names, chosen, choose) {
    const group = el("div", { class: "group", role: "group", "aria-label": label });
    const set = (now) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button.value === now));
    };
    for (const [value, title] of names) {
      group.append(el("button", { type: "button", value, click: () => { set(value); choose(value); } }, title));
    }
    set(chosen);
    return group;
  }

  const tip = byId("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 18}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  // ---- drawing: every chart is drawn again when its width or the colours change ----
  const charts = [];
  function chart(id, draw) {
    const box = byId(id);
    let width = 0;
    const redraw = () => {
      width = Math.max(280, Math.round(box.clientWidth || 900));
      draw(box, width);
    };
    charts.push(redraw);
    redraw();
    new ResizeObserver(() => {
      if (!printing && Math.round(box.clientWidth) !== width) redraw();
    }).observe(box);
    return redraw;
  }
  const redrawAll = () => charts.forEach((redraw) => redraw());
  dark.addEventListener("change", redrawAll);
  addEventListener("beforeprint", () => { printing = true; redrawAll(); });
  addEventListener("afterprint", () => { printing = false; redrawAll(); });

  const picture = (width, height, label, attributes) =>
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, ...attributes });

  function replace(box, node) {
    const focused = box.contains(document.activeElement) && document.activeElement.dataset.key;
    box.replaceChildren(...[node].flat());
    const again = focused && box.querySelector(`[data-key="${focused}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  /** Steps of 1, 2 or 5 times a power of ten so that `span` has at most `most` of them. */
  function niceStep(span, most) {
    const base = 10 ** Math.floor(Math.log10(span / most));
    return base * ([1, 2, 5, 10].find((m) => span / (base * m) <= most) || 10);
  }
  const MINUTE = 60e9;
  const LONG = [1, 2, 5, 10, 20, 30, 60, 120, 360, 720, 1440, 2880, 7200, 14400].map((m) => m * MINUTE);
  function timeTicks(from, to, most) {
    let step = niceStep(to - from, most);
    if (step > 30e9) step = LONG.find((s) => (to - from) / s <= most) || niceStep((to - from) / MINUTE, most) * MINUTE;
    const [size, unit] = step >= MINUTE
      ? (step >= 60 * MINUTE ? [60 * MINUTE, "h"] : [MINUTE, "min"])
      : to >= 1e9 ? [1e9, "s"] : to >= 1e6 ? [1e6, "ms"] : to >= 1e3 ? [1e3, "us"] : [1, "ns"];
    const found = [];
    for (let at = Math.ceil(from / step - 1e-9) * step; at <= to * (1 + 1e-12); at += step) {
      found.push([at, `${Number((at / size).toPrecision(9))} ${unit}`]);
    }
    return found;
  }

  /** How high `v` stands, of 1; logarithmic ones begin at 1, a tenth below the first line. */
  const linear = (v, max) => v / max;
  const logarithmic = (v, max) => (v > 0 ? 0.08 + (0.92 * Math.log(Math.max(v, 1))) / Math.log(Math.max(max, 2)) : 0);
  function yAxis(node, left, right, top, bottom, max, show, title, height = linear) {
    const step = niceStep(max, 4), ticks = [];
    if (height === linear) for (let v = 0; v <= max * 1.0001; v += step) ticks.push(v);
    else for (let v = 1; v <= max * 1.0001; v *= max > 1e5 ? 100 : 10) ticks.push(v);
    for (const v of ticks) {
      const y = bottom - height(v, max) * (bottom - top);
      node.append(
        svg("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, show(v)),
      );
    }
    node.append(svg("text", { class: "quiet", x: 2, y: top - 10 }, title));
  }

  // ---- head ----
  document.title = `${D.run_id}: DataCrumbs report`;
  byId("title").textContent = `Run ${D.run_id}`;
  byId("facts").textContent = D.facts;
  {
    const box = byId("honesty");
    box.className = D.lost ? "bad" : D.state === "complete" && !D.notes.length ? "good" : "warn";
    box.append(...D.honesty.map((line) => el("p", {}, line)), ...D.notes.map((line) => el("p", {}, line)));
    if (D.skipped_total) {
      const items = D.skipped.map((s) => el("li", {}, s));
      const left = D.skipped_total - D.skipped.length;
      box.append(el("details", {},
        el("summary", {}, `${plural(D.skipped_total, "function")} could not be probed`),
        el("ul", {}, ...items, left > 0 ? el("li", {}, `and ${left} more: see --format json`) : null)));
    }
    byId("footer").textContent = D.footer;
    byId("tiles").append(...D.tiles.map(([label, value, more]) =>
      el("div", {}, el("dt", {}, label), el("dd", {}, el("strong", {}, value), el("span", {}, more)))));
  }

  // ---- tables: sort, filter, a page at a time ----
  const PAGE = 20;
  const SHOW = { count, bytes, ns, share, rate };
  const cell = (kind, value) => {
    if (value === null || value === undefined) return "?";
    if (kind === "text" || kind === "path" || kind === "id") return String(value);
    return value ? SHOW[kind](value) : "-";
  };

  /** `columns`: [title, kind]; `rows`: arrays. Kinds text and path are what the filter looks at. */
  function table(id, columns, rows, { total = rows.length, what, sort, filter = true, cut = "" }) {
    if (!rows.length) {
      nothing(id, D.no_events || "None.");
      return;
    }
    const box = byId(id);
    const words = columns.map(([, kind], i) => (kind === "text" || kind === "path" ? i : -1)).filter((i) => i >= 0);
    const hay = filter && rows.map((row) => words.map((i) => row[i]).join("\n").toLowerCase());
    let order = rows.map((_, i) => i), by = sort, down = true, shown = PAGE, wanted = "";
    const body = el("tbody"), said = el("span", { class: "note", role: "status" });
    const more = el("button", { type: "button", class: "more", click: () => { shown += 5 * PAGE; draw(); } });
    const heads = columns.map(([title, kind], i) => el("th", { scope: "col", class: words.includes(i) ? "text" : "" },
      el("button", { type: "button", click: () => {
        down = by === i ? !down : !words.includes(i);
        by = i;
        shown = PAGE;
        arrange();
      } }, title)));
    function arrange() {
      const sign = down ? -1 : 1;
      order = rows.map((_, i) => i).filter((i) => !wanted || hay[i].includes(wanted));
      order.sort((a, b) => {
        const x = rows[a][by], y = rows[b][by];
        return (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : (x ?? -1) - (y ?? -1)) * sign || a - b;
      });
      heads.forEach((head, i) => head.setAttribute("aria-sort", i !== by ? "none" : down ? "descending" : "ascending"));
      draw();
    }
    function draw() {
      body.replaceChildren(...order.slice(0, shown).map((i) => el("tr", {}, ...columns.map(([, kind], c) =>
        el("td", { class: kind === "path" ? "text path" : kind === "text" ? "text" : "" }, cell(kind, rows[i][c]))))));
      const left = order.length - shown;
      more.hidden = left <= 0;
      more.textContent = `Show ${count(Math.min(left, 5 * PAGE))} more`;
      const here = Math.min(shown, order.length);
      said.textContent = `${count(here)} of ${plural(order.length, what)}${wanted ? " that match" : ""}`
        + (total > rows.length ? `; ${count(rows.length)} of all ${count(total)} are in this page${cut}` : "");
    }
    const search = filter && rows.length > 5 ? el("input", { type: "search", "aria-label": `Filter: ${what}s`,
      placeholder: "Filter", input: (event) => { wanted = event.target.value.trim().toLowerCase(); shown = PAGE; arrange(); } }) : null;
    box.replaceChildren(el("div", { class: "controls" }, search, said),
      el("div", { class: "table" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)), more);
    arrange();
  }

  if (D.hosts.length > 1) {
    table("hosts", [["Host", "text"], ["State", "text"], ["Events", "count"], ["Lost", "count"], ["Time in I/O", "ns"],
      ["Unoverlapped", "ns"], ["of its time", "share"], ["Read", "bytes"], ["Written", "bytes"]], D.hosts,
    { what: "host", sort: 4, total: D.hosts_total });
  }
  table("functions", [["Function", "text"], ["Layer", "text"], ["Calls", "count"], ["Errors", "count"], ["Time", "ns"],
    ["Mean", "ns"], ["p50", "ns"], ["p99", "ns"], ["Max", "ns"], ["Bytes", "bytes"], ["Bandwidth", "rate"]], D.functions,
  { what: "function", sort: 4, total: D.functions_total });
  table("mounts", [["File system", "text"], ["Device", "text"], ["Below", "path"], ["Files", "count"], ["Opens", "count"],
    ["Reads", "count"], ["Writes", "count"], ["Read", "bytes"], ["Written", "bytes"], ["Time", "ns"]], D.mounts,
  { what: "file system", sort: 9, total: D.mounts_total });
  table("files", [["File", "path"], ["Type", "text"], ["Opens", "count"], ["Reads", "count"], ["Writes", "count"],
    ["Errors", "count"], ["Read", "bytes"], ["Written", "bytes"], ["Time", "ns"]], D.files,
  { what: "file", sort: 8, total: D.files_total, cut: ": those with most time and most bytes" });
  table("processes", [["Process", "text"], ["Host", "text"], ["pid", "id"], ["Rank", "id"], ["Threads", "count"], ["Calls", "count"],
    ["Time in I/O", "ns"], ["Unoverlapped", "ns"], ["of its time", "share"], ["Waiting", "ns"], ["Read", "bytes"], ["Written", "bytes"]],
  D.processes.map((p) => p.map((v, i) => (i === 3 && v === null ? "" : v))),
  { what: "process", sort: 6, total: D.processes_total, cut: ": those with most time in I/O" });

  // ---- time in I/O by process ----
  const P = { comm: 0, host: 1, pid: 2, rank: 3, threads: 4, calls: 5, io: 6, busy: 7, share: 8, wait: 9, read: 10, written: 11 };
  (function ranks() {
    const ranked = D.processes.some((p) => p[P.rank] !== null);
    byId("how-ranks").textContent = `Each bar is one ${ranked ? "rank" : "process"}: the share of the run's time in which one of its threads `
      + "or more was in I/O; bars of uneven height are uneven work, high ones leave little time to compute.";
    const known = D.processes.filter((p) => p[P.share] !== null && p[P.calls]);
    if (!known.length) {
      nothing("ranks", D.no_events || "No process did I/O.");
      return;
    }
    const most = known.slice(0, 1024);
    const place = (p) => (p[P.rank] === null ? Infinity : p[P.rank]);
    const orders = {
      rank: [...most].sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b))),
      share: [...most].sort((a, b) => b[P.share] - a[P.share]),
    };
    let rows = orders.rank, at = -1;
    const name = (p) => `${p[P.rank] === null ? p[P.comm] || "process" : `rank ${p[P.rank]}`} (${p[P.comm]} ${p[P.pid]} on ${p[P.host]})`;
    const told = (p) => `${name(p)}\n${share(p[P.share])} of the time in I/O: ${ns(p[P.busy])} with one thread or more, `
      + `${ns(p[P.io])} summed over ${plural(p[P.threads], "thread")}\n${bytes(p[P.read])} read, ${bytes(p[P.written])} written, ${plural(p[P.calls], "call")}`;
    const mean = most.reduce((sum, p) => sum + p[P.share], 0) / most.length;
    const top = orders.share[0], low = orders.share[most.length - 1];
    byId("ranks-note").textContent = (most.length > 1
      ? `Mean ${share(mean)}; most ${share(top[P.share])}: ${name(top)}; least ${share(low[P.share])}: ${name(low)}.`
      : `${name(top)}: ${share(top[P.share])}.`)
      + (known.length < D.processes_total || most.length < known.length
        ? ` Shown: the ${count(most.length)} of ${count(D.processes_total)} processes with most time in I/O${most.length < known.length ? "" : "; the others did none"}.` : "");
    const height = 240, box = { left: 52, top: 24, bottom: 200 };
    let redraw = () => {};
    if (most.length > 1) {
      byId("ranks-controls").append(buttons("Order of the bars", [["rank", ranked ? "By rank" : "As they came"], ["share", "By share"]], "rank",
        (order) => { rows = orders[order]; at = -1; redraw(); }));
    }
    redraw = chart("ranks", (home, width) => {
      const right = width - 8, inner = right - box.left, step = Math.min(inner / rows.length, 96);
      const max = Math.min(1, Math.max(...rows.map((p) => p[P.share])) * 1.08) || 1;
      const node = picture(width, height, `Share of time in I/O of ${plural(rows.length, "process")}. ${byId("ranks-note").textContent} Arrow keys go from bar to bar.`,
        { tabindex: 0, "data-key": "ranks" });
      yAxis(node, box.left, right, box.top, box.bottom, max, (v) => `${Number((100 * v).toPrecision(3))} %`, "share of the run's time in I/O");
      const bars = rows.map((p, i) => svg("rect", { class: i === at ? "bar on" : "bar", x: box.left + i * step, width: Math.max(0.5, step - (step > 3 ? 1 : 0)),
        y: box.bottom - (p[P.share] / max) * (box.bottom - box.top), height: (p[P.share] / max) * (box.bottom - box.top) }));
      node.append(...bars);
      if (rows.length > 1) {
        const y = box.bottom - (mean / max) * (box.bottom - box.top);
        node.append(svg("line", { class: "mark", x1: box.left, x2: right, y1: y, y2: y }),
          svg("text", { x: right, y: y - 5, "text-anchor": "end" }, `mean ${share(mean)}`));
      }
      const every = Math.max(1, Math.ceil(rows.length / Math.max(2, inner / 70)));
      const inOrder = ranked && rows === orders.rank;
      rows.forEach((p, i) => {
        if (i % every || (p[P.rank] === null && inOrder && rows.length > 12)) return;
        const label = p[P.rank] === null ? `${p[P.comm].slice(0, 8)} ${p[P.pid]}` : p[P.rank];
        if (p[P.rank] !== null || step >= 60) node.append(svg("text", { x: box.left + (i + 0.5) * step, y: box.bottom + 16, "text-anchor": "middle" }, label));
      });
      node.append(svg("text", { class: "quiet", x: box.left + inner / 2, y: box.bottom + 34, "text-anchor": "middle" }, ranked ? "rank" : "process"));
      const choose = (i) => {
        if (at >= 0 && bars[at]) bars[at].classList.remove("on");
        at = Math.max(0, Math.min(rows.length - 1, i));
        bars[at].classList.add("on");
      };
      node.addEventListener("pointermove", (event) => {
        const i = Math.floor(((event.clientX - node.getBoundingClientRect().left) * (width / node.getBoundingClientRect().width) - box.left) / step);
        if (i < 0 || i >= rows.length) return hideTip();
        choose(i);
        return showTip(told(rows[i]), event.clientX, event.clientY);
      });
      node.addEventListener("pointerleave", hideTip);
      node.addEventListener("keydown", (event) => {
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        choose(to);
        const where = bars[at].getBoundingClientRect();
        showTip(told(rows[at]), where.left, where.bottom - 60);
        say(told(rows[at]));
      });
      node.addEventListener("blur", hideTip);
      replace(home, node);
    });
  })();

  // ---- timeline ----
  // cividis: even steps of brightness, the same to the colour-blind
  const HEAT = [[0, 32, 76], [0, 54, 111], [57, 72, 107], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [255, 233, 69]];
  const SEA = [[222, 235, 247], [198, 219, 239], [158, 202, 225], [107, 174, 214], [66, 146, 198], [33, 113, 181], [8, 81, 156], [8, 48, 107], [5, 30, 70]];
  function heat(t) {
    const stops = dark.matches && !printing ? HEAT.slice(1) : SEA;
    const x = Math.max(0, Math.min(1, t)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x));
    return `rgb(${stops[i].map((v, c) => Math.round(v + (stops[i + 1][c] - v) * (x - i))).join()})`;
  }
  function floats(text) {
    const raw = atob(text), data = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) data[i] = raw.charCodeAt(i);
    return new Float32Array(data.buffer);
  }
  (function timeline() {
    const T = D.timeline;
    byId("how-timeline").textContent = `Each line is one ${T.ranked ? "rank" : "process"}, time goes from left to right and darker (in dark mode: brighter) is more; `
      + "gaps across all lines are phases without I/O, lines that differ are stragglers.";
    if (!T.rows.length) {
      nothing("timeline", D.no_events || "No calls that move data or change files.");
      return;
    }
    const [R, W, O] = [T.bytes_read, T.bytes_written, T.operations].map(floats);
    const seconds = T.bin_ns / 1e9;
    const METRICS = {
      bandwidth: ["Bandwidth", (i) => (R[i] + W[i]) / seconds, rate],
      read: ["Read", (i) => R[i] / seconds, rate],
      written: ["Written", (i) => W[i] / seconds, rate],
      operations: ["Operations", (i) => O[i] / seconds, perSecond],
    };
    let metric = "bandwidth", view, cursor = null, drag = null, redraw = () => {};
    const whole = () => ({ b0: 0, b1: T.bins, r0: 0, r1: T.rows.length });
    view = whole();
    const rowName = (r) => {
      const [host, pid, rank, comm, n] = T.rows[r];
      const who = rank === null ? `${comm || "processes not named"}${pid ? ` ${pid}` : ""}` : `rank ${rank}`;
      return n > 1 ? `${who} and ${n - 1} more` : who;
    };
    const zoom = (to) => {
      const b0 = Math.max(0, Math.min(T.bins - 1, Math.floor(to.b0))), r0 = Math.max(0, Math.min(T.rows.length - 1, Math.floor(to.r0)));
      view = { b0, r0, b1: Math.max(b0 + 1, Math.min(T.bins, Math.ceil(to.b1))), r1: Math.max(r0 + 1, Math.min(T.rows.length, Math.ceil(to.r1))) };
      redraw();
      say(`Showing ${ns(view.b0 * T.bin_ns)} to ${ns(view.b1 * T.bin_ns)}, ${plural(view.r1 - view.r0, "line")}`);
    };
    function zoomBy(factor) {
      const part = (from, to, at, all) => {
        const size = Math.min(all, Math.max(Math.min(4, all), (to - from) * factor));
        const begin = Math.max(0, Math.min(all - size, at - size / 2));
        return [begin, begin + size];
      };
      const middle = cursor || { b: (view.b0 + view.b1) / 2, r: (view.r0 + view.r1) / 2 };
      const [b0, b1] = part(view.b0, view.b1, middle.b + 0.5, T.bins), [r0, r1] = part(view.r0, view.r1, middle.r + 0.5, T.rows.length);
      zoom({ b0, b1, r0, r1 });
    }
    const scale = el("canvas", { width: 144, height: 10, "aria-hidden": "true" });
    const legend = el("span", { class: "legend", id: "timeline-legend" });
    byId("timeline-controls").append(
      buttons("What the colours show", Object.entries(METRICS).map(([key, [title]]) => [key, title]), metric, (key) => { metric = key; redraw(); }),
      el("div", { class: "group", role: "group", "aria-label": "Zoom" },
        el("button", { type: "button", click: () => zoomBy(0.5) }, "Zoom in"),
        el("button", { type: "button", click: () => zoomBy(2) }, "Zoom out"),
        el("button", { type: "button", id: "timeline-all", click: () => { cursor = null; zoom(whole()); } }, "All")),
      legend);
    byId("timeline-note").textContent = `One cell is ${ns(T.bin_ns)}${T.rows.some((r) => r[4] > 1) ? ` of ${T.rows[0][4]} processes` : ""}; the bytes of a call are spread over the time it took. `
      + `Time counts from the first call${T.begin ? ` (${T.begin})` : ""}. Drag to zoom, double click for all; with the picture in focus: arrows, +, -, 0.`;
    const at = (b, r) => r * T.bins + b;
    function told(b, r) {
      const [host, pid, , comm] = T.rows[r], i = at(b, r);
      return `${rowName(r)}${pid ? ` (${comm} ${pid} on ${host})` : ` on ${host}`}\n${ns(b * T.bin_ns)} to ${ns((b + 1) * T.bin_ns)} after the first call\n`
        + `read ${rate(R[i] / seconds)}, written ${rate(W[i] / seconds)}, ${perSecond(O[i] / seconds)} operations (${plural(O[i], "call")})`;
    }
    redraw = chart("timeline", (home, width) => {
      const value = METRICS[metric][1], show = METRICS[metric][2];
      const left = width < 520 ? 74 : 116, right = width - 12, top = 6;
      const lines = view.r1 - view.r0, plot = Math.max(60, Math.min(480, lines * 22)), bottom = top + plot, height = bottom + 40;
      const inner = right - left;
      let max = 0, min = Infinity;
      for (let i = 0; i < R.length; i += 1) {
        const v = value(i);
        if (v > max) max = v;
        if (v > 0 && v < min) min = v;
      }
      min = Math.min(Math.max(min, max / 1e4), max / 2);
      const place = (v) => Math.log(Math.max(v, min) / min) / Math.log(max / min);
      const pixels = Math.min(2, devicePixelRatio || 1);
      const canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": "heatmap", "data-key": "timeline", "data-metric": metric,
        "aria-label": `${METRICS[metric][0]} of ${plural(lines, "line")} over ${ns((view.b1 - view.b0) * T.bin_ns)}, at most ${max ? show(max) : "none"}. Arrow keys go from cell to cell, plus and minus zoom, zero shows all.`,
        width: Math.round(inner * pixels), height: Math.round(plot * pixels) });
      Object.assign(canvas.style, { left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`, width: `${(100 * inner) / width}%`, height: `${(100 * plot) / height}%` });
      const pen = canvas.getContext("2d");
      const columns = Math.min(view.b1 - view.b0, canvas.width), rows = Math.min(lines, canvas.height);
      const edge = (k, n, from, to) => Math.floor(from + (k * (to - from)) / n);
      let drawn = 0;
      for (let r = 0; r < rows; r += 1) {
        const ra = edge(r, rows, view.r0, view.r1), rb = Math.max(ra + 1, edge(r + 1, rows, view.r0, view.r1));
        const y = Math.round((r * canvas.height) / rows), h = Math.round(((r + 1) * canvas.height) / rows) - y;
        for (let c = 0; c < columns; c += 1) {
          const ba = edge(c, columns, view.b0, view.b1), bb = Math.max(ba + 1, edge(c + 1, columns, view.b0, view.b1));
          let v = 0; // of several cells in one pixel, the most
          for (let rr = ra; rr < rb; rr += 1) for (let b = ba; b < bb; b += 1) v = Math.max(v, value(at(b, rr)));
          if (v > 0) {
            const x = Math.round((c * canvas.width) / columns);
            pen.fillStyle = heat(place(v));
            pen.fillRect(x, y, Math.round(((c + 1) * canvas.width) / columns) - x, h > 6 ? h - 1 : h);
            drawn += 1;
          }
        }
      }
      canvas.dataset.drawn = drawn;
      const ink = scale.getContext("2d");
      for (let x = 0; x < scale.width; x += 1) {
        ink.fillStyle = heat(x / (scale.width - 1));
        ink.fillRect(x, 0, 1, scale.height);
      }
      legend.replaceChildren(...(max ? [el("span", {}, `${METRICS[metric][0]}: ${show(min)}`), scale, el("span", {}, show(max))] : [el("span", {}, "none in this run")]));
      const node = picture(width, height, "Axes of the timeline");
      node.append(svg("rect", { class: "plot", x: left, y: top, width: inner, height: plot }));
      const from = view.b0 * T.bin_ns, to = view.b1 * T.bin_ns;
      for (const [t, label] of timeTicks(from, to, Math.max(2, Math.floor(inner / 90)))) {
        const x = left + ((t - from) / (to - from)) * inner;
        node.append(svg("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }), svg("text", { x: Math.min(x, width - 20), y: bottom + 17, "text-anchor": "middle" }, label));
      }
      node.append(svg("text", { class: "quiet", x: left + inner / 2, y: bottom + 34, "text-anchor": "middle" }, "time after the first call"));
      const every = Math.max(1, Math.ceil(lines / Math.max(1, Math.floor(plot / 20))));
      for (let r = view.r0; r < view.r1; r += every) {
        const y = top + ((r - view.r0 + 0.5) / lines) * plot;
        const label = rowName(r);
        node.append(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label.length > left / 7 ? `${label.slice(0, Math.floor(left / 7) - 1)}\u2026` : label));
      }
      const hosts = new Set(T.rows.map((row) => row[0])).size;
      for (let r = view.r0 + 1; hosts > 1 && hosts <= 64 && r < view.r1; r += 1) {
        if (T.rows[r][0] !== T.rows[r - 1][0]) {
          const y = top + ((r - view.r0) / lines) * plot;
          node.append(svg("line", { class: "host", x1: 0, x2: right, y1: y, y2: y }));
        }
      }
      const overlay = picture(width, height, "", { "aria-hidden": "true", style: "position:absolute;inset:0;pointer-events:none" });
      overlay.removeAttribute("role");
      const box = svg("rect", { class: "cursor", visibility: "hidden" });
      overlay.append(box);
      const frame = (b0, b1, r0, r1) => {
        const x = left + ((b0 - view.b0) / (view.b1 - view.b0)) * inner, y = top + ((r0 - view.r0) / lines) * plot;
        fill(box, { visibility: "visible", x, y, width: Math.max(2, ((b1 - b0) / (view.b1 - view.b0)) * inner), height: Math.max(2, ((r1 - r0) / lines) * plot) }, []);
      };
      const inView = (c) => c && c.b >= view.b0 && c.b < view.b1 && c.r >= view.r0 && c.r < view.r1;
      if (inView(cursor)) frame(cursor.b, cursor.b + 1, cursor.r, cursor.r + 1);
      const under = (event) => {
        const area = canvas.getBoundingClientRect();
        const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
        return {
          b: clamp(Math.floor(view.b0 + ((event.clientX - area.left) / area.width) * (view.b1 - view.b0)), view.b0, view.b1 - 1),
          r: clamp(Math.floor(view.r0 + ((event.clientY - area.top) / area.height) * lines), view.r0, view.r1 - 1),
        };
      };
      canvas.addEventListener("pointerdown", (event) => { drag = under(event); canvas.setPointerCapture(event.pointerId); });
      canvas.addEventListener("pointermove", (event) => {
        const now = under(event);
        if (drag) frame(Math.min(drag.b, now.b), Math.max(drag.b, now.b) + 1, Math.min(drag.r, now.r), Math.max(drag.r, now.r) + 1);
        showTip(told(now.b, now.r), event.clientX, event.clientY);
      });
      canvas.addEventListener("pointerup", (event) => {
        const from_ = drag, now = under(event);
        drag = null;
        if (from_ && Math.abs(from_.b - now.b) + Math.abs(from_.r - now.r) > 1) {
          const tall = Math.abs(from_.r - now.r) > 1; // a drag along one line is about time only
          zoom({ b0: Math.min(from_.b, now.b), b1: Math.max(from_.b, now.b) + 1,
            r0: tall ? Math.min(from_.r, now.r) : view.r0, r1: tall ? Math.max(from_.r, now.r) + 1 : view.r1 });
        } else if (from_) {
          cursor = now;
          frame(now.b, now.b + 1, now.r, now.r + 1);
        }
      });
      canvas.addEventListener("pointercancel", () => { drag = null; });
      canvas.addEventListener("dblclick", () => { cursor = null; zoom(whole()); });
      canvas.addEventListener("pointerleave", hideTip);
      canvas.addEventListener("blur", hideTip);
      canvas.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (move) {
          const c = inView(cursor) ? { b: cursor.b + move[0], r: cursor.r + move[1] } : { b: view.b0, r: view.r0 };
          cursor = { b: Math.max(view.b0, Math.min(view.b1 - 1, c.b)), r: Math.max(view.r0, Math.min(view.r1 - 1, c.r)) };
          frame(cursor.b, cursor.b + 1, cursor.r, cursor.r + 1);
          const area = box.getBoundingClientRect();
          showTip(told(cursor.b, cursor.r), area.right, area.bottom);
          say(told(cursor.b, cursor.r));
        } else if (event.key === "+" || event.key === "=") zoomBy(0.5);
        else if (event.key === "-") zoomBy(2);
        else if (event.key === "0" || event.key === "Escape") { cursor = null; zoom(whole()); } else return;
        event.preventDefault();
      });
      replace(home, [node, canvas, overlay]);
      home.dataset.from = String(from);
      home.dataset.to = String(to);
    });
  })();

  // ---- layers: an icicle ----
  const COLOURS = ["#56b4e9", "#e69f00", "#5cc49f", "#f0e442", "#dd9fc4", "#ef8d5b", "#a9b8d6", "#c9b18b", "#b7d66b", "#bdbdbd"];
  (function layers() {
    const F = D.flame.frames; // [parent, layer, name, count, time_ns, self_ns, left_out_ns]
    byId("how-layers").textContent = "Each box is a function below the one that called it, as wide as its time summed over threads; "
      + "where a box has nothing below it, the time is its own. Click a box to zoom in, the top one to zoom out.";
    if (!F.length) {
      nothing("layers", D.no_events || "No calls in I/O.");
      return;
    }
    const inner = F.map(() => []), depth = F.map(() => 0), roots = [];
    F.forEach(([parent], i) => {
      depth[i] = parent < 0 ? 1 : depth[parent] + 1;
      (parent < 0 ? roots : inner[parent]).push(i);
    });
    const colour = (layer) => COLOURS[Math.min(layer, COLOURS.length - 1)];
    const nameOf = (i) => (i < 0 ? "all I/O" : D.names[F[i][2]]);
    const timeOf = (i) => (i < 0 ? D.flame.time_ns : F[i][4]);
    const parentOf = (i) => (i < 0 ? -1 : F[i][0]);
    const below = (i) => (i < 0 ? roots : inner[i]);
    const told = (i) => (i < 0 ? `all I/O: ${ns(D.flame.time_ns)} summed over threads`
      : `${nameOf(i)} (${D.layers[F[i][1]]})\n${ns(F[i][4])}, ${share(F[i][4] / D.flame.time_ns)} of all; itself ${ns(F[i][5])}\n${plural(F[i][3], "call")}, mean ${ns(F[i][4] / F[i][3])}`
        + (F[i][6] ? `\n${ns(F[i][6])} in calls too short to be drawn` : ""));
    let root = -1, at = -1, redraw = () => {};
    const up = el("button", { type: "button", id: "layers-up", click: () => zoom(parentOf(root)) }, "Zoom out");
    const seen = [...new Set(F.map((f) => f[1]))].sort((a, b) => a - b);
    byId("layers-controls").append(up, el("span", { class: "legend" },
      ...seen.map((l) => { const i = el("i"); i.style.background = colour(l); return el("span", {}, i, D.layers[l]); })));
    byId("layers-note").textContent = `${plural(D.flame.frames_total, "call path")}`
      + (D.flame.frames_total > F.length ? `, of which the ${count(F.length)} with most time are drawn` : "")
      + "; waiting (poll, select, epoll) and unfinished calls are left out. With the picture in focus: arrows go to the caller, the called and the one beside it, Enter zooms in, Escape out.";
    function zoom(to) {
      root = to;
      at = to;
      redraw();
      say(`Zoomed to ${told(to)}`);
    }
    redraw = chart("layers", (home, width) => {
      const line = 22, boxes = [], above = [];
      for (let i = root; i >= 0; i = parentOf(i)) above.unshift(parentOf(i));
      above.forEach((i, d) => boxes.push([i, 0, width, d, true]));
      const walk = (i, x, w, d) => {
        boxes.push([i, x, w, d, false]);
        let from = x;
        for (const k of below(i)) {
          const wide = (w * timeOf(k)) / Math.max(1, timeOf(i));
          if (wide >= 0.4) walk(k, from, wide, d + 1);
          from += wide;
        }
      };
      walk(root, 0, width, above.length);
      const deep = Math.max(...boxes.map((b) => b[3])) + 1;
      const node = picture(width, deep * line + 2, `Time by layer: ${told(root)}. Arrow keys go from box to box, Enter zooms in, Escape out.`,
        { class: "flame", tabindex: 0, role: "application", "aria-roledescription": "icicle", "data-key": "layers", "data-root": root });
      const places = new Map();
      for (const [i, x, w, d, dim] of boxes) {
        const text = `${nameOf(i)} ${w > 160 ? `${ns(timeOf(i))}${i >= 0 ? `, ${share(timeOf(i) / D.flame.time_ns)}` : ""}` : ""}`.trim();
        const fits = Math.floor((w - 8) / 6.7);
        const g = svg("g", { class: dim ? "above" : "", "data-frame": i });
        g.append(svg("rect", { x, y: d * line, width: Math.max(0.4, w), height: line - 1, "stroke-width": w < 4 ? 0 : 0.75, fill: i < 0 ? "#d0d4d9" : colour(F[i][1]) }));
        if (fits >= 3) g.append(svg("text", { x: x + 4, y: d * line + 15 }, text.length > fits ? `${text.slice(0, fits - 1)}\u2026` : text));
        g.addEventListener("click", () => zoom(i === root ? parentOf(i) : i));
        g.addEventListener("pointermove", (event) => showTip(told(i), event.clientX, event.clientY));
        node.append(g);
        places.set(i, g);
      }
      const choose = (i) => {
        if (!places.has(i)) return;
        if (places.has(at)) places.get(at).classList.remove("on");
        at = i;
        node.append(places.get(i)); // on top, so that all of its border shows
        places.get(i).classList.add("on");
        const area = places.get(i).getBoundingClientRect();
        showTip(told(i), area.left, area.bottom - 14);
        say(told(i));
      };
      const beside = (step) => {
        const all = below(parentOf(at));
        return all[all.indexOf(at) + step];
      };
      node.addEventListener("pointerleave", hideTip);
      node.addEventListener("blur", hideTip);
      node.addEventListener("keydown", (event) => {
        const to = { ArrowDown: below(at)[0], ArrowUp: parentOf(at), ArrowLeft: at < 0 ? undefined : beside(-1), ArrowRight: at < 0 ? undefined : beside(1) };
        if (event.key in to) choose(to[event.key]);
        else if (event.key === "Enter" || event.key === "+") zoom(at);
        else if (event.key === "Escape" || event.key === "-" || event.key === "Backspace") zoom(parentOf(root));
        else if (event.key === "0") zoom(-1);
        else return;
        event.preventDefault();
      });
      up.disabled = root < 0;
      replace(home, node);
    });
  })();

  // ---- slowest calls ----
  (function slow() {
    if (!D.slow.length) {
      nothing("slow", D.no_events || "No I/O calls.");
      return;
    }
    byId("slow").append(...D.slow.map((f, i) => el("details", i < 2 ? { open: "" } : {},
      el("summary", {}, el("h3", {}, `${f.name} (${f.layer})`), el("span", { class: "facts" }, ` ${f.facts}`)),
      f.causes ? el("p", {}, f.causes) : null,
      f.variation ? el("p", {}, f.variation) : el("p", { class: "facts" }, "Its calls take much the same time, or are too few to compare."),
      f.findings.length ? el("ol", {}, ...f.findings.map((text) => el("li", {}, text))) : null,
      f.slowest.length ? el("p", {}, "The longest calls:") : null,
      el("ul", {}, ...f.slowest.map((text) => el("li", {}, text))))));
    if (D.slow_total > D.slow.length) {
      byId("slow").append(el("p", { class: "note" }, `${D.slow_total - D.slow.length} more functions took less: see datacrumbs_explain.`));
    }
    // on paper nothing can be opened
    addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  })();

  // ---- histograms ----
  /** `groups`: [label, tip, [value, class]...]; labels are shown as far as there is room. */
  function histogram(home, width, key, groups, { title, below, show, marks = [], label, scale = linear }) {
    const height = 250, left = 58, right = width - 10, top = 26, bottom = 196, inner = right - left;
    const step = Math.min(inner / groups.length, 120), max = Math.max(...groups.flatMap((g) => g.slice(2).map(([v]) => v)), 1e-9) * 1.05;
    const node = picture(width, height, `${label}. Arrow keys go from bar to bar.`, { tabindex: 0, "data-key": key });
    yAxis(node, left, right, top, bottom, max, show, title, scale);
    const every = Math.max(1, Math.ceil(62 / step));
    groups.forEach(([name, , ...bars], i) => {
      const wide = (step * 0.84) / bars.length;
      bars.forEach(([v, style], k) => {
        const h = scale(v, max) * (bottom - top);
        node.append(svg("rect", { class: style, x: left + i * step + step * 0.08 + k * wide, y: bottom - Math.max(h, v > 0 ? 1 : 0), width: wide, height: Math.max(h, v > 0 ? 1 : 0) }));
      });
      if (i % every === 0) node.append(svg("text", { x: left + i * step + (every > 1 ? step * 0.08 : step / 2), y: bottom + 16, "text-anchor": every > 1 ? "start" : "middle" }, name));
    });
    for (const [where, name, row] of marks) {
      const x = left + where * step;
      node.append(svg("line", { class: "mark", x1: x, x2: x, y1: top - 4 - row * 12, y2: bottom }),
        svg("text", { x: x > right - 110 ? x - 4 : x + 4, y: top + 2 - row * 12, "text-anchor": x > right - 110 ? "end" : "start" }, name));
    }
    node.append(svg("text", { class: "quiet", x: left + inner / 2, y: bottom + 36, "text-anchor": "middle" }, below));
    const box = svg("rect", { class: "cursor", visibility: "hidden", y: top, height: bottom - top, width: step });
    node.append(box);
    let at = -1;
    const choose = (i) => {
      at = Math.max(0, Math.min(groups.length - 1, i));
      fill(box, { visibility: "visible", x: left + at * step }, []);
    };
    node.addEventListener("pointermove", (event) => {
      const area = node.getBoundingClientRect();
      const i = Math.floor(((event.clientX - area.left) * (width / area.width) - left) / step);
      if (i < 0 || i >= groups.length) return hideTip();
      choose(i);
      return showTip(groups[i][1], event.clientX, event.clientY);
    });
    node.addEventListener("pointerleave", () => { hideTip(); box.setAttribute("visibility", "hidden"); });
    node.addEventListener("blur", () => { hideTip(); box.setAttribute("visibility", "hidden"); });
    node.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: groups.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(to);
      const area = box.getBoundingClientRect();
      showTip(groups[at][1], area.left, area.top + 30);
      say(groups[at][1]);
    });
    replace(home, node);
  }

  (function sizes() {
    const S = D.sizes; // [from_bytes, reads, bytes read, writes, bytes written]
    if (!S.length) {
      nothing("sizes", D.no_events || "No call moved any bytes.");
      return;
    }
    let column = 1, redraw = () => {};
    const legend = el("span", { class: "legend" });
    for (const [name, colour] of [["read", "var(--read)"], ["written", "var(--write)"]]) {
      const i = el("i");
      i.style.background = colour;
      legend.append(el("span", {}, i, name));
    }
    byId("sizes-controls").append(buttons("What the bars show", [["1", "Accesses"], ["2", "Bytes"]], "1", (c) => { column = Number(c); redraw(); }), legend);
    byId("sizes-note").textContent = D.order;
    redraw = chart("sizes", (home, width) => histogram(home, width, "sizes",
      S.map((s) => [power(s[0]), `${power(s[0])} up to ${power(2 * s[0])}\n${plural(s[1], "read")}, ${bytes(s[2])}\n${plural(s[3], "write")}, ${bytes(s[4])}`,
        [s[column], "read"], [s[column + 2], "write"]]),
      { title: column === 1 ? "accesses" : "bytes moved", below: "bytes moved by one access: this many or more, less than twice", show: column === 1 ? count : bytes,
        label: `Access sizes from ${power(S[0][0])} to ${power(2 * S[S.length - 1][0])}` }));
  })();

  (function latency() {
    const L = D.latencies; // {name, layer, from, to, count, p50, p99}
    if (!L.length) {
      nothing("latency", D.no_events || "No calls.");
      return;
    }
    const outermost = L.findIndex((f) => D.slow.length && f.name === D.slow[0].name && f.layer === D.slow[0].layer);
    let now = L[Math.max(0, outermost)], redraw = () => {};
    const choose = el("select", { id: "latency-choice", change: (event) => { now = L[Number(event.target.value)]; redraw(); } },
      ...L.map((f, i) => el("option", { value: i, selected: f === now ? "" : null }, `${f.name} (${f.layer})`)));
    let scale = linear;
    byId("latency-controls").append(el("label", { for: "latency-choice" }, "Function"), choose,
      buttons("Scale of the number of calls", [["linear", "Linear"], ["log", "Logarithmic"]], "linear",
        (name) => { scale = name === "log" ? logarithmic : linear; redraw(); }));
    redraw = chart("latency", (home, width) => {
      const first = D.edges.indexOf(now.from[0]), last = D.edges.indexOf(now.from[now.from.length - 1]);
      const counts = new Map(now.from.map((from, i) => [from, now.count[i]]));
      const all = now.count.reduce((a, b) => a + b, 0);
      const groups = [];
      for (let k = first; k <= last; k += 1) {
        const n = counts.get(D.edges[k]) || 0;
        groups.push([ns(D.edges[k]), `${ns(D.edges[k])} up to ${ns(D.edges[k + 1])}\n${plural(n, "call")}, ${share(n / all)}`, [n, "bar"]]);
      }
      const where = (v) => {
        const k = Math.max(first, Math.min(last, D.edges.findIndex((e) => e > v) - 1));
        return k - first + Math.max(0, Math.min(1, (v - D.edges[k]) / (D.edges[k + 1] - D.edges[k])));
      };
      histogram(home, width, "latency", groups, { title: "calls", below: "time from call to return", show: count, scale,
        marks: [[where(now.p50), `p50 ${ns(now.p50)}`, 0], [where(now.p99), `p99 ${ns(now.p99)}`, 1]], label: `Latency of ${now.name}: p50 ${ns(now.p50)}, p99 ${ns(now.p99)}` });
      byId("latency-note").textContent = `${plural(all, "call")} of ${now.name} that returned; p50 ${ns(now.p50)}, p99 ${ns(now.p99)}.`
        + (D.functions_total > L.length ? ` The ${L.length} functions with most time can be chosen.` : "");
    });
  })();
  document.documentElement.dataset.ready = "yes";
})();

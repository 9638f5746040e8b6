"use strict";
// The page of a report. Everything that comes from data becomes text: nothing here makes HTML of strings.
(() => {
  const $ = (id) => document.getElementById(id);
  const D = JSON.parse($("data").textContent);
  const N = D.parent.length;
  const CHUNK = 60; // children that are drawn at once
  const isImages = D.kind === "images";

  // --- the tree as tables -------------------------------------------------------------------------------------------
  const kids = Array.from({ length: N }, () => []);
  const path = ["root"];
  for (let i = 1; i < N; i++) {
    path[i] = `${path[D.parent[i]]}/${kids[D.parent[i]].length}`;
    kids[D.parent[i]].push(i);
  }
  const at = new Map(path.map((p, i) => [p, i]));
  const leafIndex = new Map();
  for (let i = 0; i < N; i++) if (!kids[i].length) leafIndex.set(i, leafIndex.size);
  const share = (i) => D.count[i] / D.n;
  const ancestors = (i) => (i < 0 ? [] : [...ancestors(D.parent[i]), i]);
  const siblings = (i) => (i ? kids[D.parent[i]].filter((k) => k !== i) : []);

  // --- making elements ----------------------------------------------------------------------------------------------
  function put(node, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }
  function el(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props || {})) {
      if (value === null || value === undefined) continue;
      if (key.startsWith("aria-")) node.setAttribute(key, value);
      else if (value === false) continue;
      else if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    return put(node, children);
  }
  function svg(tag, props, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(props || {})) node.setAttribute(key, value);
    return put(node, children);
  }
  const percent = (p) => (p === 0 ? "0 %" : p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
  const many = (n) => n.toLocaleString("en");
  function figure(v) {
    if (v === null || !Number.isFinite(v)) return "–";
    const size = Math.abs(v);
    if (size !== 0 && (size >= 1e7 || size < 1e-3)) return v.toExponential(1);
    if (size >= 1000) return size < 10000 ? String(Math.round(v)) : many(Math.round(v));
    return String(+v.toPrecision(3));
  }
  const link = (i, text) => el("a", { href: `#/${path[i]}` }, text === undefined ? D.name[i] : text);
  const bar = (part) => {
    const inner = el("b");
    inner.style.width = `${Math.max(0, Math.min(1, part)) * 100}%`;
    return el("span", { class: "bar", "aria-hidden": "true" }, inner);
  };
  const section = (title, note, ...rest) =>
    el("section", {}, el("h2", {}, title), note && el("p", { class: "note" }, note), ...rest);

  // --- packed arrays and pictures -----------------------------------------------------------------------------------
  function bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }
  const unpacked = {};
  const packed = (name) => (unpacked[name] ||= new Float32Array(bytes(D[name]).buffer));

  const urls = {};
  function url(sheet) {
    if (!urls[sheet]) {
      const blob = new Blob([bytes($(`sheet-${sheet}`).textContent)], { type: D.sheets[sheet].mime });
      urls[sheet] = URL.createObjectURL(blob);
    }
    return urls[sheet];
  }
  const zoomFor = (side) => Math.max(1, Math.round(side / Math.max(D.width, D.height)));
  function pic(sheet, index, side, label) {
    const { columns, rows } = D.sheets[sheet];
    const zoom = zoomFor(side), w = D.width * zoom, h = D.height * zoom;
    const node = el("span", label ? { class: "pic", role: "img", "aria-label": label } : { class: "pic", "aria-hidden": "true" });
    node.style.width = `${w}px`;
    node.style.height = `${h}px`;
    node.style.backgroundImage = `url(${url(sheet)})`;
    node.style.backgroundSize = `${w * columns}px ${h * rows}px`;
    node.style.backgroundPosition = `${-(index % columns) * w}px ${-Math.floor(index / columns) * h}px`;
    return node;
  }
  function nothing(side) {
    const zoom = zoomFor(side);
    const node = el("span", { class: "empty", "aria-hidden": "true" }, side > 60 ? "no sample" : "");
    node.style.width = `${D.width * zoom}px`;
    node.style.height = `${D.height * zoom}px`;
    return node;
  }
  const meanPic = (i, side, label) => (D.count[i] ? pic("mean", i, side, label) : nothing(side));
  const starts = {};
  function start(kind) {
    if (!starts[kind]) {
      let sum = 0;
      starts[kind] = D[kind].map((own) => (sum += own.length ?? own) - (own.length ?? own));
    }
    return starts[kind];
  }
  const shownAt = new Map(D.shown.map((s, k) => [s, k]));
  const labelOf = (s) => (D.labels.length ? D.labels[D.shownLabel[shownAt.get(s)]] : null);
  const named = (s) => `sample ${s}${D.labels.length ? `, labelled ${labelOf(s)}` : ""}`;

  const pixelsOf = {};
  function pixels(sheet) {
    // The pixels of a lossless sheet, one number for each, from 0 to 1: channels are averaged.
    pixelsOf[sheet] ||= new Promise((resolve) => {
      const image = new Image();
      image.onload = () => {
        const canvas = el("canvas", { width: image.width, height: image.height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        resolve({ data: context.getImageData(0, 0, image.width, image.height).data, width: image.width });
      };
      image.src = url(sheet);
    });
    return pixelsOf[sheet];
  }
  function tile(sheet, pixel, index) {
    const { columns } = D.sheets[sheet];
    const left = (index % columns) * D.width, top = Math.floor(index / columns) * D.height;
    const out = new Float32Array(D.width * D.height);
    for (let y = 0; y < D.height; y++)
      for (let x = 0; x < D.width; x++) {
        const k = 4 * ((top + y) * pixel.width + left + x);
        out[y * D.width + x] = (pixel.data[k] + pixel.data[k + 1] + pixel.data[k + 2]) / 765;
      }
    return out;
  }

  // --- the tree in the side bar ---------------------------------------------------------------------------------------
  let current = 0;
  let sortBySize = Math.max(...kids.map((k) => k.length)) > 30;
  const expanded = new Set([0]);
  const drawn = new Map(); // how many children are drawn
  const ordered = (i) => (sortBySize ? [...kids[i]].sort((a, b) => D.count[b] - D.count[a]) : kids[i]);

  function hint(i) {
    if (isImages || !i || !D.differences[i].length) return null;
    const [f, effect] = D.differences[i][0];
    const feature = D.features[f];
    const sign = feature.kind === "category" ? "" : effect > 0 ? " ↑" : " ↓";
    return el("small", {}, feature.name + sign);
  }
  function treeItem(i, level, posinset, setsize) {
    const fill = el("b");
    fill.style.width = `${(i ? D.count[i] / Math.max(1, D.count[D.parent[i]]) : 1) * 100}%`;
    const item = el("div", {
      class: "item", role: "treeitem", id: `item-${i}`, tabindex: i === current ? 0 : -1, "aria-level": level,
      "aria-posinset": posinset, "aria-setsize": setsize, "aria-selected": i === current,
      "aria-expanded": kids[i].length ? expanded.has(i) : null,
    },
      el("span", { class: kids[i].length ? "twist" : "twist leafy", "aria-hidden": "true" }),
      isImages && meanPic(i, 28),
      el("span", { class: "label" }, D.name[i], hint(i)),
      el("span", { class: "share num" }, percent(share(i)), el("i", {}, fill)));
    return el("li", { role: "none" }, item, kids[i].length > 0 && expanded.has(i) && group(i, level + 1));
  }
  function group(i, level) {
    const own = ordered(i);
    let n = Math.min(own.length, drawn.get(i) || CHUNK);
    const selected = ancestors(current).find((a) => D.parent[a] === i);
    if (selected !== undefined) n = Math.max(n, Math.min(own.length, own.indexOf(selected) + 1));
    const list = el("ul", { role: "group" }, own.slice(0, n).map((k, j) => treeItem(k, level, j + 1, own.length)));
    if (n < own.length)
      list.append(el("li", { role: "none" },
        el("div", { class: "item more", role: "treeitem", tabindex: -1, "data-more": i, "aria-level": level, "aria-selected": false }, `Show ${Math.min(CHUNK, own.length - n)} more of ${many(own.length - n)}`)));
    return list;
  }
  function drawTree() {
    $("tree").replaceChildren(treeItem(0, 1, 1, 1));
  }
  function setOpen(i, open) {
    if (!kids[i].length || expanded.has(i) === open) return;
    if (open) expanded.add(i);
    else expanded.delete(i);
    const item = $(`item-${i}`);
    item.setAttribute("aria-expanded", open);
    const list = item.nextElementSibling;
    if (list) list.remove();
    if (open) item.after(group(i, +item.getAttribute("aria-level") + 1));
  }
  function showMore(item) {
    const i = +item.dataset.more;
    const old = item.closest("ul"), before = old.children.length - 1;
    drawn.set(i, before + CHUNK);
    const list = group(i, +item.getAttribute("aria-level"));
    old.replaceWith(list);
    focusItem(list.children[before].firstElementChild);
  }
  function focusItem(item) {
    if (!item) return;
    for (const other of $("tree").querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    item.tabIndex = 0;
    item.focus();
  }
  function select(i) {
    for (const a of ancestors(i).slice(0, -1)) setOpen(a, true);
    if (!$(`item-${i}`)) { current = i; drawTree(); } // it is beyond the children that were drawn
    for (const other of $("tree").querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", false);
    for (const other of $("tree").querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    const item = $(`item-${i}`);
    item.setAttribute("aria-selected", true);
    item.tabIndex = 0;
    const box = item.getBoundingClientRect(), frame = document.querySelector("aside").getBoundingClientRect();
    if (frame.height && (box.top < frame.top || box.bottom > frame.bottom)) item.scrollIntoView({ block: "center" });
  }
  $("tree").addEventListener("click", (event) => {
    const item = event.target.closest('[role="treeitem"]');
    if (!item) return;
    if (item.dataset.more) return showMore(item);
    const i = +item.id.slice(5);
    if (event.target.closest(".twist") && kids[i].length) return setOpen(i, !expanded.has(i));
    if (i === current && kids[i].length) setOpen(i, !expanded.has(i));
    else setOpen(i, true);
    go(i);
  });
  $("tree").addEventListener("keydown", (event) => {
    const item = event.target.closest('[role="treeitem"]');
    if (!item || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = [...$("tree").querySelectorAll('[role="treeitem"]')];
    const place = all.indexOf(item), i = item.dataset.more ? -1 : +item.id.slice(5);
    const open = i >= 0 && kids[i].length && expanded.has(i);
    const keys = {
      ArrowDown: () => focusItem(all[place + 1]),
      ArrowUp: () => focusItem(all[place - 1]),
      Home: () => focusItem(all[0]),
      End: () => focusItem(all[all.length - 1]),
      ArrowRight: () => (i < 0 || !kids[i].length ? null : open ? focusItem(all[place + 1]) : setOpen(i, true)),
      ArrowLeft: () => (open ? setOpen(i, false) : focusItem(item.closest("ul").previousElementSibling)),
      Enter: () => (i < 0 ? showMore(item) : go(i)),
      " ": () => (i < 0 ? showMore(item) : go(i)),
    };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  // --- search -----------------------------------------------------------------------------------------------------------
  function search() {
    const wanted = $("search").value.trim().toLowerCase();
    const aside = document.querySelector("aside");
    aside.classList.toggle("seeking", Boolean(wanted));
    if (!wanted) return $("found").replaceChildren();
    const score = (i) => (D.name[i].toLowerCase() === wanted || path[i].slice(5) === wanted || path[i] === wanted ? 0 : D.name[i].toLowerCase().startsWith(wanted) ? 1 : 2);
    const hits = [];
    for (let i = 0; i < N; i++)
      if (D.name[i].toLowerCase().includes(wanted) || path[i].includes(wanted)) hits.push(i);
    hits.sort((a, b) => score(a) - score(b) || D.count[b] - D.count[a]);
    $("found").replaceChildren(
      el("p", { class: "note" }, hits.length ? `${many(hits.length)} ${hits.length === 1 ? "node" : "nodes"}` : "No node has that path or name."),
      el("ul", {}, hits.slice(0, 12).map((i) => el("li", {}, link(i, [D.name[i], " ", el("span", { class: "note" }, path[i])])))));
  }
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => {
    const first = $("found").querySelector("a");
    if (event.key === "Enter" && first) location.hash = first.getAttribute("href");
    if (event.key === "Escape") { $("search").value = ""; search(); }
  });

  // --- samples of a node ----------------------------------------------------------------------------------------------
  function caption(s) {
    return D.labels.length ? labelOf(s) : `#${s}`;
  }
  function strip(kind, i, describe, text) {
    return el("div", { class: "strip" }, D[kind][i].map((pick, k) => {
      const s = Array.isArray(pick) ? pick[0] : pick;
      return el("figure", {}, pic(kind, start(kind)[i] + k, 56, describe(pick, s)), el("figcaption", {}, text(pick, s)));
    }));
  }
  const between = ([, own, p, other, q]) => [link(own), ` ${percent(p)}`, el("br"), link(other), ` ${percent(q)}`];
  const betweenText = ([s, own, p, other, q]) => `${named(s)}: ${D.name[own]} ${percent(p)}, ${D.name[other]} ${percent(q)}`;

  function imageSamples(i) {
    const pairs = Array.from({ length: D.drawn[i] }, (_, k) =>
      el("figure", { class: "pair" },
        pic("drawn", start("drawn")[i] + k, 56, `new sample ${k + 1}`),
        D.nearest[i][k] === undefined ? nothing(56) : pic("nearest", start("nearest")[i] + k, 56, `nearest: ${named(D.nearest[i][k])}`)));
    return [
      D.count[i] > 0 && section("Most typical", "Real samples nearest to the mean of their leaf's.",
        strip("typical", i, (_, s) => named(s), (_, s) => caption(s))),
      D.unsure[i].length > 0 && section("Most unsure", kids[i].length ? "Real samples between two of its children." : "Real samples between this leaf and another one.",
        strip("unsure", i, betweenText, between)),
      D.odd[i].length > 0 && section("Oddest", "Real samples to which the model gives the lowest density.",
        strip("odd", i, (_, s) => named(s), (_, s) => caption(s))),
      section("New samples, and the nearest real one", "Drawn from the prior; below each the nearest sample of this node.",
        el("div", { class: "strip" }, pairs)),
    ];
  }

  // --- features -----------------------------------------------------------------------------------------------------------
  const F = isImages ? 0 : D.features.length;
  function units(f, code) {
    const { mean, scale, log } = D.features[f];
    const v = mean + scale * code;
    return log ? Math.exp(v) : v;
  }
  function cell(f, code) {
    if (Number.isNaN(code)) return el("span", { class: "gap" }, "missing");
    const feature = D.features[f];
    return feature.kind === "category" ? feature.categories[Math.round(code)] : figure(units(f, code));
  }
  // On the scale of comparison counts are log(1 + x).
  const centre = (f, mean) => (Number.isNaN(mean) ? "–" : figure(D.features[f].kind === "count" ? Math.expm1(mean) : units(f, mean)));
  const moment = (name, i, f) => packed(name)[i * F + f];
  let barStart = null, allBars = null;
  function histogram(i, f) {
    if (!allBars) {
      let sum = 0;
      allBars = bytes(D.histograms);
      barStart = D.features.map((feature) => { const own = sum; sum += N * width(feature); return own; });
    }
    const n = width(D.features[f]);
    const own = Array.from(allBars.subarray(barStart[f] + i * n, barStart[f] + (i + 1) * n));
    const total = own.reduce((a, b) => a + b, 0) || 1;
    return own.map((v) => v / total);
  }
  const width = (feature) => (feature.kind === "category" ? feature.bars.length : feature.edges.length - 1);
  function without(whole, part) {
    // Moments and histogram of the samples of a mixture that are not a child's.
    const n = whole.n - part.n, r = n ? part.n / n : 0;
    const mean = n ? whole.mean + r * (whole.mean - (part.n ? part.mean : 0)) : NaN;
    const squares = n ? (whole.n * (whole.std ** 2 + whole.mean ** 2)) / n - (part.n ? r * (part.std ** 2 + part.mean ** 2) : 0) : NaN;
    return { n, mean, std: Math.sqrt(Math.max(0, squares - mean * mean)), bars: whole.bars.map((b, k) => (n ? Math.max(0, (whole.n * b - part.n * part.bars[k]) / n) : 0)) };
  }
  const groupOf = (i, f) => ({ n: moment("observed", i, f), mean: moment("means", i, f), std: moment("stds", i, f), bars: histogram(i, f) });
  function erf(x) {
    // Abramowitz & Stegun 7.1.26, to seven digits.
    const t = 1 / (1 + 0.3275911 * x);
    return 1 - ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * Math.exp(-x * x);
  }
  function contrast(f, one, other) {
    if (D.features[f].kind === "category") {
      const tv = one.n && other.n ? one.bars.reduce((sum, b, k) => sum + Math.abs(b - other.bars[k]), 0) / 2 : 0;
      return [f, tv, tv, null];
    }
    const d = (one.mean - other.mean) / Math.max(Math.sqrt((one.std ** 2 + other.std ** 2) / 2), 1e-6);
    return Number.isFinite(d) ? [f, d, erf(Math.abs(d) / Math.sqrt(8)), null] : [f, 0, 0, null];
  }
  function commonest(f, one, other) {
    // The category whose share differs most, with both shares.
    const { bars, categories } = D.features[f];
    let best = 0;
    one.bars.forEach((b, k) => { if (Math.abs(b - other.bars[k]) > Math.abs(one.bars[best] - other.bars[best])) best = k; });
    return [categories[bars[best]] ?? "", one.bars[best], other.bars[best]];
  }
  function differenceRow(i, [f, effect, apart, q], other, rival) {
    const feature = D.features[f], one = groupOf(i, f);
    const two = other(f);
    let here = centre(f, one.mean), there = centre(f, two.mean), what = "";
    if (feature.kind === "category") {
      const [name, a, b] = commonest(f, one, two);
      [here, there, what] = [percent(a), percent(b), name];
    }
    const found = q !== null && q <= 0.05;
    return el("tr", { class: found || q === null ? "" : "dim" },
      el("th", { scope: "row" }, feature.name, what !== "" && el("span", { class: "note" }, ` ${what}`)),
      el("td", { class: "r" }, here), el("td", { class: "r" }, there),
      el("td", {}, bar(apart), el("span", { class: "num note" }, feature.kind === "category" ? percent(apart) : `${effect > 0 ? "+" : "−"}${Math.abs(effect).toFixed(1)} sd`)),
      rival < 0 && el("td", {}, el("span", { class: found ? "chip yes" : "chip" }, q === null || q >= 1 ? "no evidence" : found ? `holds, q ${q < 0.001 ? "< 0.001" : `= ${q.toFixed(3)}`}` : `no evidence, q = ${q.toFixed(2)}`)));
  }
  function featureDifferences(i, rival) {
    const parent = D.parent[i];
    const other = (f) => (rival < 0 ? without(groupOf(parent, f), groupOf(i, f)) : groupOf(rival, f));
    const rows = rival < 0 ? D.differences[i]
      : Array.from({ length: F }, (_, f) => contrast(f, groupOf(i, f), other(f))).sort((a, b) => b[2] - a[2]).slice(0, 12);
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What tells it apart" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, D.kind === "counts" ? "Feature" : "Column"), el("th", { class: "r", scope: "col" }, "here"),
        el("th", { class: "r", scope: "col" }, rival < 0 ? "siblings" : D.name[rival]), el("th", { scope: "col" }, "how far apart"), rival < 0 && el("th", { scope: "col" }, "evidence"))),
      el("tbody", {}, rows.map((row) => differenceRow(i, row, other, rival)))));
  }
  function histogramChart(i, f, reference, name) {
    const feature = D.features[f], own = histogram(i, f), base = reference === null ? null : histogram(reference, f);
    const top = Math.max(...own, ...(base || [0]), 1e-9), n = own.length, W = 220, H = 64;
    const y = (v) => H - (H - 2) * (v / top);
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${feature.name}: distribution here${base ? `, outline: ${name}` : ""}` });
    own.forEach((v, k) => picture.append(svg("rect", { class: "fill", x: (k * W) / n + 0.5, width: Math.max(0.5, W / n - 1), y: y(v), height: H - y(v) })));
    if (base) picture.append(svg("path", { class: "ghost", d: `M0 ${H}` + base.map((v, k) => `L${(k * W) / n} ${y(v)}L${((k + 1) * W) / n} ${y(v)}`).join("") + `L${W} ${H}` }));
    const missing = 1 - moment("observed", i, f) / Math.max(1, D.count[i]);
    const ends = feature.kind === "category"
      ? n <= 4 ? feature.bars.map((b) => feature.categories[b]) : [feature.categories[feature.bars[0]], `${feature.categories.length} categories`, feature.categories[feature.bars[n - 1]]]
      : [feature.kind === "count" ? Math.ceil(feature.edges[0]) : units(f, feature.edges[0]), feature.kind === "count" ? Math.floor(feature.edges[n]) : units(f, feature.edges[n])].map(figure);
    return el("div", { class: "chart" }, el("h3", { title: feature.name }, feature.name), picture,
      el("p", { class: "ends" }, ends.map((e) => el("span", {}, e))), missing > 0.0005 && el("p", { class: "note" }, `${percent(missing)} missing`));
  }
  function leading(i, n) {
    const first = i ? D.differences[i].map(([f]) => f) : [];
    const rest = Array.from({ length: F }, (_, f) => f).filter((f) => !first.includes(f));
    return [...first, ...rest].slice(0, n);
  }
  function distributions(i) {
    const reference = i ? D.parent[i] : null;
    const grid = el("div", { class: "cards wide" });
    let n = 0;
    const order = leading(i, F);
    const more = el("button", { type: "button", class: "quiet", onclick: () => add(48) }, "Show more");
    function add(k) {
      put(grid, order.slice(n, n + k).map((f) => histogramChart(i, f, reference, i ? D.name[D.parent[i]] : "")));
      n += k;
      more.hidden = n >= order.length;
    }
    add(12);
    return section("Distributions", [i ? `Bars: this node; outline: ${D.name[D.parent[i]]}.` : "All samples.",
      D.nFeatures > F && ` The ${F} of ${many(D.nFeatures)} features that tell nodes apart best.`], grid, el("p", { class: "step" }, more));
  }
  function rowsTable(i, title, note, columns, rows) {
    // Each row: its name, a note, and a function from features to codes.
    if (!rows.length) return null;
    return section(title, note, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "row"), D.labels.length > 0 && el("th", { scope: "col" }, "label"), columns.map((f) => el("th", { scope: "col", class: D.features[f].kind === "category" ? "" : "r" }, D.features[f].name)), rows.some((r) => r.note) && el("th", { scope: "col" }, "between"))),
      el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row" }, r.name), D.labels.length > 0 && el("td", {}, r.label ?? ""),
        columns.map((f) => el("td", { class: D.features[f].kind === "category" ? "max" : "r" }, cell(f, r.code(f)))), r.note && el("td", {}, r.note)))))));
  }
  function tableSamples(i) {
    const columns = leading(i, 7);
    const real = (s, note) => ({ name: `#${s}`, label: labelOf(s), note, code: (f) => packed("rows")[shownAt.get(s) * F + f] });
    const fresh = Array.from({ length: D.drawn[i] }, (_, k) => [
      { name: "new", label: "", code: (f) => packed("drawnRows")[(start("drawn")[i] + k) * F + f] },
      D.nearest[i][k] !== undefined && { ...real(D.nearest[i][k]), name: `nearest, #${D.nearest[i][k]}` },
    ]).flat().filter(Boolean);
    return [
      distributions(i),
      rowsTable(i, "Most typical", "Real rows nearest to the mean of their leaf's.", columns, D.typical[i].map((s) => real(s))),
      rowsTable(i, "Most unsure", kids[i].length ? "Real rows between two of its children." : "Real rows between this leaf and another one.", columns,
        D.unsure[i].map((u) => real(u[0], [link(u[1]), ` ${percent(u[2])} · `, link(u[3]), ` ${percent(u[4])}`]))),
      rowsTable(i, "Oddest", "Real rows to which the model gives the lowest density.", columns, D.odd[i].map((s) => real(s))),
      rowsTable(i, "New rows, and the nearest real one", "Drawn from the prior, with noise.", columns, fresh),
    ];
  }

  // --- what tells a node apart --------------------------------------------------------------------------------------------
  function paint(canvas, values, top, mask, zoom) {
    const style = getComputedStyle(document.documentElement);
    const colour = [style.getPropertyValue("--accent"), style.getPropertyValue("--against")];
    const context = canvas.getContext("2d");
    canvas.width = D.width * zoom;
    canvas.height = D.height * zoom;
    values.forEach((v, k) => {
      context.globalAlpha = Math.min(1, Math.abs(v) / top);
      context.fillStyle = colour[v > 0 ? 0 : 1];
      context.fillRect((k % D.width) * zoom, Math.floor(k / D.width) * zoom, zoom, zoom);
    });
    if (!mask) return;
    context.globalAlpha = 1;
    context.strokeStyle = style.getPropertyValue("--fg");
    context.lineWidth = Math.max(1.5, zoom / 4);
    context.beginPath();
    const inside = (x, y) => x >= 0 && y >= 0 && x < D.width && y < D.height && mask[y * D.width + x];
    for (let y = 0; y <= D.height; y++)
      for (let x = 0; x <= D.width; x++) {
        if (inside(x, y) !== inside(x - 1, y)) { context.moveTo(x * zoom, y * zoom); context.lineTo(x * zoom, (y + 1) * zoom); }
        if (inside(x, y) !== inside(x, y - 1)) { context.moveTo(x * zoom, y * zoom); context.lineTo((x + 1) * zoom, y * zoom); }
      }
    context.stroke();
  }
  function grey(canvas, values, zoom) {
    canvas.width = D.width * zoom;
    canvas.height = D.height * zoom;
    const context = canvas.getContext("2d");
    values.forEach((v, k) => {
      context.fillStyle = `rgb(${255 * v} ${255 * v} ${255 * v})`;
      context.fillRect((k % D.width) * zoom, Math.floor(k / D.width) * zoom, zoom, zoom);
    });
  }
  function imageDifferences(i, rival) {
    const others = (rival < 0 ? siblings(i) : [rival]).filter((k) => D.count[k]);
    const theirName = rival < 0 && others.length > 1 ? "its siblings" : D.name[others[0]];
    const n = others.reduce((sum, k) => sum + D.count[k], 0);
    if (!n) return el("p", { class: "note" }, `${D.name[rival]} has no samples.`);
    const zoom = zoomFor(168);
    const canvas = el("canvas", { role: "img", "aria-label": `Difference of the means of ${D.name[i]} and ${theirName}` });
    const mean = el("canvas", { role: "img", "aria-label": `Mean of ${theirName}` });
    const region = rival < 0 && D.regions[i];
    let mask = null;
    if (region) {
      const bits = bytes(region[1]);
      mask = Array.from({ length: D.width * D.height }, (_, k) => Boolean((bits[k >> 3] >> (7 - (k & 7))) & 1));
      if (!mask.some(Boolean)) mask = null;
    }
    pixels("mean").then((pixel) => {
      const mine = tile("mean", pixel, i), theirs = new Float32Array(mine.length);
      for (const k of others) tile("mean", pixel, k).forEach((v, j) => (theirs[j] += (v * D.count[k]) / n));
      const values = mine.map((v, j) => v - theirs[j]);
      paint(canvas, values, Math.max(...values.map(Math.abs), 0.02), mask, zoom);
      if (others.length > 1) grey(mean, theirs, zoom);
    });
    return el("div", { class: "maps" },
      el("figure", {}, meanPic(i, 168, `Mean of ${D.name[i]}`), el("figcaption", {}, `Mean of ${D.name[i]}`)),
      el("figure", {}, canvas, el("figcaption", {}, el("span", { class: "key one" }), "brighter here", el("br"), el("span", { class: "key two" }), `brighter in ${theirName}`,
        mask && [el("br"), el("span", { class: "key edge" }), `tells them apart, up to ${figure(region[0])} sd`], region && !mask && [el("br"), "no region that the test finds"])),
      el("figure", {}, others.length > 1 ? mean : meanPic(others[0], 168, `Mean of ${theirName}`), el("figcaption", {}, `Mean of ${theirName}`)));
  }
  function apart(i) {
    const rivals = siblings(i);
    if (!rivals.length || !D.count[i] || D.count[i] === D.count[D.parent[i]]) return null; // nothing to compare
    const body = el("div", {});
    const draw = (rival) => body.replaceChildren(isImages ? imageDifferences(i, rival) : featureDifferences(i, rival));
    const choice = el("select", { "aria-label": "Compare with", onchange: (event) => draw(+event.target.value) },
      el("option", { value: -1 }, rivals.length === 1 ? `its sibling, ${D.name[rivals[0]]}` : `its ${rivals.length} siblings together`),
      rivals.length > 1 && rivals.map((k) => el("option", { value: k }, D.name[k])));
    draw(-1);
    return section("What tells it apart", null, el("p", { class: "note" }, el("label", {}, "From ", choice)), body,
      el("details", {}, el("summary", {}, "How this is tested"), el("p", { class: "note" },
        `The gate splits samples by ${isImages ? "their pixels" : "these columns"}, so that siblings differ in them in any case. “Holds” means more: values are swapped among samples, `,
        "the tree routes the changed samples, and the true values still go with the way",
        isImages ? "" : "; or there are clearly fewer samples between the siblings than in either",
        `. Permutations of ${many(D.tested)} samples; at most 5 % of what is said to hold is expected to be wrong (Benjamini & Hochberg). That is so for samples that training has not seen; on its own samples, tests find too much.`)));
  }

  // --- latents ------------------------------------------------------------------------------------------------------------
  function ways(i) {
    if (!isImages || kids[i].length) return null;
    const leaf = leafIndex.get(i), own = D.latents[leaf], last = D.steps.length - 1;
    const first = D.latents.slice(0, leaf).reduce((sum, l) => sum + l.length, 0);
    const frame = el("div", {}), value = el("output", { class: "num note" });
    const choose = el("select", { id: "latent" }, own.map((z, k) => el("option", { value: k }, `latent ${z}`)));
    const slide = el("input", { type: "range", id: "slide", min: 0, max: last, step: 1, value: Math.floor(last / 2) });
    const draw = () => {
      const k = +choose.value, step = +slide.value;
      value.textContent = `${D.steps[step] > 0 ? "+" : ""}${D.steps[step]} standard deviations`;
      slide.setAttribute("aria-valuetext", value.textContent);
      frame.replaceChildren(pic("ways", (first + k) * D.steps.length + step, 168, `latent ${own[k]} at ${D.steps[step]}`));
    };
    choose.addEventListener("change", draw);
    slide.addEventListener("input", draw);
    draw();
    return section("Along a latent", "One latent moves while the others are zero. Those that vary most over the leaf's samples come first.",
      el("div", { class: "way" }, frame, el("div", { class: "controls" }, el("label", { class: "note" }, "Which ", choose), el("label", { class: "note", for: "slide" }, "Where"), slide, value)));
  }

  // --- gates ----------------------------------------------------------------------------------------------------------------
  function calibration(points, other) {
    const S = 180, x = (v) => 24 + v * (S - 24), y = (v) => (S - 22) * (1 - v) + 4;
    const picture = svg("svg", { viewBox: `0 0 ${S + 6} ${S + 10}`, role: "img", "aria-label": "Calibration: confidence across, share of agreement up" });
    picture.append(svg("rect", { class: "ghost", x: x(0), y: y(1), width: x(1) - x(0), height: y(0) - y(1), "stroke-opacity": 0.35 }), svg("line", { class: "diag", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
    const put = (set, extra) => set.forEach(([a, b, n]) => picture.append(svg("circle", { class: `dot${extra}`, cx: x(a), cy: y(b), r: 2.5 + Math.min(5, Math.log10(n + 1) * 1.3), "fill-opacity": 0.8 })));
    put(points, "");
    if (other) put(other, " two");
    return picture;
  }
  function gate(i) {
    const g = D.gates[i];
    if (!g) return null;
    const top = Math.max(...g.confidence, 1), W = 220, H = 70, n = g.confidence.length;
    const sure = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "How many samples have which probability of their child" });
    g.confidence.forEach((v, k) => sure.append(svg("rect", { class: "fill", x: (k * W) / n + 0.5, width: W / n - 1, y: H - (H - 2) * (v / top), height: (H - 2) * (v / top) })));
    const wrong = (points) => points.reduce((sum, [a, b, m]) => sum + m * Math.abs(a - b), 0) / Math.max(1, points.reduce((sum, p) => sum + p[2], 0));
    return section("The gate", `Its mean entropy is ${percent(g.entropy)} of the largest possible one: ${g.entropy < 0.1 ? "it is sure of most samples" : g.entropy < 0.5 ? "it is unsure of some samples" : "it is unsure of most samples"}.`,
      el("div", { class: "two-col" },
        el("div", { class: "chart" }, el("h3", {}, "Probability of the chosen child"), sure, el("p", { class: "ends" }, el("span", {}, "0"), el("span", {}, "1"))),
        el("div", { class: "chart" }, el("h3", {}, "Is it right to be as sure?"), calibration(g.experts, g.labels),
          el("p", { class: "note" }, el("span", { class: "key one" }), `the experts choose the same child; off by ${percent(wrong(g.experts))}`,
            g.labels && [el("br"), el("span", { class: "key two" }), `the child's usual label; off by ${percent(wrong(g.labels))}`], el("br"), "On the dotted line it is."))));
  }

  // --- the pages --------------------------------------------------------------------------------------------------------------
  function labelBars(i) {
    if (!D.labelCounts || !D.count[i]) return null;
    const own = [...D.labelCounts[i]].sort((a, b) => b[1] - a[1]), n = Math.max(1, D.count[i]);
    return section("Labels here", `The report was given labels; ${own.length === 1 ? "one occurs" : `${own.length} occur`} in this node.`,
      el("ul", { class: "bars" }, own.slice(0, 12).map(([k, c]) => el("li", {}, el("span", {}, D.labels[k]), bar(c / n), el("span", { class: "num note" }, `${percent(c / n)}`)))));
  }
  function childCards(i) {
    if (!kids[i].length) return null;
    const own = ordered(i), grid = el("div", { class: isImages ? "cards" : "cards wide" });
    let n = 0;
    const more = el("button", { type: "button", class: "quiet", onclick: () => add() }, "Show more");
    function add() {
      put(grid, own.slice(n, n + CHUNK).map((k) => el("a", { class: "card", href: `#/${path[k]}` },
        isImages && meanPic(k, 84), el("p", {}, el("b", {}, D.name[k]), el("span", { class: "note num" }, percent(share(k)))),
        !isImages && el("ul", {}, D.differences[k].slice(0, 3).map(([f, effect]) => el("li", {}, brief(k, f, effect)))))));
      n += CHUNK;
      more.hidden = n >= own.length;
    }
    add();
    return section(kids[i].length === 1 ? "One child" : `${many(kids[i].length)} children`, null, grid, el("p", { class: "step" }, more));
  }
  function brief(k, f, effect) {
    const feature = D.features[f], one = groupOf(k, f);
    if (feature.kind !== "category") return `${feature.name} ${centre(f, one.mean)} ${effect > 0 ? "↑" : "↓"}`;
    const [name, a] = commonest(f, one, without(groupOf(D.parent[k], f), one));
    return `${feature.name} ${name} ${percent(a)}`;
  }
  function nodePage(i) {
    const chain = ancestors(i), brothers = i ? kids[D.parent[i]] : [i], here = brothers.indexOf(i);
    const beside = (k, text) => (brothers[k] === undefined ? null : el("a", { class: "quiet", href: `#/${path[brothers[k]]}` }, text));
    const kind = kids[i].length ? `mixture of ${many(kids[i].length)}` : "leaf";
    return [
      el("p", { class: "crumbs" }, chain.slice(0, -1).map((a, k) => [k > 0 && el("span", { "aria-hidden": "true" }, "/"), link(a)]), chain.length > 1 ? "" : "The whole tree"),
      el("div", { class: "hero" }, isImages && meanPic(i, 140, `Mean of the samples of ${D.name[i]}`),
        el("div", {}, el("h1", {}, i ? D.name[i] : D.title),
          el("p", { class: "lead" }, i ? [el("strong", { class: "num" }, percent(share(i))), ` of the samples, ${many(D.count[i])} of ${many(D.n)}; prior ${percent(D.prior[i])}. A ${kind}`, D.name[i] !== path[i].slice(5) ? `, ${path[i]}.` : "."]
            : [el("strong", { class: "num" }, many(D.n)), ` samples, ${many(leafIndex.size)} ${leafIndex.size === 1 ? "leaf" : "leaves"}. Open a node to see what is in it.`]),
          i ? el("p", { class: "step" }, beside(here - 1, "← previous"), beside(here + 1, "next →")) : null)),
      childCards(i), apart(i), isImages ? imageSamples(i) : tableSamples(i), ways(i), gate(i), labelBars(i),
    ];
  }
  function labelsPage() {
    const body = el("div", {});
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    const accent = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
    const depth = (i) => ancestors(i).length - 1, levels = Math.max(...path.map((_, i) => depth(i)));
    function level(d) {
      return path.map((_, i) => i).filter((i) => depth(i) === d || (depth(i) < d && !kids[i].length));
    }
    const draw = (d) => {
      let nodes = level(d);
      const all = nodes.length;
      nodes = nodes.filter((i) => D.count[i]).sort((a, b) => (all > 40 ? D.count[b] - D.count[a] : 0)).slice(0, 40);
      const counts = nodes.map((i) => new Map(D.labelCounts[i])), totals = new Map(D.labelCounts[0]);
      const shown = D.labels.map((_, k) => k).sort((a, b) => (D.labels.length > 60 ? totals.get(b) - totals.get(a) : 0)).slice(0, 60);
      body.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Labels against nodes" }, el("table", { class: "counts" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "label"), nodes.map((i) => el("th", { scope: "col" }, link(i))))),
        el("tbody", {}, shown.map((k) => el("tr", {}, el("th", { scope: "row" }, D.labels[k]), nodes.map((_, j) => {
          const c = counts[j].get(k) || 0, part = c / Math.max(1, totals.get(k) || 0);
          const td = el("td", { title: `${many(c)} samples, ${percent(part)} of the label` }, c ? many(c) : "");
          td.style.backgroundColor = `rgba(${accent.join(", ")}, ${(0.45 * part).toFixed(3)})`;
          return td;
        })))))),
        el("p", { class: "note" }, "Colours are shares of the label.", all > nodes.length && ` ${nodes.length} of ${many(all)} nodes are shown, the largest that have samples.`, D.labels.length > shown.length && ` ${shown.length} of ${many(D.labels.length)} labels are shown, the most frequent.`));
    };
    const choose = el("select", { onchange: (event) => draw(+event.target.value) }, Array.from({ length: levels }, (_, d) => el("option", { value: d + 1 }, d + 1 === levels ? "the leaves" : `level ${d + 1}`)));
    if (levels) draw(1);
    return [el("h1", {}, "Against labels"), el("p", { class: "lead" }, "Training saw no labels; here they say what the nodes have found."),
      levels > 1 && el("p", { class: "step" }, el("label", {}, "Nodes of ", choose)), body];
  }
  function lineChart(name, x, y) {
    const known = y.filter((v) => v !== null), low = Math.min(...known), high = Math.max(...known), W = 320, H = 120;
    const px = (k) => (x.length > 1 ? (W * (x[k] - x[0])) / (x[x.length - 1] - x[0]) : W / 2), py = (v) => H - 4 - ((H - 8) * (v - low)) / (high - low || 1);
    let d = "", pen = "M";
    y.forEach((v, k) => { if (v === null) pen = "M"; else { d += `${pen}${px(k).toFixed(1)} ${py(v).toFixed(1)}`; pen = "L"; } });
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${name}: from ${figure(known[0])} to ${figure(known[known.length - 1])}` },
      svg("line", { class: "grid", x1: 0, x2: W, y1: H - 4, y2: H - 4 }), svg("path", { class: "curve", d }));
    if (known.length === 1) picture.append(svg("circle", { class: "dot", cx: px(y.findIndex((v) => v !== null)), cy: py(known[0]), r: 3 }));
    return el("div", { class: "chart" }, el("h3", {}, name), picture, el("p", { class: "ends" }, [y.findIndex((v) => v !== null), y.findLastIndex((v) => v !== null)].map((k) => el("span", {}, `epoch ${x[k]}: ${figure(y[k])}`))));
  }
  function trainingPage() {
    const T = D.training;
    const leaves = [...leafIndex.keys()].sort((a, b) => D.count[b] - D.count[a]);
    const curves = T ? Object.entries(T.curves).filter(([name, y]) => name !== "epoch" && y.some((v) => v !== null)) : [];
    return [el("h1", {}, "Training"),
      el("p", { class: "lead" }, T ? `${many(T.epochs)} ${T.epochs === 1 ? "epoch" : "epochs"}. Losses are means over samples, in nats.` : "The report was given no history of the training."),
      T && T.notes.map((note) => el("p", { class: "note" }, note)),
      D.warnings.map((text) => el("p", { class: "warn" }, text)),
      curves.length > 0 && section("Curves", null, el("div", { class: "cards wide" }, curves.map(([name, y]) => lineChart(name, T.curves.epoch, y)))),
      T && T.growth && section("Growth", "Every decision, in order. A split is judged by what held-out samples of the leaf gain, a cut by the share of edges that cross it.",
        el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Growth" }, el("table", {},
          el("thead", {}, el("tr", {}, ["round", "what", "where", "done", "samples", "judged by", "leaves", "reason"].map((name, k) => el("th", { scope: "col", class: k === 4 || k === 6 ? "r" : "" }, name)))),
          el("tbody", {}, T.growth.map((cells) => el("tr", {}, cells.map((cell, k) => el("td", { class: k === 4 || k === 6 ? "r" : "" }, cell)))))))),
      section("Usage", `The share of every leaf${leaves.length > 40 ? ", the 40 largest" : ""}; an even one is ${percent(1 / leaves.length)}.`,
        el("ul", { class: "bars" }, leaves.slice(0, 40).map((i) => el("li", {}, link(i), bar(D.count[i] / Math.max(1, D.count[leaves[0]])), el("span", { class: "num note" }, percent(share(i))))))),
    ];
  }
  function madePage() {
    return [el("h1", {}, "How it was made"),
      section("The model", null, el("pre", { tabindex: 0 }, D.made.snippet)),
      section("The tree", null, el("pre", { tabindex: 0 }, D.made.tree)),
      D.training && D.training.record && section("The training", null, el("pre", { tabindex: 0 }, D.training.record)),
      section("Facts", null, el("dl", {}, D.made.facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])))];
  }

  const PAGES = [["root", "Tree", null], D.labelCounts && ["labels", "Labels", labelsPage], ["training", "Training", trainingPage], ["made", "How it was made", madePage]].filter(Boolean);
  const hashOf = (i) => `#/${path[i]}`;
  function go(i) {
    if (location.hash === hashOf(i)) show();
    else location.hash = hashOf(i);
  }
  function show() {
    const wanted = decodeURIComponent(location.hash.replace(/^#\/?/, "")) || "root";
    const page = PAGES.find(([id, , draw]) => draw && id === wanted);
    const known = page || at.has(wanted);
    if (!page) current = at.has(wanted) ? at.get(wanted) : 0;
    const active = page ? page[0] : "root";
    $("pages").replaceChildren(...PAGES.map(([id, text]) => el("a", { href: id === "root" ? hashOf(current) : `#/${id}`, "aria-current": id === active ? "page" : null }, text)));
    const content = page ? page[2]() : nodePage(current);
    if (!known) content.unshift(el("p", { class: "warn" }, `There is no node at ${wanted}.`));
    put($("main"), ($("main").replaceChildren(), content));
    document.title = page ? `${page[1]} – ${D.title}` : current ? `${D.name[current]} – ${D.title}` : D.title;
    document.querySelector("aside").classList.remove("open", "seeking");
    $("toggle").setAttribute("aria-expanded", false);
    if (!page) select(current);
    window.scrollTo(0, 0);
  }

  // --- theme, and off we go ---------------------------------------------------------------------------------------------------
  function theme(name) {
    document.documentElement.dataset.theme = name;
    $("theme").textContent = name === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { theme(dark.matches ? "dark" : "light"); show(); });
  $("theme").addEventListener("click", () => { theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); show(); });
  $("toggle").addEventListener("click", () => {
    const open = document.querySelector("aside").classList.toggle("open");
    $("toggle").setAttribute("aria-expanded", open);
  });
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
  $("sort").value = sortBySize ? "size" : "order";
  $("sort").addEventListener("change", () => { sortBySize = $("sort").value === "size"; drawTree(); });
  window.addEventListener("hashchange", () => { show(); if ($("search").value) { $("search").value = ""; search(); } });
  drawTree();
  show();
})();

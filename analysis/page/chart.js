// The Pareto chart: one panel a batch size; filters by setting, task, policy and batch size; every point can be read.

const DEEP = -20, LINEAR = 5; // as in the printed figures: a great loss turns the axis logarithmic beyond 5 points
const MARKS = {
  o: (r) => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`,
  s: (r) => polygon([[-1, -1], [1, -1], [1, 1], [-1, 1]], 0.88 * r),
  D: (r) => polygon([[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]], r),
  d: (r) => polygon([[0, -1.3], [0.8, 0], [0, 1.3], [-0.8, 0]], r),
  "^": (r) => polygon([[0, -1.1], [1.1, 0.9], [-1.1, 0.9]], r),
  v: (r) => polygon([[0, 1.1], [1.1, -0.9], [-1.1, -0.9]], r),
  "<": (r) => polygon([[-1.1, 0], [0.9, -1.1], [0.9, 1.1]], r),
  ">": (r) => polygon([[1.1, 0], [-0.9, -1.1], [-0.9, 1.1]], r),
  p: (r) => star(5, 1.1 * r, 0.89 * r),
  h: (r) => star(6, 1.1 * r, 0.953 * r),
  8: (r) => star(8, 1.1 * r, 1.016 * r),
  "*": (r) => star(5, 1.5 * r, 0.6 * r),
  P: (r) => polygon([[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4], [.4, 1.2], [-.4, 1.2],
    [-.4, .4], [-1.2, .4], [-1.2, -.4], [-.4, -.4]], r),
  X: (r) => polygon([[-1.2, -.6], [-.6, -1.2], [0, -.6], [.6, -1.2], [1.2, -.6], [.6, 0], [1.2, .6], [.6, 1.2], [0, .6],
    [-.6, 1.2], [-1.2, .6], [-.6, 0]], r),
};

function polygon(corners, r) {
  return "M" + corners.map(([x, y]) => `${(x * r).toFixed(2)},${(y * r).toFixed(2)}`).join("L") + "Z";
}

function star(tips, outer, inner) {
  const corners = Array.from({ length: 2 * tips }, (_, i) => {
    const r = i % 2 ? inner : outer, turn = (Math.PI * i) / tips;
    return [r * Math.sin(turn), -r * Math.cos(turn)];
  });
  return polygon(corners, 1);
}

// a marker as in the printed figures; black becomes the ink of the page, which is white in the dark
function mark(look, radius) {
  const [color, marker, part] = look;
  const ink = color === "#000000" ? "var(--ink)" : color;
  const whole = (MARKS[marker] || MARKS.o)(radius);
  const shapes = [s("path", { d: whole, fill: part === "full" ? ink : "var(--card)" })];
  if (part !== "full" && part !== "none") {
    shapes.push(s("path", { d: whole, fill: ink, "clip-path": `url(#half-${part})` }));
  }
  shapes.push(s("path", { d: whole, fill: "none", stroke: ink, "stroke-width": 1.3, "stroke-linejoin": "round" }));
  return s("g", {}, shapes);
}

// what half-filled markers are cut with; once a page
function halves() {
  const half = (part, x, y, width, height) => s("clipPath", { id: `half-${part}`, clipPathUnits: "objectBoundingBox" },
    s("rect", { x, y, width, height }));
  return s("svg", { width: 0, height: 0, class: "halves", "aria-hidden": "true" }, half("left", 0, 0, 0.5, 1),
    half("right", 0.5, 0, 0.5, 1), half("top", 0, 0, 1, 0.5), half("bottom", 0, 0.5, 1, 0.5));
}

const icon = (look) => s("svg", { class: "icon", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark(look, 5));

function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 ? 1 : 0));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found.map((value) => ({ value, text: shown(value, digits) }));
}

function scale(values, from, to, about, deep, zero) {
  let low = Math.min(...values), high = Math.max(...values);
  if (zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (deep) {
    const bend = (v) => (Math.abs(v) <= LINEAR ? v / LINEAR : Math.sign(v) * (1 + Math.log10(Math.abs(v) / LINEAR) * 1.6));
    [low, high] = [bend(1.15 * low), Math.max(bend(1.15 * high), 0.5)];
    const place = (v) => from + ((bend(v) - low) / (high - low)) * (to - from);
    const marks = [-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100].filter((v) => bend(v) >= low && bend(v) <= high);
    return { place, ticks: marks.map((value) => ({ value, text: shown(value, 0) })) };
  }
  const room = 0.07 * (high - low || Math.abs(high) || 1);
  [low, high] = [low - room, high + room];
  return { place: (v) => from + ((v - low) / (high - low)) * (to - from), ticks: ticks(low, high, about) };
}

// points that no other equals or exceeds in both and exceeds in one; controls, and times that are not final, are none
function frontier(all, x, y, axes, unsure) {
  const points = all.filter((point) => !point.control && !unsure(point));
  const sign = (name) => (axes[name].better === "more" ? 1 : -1);
  const place = (point) => [sign(x) * point.values[x][0], sign(y) * point.values[y][0]];
  const beats = ([a, b], [c, d]) => a >= c && b >= d && (a > c || b > d);
  return points.filter((point) => !points.some((other) => beats(place(other), place(point))));
}

function paretoChart(root, chart, browse) {
  const found = unique(chart.points.map((point) => point.policy));
  const policies = unique(["vanilla", "no_drop", ...found]).filter((policy) => found.includes(policy));
  const settings = unique(chart.points.map((point) => point.setting));
  const drawable = (one, x, y) => one.policy !== "vanilla" && one.values[x] && one.values[y];
  const tasksOf = (setting) => unique(chart.points.filter((one) => one.setting === setting).map((one) => one.task));
  const state = {
    x: chart.across[0], y: chart.up[0], hidden: new Set(), batches: null, pinned: null,
  };
  const first = chart.points.find((one) => drawable(one, state.x, state.y)) || chart.points[0];
  Object.assign(state, { setting: first.setting, task: tasksOf(first.setting)[0] });
  const controls = h("div", { class: "controls" }), panels = h("div", { class: "panels" });
  const tip = h("div", { class: "tip", role: "status", hidden: true }), pinned = h("div", { class: "pinned" });
  const plot = h("div", { class: "plot" }, panels, tip), key = h("div", { class: "key" });
  refill(root, halves(), controls, plot, key, pinned);
  if (!chart.across.length || !chart.up.length) {
    refill(root, h("p", {}, "No cell has both a saving (active experts, or a timed decode step) and a score."));
    return;
  }

  const here = () => chart.points.filter((one) => one.setting === state.setting && one.task === state.task);
  const batchesHere = () => unique(here().map((one) => one.batch)).sort((a, b) => a - b);
  const drawn = () => here().filter((one) => !state.hidden.has(one.policy) && one.values[state.x] && one.values[state.y]);
  const inDoubt = (name, one) => !one.final && chart.times.includes(name);
  const unsure = (one) => inDoubt(state.x, one) || inDoubt(state.y, one);
  const quantity = (name, unit) => {
    const axis = chart.axes[name], points = name === "difference" || name === "score";
    const own = points && unit === "own" ? "metric's own unit" : points && name === "score" && unit !== "points" ? unit : axis.unit;
    return { ...axis, unit: own };
  };

  function control() {
    const named = (names) => names.map((id) => ({ id, name: chart.axes[id].label }));
    const choose = (key, options) => select(key === "x" ? "across" : "up", options,
      options.find((one) => one.id === state[key]), (one) => { state[key] = one.id; render(); });
    const batches = batchesHere();
    refill(controls,
      h("div", { class: "row" },
        settings.length > 1 && select("setting", settings, state.setting, (one) => {
          Object.assign(state, { setting: one, task: tasksOf(one)[0], batches: null }); render();
        }),
        select("task", tasksOf(state.setting), state.task, (one) => { state.task = one; state.batches = null; render(); }),
        choose("x", named(chart.across)), choose("y", named(chart.up))),
      batches.length > 1 && h("div", { class: "row", role: "group", "aria-label": "batch sizes" },
        h("span", { class: "name" }, "batch size"), batches.map((batch) => chip(batch, state.batches.has(batch), () => {
          state.batches.has(batch) ? state.batches.delete(batch) : state.batches.add(batch);
          render();
        }))),
      h("div", { class: "row", role: "group", "aria-label": "policies" },
        h("span", { class: "name" }, "policy"),
        policies.map((policy) => {
          const first = chart.points.find((one) => one.policy === policy);
          return chip(policy, !state.hidden.has(policy), () => {
            state.hidden.has(policy) ? state.hidden.delete(policy) : state.hidden.add(policy);
            render();
          }, icon(chart.looks[first.series]));
        }),
        h("button", { type: "button", class: "plain", on: { click: () => {
          state.hidden = new Set(state.hidden.size ? [] : policies.filter((one) => one !== "vanilla"));
          render();
        } } }, state.hidden.size ? "all" : "none")));
  }

  function render() {
    const batches = batchesHere();
    if (state.batches === null) state.batches = new Set(batches.length > 4 ? batches.slice(-4) : batches);
    const focused = document.activeElement && controls.contains(document.activeElement)
      ? [...controls.querySelectorAll("button, select")].indexOf(document.activeElement) : -1;
    control();
    if (focused >= 0) controls.querySelectorAll("button, select")[focused]?.focus();
    tip.hidden = true;
    const visible = drawn(), asked = batches.filter((batch) => state.batches.has(batch));
    refill(panels, asked.map((batch) => panel(batch, visible)));
    const series = unique(visible.filter((one) => state.batches.has(one.batch)).map((one) => one.series));
    refill(key, series.map((name) => h("span", {}, icon(chart.looks[name]), name)));
    if (!asked.length || !visible.length) refill(panels, h("p", { class: "empty" }, visible.length
      ? "Choose a batch size." : `No point here has both ${chart.axes[state.x].label} and ${chart.axes[state.y].label}.`));
    detail();
  }

  function panel(batch, everything) {
    const points = everything.filter((one) => one.batch === batch), { x, y } = state;
    const holder = h("div", { class: "panel" }, h("h3", {}, `batch size ${batch}`));
    const columns = Math.min(state.batches.size, plot.clientWidth > 700 ? 2 : 1);
    const width = Math.max(280, Math.floor((plot.clientWidth - 18 * (columns - 1)) / columns)), height = Math.round(Math.min(360, 0.5 * width + 120));
    const edge = { left: 66, right: 10, top: 8, bottom: 44 };
    const svg = s("svg", { class: "canvas", viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
      "aria-label": `${chart.axes[y].label} against ${chart.axes[x].label}, batch size ${batch}` });
    holder.append(svg);
    if (!points.length) { holder.append(h("p", { class: "empty" }, "no point")); return holder; }
    const unit = quantity(y, points[0].unit);
    const ends = (name, of) => of.flatMap((one) => one.values[name].filter((value) => value !== null));
    const all = everything.filter((one) => state.batches.has(one.batch));
    const deep = y === "difference" && Math.min(...all.map((one) => one.values[y][0])) < DEEP;
    const across = scale(ends(x, points), edge.left, width - edge.right, width / 75, false, false);
    const up = scale(ends(y, all), height - edge.bottom, edge.top, height / 48, deep, y !== "score");
    const bottom = height - edge.bottom;
    svg.append(
      s("g", { class: "grid" },
        up.ticks.map((tick) => s("line", { x1: edge.left, x2: width - edge.right, y1: up.place(tick.value), y2: up.place(tick.value) })),
        across.ticks.map((tick) => s("line", { x1: across.place(tick.value), x2: across.place(tick.value), y1: edge.top, y2: bottom }))),
      s("g", { class: "ticks" },
        up.ticks.map((tick) => s("text", { x: edge.left - 6, y: up.place(tick.value) + 4, "text-anchor": "end" }, tick.text)),
        across.ticks.map((tick) => s("text", { x: across.place(tick.value), y: bottom + 16, "text-anchor": "middle" }, tick.text))),
      s("text", { class: "axis", x: (edge.left + width - edge.right) / 2, y: height - 8, "text-anchor": "middle" },
        `${chart.axes[x].label} (${chart.axes[x].unit})`),
      s("text", { class: "axis", transform: `translate(14 ${(edge.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
        s("tspan", { x: 0 }, unit.label), s("tspan", { x: 0, dy: 15 }, `(${unit.unit}${deep ? ", log beyond ±5" : ""})`)));
    if (y === "difference" && points.some((one) => one.policy !== "vanilla") && unit.unit === "points") {
      const [top, low] = [up.place(chart.margin), up.place(-chart.margin)];
      svg.prepend(s("rect", { class: "band", x: edge.left, width: width - edge.left - edge.right, y: top, height: low - top }));
    }
    if (y !== "score") svg.append(s("line", { class: "zero", x1: edge.left, x2: width - edge.right, y1: up.place(0), y2: up.place(0) }));
    const best = frontier(points, x, y, chart.axes, unsure);
    const order = [...best].sort((a, b) => a.values[x][0] - b.values[x][0]);
    svg.append(s("path", { class: "frontier", d: staircase(order, (one) => [across.place(one.values[x][0]), up.place(one.values[y][0])],
      chart.axes[x].better === "more") }));
    const front = (one) => best.includes(one) || one.policy === "vanilla" || one.policy === "no_drop";
    for (const one of [...points].sort((a, b) => front(a) - front(b) || (a.policy === "vanilla") - (b.policy === "vanilla")))
      svg.append(drawPoint(one, across, up, front(one)));
    return holder;
  }

  function staircase(order, place, more) {
    return order.map((one, i) => {
      const [px, py] = place(one);
      return i === 0 ? `M${px},${py}` : more ? `V${py}H${px}` : `H${px}V${py}`;
    }).join("");
  }

  function drawPoint(one, across, up, front) {
    const [x, xl, xh] = one.values[state.x], [y, yl, yh] = one.values[state.y];
    const look = chart.looks[one.series], px = across.place(x), py = up.place(y);
    const bars = [];
    const ink = look[0] === "#000000" ? "var(--ink)" : look[0];
    if (xl !== null && xh !== null) bars.push(s("line", { x1: across.place(xl), x2: across.place(xh), y1: py, y2: py, stroke: ink }));
    if (yl !== null && yh !== null) bars.push(s("line", { x1: px, x2: px, y1: up.place(yl), y2: up.place(yh), stroke: ink }));
    const show = () => showTip(one, point);
    const pin = () => { state.pinned = one; detail(true); };
    const point = s("g", {
      class: `point${front ? "" : " faint"}${state.pinned === one ? " chosen" : ""}`, tabindex: 0, role: "button",
      "data-series": one.series, "data-batch": one.batch,
      "aria-label": `${one.series}, batch size ${one.batch}${unsure(one) ? ", time not final" : ""}`,
      on: {
        pointerenter: show, focus: show, pointerleave: hideTip, blur: hideTip, click: pin,
        keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(); } },
      },
    }, bars, s("g", { transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})` },
      s("circle", { class: "target", r: 13 }), mark(look, 4.6), one.guard && s("circle", { class: "ring", r: 9 }),
      unsure(one) && s("text", { class: "unsure", x: 7, y: -4 }, "~"),
      s("circle", { class: "halo", r: 11 })));
    return point;
  }

  const facts = (one) => Object.keys(chart.axes).filter((name) => one.values[name] && !(name === "difference" && one.policy === "vanilla"))
    .map((name) => {
      const axis = quantity(name, one.unit);
      const doubt = inDoubt(name, one) ? "~" : "";
      return [axis.label, `${interval(one.values[name], axis.digits, name === "difference")}${doubt} ${axis.unit}`];
    }).concat(one.final || !one.values.speedup ? [] : [["time (~)", "not final: precision missed, or machine busy"]]).concat(one.verdict ? [["verdict", one.verdict]] : [], Object.entries(one.frontier)
      .filter(([name]) => name === state.x && state.y === "difference")
      .map(([, share]) => ["on the frontier", `in ${shown(100 * share, 0)} % of bootstrap worlds`]));
  const parameters = (one) => Object.entries(one.params).map(([name, value]) => `${name}=${value}`)
    .concat(one.policy === "vanilla" ? [] : [`phases=${one.phases}`]).join(", ");

  function showTip(one, at) {
    refill(tip,
      h("b", {}, icon(chart.looks[one.series]), one.series), h("div", { class: "dim" }, parameters(one)),
      h("table", {}, facts(one).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))),
      one.guard && h("div", { class: "red" }, `responses ${one.guard} than vanilla's`), one.partial && h("div", { class: "yellow" }, one.partial));
    tip.hidden = false;
    const box = at.querySelector(".target").getBoundingClientRect(), frame = plot.getBoundingClientRect();
    const left = Math.min(Math.max(0, box.left - frame.left + 22), Math.max(0, frame.width - tip.offsetWidth));
    const above = box.top - frame.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 8 > 0 ? above : box.bottom - frame.top + 6}px`;
  }

  function hideTip() { tip.hidden = true; }

  function detail(again) {
    for (const point of panels.querySelectorAll(".point"))
      point.classList.toggle("chosen", !!state.pinned && point.dataset.series === state.pinned.series && Number(point.dataset.batch) === state.pinned.batch);
    const one = state.pinned;
    if (!one) { refill(pinned); return; }
    refill(pinned, h("div", { class: "card" },
      h("h3", {}, icon(chart.looks[one.series]), one.series, h("small", {}, ` batch size ${one.batch} · ${one.task}`)),
      h("p", { class: "dim" }, parameters(one)),
      h("dl", { class: "facts" }, facts(one).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
        h("div", {}, h("dt", {}, "behind it"), h("dd", {}, one.about))),
      one.guard && h("p", { class: "red" }, `Its responses are ${one.guard} than vanilla's.`),
      one.policy !== "vanilla" && browse && h("button", { type: "button", on: { click: () => browse(one) } }, "see its answers")));
    if (again) hideTip();
  }

  let width = 0;
  new ResizeObserver(() => { if (plot.clientWidth !== width) { width = plot.clientWidth; render(); } }).observe(plot);
  width = plot.clientWidth;
  render();
}

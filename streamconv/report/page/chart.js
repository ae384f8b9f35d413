// Norms: lines over layers, the legend beside them tells the values at the cross

const crosses = [];
const cross = (x) => crosses.forEach((move) => move(x));

function norms() {
  const panels = list(chart && chart.panels);
  if (!panels.length) return;
  const drawings = panels.map((panel) => figure(panel));
  const flagged = panels.flatMap((panel) => panel.curves.flatMap((curve) => curve.points.filter((point) => point.flags.length)));
  const along = chart.by === "layer" ? "over layers" : "in the order of the tensors";
  section("norms", node("p", { class: "hint" }, `Root mean square of each parameter (L2 norm / \u221an) ${along}.${flagged.length ? ` ${many(flagged.length, "flagged value")} marked in red.` : ""}`),
    drawings.map((drawing) => drawing.element));
  // Drawn at its true width, so that text keeps its size.
  const place = document.getElementById("norms");
  let width = null;
  const redraw = () => {
    if (width === place.clientWidth) return;
    width = place.clientWidth;
    drawings.forEach((drawing) => drawing.draw());
  };
  redraw();
  new ResizeObserver(redraw).observe(place);
  const last = Math.max(...panels.flatMap((panel) => panel.curves.flatMap((curve) => curve.points.slice(-1).map((point) => point.x))));
  cross(flagged.length ? flagged[0].x : last);
}

/** Round steps that divide ``low .. high`` into at most ``most`` parts. */
function ticks(low, high, most, smallest = 0) {
  const rough = Math.max((high - low) / most, smallest, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.9999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  const decades = Math.log10(high / low);
  const every = Math.max(1, Math.ceil(decades / 8));
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % every) continue;
    for (const factor of decades < 2.5 ? [1, 2, 5] : [1]) found.push(Number((factor * 10 ** power).toPrecision(6)));
  }
  return found.filter((tick) => tick >= low && tick <= high);
}

const axisNumber = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential().replace("e+", "e") : String(value));

function figure(panel) {
  const curves = panel.curves.map((curve, index) => ({
    ...curve, at: new Map(curve.points.map((point) => [point.x, point])), shown: true, look: `k${index % 8} d${Math.floor(index / 8) % 3}`,
  }));
  const places = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.x)))].sort((a, b) => a - b);
  const place = (x) => places.reduce((best, other) => (Math.abs(other - x) < Math.abs(best - x) ? other : best), places[0]);
  const drawable = (point) => known(point.rms) && (!panel.log || point.rms > 0);
  const svg = shape("svg", {
    class: "chart", tabindex: 0, role: "slider", "aria-label": `${panel.title}: ${chart.by} of which the values are told`,
    "aria-valuemin": places[0], "aria-valuemax": places[places.length - 1],
    pointermove: point, pointerdown: point, keydown: step,
  });
  const readout = node("span", {});
  const legend = node("div", { class: "legend" }, node("p", {}, readout, node("span", {}, "RMS")));
  let [here, scaleX, scaleY, height] = [places[0], null, null, 300];

  for (const curve of curves) {
    curve.value = node("span", {});
    curve.key = node("button", {
      class: curve.look, "aria-pressed": "true",
      click: () => { curve.shown = !curve.shown; curve.key.setAttribute("aria-pressed", String(curve.shown)); draw(); },
      pointerenter: () => curves.forEach((other) => other.line?.classList.toggle("far", other !== curve)),
      pointerleave: () => curves.forEach((other) => other.line?.classList.remove("far")),
    }, shape("svg", { "aria-hidden": "true" }, shape("line", { class: "line", x1: 0, x2: 18, y1: 4, y2: 4 })), node("span", { class: "name" }, breakable(curve.parameter)), curve.value);
    legend.append(curve.key);
  }

  function draw() {
    const width = Math.max(240, svg.getBoundingClientRect().width || 700);
    height = width < 480 ? 240 : 300;
    const [left, right, top, bottom] = [52, width - 10, 20, height - 34];
    const shown = curves.filter((curve) => curve.shown);
    const values = shown.flatMap((curve) => curve.points.filter(drawable).map((point) => point.rms));
    const forth = panel.log ? Math.log10 : (value) => value;
    const back = panel.log ? (value) => 10 ** value : (value) => value;
    let [low, high] = values.length ? [forth(values.reduce((a, b) => Math.min(a, b))), forth(values.reduce((a, b) => Math.max(a, b)))] : [0, 1];
    const room = (high - low) * 0.07 || Math.abs(high) * 0.2 || 0.5;
    [low, high] = [low - room, high + room];
    const span = places[places.length - 1] - places[0] || 1;
    const gap = Math.min(14, (right - left) / (2 * span + 2));
    scaleX = (x) => (places.length > 1 ? left + gap + ((x - places[0]) / span) * (right - left - 2 * gap) : (left + right) / 2);
    scaleY = (value) => bottom - ((forth(value) - low) / (high - low)) * (bottom - top);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();

    const lines = panel.log ? logTicks(back(low), back(high)) : ticks(low, high, 6);
    for (const tick of lines) {
      const y = scaleY(tick);
      svg.append(shape("line", { class: "rule", x1: left, x2: right, y1: y, y2: y }), shape("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, axisNumber(tick)));
    }
    for (const tick of ticks(places[0], places[places.length - 1], Math.max(2, width / 56), 1)) {
      svg.append(shape("text", { x: scaleX(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(shape("text", { x: right, y: bottom + 30, "text-anchor": "end" }, chart.by));
    marks(shown, top, bottom, gap);
    for (const curve of shown) {
      const key = shape("g", { class: curve.look });
      curve.line = shape("path", { class: `line d${curve.look.slice(-1)}`, d: path(curve) });
      curve.line.dataset.parameter = curve.parameter;
      key.append(curve.line);
      svg.append(key);
    }
    for (const curve of shown) {
      for (const point of curve.points.filter((point) => point.flags.length && drawable(point))) {
        svg.append(shape("circle", { class: "broken", cx: scaleX(point.x), cy: scaleY(point.rms), r: 4.5 }));
      }
    }
    svg.append(shape("g", { class: "here" }));
    move(here);
  }

  /** A band and a number where something is flagged; a cross on top where there is no value to draw. */
  function marks(shown, top, bottom, gap) {
    const flagged = [...new Set(shown.flatMap((curve) => curve.points.filter((point) => point.flags.length).map((point) => point.x)))].sort((a, b) => a - b);
    let free = -Infinity;
    for (const x of flagged) {
      const at = scaleX(x);
      const half = Math.max(2, Math.min(gap, 6));
      svg.append(shape("rect", { class: "band", x: at - half, y: top, width: 2 * half, height: bottom - top }));
      if (at - free > 26) {
        svg.append(shape("text", { class: "broken-label", x: at, y: top - 7, "text-anchor": "middle" }, String(x)));
        free = at;
      }
      if (shown.some((curve) => curve.at.get(x)?.flags.length && !drawable(curve.at.get(x)))) {
        svg.append(shape("path", { class: "broken", d: `M${at - 4} ${top + 4}l8 8m0 -8l-8 8` }));
      }
    }
  }

  /** Neighbouring layers are joined; what cannot be drawn leaves a gap, and what stands alone is a dot. */
  function path(curve) {
    const runs = [[]];
    for (const point of curve.points) {
      if (drawable(point)) runs[runs.length - 1].push(`${scaleX(point.x).toFixed(1)} ${scaleY(point.rms).toFixed(1)}`);
      else runs.push([]);
    }
    const dot = (spot) => `M${spot}m-2 0a2 2 0 1 0 4 0a2 2 0 1 0 -4 0`;
    return runs.filter((run) => run.length).map((run) => (run.length > 1 ? `M${run.join("L")}` : dot(run[0]))).join("");
  }

  function move(x) {
    here = place(x);
    const layer = svg.querySelector(".here");
    const heard = [];
    layer.replaceChildren(shape("line", { class: "cross", x1: scaleX(here), x2: scaleX(here), y1: 20, y2: height - 34 }));
    const named = chart.by === "layer" ? `Layer ${here}` : words(curves.map((curve) => curve.at.get(here)).find(Boolean)?.name ?? "");
    readout.textContent = named;
    for (const curve of curves) {
      const point = curve.at.get(here);
      const bad = Boolean(point && point.flags.length);
      curve.value.textContent = point ? (known(point.rms) ? real(point.rms) : bad ? point.flags.join(", ") : NONE) : NONE;
      curve.value.classList.toggle("bad", bad);
      if (bad) curve.value.title = point.flags.join(", ");
      else curve.value.removeAttribute("title");
      if (point && curve.shown) heard.push(`${curve.parameter} ${curve.value.textContent}`);
      if (point && curve.shown && drawable(point) && !bad) {
        layer.append(shape("g", { class: curve.look }, shape("circle", { class: "dot", cx: scaleX(here), cy: scaleY(point.rms), r: 3.5 })));
      }
    }
    svg.setAttribute("aria-valuenow", here);
    svg.setAttribute("aria-valuetext", `${named}: ${heard.join(", ")}`);
  }

  function point(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    cross(places.reduce((best, other) => (Math.abs(scaleX(other) - x) < Math.abs(scaleX(best) - x) ? other : best), places[0]));
  }

  function step(event) {
    const index = places.indexOf(here);
    const next = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: places.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    cross(places[Math.max(0, Math.min(places.length - 1, next))]);
  }

  crosses.push((x) => scaleX && move(x));
  return { element: node("div", { class: "figure panel" }, node("header", {}, node("h3", {}, panel.title), node("span", { class: "soft" }, panel.log ? "logarithmic" : "")), svg, legend), draw };
}

// The layout: stages by ranks

/** Severity by file, from the findings whose place names one. */
function alarms(paths) {
  const found = new Map();
  for (const finding of list(report.findings)) {
    if (typeof finding.where !== "string") continue;
    for (const path of paths) {
      if (finding.where.startsWith(path)) found.set(path, worse(found.get(path), finding.severity));
    }
  }
  return found;
}

function layout(id, plan, key, thing, links) {
  const entries = list(plan.grid);
  const held = new Map();
  for (const entry of entries) {
    const place = `${entry.stage},${entry.rank}`;
    held.set(place, [...(held.get(place) || []), ...list(entry[key]).map(words)]);
  }
  const small = (plan.pp || 1) * (plan.tp || 1) <= 4096;
  const along = (total, name) =>
    [...new Set([...Array(small && total ? total : 0).keys(), ...entries.map((entry) => entry[name])])].sort((a, b) => a - b);
  const [stages, ranks] = [along(plan.pp, "stage"), along(plan.tp, "rank")];
  if (!stages.length || !ranks.length) return;

  const files = new Map(list(report.files).map((file) => [file.path, file]));
  const severities = alarms([...files.keys()]);
  const weight = (names) => sum(names.map((name) => files.get(name)?.nbytes));
  const summary = (names) => many(names.length, thing) + (key === "files" && names.length ? `, ${bytes(weight(names))}` : "");
  const heaviest = key === "files" ? Math.max(1, ...[...held.values()].map(weight)) : 1;
  const flagged = new Set(list(report.statistics).filter((row) => list(row.flags).length).map((row) => row.layer));
  const contents = node("div", { class: "contents panel", "aria-live": "polite" });
  let pinned = null;

  function show(cell) {
    links.forEach((link) => link(cell ? new Set(cell.names) : null, cell));
    if (!cell) {
      contents.replaceChildren(node("p", { class: "soft" }, `Point at a cell to see its ${thing}s; click to keep them here.`));
      return;
    }
    contents.replaceChildren(
      node("h3", {}, `Stage ${cell.stage}, rank ${cell.rank}`),
      node("p", { class: "soft" }, summary(cell.names)),
      node("ul", {}, cell.names.map((name) => node("li", {}, node("span", { class: "name" }, name),
        files.has(name) ? node("small", {}, bytes(files.get(name).nbytes)) : null))),
    );
  }

  const cells = [];
  const rows = stages.map((stage) => {
    const layers = list(list(plan.stages)[stage]);
    const broken = layers.some((layer) => flagged.has(layer));
    const line = ranks.map((rank) => {
      const names = held.get(`${stage},${rank}`) || [];
      const severity = names.map((name) => severities.get(name)).reduce(worse, undefined);
      const share = key === "files" ? weight(names) / heaviest : 0;
      const cell = { stage, rank, names };
      cell.button = node("button", {
        class: `cell ${names.length ? `t${share > 0.9 ? 3 : share > 0.6 ? 2 : 1}` : "none"} ${severity ? `is-${severity}` : ""}`,
        tabindex: cells.length ? -1 : 0,
        "aria-pressed": "false",
        "aria-label": `Stage ${stage}, rank ${rank}: ${summary(names)}${severity ? `, ${severity}` : ""}`,
        pointerenter: () => pinned || show(cell),
        focus: () => pinned || show(cell),
        click: () => {
          pinned?.button.setAttribute("aria-pressed", "false");
          pinned = pinned === cell ? null : cell;
          cell.button.setAttribute("aria-pressed", String(pinned === cell));
          show(cell);
        },
      }, names.length ? many(names.length, thing) : NONE, key === "files" && names.length ? node("small", {}, bytes(weight(names))) : null);
      cells.push(cell);
      return node("td", {}, cell.button);
    });
    return node("tr", {},
      node("th", { scope: "row", class: broken ? "alarm" : null }, `Stage ${stage}`,
        node("small", {}, node("span", {}, layers.length ? `layer${layers.length > 1 ? "s" : ""} ${ranges(layers)}` : plan.stages ? "no layers" : ""), broken ? ", flagged" : "")),
      line);
  });
  const table = node("table", { class: "grid", keydown: move },
    node("thead", {}, node("tr", {}, node("td", {}), ranks.map((rank) => node("th", { scope: "col" }, `rank ${rank}`)))),
    node("tbody", {}, rows));

  function move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -ranks.length, ArrowDown: ranks.length }[event.key];
    const from = cells.findIndex((cell) => cell.button === document.activeElement);
    const next = cells[from + step];
    if (!next) return;
    event.preventDefault();
    cells[from].button.tabIndex = -1;
    next.button.tabIndex = 0;
    next.button.focus();
  }

  // A cell of one map lights up the cells of the other that share a file with it.
  links.push((names, from) => {
    for (const cell of cells) {
      cell.button.classList.toggle("linked", Boolean(names && !cells.includes(from) && cell.names.some((name) => names.has(name))));
    }
  });
  const degrees = ["tp", "pp", "dp"].filter((name) => known(plan[name])).map((name) => `${name.toUpperCase()} ${plan[name]}`);
  section(id, node("p", { class: "hint" }, `${degrees.join(", ")}${degrees.length ? ". " : ""}One row a pipeline stage, one column a tensor-parallel rank.`),
    node("div", { class: "map" }, node("div", { class: "scroll panel" }, table), node("div", { class: "side" }, contents)));
  show(null);
}

// Tables

/**
 * A table that sorts by the column that is clicked and filters by words. Columns: ``name``, ``get(row)`` (what sorts),
 * ``show(value, row)`` (what is read; absent: the value), ``number``, ``style``. Rows of which ``flagged`` is true are marked.
 */
function table({ columns, rows, label, flagged = () => false }) {
  let [sorted, ascending, query, onlyFlagged, most] = [null, true, "", false, PAGE_ROWS];
  const shown = (column, row) => (column.show ? column.show(column.get(row), row) : known(column.get(row)) ? String(column.get(row)) : NONE);
  const haystacks = new Map();
  const haystack = (row) => {
    if (!haystacks.has(row)) haystacks.set(row, columns.filter((column) => !column.number || column.find).map((column) => shown(column, row)).join(" ").toLowerCase());
    return haystacks.get(row);
  };
  const body = node("tbody", {});
  const more = node("div", { class: "more" });
  const tally = node("span", { class: "count", "aria-live": "polite" });
  const heads = columns.map((column, index) =>
    node("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
      node("button", { title: column.title, click: () => { ascending = sorted === index ? !ascending : true; sorted = index; draw(); } }, column.name)));
  const any = rows.some(flagged);

  function compare(a, b) {
    const [one, other] = [columns[sorted].get(a), columns[sorted].get(b)];
    if (!known(one) || !known(other)) return known(one) ? -1 : known(other) ? 1 : 0; // what is unknown stays last
    const order = typeof one === "number" && typeof other === "number" ? one - other : String(one) < String(other) ? -1 : String(one) > String(other) ? 1 : 0;
    return ascending ? order : -order;
  }

  function draw() {
    const asked = query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => (!onlyFlagged || flagged(row)) && asked.every((word) => haystack(row).includes(word)));
    if (sorted !== null) found.sort(compare);
    heads.forEach((head, index) => head.setAttribute("aria-sort", index === sorted ? (ascending ? "ascending" : "descending") : "none"));
    body.replaceChildren(...found.slice(0, most).map(line));
    tally.textContent = found.length === rows.length ? many(rows.length, "row") : `${count(found.length)} of ${many(rows.length, "row")}`;
    more.hidden = found.length <= most;
    more.replaceChildren(node("span", { class: "soft" }, `${count(Math.min(most, found.length))} of ${count(found.length)} shown.`),
      node("button", { class: "plain", click: () => { most = Infinity; draw(); } }, "Show all"));
  }

  const line = (row) => node("tr", { class: flagged(row) ? "flagged" : null }, columns.map((column) => {
    const text = shown(column, row);
    return node("td", { class: [column.number ? "number" : "", column.style || "", text === NONE ? "none" : ""].join(" ").trim() || null }, text);
  }));
  const tools = node("div", { class: "tools" },
    node("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${label}`, autocomplete: "off", spellcheck: "false", input: (event) => { query = event.target.value; draw(); } }),
    any ? node("label", {}, node("input", { type: "checkbox", change: (event) => { onlyFlagged = event.target.checked; draw(); } }), "flagged only") : null,
    tally);
  draw();
  return [tools, node("div", { class: "panel table" },
    node("div", { class: "scroll rows", tabindex: 0, role: "region", "aria-label": label }, node("table", { class: "data" }, node("thead", {}, node("tr", {}, heads)), body)), more)];
}

const layerColumn = { name: "Layer", number: true, find: true, get: (row) => row.layer, show: (value) => (known(value) ? String(value) : NONE) };
const parameterColumn = { name: "Parameter", style: "name", get: (row) => row.parameter || words(row.name ?? "") };
const shapeColumn = { name: "Shape", number: true, get: (row) => product(row.shape), show: (_, row) => dims(row.shape) };
const numbers = (name, key, show = count, more = {}) => ({ name, number: true, get: (row) => row[key], show, ...more });

function statistics(rows) {
  const rms = (row) => (known(row.norm) && row.numel ? row.norm / Math.sqrt(row.numel) : null);
  const zero = (value) => (value ? count(value) : NONE);
  return table({
    label: "parameters", rows, flagged: (row) => list(row.flags).length > 0,
    columns: [
      layerColumn, parameterColumn,
      { name: "Flags", style: "flags", get: (row) => list(row.flags).join(", ") || null, show: (value) => value || "" },
      { name: "Type", get: (row) => row.dtype }, shapeColumn,
      { name: "RMS", number: true, get: rms, show: real, title: "L2 norm / \u221a(number of elements)" },
      numbers("L2 norm", "norm", real), numbers("Mean", "mean", real), numbers("Std", "std", real),
      numbers("Min", "min", real), numbers("Max", "max", real),
      numbers("Zeros", "zeros", zero), numbers("NaN", "nan", zero), numbers("Inf", "inf", zero),
      numbers("Elements", "numel"),
    ],
  });
}

/** Stored tensors by layer and parameter: the shards of a parameter are one row. */
function grouped(tensors) {
  const groups = new Map();
  for (const tensor of tensors) {
    const key = JSON.stringify(known(tensor.parameter) ? [tensor.layer, tensor.parameter] : [tensor.name]);
    const group = groups.get(key) || { layer: tensor.layer, parameter: tensor.parameter, name: tensor.name, dtypes: new Set(), shapes: new Set(), files: new Set(), tensors: 0, elements: 0, nbytes: 0 };
    group.dtypes.add(tensor.dtype);
    group.shapes.add(dims(tensor.shape));
    group.files.add(tensor.file);
    group.tensors += 1;
    group.elements += product(tensor.shape);
    group.nbytes += tensor.nbytes || 0;
    groups.set(key, group);
  }
  return table({
    label: "parameters", rows: [...groups.values()],
    columns: [
      layerColumn, parameterColumn,
      { name: "Type", get: (row) => [...row.dtypes].join(", ") },
      { name: "Stored shape", number: true, get: (row) => row.elements / row.tensors, show: (_, row) => [...row.shapes].join(", ") },
      numbers("Tensors", "tensors"),
      { name: "Files", number: true, get: (row) => row.files.size, show: count },
      numbers("Elements", "elements"), numbers("Size", "nbytes", bytes),
    ],
  });
}

function parameters() {
  const rows = list(report.statistics);
  if (rows.length) section("parameters", statistics(rows));
  else if (list(report.tensors).length) section("parameters", grouped(report.tensors));
}

/** A list that is built when it is first opened. */
function folded(title, rows, columns) {
  const inside = node("div", {});
  return node("details", { class: "panel", toggle: () => inside.childNodes.length || inside.append(...table({ columns, rows, label: title.toLowerCase() })) },
    node("summary", {}, `${title} `, node("span", {}, count(rows.length))), inside);
}

function inventory() {
  const [files, tensors] = [list(report.files), list(report.tensors)];
  const path = { name: "File", style: "name long", get: (row) => row.path };
  if (!files.length && !tensors.length) return;
  section("lists",
    files.length ? folded("Files", files, [path, { name: "Kind", get: (row) => row.kind }, numbers("Tensors", "tensors"), numbers("Size", "nbytes", bytes)]) : null,
    tensors.length ? folded("Tensors as stored", tensors, [
      { name: "Name", style: "name long", get: (row) => row.name }, { name: "File", style: "name long", get: (row) => row.file }, { name: "Type", get: (row) => row.dtype }, shapeColumn,
      numbers("Offset", "offset"), numbers("Size", "nbytes", bytes),
    ]) : null);
}

// Header and facts

function heading() {
  const path = words(report.path ?? "");
  const title = path.split("/").filter(Boolean).pop() || "Checkpoint";
  document.title = `${title} \u2013 checkpoint report`;
  document.getElementById("title").textContent = title;
  document.getElementById("what").textContent = report.what || "not recognised";
  document.getElementById("path").textContent = path;
  const model = report.model || {};
  const parallel = report.parallel || {};
  const dtypes = Object.entries(report.dtypes || {}).sort((a, b) => b[1].nbytes - a[1].nbytes);
  const degrees = ["tp", "pp"].filter((key) => known(parallel[key]));
  const tiles = [
    ["Parameters", known(model.parameters) ? short(model.parameters) : null, model.parameters >= 1e6 ? count(model.parameters) : null],
    ["Size", bytes(report.nbytes), many(list(report.files).length, "file")],
    ["Layers", known(model.num_layers) ? count(model.num_layers) : null, null],
    ["Hidden size", known(model.hidden) ? count(model.hidden) : null, known(model.heads) ? many(model.heads, "head") : null],
    ["Layout", degrees.map((key) => parallel[key]).join(" \u00d7 ") || null, degrees.map((key) => key.toUpperCase()).join(" \u00d7 ")],
    ["Type", dtypes.length ? dtypes[0][0] : null, dtypes.length > 1 ? `and ${many(dtypes.length - 1, "other")}` : null],
    ["Iteration", known(model.iteration) ? count(model.iteration) : null, null],
  ];
  for (const [name, value, more] of tiles) {
    if (value === null) continue;
    document.getElementById("tiles").append(
      node("div", {}, node("dt", {}, name), node("dd", {}, value, more && node("small", {}, more))),
    );
  }
}

function facts() {
  const model = report.model || {};
  const vocabulary = model.vocabulary || {};
  const optimizer = report.optimizer;
  const pairs = [
    ["Family", model.family],
    ["Feed-forward size", known(model.ffn) ? count(model.ffn) : null],
    ["Heads", known(model.heads) ? count(model.heads) + (known(model.kv_groups) && model.kv_groups !== model.heads ? `, ${many(model.kv_groups, "key-value group")}` : "") : null],
    ["Positions", known(model.positions) ? count(model.positions) : null],
    ["Vocabulary", ["stored", "true", "padding"].filter((key) => known(vocabulary[key])).map((key) => `${count(vocabulary[key])} ${key}`).join(", ")],
    ["Parameters per layer", known(model.parameters_per_layer) ? count(model.parameters_per_layer) : null],
    ...Object.entries(report.dtypes || {}).map(([name, held]) => [
      name,
      `${many(held.tensors, "tensor")}, ${many(held.elements, "element")}, ${bytes(held.nbytes)}`,
    ]),
    ["Optimizer", optimizer && `${optimizer.what || (optimizer.present ? "present" : "absent")}${optimizer.files ? `, ${many(optimizer.files, "file")}, ${bytes(optimizer.nbytes)}` : ""}`],
    ...list(report.evidence).map((fact) => [fact.what, fact.evidence]),
  ].filter(([, value]) => value);
  if (!pairs.length) return;
  section("facts", node("dl", { class: "facts panel" }, pairs.map(([name, value]) => [node("dt", {}, name), node("dd", {}, value)])));
}

// Findings

function findings() {
  const rank = (finding) => (SEVERITIES.indexOf(finding.severity) + SEVERITIES.length + 1) % (SEVERITIES.length + 1);
  const found = [...list(report.findings)].sort((a, b) => rank(a) - rank(b));
  if (!found.length) {
    section("findings", node("p", { class: "soft" }, "None."));
    return;
  }
  const box = node("div", { class: "findings panel" });
  const add = (some) =>
    box.append(...some.map((finding) =>
      node("div", { class: `finding is-${SEVERITIES.includes(finding.severity) ? finding.severity : "note"}` },
        node("span", { class: "severity" }, finding.severity || "note"),
        node("div", {},
          node("p", {}, finding.what || ""),
          finding.where && node("p", { class: "name" }, finding.where),
          finding.remedy && node("p", { class: "remedy" }, finding.remedy)))));
  add(found.slice(0, 30));
  if (found.length > 30) {
    box.append(node("button", { class: "plain", click: (event) => { event.target.remove(); add(found.slice(30)); } }, `Show all ${count(found.length)}`));
  }
  const tally = SEVERITIES.map((severity) => [found.filter((finding) => finding.severity === severity).length, severity]).filter(([number]) => number);
  section("findings", node("p", { class: "hint" }, tally.map(([number, severity]) => `${count(number)} ${severity}`).join(", ")), box);
}

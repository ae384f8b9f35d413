"use strict";

// Everything in the report may come from a hostile file: it is only ever put into text nodes and plain attributes.

const { report, chart } = JSON.parse(document.getElementById("data").textContent);
const PAGE_ROWS = 200; // A table shows this many rows until it is asked for more.
const SEVERITIES = ["damage", "warning", "note"];
const NONE = "\u2013";

// Making elements

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

const node = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function section(id, ...children) {
  fill(document.getElementById(id), {}, children).hidden = false;
}

// Words and numbers

const WHOLE = new Intl.NumberFormat("en-US");
const list = (value) => (Array.isArray(value) ? value : []);
const known = (value) => value !== null && value !== undefined;
const words = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const count = (value) => (known(value) ? WHOLE.format(value) : NONE);
const many = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
const dims = (value) => (list(value).length ? value.join(" \u00d7 ") : "scalar");
const product = (value) => list(value).reduce((total, length) => total * length, 1);

function bytes(value) {
  if (!known(value)) return NONE;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return unit === "B" ? `${value} B` : `${value.toFixed(2)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(2)} TiB`;
}

function real(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : value.toPrecision(4);
}

function short(value) {
  for (const [size, word] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) {
    if (value >= size) return `${(value / size).toFixed(2)} ${word}`;
  }
  return count(value);
}

/** A name that breaks behind its dots and underscores, if it must. */
const breakable = (name) => name.split(/(?<=[._/])/).flatMap((part) => [part, node("wbr")]);

/** ``[0, 1, 2, 5]`` as ``0–2, 5``. */
function ranges(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs[runs.length - 1];
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}\u2013${last}`)).join(", ");
}

/** The worse of two severities; either may be undefined. */
function worse(one, other) {
  return SEVERITIES.find((severity) => severity === one || severity === other);
}

"use strict";
// Elements are made here and nowhere else, and text only ever becomes text nodes: what a model wrote cannot turn into markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    const flag = typeof value === "boolean" && !name.startsWith("aria-"); // there "false" is a value
    if (value === null || value === undefined || (flag && !value)) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else element.setAttribute(name, flag ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

// children may be lists; null and false are left out, so that `condition && element` can be written
const nodes = (children) => children.flat().filter((child) => child !== null && child !== undefined && child !== false)
  .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));

const refill = (element, ...children) => element.replaceChildren(...nodes(children));

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const unique = (values) => [...new Set(values)];

function select(label, options, chosen, act) {
  const box = h("select", { on: { change: () => act(options[box.selectedIndex]) } },
    options.map((option) => h("option", { selected: option === chosen }, option.name ?? option)));
  return h("label", { class: "field" }, h("span", {}, label), box);
}

function chip(label, pressed, act, mark) {
  return h("button", { type: "button", class: "chip", "aria-pressed": pressed, on: { click: act } }, mark, label);
}

// n: a number with its digits, a real minus sign, and no negative zero
function shown(n, digits, signed) {
  const text = Math.abs(n) < 0.5 * 10 ** -digits ? (0).toFixed(digits) : Math.abs(n).toFixed(digits);
  const sign = Number(text) === 0 ? "" : n < 0 ? "−" : signed ? "+" : "";
  return sign + text;
}

function interval(value, digits, signed) {
  const [middle, low, high] = value;
  if (low === null || high === null) return shown(middle, digits, signed);
  return `${shown(middle, digits, signed)} [${shown(low, digits, signed)}, ${shown(high, digits, signed)}]`;
}

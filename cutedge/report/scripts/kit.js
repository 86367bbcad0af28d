// What all drawings share. Nothing is worked out here but where things go.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const by = id => document.getElementById(id);
const printed = () => root.classList.contains("print");
const tone = device => {
  const n = data.devices.indexOf(device);
  return n < 0 ? "var(--idle)" : `var(--d${n % 6})`;
};

const make = (tag, options = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...inside);
  return element;
};
const svg = (tag, options, ...inside) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
};

// --- texts: how wide they are, and where one fits -----------------------------------------------

const pen = document.createElement("canvas").getContext("2d");
const family = getComputedStyle(document.body).fontFamily, widths = new Map();
const wide = (text, size = 13) => {
  const id = `${size} ${text}`;
  if (!widths.has(id)) {
    pen.font = `${size}px ${family}`;
    widths.set(id, pen.measureText(text).width * 1.03 + 1);
  }
  return widths.get(id);
};
const clipped = (text, most, size = 13) => {
  if (wide(text, size) <= most) return text;
  let end = text.length - 1;
  while (end > 1 && wide(`${text.slice(0, end)}…`, size) > most) end -= 1;
  return `${text.slice(0, end)}…`;
};
const label = (text, x, y, anchor = "start", kind = "", size = 13) => svg(
  "text", { x, y, "text-anchor": anchor, class: kind, style: `font-size:${size}px` }, text);

// A text is where it fits: no other one, and nothing that is `taken`, is under it.
const fitting = (left, top, right, bottom) => {
  const taken = [];
  const take = (x, y, width, height) => {
    taken.push([x, y, x + width, y + height]);
    return true;
  };
  const free = (x, y, width, height) => x >= left && y >= top && x + width <= right && y + height <= bottom
    && !taken.some(([a, b, c, d]) => x < c && a < x + width && y < d && b < y + height);
  return { take, fits: (x, y, width, height) => free(x, y, width, height) && take(x, y, width, height) };
};
// Of the places around a point the first where a text fits; null without one.
const beside = (space, text, x, y, size = 12, gap = 8) => {
  const width = wide(text, size), high = size + 4;
  const places = [
    [x + gap, y - high / 2, "start"], [x - gap - width, y - high / 2, "end"],
    [x - width / 2, y - gap - high, "middle"], [x - width / 2, y + gap, "middle"],
    [x + gap, y - gap - high, "start"], [x + gap, y + gap, "start"],
    [x - gap - width, y - gap - high, "end"], [x - gap - width, y + gap, "end"],
  ];
  const found = places.find(([left, top]) => space.fits(left, top, width, high));
  if (!found) return null;
  const [left, top, anchor] = found;
  const at = anchor === "start" ? left : anchor === "end" ? left + width : left + width / 2;
  return label(text, at, top + high - 5, anchor, "halo", size);
};
// Heights of texts beside each other, in order and apart, near where they want to be.
const apart = (wanted, step, top, bottom) => {
  const order = wanted.map((_, n) => n).sort((a, b) => wanted[a] - wanted[b]);
  const at = order.map(n => wanted[n]);
  at.forEach((_, n) => { at[n] = Math.max(at[n], n ? at[n - 1] + step : top); });
  for (let n = at.length - 1; n >= 0; n -= 1) at[n] = Math.min(at[n], n + 1 < at.length ? at[n + 1] - step : bottom);
  const found = [];
  order.forEach((n, place) => { found[n] = at[place]; });
  return found;
};

// Seconds to four digits, in a unit that leaves a number of one or more.
const duration = seconds => {
  if (seconds >= 1000) return `${Math.round(seconds).toLocaleString("en")} s`;
  const [scale, unit] = [[1, "s"], [1e3, "ms"], [1e6, "us"]].find(([one]) => seconds * one >= 1 || !seconds) || [1e9, "ns"];
  return `${Number((seconds * scale).toPrecision(4))} ${unit}`;
};

// --- what is told of a mark when it is pointed at, or reached by the keyboard -------------------

const tip = make("div", { id: "tip", hidden: true, role: "tooltip" });
document.body.append(tip);
const showTip = (text, box) => {
  tip.textContent = text;
  tip.hidden = false;
  const size = tip.getBoundingClientRect(), right = box.right + 10;
  tip.style.left = `${right + size.width < innerWidth ? right : Math.max(6, box.left - size.width - 10)}px`;
  tip.style.top = `${Math.max(6, Math.min(box.top, innerHeight - size.height - 6))}px`;
};
const tell = (node, text, role = "img") => {
  node.classList.add("mark");
  node.setAttribute("role", role);
  node.setAttribute("aria-label", text);
  return node;
};
for (const event of ["mouseover", "focusin"]) document.addEventListener(event, ({ target }) => {
  const mark = target.closest(".mark");
  if (mark) showTip(mark.getAttribute("aria-label"), mark.getBoundingClientRect());
});
for (const event of ["mouseout", "focusout"]) document.addEventListener(event, () => { tip.hidden = true; });
addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

// Of a drawing one mark is reached by Tab, the others from there by the arrows.
const roved = new WeakSet();
const roving = drawn => {
  drawn.querySelectorAll(".mark").forEach((mark, n) => mark.setAttribute("tabindex", n ? -1 : 0));
  if (roved.has(drawn)) return drawn;  // what is in it has been drawn anew
  roved.add(drawn);
  drawn.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const marks = [...drawn.querySelectorAll(".mark")], here = marks.indexOf(document.activeElement);
    if (here < 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      marks[here].dispatchEvent(new MouseEvent("click", { bubbles: true }));
    } else if (step) {
      event.preventDefault();
      const next = marks[(here + step + marks.length) % marks.length];
      marks[here].setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    }
  });
  return drawn;
};

// --- drawings with axes -------------------------------------------------------------------------

const plot = (width, height, name) => svg("svg", {
  class: "plot", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": name,
});
const linear = (low, high, first, last) => value => first + (last - first) * (value - low) / (high - low || 1);
const logarithmic = (low, high, first, last) => {
  const scale = linear(Math.log10(low), Math.log10(high), first, last);
  return value => scale(Math.log10(value));
};
const key = (swatches) => make("div", { className: "keys" }, ...swatches.map(([style, name, shape = ""]) => make(
  "span", { className: "key" }, make("i", { style, className: shape }), name)));

// Grid lines and texts of an axis; of texts that would lie on each other some are left out.
const sideways = (drawn, ticks, x, top, bottom) => {
  let last = -Infinity;
  ticks.values.forEach((value, n) => {
    const at = x(value), half = wide(ticks.texts[n], 12) / 2;
    if (!ticks.texts[n] || at - half < last + 8 || at + half > drawn.getAttribute("width")) return;
    last = at + half;
    drawn.append(svg("path", { class: "grid", d: `M${at} ${top}V${bottom}` }),
      label(ticks.texts[n], at, bottom + 18, "middle", "soft tick-x", 12));
  });
};
const upwards = (drawn, ticks, y, left, right) => ticks.values.forEach((value, n) => drawn.append(
  svg("path", { class: "grid", d: `M${left} ${y(value)}H${right}` }),
  label(ticks.texts[n], left - 8, y(value) + 4, "end", "soft tick-y", 12)));
const widest = texts => Math.max(0, ...texts.map(text => wide(text, 12)));

// Policies as points, and as a table that sorts and filters; a click on either picks one.

const usable = name => data.choose.axes[name].values.some(value => value !== null);
const axisNames = Object.keys(data.choose.axes).filter(usable);

// A figure on an axis: logarithmic, with a place of its own for 0 before the smallest one.
const axisOf = (name, first, last) => {
  const { values, ticks, zero } = data.choose.axes[name];
  const above = values.filter(value => value > 0);
  const from = zero ? first + Math.sign(last - first) * 34 : first;
  if (!above.length) return { at: () => first, ticks: { values: [0], texts: ["0"] } };
  const scale = logarithmic(Math.min(...above) / 1.3, Math.max(...above) * 1.3, from, last);
  const [low, high] = [Math.min(...above) / 1.3, Math.max(...above) * 1.3];
  const inside = ticks.values.map((value, n) => [value, ticks.texts[n]]).filter(([value]) => value >= low && value <= high);
  const shown = [...(zero ? [[0, "0"]] : []), ...inside];
  return { at: value => (value > 0 ? scale(value) : first), ticks: { values: shown.map(one => one[0]), texts: shown.map(one => one[1]) } };
};

// Of points those that no other one is as good as or better than, in both figures.
const pareto = points => points.filter(([x, y]) => !points.some(([a, b]) => a <= x && b <= y && (a < x || b < y)));

const drawChooser = (place, width) => {
  const height = width < 640 ? 420 : 400;
  const { axes, policies } = data.choose;
  const unknown = policies.filter((_, n) => axes[state.x].values[n] === null || axes[state.y].values[n] === null);
  const left = widest(axes[state.y].ticks.texts) + 18, bottom = height - 46, end = width - 16, top = 22;
  const x = axisOf(state.x, left + 12, end - 12), y = axisOf(state.y, bottom - 12, top + 20);
  const drawn = plot(width, height, `Policies: ${axes[state.y].title} over ${axes[state.x].title}`), space = fitting(left, top - 6, width, bottom);
  sideways(drawn, x.ticks, x.at, top, bottom);
  upwards(drawn, y.ticks, y.at, left, end);
  drawn.append(label(axes[state.x].title, (left + end) / 2, height - 6, "middle", "soft", 12), label(axes[state.y].title, left, 12, "start", "soft", 12));
  // Policies that would lie on each other are one point: each click shows the next of them.
  const points = [], known = policies.map((_, n) => n).filter(n => !unknown.includes(policies[n]));
  for (const n of known) {
    const one = { x: axes[state.x].values[n], y: axes[state.y].values[n], all: [n] };
    const near = points.find(other => Math.hypot(x.at(one.x) - x.at(other.x), y.at(one.y) - y.at(other.y)) < 7);
    if (near) near.all.push(n);
    else points.push(one);
  }
  const places = new Map(known.map(n => [axes[state.x].values[n], axes[state.y].values[n]]).map(one => [`${one}`, one]));
  const best = pareto([...places.values()]).sort((a, b) => a[0] - b[0]);
  drawn.append(svg("path", { class: "pareto", d: best.map(([a, b], n) => (n ? `H${x.at(a)}V${y.at(b)}` : `M${x.at(a)} ${y.at(b)}`)).join("") }));
  const marks = points.map(one => {
    const mine = one.all.includes(state.policy), [a, b] = [x.at(one.x), y.at(one.y)];
    const text = one.all.map(n => `${policies[n]}\n${axisNames.map(name => `${axes[name].title}: ${axes[name].texts[n]}`).join("\n")}`).join("\n\n");
    const mark = tell(svg("circle", { cx: a, cy: b, r: mine ? 8 : 6, class: `policy ${mine ? "mine" : ""}`.trim(), "data-policies": one.all.map(n => policies[n]).join(" ") }), text, "button");
    mark.addEventListener("click", () => pick(one.all[(one.all.indexOf(state.policy) + 1) % one.all.length]));
    space.take(a - 9, b - 9, 18, 18);
    return [one, a, b, mine, mark];
  }).sort((p, q) => p[3] - q[3]);
  drawn.append(...marks.map(one => one[4]));
  const nameless = [...marks].reverse().filter(([one, a, b]) => {
    const names = one.all.map(n => policies[n]), text = names.length > 2 ? `${names[0]} and ${names.length - 1} more` : names.join(", ");
    const name = beside(space, text, a, b, 12, 12);
    if (name) drawn.append(name);
    return !name;
  });
  place.replaceChildren(roving(drawn), ...noRoom(nameless.flatMap(([one]) => one.all.map(n => policies[n]))),
    make("p", { className: "note", textContent: unknown.length ? `Not drawn, as one of the two is not known: ${unknown.join(", ")}.` : "" }));
};

const chooseAxis = (name, way) => {
  const select = make("select", { id: `axis-${way}`, onchange: event => { state[way] = event.target.value; keep(); redraw("choose"); } });
  axisNames.forEach(one => select.add(new Option(data.choose.axes[one].title, one)));
  select.value = state[way];
  return make("label", {}, `${name} `, select);
};

// --- the table ----------------------------------------------------------------------------------

const rows = [...document.querySelectorAll("#policies tbody tr")];
const heads = [...document.querySelectorAll("#policies thead th")];
const value = (row, column) => {
  const cell = row.cells[column], number = cell.dataset.value;
  return number === undefined ? cell.textContent : number === "" ? Infinity : Number(number);
};
const sortTable = () => {
  const [name, down] = [state.sort.replace(/^-/, ""), state.sort.startsWith("-")];
  const column = heads.findIndex(head => head.textContent === name);
  heads.forEach((head, n) => head.setAttribute("aria-sort", n !== column ? "none" : down ? "descending" : "ascending"));
  const order = column < 0 ? rows : [...rows].sort((a, b) => {
    const [p, q] = [value(a, column), value(b, column)];
    return (p < q ? -1 : p > q ? 1 : 0) * (down ? -1 : 1);
  });
  rows[0]?.parentNode.append(...order);
  by("sort").value = state.sort;
};
const filterTable = () => {
  const words = state.filter.toLowerCase().split(/\s+/);
  let left = 0;
  rows.forEach(row => {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    left += !row.hidden;
  });
  by("filtered").textContent = state.filter ? `${left} of ${rows.length}` : "";
};
const sortBy = name => {
  state.sort = name;
  keep();
  sortTable();
};
by("sort").add(new Option("as compared", ""));
by("sort").addEventListener("change", event => sortBy(event.target.value));
heads.forEach(head => {
  const name = head.textContent;
  by("sort").add(new Option(name, name));
  by("sort").add(new Option(`${name}, downwards`, `-${name}`));
  head.replaceChildren(make("button", { type: "button", textContent: name, title: `Sort by ${name}`, onclick: () => sortBy(state.sort === name ? `-${name}` : name) }));
});
rows.forEach((row, n) => {
  row.addEventListener("click", () => pick(n));
});
by("filter").addEventListener("input", event => { state.filter = event.target.value; keep(); filterTable(); });

// --- the files that are in the page -------------------------------------------------------------

const bytesOf = text => {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n += 1) bytes[n] = letters.charCodeAt(n);
  return bytes;
};
document.querySelectorAll("button[data-file]").forEach(button => button.addEventListener("click", async () => {
  const { file } = button.dataset, csv = file.endsWith(".csv");
  let blob = new Blob([bytesOf(by(`file-${file}`).textContent)]);
  if (csv) blob = await new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  const link = make("a", { href: URL.createObjectURL(blob), download: `${data.model.replace(/[^\w.-]+/g, "-")}-${file}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}));

// The whole model as a strip of its layers: to see it at once, and to go through it.

const HUES = {
  device: { name: "device", keys: () => data.devices.map(name => [`background:${tone(name)}`, name]) },
  cost: {
    name: "cost",
    keys: at => [0, 1].map(end => [`background:${warmth(end)}`, (end ? "the most: " : "the least: ") + amount((end ? Math.max : Math.min)(...at.costs), at.measure)]),
  },
  growth: {
    name: "growth of what crosses",
    keys: at => GROWTHS.map((name, n) => [`background:var(--g${n})`, name, n]).filter(([, , n]) => at.growths.includes(n)).map(([style, name]) => [style, name]),
  },
};
const GROWTHS = ["nothing crosses", "constant", "linear", "quadratic"];
const warmth = part => `color-mix(in oklab, var(--c1) ${Math.round(100 * part)}%, var(--c0))`;
const amount = (value, measure) => (measure === "seconds" ? duration(value) : `${value.toLocaleString("en")} FLOPs`);

// `model.layers.3` -> 3; in several stacks the first of each says its stack.
const brief = (name, before) => {
  const cut = name.lastIndexOf("."), stack = name.slice(0, Math.max(cut, 0));
  if (cut < 0 || (before !== undefined && before.startsWith(`${stack}.`))) return name.slice(cut + 1);
  return `${stack.split(".").find(part => !["model", "layers", "layer", "block"].includes(part)) || stack} ${name.slice(cut + 1)}`;
};

const overview = (at, width) => {
  const count = at.layers.length, perRow = Math.min(count, Math.max(1, Math.floor(width / 15)));
  const rowsOf = Math.ceil(count / perRow), step = Math.min(width / perRow, 90), high = 34, row = high + 26;
  const drawn = plot(width, rowsOf * row, "The layers of the model");
  const most = Math.max(...at.costs, 0) || 1, least = Math.min(...at.costs);
  const every = [1, 2, 5, 10, 20].find(one => one * step >= wide(`${count}`, 12) + 6) || 50;
  let last = [-1, -Infinity];
  at.layers.forEach((name, n) => {
    const x = (n % perRow) * step, y = Math.floor(n / perRow) * row + 3, wideCell = step - (step > 6 ? 2 : 0.5);
    const cell = svg("g", { class: "cell", "data-layer": name, "data-cost": at.costs[n], "data-growth": at.growths[n] });
    if (state.hue === "device") {
      let from = y;
      at.devices[n].forEach((share, device) => {
        const part = svg("rect", { x, y: from, width: wideCell, height: share * high });
        part.style.fill = tone(data.devices[device]);
        if (share) cell.append(part);
        from += share * high;
      });
    } else {
      const part = svg("rect", { x, y, width: wideCell, height: high });
      part.style.fill = state.hue === "cost" ? warmth(most > least ? (at.costs[n] - least) / (most - least) : 1) : `var(--g${at.growths[n]})`;
      cell.append(part);
    }
    cell.append(svg("rect", { class: "edge", x: x + 0.5, y: y - 1, width: wideCell - 1, height: high + 2 }), svg("rect", { class: "within", x: x + 2.5, y: y + 1.5, width: Math.max(wideCell - 5, 1), height: high - 3 }));
    cell.addEventListener("click", () => pickLayer(name));
    drawn.append(tell(cell, at.texts[n], "button"));
    const text = brief(name, at.layers[n - 1]), half = wide(text, 12) / 2, middle = Math.max(x + step / 2, half), line = Math.floor(n / perRow);
    if (line !== last[0]) last = [line, -Infinity];
    const counted = Number(text), due = Number.isNaN(counted) || counted % every === 0;
    if (due && middle - half > last[1] + 6 && middle + half < width) {
      last[1] = middle + half;
      drawn.append(label(text, middle, y + high + 15, "middle", "soft tick-x", 12));
    }
  });
  roving(drawn).addEventListener("keydown", event => {
    if (event.key.startsWith("Arrow") && document.activeElement.dataset.layer) openLayer(document.activeElement.dataset.layer);
  });
  const choose = make("select", { id: "hue", onchange: event => { state.hue = event.target.value; keep(); redraw("model"); } });
  for (const [name, hue] of Object.entries(HUES)) choose.add(new Option(hue.name, name));
  choose.value = state.hue;
  return [make("p", { className: "filter" }, make("label", {}, "Coloured by ", choose)), key(HUES[state.hue].keys(at)), drawn];
};

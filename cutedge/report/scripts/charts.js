// Each takes what report/figures.py or rooflines.py made, and the width; it gives what is drawn.

const ribbon = (x0, y0, x1, y1, high) => {
  const half = (x0 + x1) / 2;
  return `M${x0} ${y0}C${half} ${y0} ${half} ${y1} ${x1} ${y1}v${high}C${half} ${y1 + high} ${half} ${y0 + high} ${x0} ${y0 + high}z`;
};

const charts = {
  Flows(at, width) {
    const middle = at.columns.filter(column => column === 1).length;
    const pad = 20, thick = 14, top = 24, height = Math.max(200, top + middle * (pad + 12));
    const size = at.nodes.map((_, n) => Math.max(
      ...[["source", 0], ["target", 1]].map(([end]) => at.links.filter(one => one[end] === n).reduce((sum, one) => sum + one.payload_bytes, 0))));
    const total = size.reduce((sum, one, n) => sum + (at.columns[n] === 1 ? one : 0), 0);
    const scale = (height - top - middle * pad) / total;
    const x = [0, Math.round(width * (width < 640 ? 0.3 : 0.42)), width - thick], next = [top, top, top];
    const where = at.nodes.map((_, n) => {
      const column = at.columns[n], y = next[column];
      next[column] += Math.max(size[n] * scale, 1.5) + pad + (column === 1 ? 0 : 6);
      return { x: x[column], y, high: Math.max(size[n] * scale, 1.5), out: y, in: y };
    });
    const drawn = plot(width, Math.max(...next), "Traffic between devices");
    for (const one of at.links) {
      const from = where[one.source], to = where[one.target], high = Math.max(one.payload_bytes * scale, 0.8);
      const line = svg("path", { class: "flow", d: ribbon(from.x + thick, from.out, to.x, to.in, high), "data-value": one.payload_bytes });
      line.style.fill = tone(one.device);
      from.out += high;
      to.in += high;
      drawn.append(tell(line, one.text));
    }
    at.nodes.forEach((name, n) => {
      const { x: left, y, high } = where[n], column = at.columns[n];
      const box = svg("rect", { x: left, y, width: thick, height: high });
      box.style.fill = at.devices[n] === null ? "var(--idle)" : tone(at.devices[n]);
      drawn.append(box);
      const text = `${name}  ${at.sizes[n]}`;
      if (column === 1) drawn.append(label(clipped(text, width - left - thick - 26, 12), left + thick + 6, y + Math.max(high / 2, 4) + 4, "start", "halo node-label", 12));
      else drawn.append(label(clipped(text, width / 2 - 8, 12), column ? width : 0, y - 7, column ? "end" : "start", "halo node-label", 12));
    });
    return [drawn];
  },

  Bars(at, width, { across }) {
    const most = Math.max(at.ticks.values.at(-1), ...at.categories.map((_, n) => at.series.reduce((sum, one) => sum + one.values[n], 0)));
    const legend = key(at.series.map(one => [`background:${one.device ? tone(one.device) : "var(--idle)"}`, one.name]));
    return [legend, (across ? barsAcross : barsUp)(at, width, most)];
  },

  Growth(at, width) {
    // Where there is no room for names lines have numbers, which the names below have too.
    const few = width < 640, names = at.lines.map(line => line.policies.join(", ")), texts = few ? names.map((_, n) => `${n + 1}`) : names;
    const right = Math.min(widest(texts) * 1.08 + 30, width * 0.4);
    const left = widest(at.y_ticks.texts) + 14, height = Math.max(360, 60 + 18 * at.lines.length);
    const top = 26, bottom = height - 44, end = width - right;
    const drawn = plot(width, height, `Bytes over ${at.variable}`);
    const x = logarithmic(at.sizes[0], at.sizes.at(-1), left, end);
    const y = logarithmic(at.y_ticks.values[0], at.y_ticks.values.at(-1), bottom, top);
    sideways(drawn, at.x_ticks, x, top, bottom);
    upwards(drawn, at.y_ticks, y, left, end);
    drawn.append(label(at.variable, (left + end) / 2, height - 6, "middle", "soft", 12),
      svg("path", { class: "here", d: `M${x(at.here)} ${top - 8}V${bottom}` }),
      label("this trace", x(at.here), top - 12, x(at.here) > width / 2 ? "end" : "start", "soft", 12));
    const dashes = ["", "7 4", "2 3", "9 3 2 3"];
    const shown = data.sheets[state.policy].policy;
    const ends = apart(at.lines.map(line => y(Math.max(line.values.at(-1), at.y_ticks.values[0])) + 4), 16, top, bottom + 8);
    const order = at.lines.map((_, n) => n).sort((a, b) => at.lines[a].policies.includes(shown) - at.lines[b].policies.includes(shown));
    for (const n of order) {
      const line = at.lines[n], mine = line.policies.includes(shown);
      const points = at.sizes.map((size, p) => [x(size), line.values[p] ? y(line.values[p]) : null, p]).filter(([, up]) => up !== null);
      if (!points.length) continue;
      const group = svg("g", { class: `curve ${mine ? "mine" : ""}`.trim(), "data-values": JSON.stringify(line.values) });
      group.append(svg("path", { d: `M${points.map(([a, b]) => `${a} ${b}`).join("L")}`, "stroke-dasharray": mine ? "" : dashes[n % 4] }));
      for (const [a, b, p] of points) group.append(tell(svg("circle", { cx: a, cy: b, r: mine ? 4 : 3 }), line.texts[p]));
      const [, last] = points.at(-1);
      group.append(svg("path", { class: "leader", d: `M${end + 4} ${last}L${end + 16} ${ends[n] - 4}` }),
        label(clipped(texts[n], right - 22, 12), end + 20, ends[n], "start", "end-label", 12));
      drawn.append(group);
    }
    for (const one of at.crossings) drawn.append(tell(svg("circle", { class: "crossing", cx: x(one.size), cy: y(one.payload_bytes), r: 7 }), one.text));
    // Lines that no eye tells apart are named together.
    const place = line => line.values.map(value => y(Math.max(value, at.y_ticks.values[0])));
    const alike = at.lines.reduce((groups, line, n) => {
      const mine = place(line), group = groups.find(([first]) => place(at.lines[first]).every((up, p) => Math.abs(up - mine[p]) < 3));
      if (group) group.push(n);
      else groups.push([n]);
      return groups;
    }, []).filter(group => group.length > 1);
    const list = few ? [make("ol", { className: "numbered" }, ...names.map((name, n) => make("li", { textContent: name, className: at.lines[n].policies.includes(shown) ? "mine" : "" })))] : [];
    const told = alike.map(group => `${group.map(n => names[n]).join(" and ")} lie on each other here.`);
    return [drawn, ...list, ...told.map(text => make("p", { className: "note", textContent: text }))];
  },

  Roofline(at, width) {
    const height = 440, left = widest(at.y_ticks.texts) + 14, top = 12, bottom = height - 44, end = width - 8;
    const x = logarithmic(...at.x_range, left, end), y = logarithmic(...at.y_range, bottom, top);
    const drawn = plot(width, height, "FLOPs a second over FLOPs a byte"), space = fitting(left, top, end, bottom);
    sideways(drawn, at.x_ticks, x, top, bottom);
    upwards(drawn, at.y_ticks, y, left, end);
    drawn.append(label("FLOPs a byte", (left + end) / 2, height - 6, "middle", "soft", 12), label("FLOP/s", left + 6, top + 12, "start", "soft halo", 12));
    space.take(left, top, 60, 16);
    for (const roof of at.roofs) {
      const [first, ridge] = roof.intensities.map((value, n) => [x(value), y(roof.rates[n])]), to = [end, ridge[1]];
      const cut = Math.max(0, (first[1] - bottom) / (first[1] - ridge[1]));  // what is below the axis
      const from = [first[0] + (ridge[0] - first[0]) * cut, Math.min(first[1], bottom)];
      for (let part = 0; part <= 1; part += 0.02) {  // names keep off the roof
        for (const [a, b] of [[from, ridge], [ridge, to]]) space.take(a[0] + (b[0] - a[0]) * part - 2, a[1] + (b[1] - a[1]) * part - 2, 4, 4);
      }
      drawn.append(tell(svg("path", { class: "roof", d: `M${[from, ridge, to].join("L")}` }), roof.text),
        svg("path", { class: "here", d: `M${x(roof.ridge)} ${top}V${bottom}` }));
    }
    const drawnMarks = at.marks.map(one => {
      const [a, b] = [x(one.intensity), y(one.rate)], r = Math.max(4, Math.sqrt(one.share) * 17);
      const mark = bounds[one.bound].shape(a, b, r);
      mark.setAttribute("class", `op ${one.bound}`);
      space.take(a - r, b - r, 2 * r, 2 * r);
      drawn.append(tell(mark, one.text));
      return [one, a, b, r];
    });
    const nameless = drawnMarks.filter(([one, a, b, r]) => {
      const name = beside(space, clipped(one.name, width / 3, 12), a, b, 12, r + 4);
      if (name) drawn.append(name);
      return !name;
    });
    at.roofs.forEach((roof, n) => {
      const text = clipped(roof.label, end - left - 8, 12), size = wide(text, 12);
      const from = Math.max(left + 4, x(roof.ridge) - size - 6), up = bottom - 8 - 18 * n;
      if (space.fits(from, up - 13, size, 16)) drawn.append(label(text, from, up, "start", "soft halo annotation-text", 12));
    });
    const there = Object.keys(bounds).filter(bound => at.marks.some(one => one.bound === bound));
    return [key(there.map(bound => [`background:${bounds[bound].tone}`, bounds[bound].name, bounds[bound].swatch])), drawn, ...noRoom(nameless.map(([one]) => one.name))];
  },
};

const noRoom = names => (names.length ? [make("p", { className: "note", textContent: `Without room for a name: ${names.join(", ")}.` })] : []);

// Bounds have colours of their own, and a shape each.
const bounds = {
  compute: { name: "most time computing", tone: "var(--b0)", swatch: "round", shape: (x, y, r) => svg("circle", { cx: x, cy: y, r }) },
  memory: { name: "most time reading and writing", tone: "var(--b1)", swatch: "", shape: (x, y, r) => svg("rect", { x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8 }) },
  overhead: { name: "most time starting ops", tone: "var(--b2)", swatch: "slanted", shape: (x, y, r) => svg("path", { d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}z` }) },
};

const barsUp = (at, width, most) => {
  const height = 320, left = widest(at.ticks.texts) + 14, top = 8, bottom = height - 44;
  const drawn = plot(width, height, `${at.axis} by layer`), step = (width - left) / at.categories.length;
  const y = linear(0, most, bottom, top), gap = Math.min(step * 0.28, 10);
  upwards(drawn, at.ticks, y, left, width);
  let last = -Infinity;
  at.categories.forEach((name, n) => {
    const x = left + n * step, half = wide(name, 12) / 2;
    let foot = bottom;
    const group = svg("g", { class: "bars", "data-category": name });
    for (const one of at.series) {
      const up = foot - (bottom - y(one.values[n]));
      const bar = svg("rect", { class: "point", x: x + gap / 2, y: up, width: Math.max(step - gap, 0.8), height: foot - up, "data-value": one.values[n] });
      bar.style.fill = one.device ? tone(one.device) : "var(--idle)";
      if (one.values[n]) group.append(tell(bar, one.texts[n]));
      foot = up;
    }
    drawn.append(group);
    if (x + step / 2 - half > last + 8 && x + step / 2 + half < width) {
      last = x + step / 2 + half;
      drawn.append(label(name, x + step / 2, bottom + 17, "middle", "soft tick-x", 12));
    }
  });
  drawn.append(label("layer", (left + width) / 2, height - 6, "middle", "soft", 12));
  return drawn;
};

const barsAcross = (at, width, most) => {
  const stacked = width < 640, step = stacked ? 42 : 30;
  const left = stacked ? 0 : Math.min(widest(at.categories) + 12, width * 0.4);
  const end = width - wide(at.ticks.texts.at(-1), 12) / 2 - 2, bottom = at.categories.length * step + 6;
  const drawn = plot(width, bottom + 44, at.axis), x = linear(0, most, left, end);
  sideways(drawn, at.ticks, x, 0, bottom);
  drawn.append(label(at.axis, (left + end) / 2, bottom + 38, "middle", "soft", 12));
  at.categories.forEach((name, n) => {
    const top = n * step;
    drawn.append(stacked ? label(clipped(name, width, 12), 0, top + 14, "start", "tick-y halo", 12)
      : label(clipped(name, left - 12, 12), left - 10, top + 20, "end", "tick-y", 12));
    let from = left;
    const group = svg("g", { class: "bars", "data-category": name });
    for (const one of at.series) {
      const long = x(one.values[n]) - left;
      const bar = svg("rect", { class: "point", x: from, y: top + (stacked ? 20 : 6), width: Math.max(long, 0.8), height: 18, "data-value": one.values[n] });
      bar.style.fill = one.device ? tone(one.device) : "var(--idle)";
      if (one.values[n]) group.append(tell(bar, one.texts[n]));
      from += long;
    }
    drawn.append(group);
  });
  return drawn;
};

// A drawing in its place; or why there is none.
const draw = (place, at, width, options = {}) => {
  if (at.why !== undefined) {
    place.replaceChildren(make("p", { className: "why", textContent: at.why }));
    return;
  }
  const parts = charts[at.kind](at, Math.max(width, 260), options);
  place.replaceChildren(...parts, ...(at.note ? [make("p", { className: "note", textContent: at.note })] : []));
  place.querySelectorAll("svg.plot").forEach(roving);
};

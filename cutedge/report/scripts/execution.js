// When ops run and tensors move: lanes on a time axis, as report/execution.py has them in columns.

const WAITS = ["", "there (data)", "over (order)", "off the lane (resource)"];

// The columns by slot, in seconds; what each lane, call and layer has.
const unpackTime = at => {
  if (at.slots) return at;
  let clock = 0;
  const lanes = at.lanes.map(() => []), calls = new Map(), spans = new Map();
  at.slots = at.start.map((step, n) => {
    clock += step;
    const seconds = at.durations[at.length[n]], begin = clock * at.tick_seconds;
    const [name, ...more] = at.labels[at.label[n]].split("\n");
    const slot = { n, name, more, seconds, begin, end: begin + (seconds || 0), layer: at.layers[at.layer[n]], call: at.call[n], critical: at.critical[n] === 1, device: at.devices[at.device[n]], lane: at.lane[n], moves: at.lanes[at.lane[n]].name.includes(">"), request: at.request[n] };
    lanes[slot.lane].push(slot);
    if (at.also[n]) lanes[at.also[n] - 1].push({ ...slot, aside: true });
    if (slot.call) {
      const id = `${slot.call} ${slot.request}`;
      calls.set(id, [...(calls.get(id) || []), slot]);
    }
    const span = spans.get(slot.layer);
    if (slot.request === 0) spans.set(slot.layer, span ? [Math.min(span[0], begin), Math.max(span[1], slot.end)] : [begin, slot.end]);
    return slot;
  });
  spans.set("outside", [0, at.makespan_seconds]);
  return Object.assign(at, { inLanes: lanes, inCalls: calls, spans });
};

const tellSlot = (at, slot) => {
  const [first, ...others] = slot.more, mates = at.inCalls.get(`${slot.call} ${slot.request}`) || [];
  const crossing = mates.filter(one => one.moves).map(one => `  ${one.device} sends ${one.name}, ${one.more[0].split(" of ")[0]}`);
  const before = at.waits[slot.n] ? at.slots[slot.n - at.waits[slot.n]] : null;
  return [
    `${slot.name}${at.requests > 1 ? `, request ${slot.request + 1}` : ""}`, first, ...others,
    `${at.lanes[slot.lane].name}: ${slot.seconds === null ? "seconds not known" : duration(slot.seconds)}, from ${duration(slot.begin)} to ${duration(slot.end)}`,
    ...(before ? [`starts when ${before.name} is ${WAITS[at.wait[slot.n]]}`] : []),
    ...(slot.critical ? ["on the critical path"] : []),
    ...(slot.layer !== layerShown() ? [`of ${slot.layer === "outside" ? "no layer" : `layer ${slot.layer}: a click opens it`}`] : []),
    ...(slot.call ? [`call ${(slot.call - 1).toLocaleString("en")}: ${at.calls[slot.call - 1]}`, ...crossing.slice(0, 12), ...(crossing.length > 12 ? [`  and ${crossing.length - 12} more`] : [])] : []),
  ].join("\n");
};

// Round steps of time, about so many of them.
const timeTicks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough * 0.999);
  const [scale, unit] = [[1, "s"], [1e3, "ms"], [1e6, "us"], [1e9, "ns"]].find(([one]) => Math.max(Math.abs(low), Math.abs(high)) * one >= 1) || [1e9, "ns"];
  const digits = Math.max(0, -Math.floor(Math.log10(step * scale) + 1e-9)), found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high * (1 + 1e-9); n += 1) found.push([n * step, `${(n * step * scale).toFixed(digits)} ${unit}`]);
  return found;
};

// Slots of a lane as they are drawn: those too narrow to be seen are taken together.
const runsOf = (slots, x, low, high) => {
  const found = [];
  for (const slot of slots) {
    if (slot.end < low || slot.begin > high) continue;
    const left = x(Math.max(slot.begin, low)), right = x(Math.min(slot.end, high)), before = found.at(-1);
    const thin = right - left < 2;
    if (thin && before?.count && left - before.right < 1) {
      Object.assign(before, { right: Math.max(right, before.right), count: before.count + 1, own: before.own + !slot.aside, busy: before.busy + right - left, slots: before.count < 40 ? [...before.slots, slot] : before.slots });
    } else found.push({ slot, left, right, count: thin ? 1 : 0, own: slot.aside ? 0 : 1, busy: right - left, slots: [slot] });
  }
  return found;
};

const execution = (at, width, layer) => {
  unpackTime(at);
  const span = at.spans.get(layer) || at.spans.get("outside"), whole = at.makespan_seconds;
  const room = Math.max((span[1] - span[0]) * 0.03, whole * 1e-9);
  const around = [Math.max(0, span[0] - room), Math.min(whole, span[1] + room)];
  const origin = at.spans.has(layer) ? span[0] : 0;
  let [low, high] = around, found = [], here = -1;
  const tall = 30, row = 58, height = at.lanes.length * row + 46, top = 20;
  const drawn = plot(width, height, `When it runs: ${at.title}`);
  drawn.classList.add("time");
  drawn.setAttribute("tabindex", -1);
  const render = () => {
    const x = linear(low, high, 0, width), held = drawn.contains(document.activeElement) ? document.activeElement : null, bottom = at.lanes.length * row;
    drawn.replaceChildren();
    Object.assign(drawn.dataset, { from: low, to: high });
    let after = -Infinity;
    for (const [value, text] of timeTicks(low - origin, high - origin, Math.max(3, width / 95))) {
      const place = x(value + origin), half = wide(text, 12) / 2;
      drawn.append(svg("path", { class: "grid", d: `M${place} ${top}V${bottom}` }));
      if (place - half < Math.max(0, after + 8) || place + half > width) continue;
      after = place + half;
      drawn.append(label(text, place, bottom + 17, "middle", "soft tick-x", 12));
    }
    const named = at.spans.has(layer) && layer !== "outside";
    drawn.append(label(clipped(named ? `since layer ${layer} begins, ${duration(origin)} into the run` : "since the run begins", width, 12), width / 2, bottom + 38, "middle", "soft", 12));
    const steps = [], names = [];
    at.lanes.forEach((lane, place) => {
      const y = place * row + top, name = clipped(lane.name, width * 0.6);
      drawn.append(svg("rect", { class: "lane", x: 0, y, width, height: tall }));
      names.push(label(name, 0, y - 6, "start", "lane-name halo", 13));
      const beside = wide(name) * 1.12 + 10;
      if (beside + wide(lane.told, 12) < width) names.push(label(lane.told, beside, y - 6, "start", "soft halo", 12));
      let line = "";
      for (const run of runsOf(at.inLanes[place], x, low, high)) {
        const { slot, left, right } = run, size = Math.max(right - left, 0.7);
        const bar = svg("rect", { class: ["slot", run.count > 1 && "dense", slot.aside && "aside", slot.layer !== layer && "other"].filter(Boolean).join(" "), x: left, y: y + 1, width: size, height: tall - 2, rx: size > 8 ? 3 : 0 });
        bar.style.setProperty("--tone", tone(slot.device));
        if (run.count > 1) {
          bar.style.fillOpacity = 0.35 + 0.65 * Math.min(1, run.busy / size);
          bar.dataset.count = run.own;
          tell(bar, `${run.count.toLocaleString("en")} here, too short to be drawn apart: zoom in\n${[...new Set(run.slots.map(one => one.name))].slice(0, 12).join(", ")}`);
        } else {
          Object.assign(bar.dataset, { slot: slot.n, lane: at.lanes[place].name, start: slot.begin, seconds: slot.seconds ?? "", call: slot.call ? `${slot.call} ${slot.request}` : "", critical: slot.critical });
          tell(bar, slot.aside ? `sends, and does nothing else meanwhile:\n${tellSlot(at, slot)}` : tellSlot(at, slot));
        }
        drawn.append(bar);
        if (run.count <= 1 && wide(slot.name, 12) + 8 < size) drawn.append(label(slot.name, left + size / 2, y + 19, "middle", "slot-name", 12));
        for (const one of run.count > 1 ? [] : [slot]) if (one.critical && !one.aside) steps.push([slot, left, left + size, y]);
        if (run.count > 1 && run.slots.some(one => one.critical)) line += `M${left} ${y + tall + 2}h${size}`;
      }
      if (line) drawn.append(svg("path", { class: "critical", d: line }));
    });
    // From each critical slot to the one that waits for it.
    steps.sort((p, q) => p[0].n - q[0].n);
    const along = steps.map(([, left, right, y]) => `M${left} ${y + tall + 2}H${right}`);
    const over = steps.length > width / 6 ? [] : steps.slice(1).flatMap(([slot, left, , y], n) => {
      const [before, , , from] = steps[n];
      return at.slots[slot.n - at.waits[slot.n]] === before && from !== y ? [`M${left} ${from + tall + 2}V${y + tall + 2}`] : [];
    });
    drawn.append(svg("path", { class: "critical", d: along.join("") }), svg("path", { class: "critical over", d: over.join("") }));
    drawn.append(...names);
    roving(drawn);
    if (held) (drawn.querySelector(`[data-slot="${held.dataset.slot}"]`) || drawn.querySelector(".mark"))?.focus({ preventScroll: true });
  };
  // A call's ops and tensors stand out while one of them is pointed at or has the focus.
  const together = call => {
    drawn.classList.toggle("calling", !!call);
    drawn.querySelectorAll(".slot").forEach(one => one.classList.toggle("with", !!call && one.dataset.call === call));
  };
  for (const event of ["mouseover", "focusin"]) drawn.addEventListener(event, ({ target }) => together(target.dataset?.call));
  for (const event of ["mouseleave", "focusout"]) drawn.addEventListener(event, () => together(""));
  const look = (from, to) => {
    const least = whole * 1e-7, size = Math.min(Math.max(to - from, least), whole);
    low = Math.max(0, Math.min((from + to) / 2 - size / 2, whole - size));
    high = low + size;
    tip.hidden = true;
    render();
  };
  const zoom = (factor, part = 0.5) => {
    const middle = low + (high - low) * part;
    look(middle - (middle - low) * factor, middle + (high - middle) * factor);
  };
  const pan = part => look(low + (high - low) * part, high + (high - low) * part);
  const part = event => {
    const box = drawn.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  };
  drawn.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, part(event));
  }, { passive: false });
  let grip = null, dragged = false;
  drawn.addEventListener("pointerdown", event => { grip = [part(event), low, high]; dragged = false; });
  drawn.addEventListener("pointermove", event => {
    if (!grip || !event.buttons) return;
    const moved = (grip[0] - part(event)) * (grip[2] - grip[1]);
    if (!dragged && Math.abs(grip[0] - part(event)) < 0.005) return;
    dragged = true;
    look(grip[1] + moved, grip[2] + moved);
  });
  drawn.addEventListener("pointerup", () => { grip = null; });
  drawn.addEventListener("dblclick", () => look(...around));
  drawn.addEventListener("click", ({ target }) => {
    const slot = at.slots[target.dataset.slot];
    if (slot && !dragged && slot.layer !== layer && slot.layer !== "outside") openLayer(slot.layer);
  });
  const keys = { "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: () => look(...around), PageDown: () => pan(0.8), PageUp: () => pan(-0.8) };
  drawn.addEventListener("keydown", event => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  const button = (text, title, act) => make("button", { textContent: text, title, type: "button", onclick: act });
  const said = make("span", { role: "status", className: "found" });
  const go = step => {
    if (!found.length) return;
    here = (here + step + found.length) % found.length;
    const slot = found[here], size = Math.max(Math.min(high - low, span[1] - span[0]), slot.end - slot.begin);
    look((slot.begin + slot.end - size) / 2, (slot.begin + slot.end + size) / 2);
    if (slot.end - slot.begin < size * 0.01) look(slot.begin - (slot.end - slot.begin) * 20, slot.end + (slot.end - slot.begin) * 20);
    said.textContent = `${(here + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}: ${slot.name}, layer ${slot.layer}`;
    const bar = drawn.querySelector(`[data-slot="${slot.n}"]:not(.aside)`);
    bar?.classList.add("hit");
    together(bar?.dataset.call);
  };
  const search = make("input", { id: "find", type: "search", autocomplete: "off" });
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length ? at.slots.filter(slot => { const text = `${slot.name} ${slot.more.join(" ")}`.toLowerCase(); return words.every(word => text.includes(word)); }) : [];
    here = found.findIndex(slot => slot.begin >= low) - 1;
    if (here < -1) here = -1;
    together("");
    if (found.length) go(1);
    else said.textContent = words.length ? "not found" : "";
  });
  search.addEventListener("keydown", event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    go(event.shiftKey ? -1 : 1);
  });
  render();
  return [
    make("h3", { textContent: at.title }),
    make("p", { className: "filter" }, make("label", {}, "Find an op or a tensor ", search), button("Next", "The next one (or Enter)", () => go(1)), said),
    make("div", { className: "zoom" }, make("div", { className: "bar" },
      button("+", "Zoom in (or Ctrl and the wheel)", () => zoom(0.6)), button("−", "Zoom out", () => zoom(1 / 0.6)),
      button("←", "Earlier", () => pan(-0.5)), button("→", "Later", () => pan(0.5)),
      button("Layer", "The layer again (or double-click)", () => look(...around)), button("Whole run", "All of the run", () => look(0, whole))), drawn),
    ...(at.note ? [make("p", { className: "note", textContent: at.note })] : []),
  ];
};

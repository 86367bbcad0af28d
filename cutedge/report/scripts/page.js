// What is shown, and where the address keeps it.

const select = by("policy");
const state = { policy: data.shown, layer: "", hue: "device", x: "", y: "", sort: "", filter: "", at: "" };
let goTo = "";  // the part of the page that the address names, once all is drawn
const first = { ...state, x: axisNames[0], y: axisNames.includes("calls") ? "calls" : axisNames[0] };
Object.assign(state, first);

// `#policy=min-cut&layer=3`: what is not as it was at first; `#flows` alone is a part of the page.
const keep = () => {
  const words = new URLSearchParams();
  for (const [name, one] of Object.entries(state)) if (one !== first[name]) words.set(name, name === "policy" ? data.sheets[one].policy : one);
  history.replaceState(null, "", words.size ? `#${words}` : location.pathname + location.search);
};
const read = () => {
  const text = decodeURIComponent(location.hash.slice(1));
  if (text && !text.includes("=")) {
    state.at = goTo = by(text) ? text : "";
    keep();
    return;  // the browser goes there by itself, and again once all is drawn
  }
  const words = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, first, Object.fromEntries([...words].filter(([name]) => name in first && name !== "policy")));
  for (const way of ["x", "y"]) if (!axisNames.includes(state[way])) state[way] = first[way];
  const n = data.sheets.findIndex(sheet => sheet.policy === words.get("policy"));
  state.policy = n < 0 ? data.shown : n;
  if (!(state.hue in HUES)) state.hue = first.hue;
  goTo = state.at || (state.layer && "model");
};

const pick = n => {
  state.policy = n;
  keep();
  drawPolicy();
};

// --- the large drawings of a policy: unpacked when it is picked ----------------------------------

const sheets = new Map();
const unpack = async n => {
  if (!sheets.has(n)) {
    const stream = new Blob([bytesOf(by(`sheet-${n}`).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    sheets.set(n, await new Response(stream).json());
  }
  return sheets.get(n);
};
const large = () => sheets.get(state.policy);

// --- the layer that is open ----------------------------------------------------------------------

const layerShown = () => {
  const { model, block } = large() || {};
  const known = model?.layers || Object.keys(block?.layers || {});
  return known.includes(state.layer) ? state.layer : block?.shown ?? "";
};
const openLayer = name => {
  state.layer = name;
  keep();
  markLayer();
  redraw("time");
  redraw("block");
};
const pickLayer = name => openLayer(state.layer === name ? "" : name);
const markLayer = () => {
  const open = layerShown();
  document.querySelectorAll("#draw-layers .bars").forEach(one => {
    one.classList.toggle("picked", one.dataset.category === state.layer);
    one.classList.toggle("aside", state.layer !== "" && one.dataset.category !== state.layer);
  });
  document.querySelectorAll("#draw-model .cell").forEach(one => {
    one.classList.toggle("picked", one.dataset.layer === open);
    one.setAttribute("aria-pressed", one.dataset.layer === open);
  });
};

// --- all parts, each in its place ----------------------------------------------------------------

const why = (place, text) => place.replaceChildren(make("p", { className: "why", textContent: text }));
const put = (of, options) => (place, width) => draw(place, of(data.sheets[state.policy]), width, options);
const parts = {
  choose: drawChooser,
  seen: place => drawSeen(place, data.sheets[state.policy].seen),
  model: (place, width) => {
    const at = large().model;
    if (at.why !== undefined) return why(place, at.why);
    place.replaceChildren(...overview(at, width));
    return markLayer();
  },
  time: (place, width) => {
    const at = large().time;
    if (at.why !== undefined) why(place, at.why);
    else place.replaceChildren(...execution(at, width, layerShown()));
  },
  block: place => {
    const at = large().block, layer = layerShown(), one = at.why === undefined ? at.layers[layer] : at;
    if (!one || one.why !== undefined) why(place, one?.why || `Layer ${layer} has no ops of its own.`);
    else place.replaceChildren(...block(at, layer));
  },
  flows: put(sheet => sheet.flows),
  layers: (place, width) => {
    put(sheet => sheet.layers)(place, width);
    place.querySelectorAll(".bars").forEach(one => one.addEventListener("click", () => pickLayer(one.dataset.category)));
    markLayer();
  },
  calls: put(sheet => sheet.calls, { across: true }),
  growth: put(() => data.growth),
  ...Object.fromEntries(data.devices.flatMap((_, n) => [
    [`roofline-${n}`, put(sheet => sheet.rooflines[n])], [`cycles-${n}`, put(sheet => sheet.cycles[n], { across: true })],
  ])),
};
// The width of all drawings: that of a section without its padding.
const roomy = () => {
  const style = getComputedStyle(by("policies"));
  return Math.max(260, by("policies").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
};
const PACKED = ["model", "time", "block"];
const redraw = name => {
  const place = by(`draw-${name}`);
  if (place && (large() || !PACKED.includes(name))) parts[name](place, roomy());
};

// What is on the screen is drawn at once, what is not in turns, the nearest first: the page answers.
let turn = 0;
const soon = act => (document.hidden ? setTimeout(act) : requestAnimationFrame(() => setTimeout(act)));  // once it is painted
const drawParts = () => {
  const mine = turn += 1;
  delete root.dataset.drawn;
  // All is measured before anything changes: else each drawing would have the page laid out again.
  const width = roomy(), boxes = new Map([...document.querySelectorAll("main > section")].map(one => [one, one.getBoundingClientRect()]));
  const jobs = Object.keys(parts).flatMap(name => {
    const place = by(`draw-${name}`);
    if (!place) return [];
    const box = boxes.get(place.closest("section"));
    return [{ name, place, away: Math.max(box.top - innerHeight, -box.bottom, 0) }];
  }).sort((p, q) => p.away - q.away);
  const ready = job => large() || !PACKED.includes(job.name);
  const next = () => {
    if (mine !== turn) return;  // another policy was picked meanwhile
    const until = performance.now() + 12;
    for (let n = jobs.findIndex(ready); n >= 0 && (printed() || !jobs[n].away || performance.now() < until); n = jobs.findIndex(ready)) {
      const [job] = jobs.splice(n, 1);
      parts[job.name](job.place, width);
    }
    if (!jobs.some(job => !job.away)) root.dataset.answered = data.sheets[state.policy].policy;
    if (jobs.some(ready)) soon(next);
    else if (!jobs.length) {
      root.dataset.drawn = Math.round(performance.now());
      if (goTo) by(goTo)?.scrollIntoView();
      goTo = "";
    }
  };
  next();
  if (!large()) {
    unpack(state.policy).then(() => (jobs.some(job => !job.away) ? next() : soon(next)), () => jobs.filter(job => !ready(job)).forEach(job => why(job.place, "This browser cannot unpack what is drawn here: it lacks DecompressionStream.")));
  }
};
const drawPolicy = () => {
  const sheet = data.sheets[state.policy];
  select.selectedIndex = state.policy;
  decide(sheet);
  rows.forEach((row, n) => {
    row.classList.toggle("shown", n === state.policy);
    row.querySelector("button").setAttribute("aria-pressed", n === state.policy);
  });
  drawParts();
};
const drawAll = () => {
  by("filter").value = state.filter;
  for (const way of ["x", "y"]) if (by(`axis-${way}`)) by(`axis-${way}`).value = state[way];
  sortTable();
  filterTable();
  drawPolicy();
};

data.sheets.forEach((sheet, n) => select.add(new Option(sheet.policy, n)));
select.addEventListener("change", () => pick(select.selectedIndex));
document.querySelectorAll(".key i[data-device]").forEach(one => { one.style.background = `var(--d${one.dataset.device % 6})`; });
read();
by("axes")?.append(chooseAxis("across", "x"), chooseAxis("upwards", "y"));
addEventListener("hashchange", () => { read(); drawAll(); });
let drawnAt = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === drawnAt || printed()) return;
  drawnAt = innerWidth;
  drawPolicy();
});
const printing = on => {
  if (printed() === on) return;
  root.classList.toggle("print", on);
  root.classList.toggle("light", on);
  drawPolicy();
};
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));
matchMedia("print").addEventListener("change", event => printing(event.matches));
drawAll();

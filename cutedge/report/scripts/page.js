// What is shown, and where the address keeps it.

const select = by("policy");
const state = { policy: data.shown, layer: "", x: "", y: "", sort: "", filter: "", at: "" };
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
    state.at = by(text) ? text : "";
    keep();
    return;  // the browser goes there by itself, and again once all is drawn
  }
  const words = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, first, Object.fromEntries([...words].filter(([name]) => name in first && name !== "policy")));
  for (const way of ["x", "y"]) if (!axisNames.includes(state[way])) state[way] = first[way];
  const n = data.sheets.findIndex(sheet => sheet.policy === words.get("policy"));
  state.policy = n < 0 ? data.shown : n;
};

const pick = n => {
  state.policy = n;
  keep();
  drawPolicy();
};
const pickLayer = name => {
  state.layer = state.layer === name ? "" : name;
  keep();
  markLayer();
};
const markLayer = () => document.querySelectorAll("#draw-layers .bars").forEach(one => {
  one.classList.toggle("picked", one.dataset.category === state.layer);
  one.classList.toggle("aside", state.layer !== "" && one.dataset.category !== state.layer);
});

let goTo = "";  // the part of the page that the address names, once all is drawn

// What is on the first screen changes at once, what is below it in turns, so that the page answers.
let turn = 0;
const inTurns = jobs => {
  const mine = turn += 1;
  delete root.dataset.drawn;
  const next = () => {
    if (mine !== turn) return;  // another policy was picked meanwhile
    const until = performance.now() + 12;
    while (jobs.length && (printed() || performance.now() < until)) jobs.shift()();
    if (jobs.length) setTimeout(next);
    else root.dataset.drawn = Math.round(performance.now());
  };
  if (printed()) next();
  else requestAnimationFrame(next);
};

const put = (id, at, options) => () => { if (by(`draw-${id}`)) draw(by(`draw-${id}`), at, options); };
const putLayers = sheet => () => {
  put("layers", sheet.layers)();
  document.querySelectorAll("#draw-layers .bars").forEach(one => one.addEventListener("click", () => pickLayer(one.dataset.category)));
  markLayer();
};
const drawPolicy = () => {
  const sheet = data.sheets[state.policy];
  select.selectedIndex = state.policy;
  decide(sheet);
  rows.forEach((row, n) => {
    row.classList.toggle("shown", n === state.policy);
    row.querySelector("button").setAttribute("aria-pressed", n === state.policy);
  });
  inTurns([
    drawChooser,
    () => drawSeen(sheet.seen),
    put("flows", sheet.flows),
    putLayers(sheet),
    put("calls", sheet.calls, { across: true }),
    put("block", sheet.block),
    put("growth", data.growth),
    ...data.devices.flatMap((_, n) => [
      put(`roofline-${n}`, sheet.rooflines[n]), put(`cycles-${n}`, sheet.cycles[n], { across: true }),
    ]),
    () => { if (goTo) by(goTo)?.scrollIntoView(); goTo = ""; },
  ]);
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
goTo = state.at;
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

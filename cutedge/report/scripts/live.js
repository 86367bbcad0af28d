// The page of `report --serve`: sliders, and what the process answers to them.

const STEPS = 240;
const sliders = Object.fromEntries(data.sliders.map(one => [one.name, one]));
const state = { policy: data.shown, wire: data.wire };
for (const one of data.sliders) state[one.name] = one.value;  // null: as the link is described

// Positions are even in the logarithm; a size is one that people say, in sixteenths.
const toValue = ({ least, most, whole }, position) => {
  const exact = least * (most / least) ** (position / STEPS);
  const step = whole ? 2 ** Math.max(0, Math.floor(Math.log2(exact)) - 4) : 10 ** (Math.floor(Math.log10(exact)) - 1);
  const value = Math.round(exact / step) * step;
  return whole ? Math.min(Math.max(value, least), most) : Number(value.toPrecision(2));
};
const toPosition = ({ least, most }, value) => Math.round(STEPS * Math.log(Math.max(value, least) / least) / Math.log(most / least || 2));

const show = name => {
  const one = sliders[name], value = state[name] ?? one.described;
  by(`range-${name}`).value = value === null ? 0 : toPosition(one, value);
  by(`range-${name}`).setAttribute("aria-valuetext", value === null ? "not known" : `${value} ${one.unit}`);
  by(`number-${name}`).value = value === null ? "" : value;
  const reset = document.querySelector(`button[data-reset=${name}]`);
  if (reset) reset.disabled = state[name] === null;
};

// `#seq=2048&policy=min-cut`: what is not as it was at first.
const first = { ...state };
const keep = () => {
  const words = new URLSearchParams();
  for (const [name, one] of Object.entries(state)) if (one !== first[name]) words.set(name, one);
  history.replaceState(null, "", words.size ? `#${words}` : location.pathname);
};
const read = () => {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) {
    const text = words.get(name), number = Number(text);
    state[name] = text === null ? first[name] : !sliders[name] ? text : Number.isFinite(number) ? number : first[name];
  }
};

// --- what is asked ------------------------------------------------------------------------------

const point = () => ({
  sizes: Object.fromEntries(data.sliders.filter(one => one.whole).map(one => [one.name, state[one.name]])),
  bandwidth: state.bandwidth === null ? null : Math.round(state.bandwidth * 1e9),
  latency: state.latency === null ? null : state.latency / 1e6,
  wire: state.wire, policy: state.policy,
});
const asked = async (where, signal) => {
  const reply = await fetch(where, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(point()), signal });
  return reply.json();
};
const said = text => { by("status").textContent = text; };

// One question at a time: while one is out the sliders move on, and the last place is asked next.
let out = false, next = false, solving = null;
const update = async () => {
  solving?.abort();  // its answer would be of another place
  if (out) { next = true; return; }
  out = true;
  const begun = performance.now();
  try {
    draw(await asked("/at"));
    root.dataset.milliseconds = (performance.now() - begun).toFixed(1);
  } catch {
    said("The process does not answer: it was stopped. Start it again, then load this page anew.");
  }
  out = false;
  if (next) { next = false; update(); }
};
// When a slider is let go: placements that are searched for are solved anew, other programs traced.
const settle = async () => {
  solving?.abort();
  const mine = solving = new AbortController();
  if (!state.unsettled) return;
  said(document.body.classList.contains("beyond") ? "The model is being traced there …" : "Placements that are searched for are being solved anew …");
  try {
    const found = await asked("/solve", mine.signal);
    if (mine.signal.aborted) return;
    draw(found);
    if (found.solved === false) later();  // it gave up for an older question, which came late
  } catch (error) {
    if (error.name !== "AbortError") said("The process does not answer: it was stopped.");
  }
};
Object.defineProperty(state, "unsettled", { value: false, writable: true, enumerable: false });

// --- what is drawn ------------------------------------------------------------------------------

const row = (cells, n, found) => {
  const made = make("tr", { className: n === found.shown ? "shown" : "" },
    ...cells.map((text, column) => {
      const kind = found.table.figures[column] ? "" : "text";
      const name = found.table.columns[column];
      const inside = column ? [text] : [make("button", { type: "button", textContent: text })];
      if (name === "seen") inside.splice(0, 1, String(found.table.values[n][column]), make("span", { className: "unseen", textContent: ` ${text}` }));
      const cell = make("td", { className: kind }, ...inside);
      cell.dataset.name = name;
      return cell;
    }),
    make("td", { className: `text ${found.placements[n].startsWith("kept") ? "kept" : ""}`.trim(), textContent: found.placements[n] }));
  made.lastChild.dataset.name = "placement";
  made.querySelector("button").setAttribute("aria-pressed", n === found.shown);
  made.addEventListener("click", () => { state.policy = found.policies[n]; keep(); update(); later(); });
  return made;
};
const draw = found => {
  document.body.classList.toggle("beyond", Boolean(found.beyond || found.error));
  state.unsettled = Boolean(found.beyond) || found.kept;
  root.dataset.drawn = Number(root.dataset.drawn || 0) + 1;
  if (found.beyond || found.error) {
    said(found.error || found.beyond);
    return;
  }
  const focused = [...document.querySelectorAll("#table button")].indexOf(document.activeElement);
  decide({ verdict: { limit: found.limit, scores: found.scores, step: found.step, command: found.command }, more: "" });
  by("of").textContent = found.of;
  by("table").replaceChildren(
    make("thead", {}, make("tr", {}, ...[...found.table.columns, "placement"].map((name, n) => make("th", { scope: "col", className: found.table.figures[n] ? "" : "text", textContent: name })))),
    make("tbody", {}, ...found.table.rows.map((cells, n) => row(cells, n, found))));
  if (focused >= 0) document.querySelectorAll("#table button")[focused]?.focus();
  by("notes").replaceChildren(...found.notes.map(text => make("p", { textContent: text })));
  by("link").hidden = !found.link;
  by("link").onclick = () => {
    const save = make("a", { href: URL.createObjectURL(new Blob([found.link.text])), download: found.link.name });
    save.click();
    setTimeout(() => URL.revokeObjectURL(save.href), 10000);
  };
  said(found.kept ? "Placements that are searched for are kept while a slider moves: let go, and they are solved anew." : "");
};

// --- the sliders --------------------------------------------------------------------------------

const set = (name, value) => { state[name] = value; show(name); keep(); update(); };
for (const name of Object.keys(sliders)) {
  const range = by(`range-${name}`), number = by(`number-${name}`);
  range.addEventListener("input", () => set(name, toValue(sliders[name], Number(range.value))));
  number.addEventListener("input", () => {
    const value = Number(number.value);
    if (number.value === "" || !(value >= 0)) return;
    state[name] = sliders[name].whole ? Math.round(value) : value;
    range.value = toPosition(sliders[name], value);
    keep();
    update();
  });
  for (const one of [range, number]) one.addEventListener("change", () => { show(name); later(); });
}
// What is out was asked before the slider was let go: its answer says whether there is more to do.
const later = async () => {
  while (out || next) await new Promise(done => setTimeout(done, 10));
  settle();
};
document.querySelectorAll("button[data-reset]").forEach(button => button.addEventListener("click", () => { set(button.dataset.reset, null); later(); }));
by("wire").addEventListener("change", event => { state.wire = event.target.value; keep(); update(); later(); });
const load = () => {
  read();
  by("wire").value = state.wire;
  Object.keys(sliders).forEach(show);
  update();
  later();
};
addEventListener("hashchange", load);
load();

// What each device sees of each sort of tensor: a sign and a word, never a colour alone.

const SIGNS = { plain: "●", recoverable: "◐", masked: "▨", not_at_all: "○" };

const drawSeen = (place, at) => {
  if (at.why !== undefined) {
    place.replaceChildren(make("p", { className: "why", textContent: at.why }));
    return;
  }
  const head = make("tr", {}, make("th", { scope: "col", textContent: "tensors" }), ...at.devices.map(name => make("th", { scope: "col", textContent: name })));
  const body = at.rows.map(row => make("tr", {}, make("th", { scope: "row", textContent: row.what }), ...row.cells.map(cell => make("td", { className: `how ${cell.how}` },
    make("span", { className: "sign", textContent: SIGNS[cell.how], ariaHidden: "true" }), make("b", { textContent: ` ${cell.word}` }),
    ...(cell.text ? [make("span", { className: "detail", textContent: cell.text })] : [])))));
  place.replaceChildren(make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "What is seen, scrollable" }, make("table", { className: "seen" }, make("thead", {}, head), make("tbody", {}, ...body))));
};

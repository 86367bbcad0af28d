// The op graph of a block, as report/block.py has laid it out.

const curve = points => points.slice(1).reduce((path, [x, y], n) => {
  const [x0, y0] = points[n], half = (y0 + y) / 2;
  return `${path}C${x0} ${half} ${x} ${half} ${x} ${y}`;
}, `M${points[0][0]} ${points[0][1]}`);

const block = (blocks, name) => {
  const layer = blocks.layers[name], at = blocks.drawings[layer.drawing];
  const whole = [0, 0, at.width, at.height];
  const drawn = svg("svg", { class: "block", viewBox: whole.join(" "), role: "group", "aria-label": layer.title });
  drawn.style.maxWidth = `${Math.round(at.width * 1.15)}px`;
  for (const lane of at.lanes) {
    const name = svg("text", { x: (lane.left + lane.right) / 2, y: 17 });
    name.textContent = lane.name;
    const area = svg("rect", { x: lane.left + 2, y: 0, width: lane.right - lane.left - 4, height: at.height, rx: 8 });
    if (lane.device === null) area.style.fill = "none";
    drawn.append(svg("g", { class: "lane" }, area, name));
  }
  for (const wire of [...at.wires].sort((a, b) => b.width - a.width)) {
    const line = svg("path", { d: curve(wire.points), "stroke-width": wire.width });
    line.style.stroke = wire.device === null ? "var(--soft)" : tone(wire.device);
    line.style.opacity = wire.device === null ? 0.55 : 0.5;
    drawn.append(line);
  }
  at.boxes.forEach((box, n) => {
    const label = svg("text", { x: box.x, y: box.y }, layer.labels[n]);
    const edge = svg("rect", { x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height });
    edge.style.stroke = tone(box.device);
    edge.style.fill = `color-mix(in srgb, ${tone(box.device)} ${box.sort === "transfer" ? 30 : 9}%, var(--paper))`;
    const node = tell(svg("g", { class: `box ${box.sort}` }, edge, label), layer.texts[n]);
    drawn.append(node);
  });
  let view = whole;
  const look = to => { view = to; drawn.setAttribute("viewBox", view.join(" ")); };
  const zoom = (factor, fx = 0.5, fy = 0.5) => {
    const by = Math.min(Math.max(view[2] * factor, at.width / 12), at.width * 1.5) / view[2];
    look([view[0] + view[2] * (1 - by) * fx, view[1] + view[3] * (1 - by) * fy, view[2] * by, view[3] * by]);
  };
  drawn.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = drawn.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  let held = null;
  drawn.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY, ...view]; });
  drawn.addEventListener("pointermove", event => {
    if (!held || !event.buttons) return;
    const per = view[2] / drawn.getBoundingClientRect().width;
    look([held[2] - (event.clientX - held[0]) * per, held[3] - (event.clientY - held[1]) * per, view[2], view[3]]);
  });
  drawn.addEventListener("pointerup", () => { held = null; });
  drawn.addEventListener("dblclick", () => look(whole));
  const button = (text, title, act) => make("button", { textContent: text, title, type: "button", onclick: act });
  return [make("h3", { textContent: layer.title }), make("div", { className: "zoom" },
    make("div", { className: "tools" },
      button("+", "Zoom in (or Ctrl and the wheel)", () => zoom(1 / 1.4)),
      button("−", "Zoom out", () => zoom(1.4)), button("Reset", "Show all (or double-click)", () => look(whole))),
    make("div", { className: "scroll" }, roving(drawn)))];
};

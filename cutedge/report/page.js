"use strict";
// Draws what report/figures.py has worked out. Nothing is computed here but where things go.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const css = name => getComputedStyle(root).getPropertyValue(name).trim();
  const colour = device => {
    const n = data.devices.indexOf(device);
    return n < 0 ? css("--idle") : css(`--d${n % 6}`);
  };
  const faint = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };
  const plain = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const rich = text => plain(text).replace(/\n/g, "<br>");
  const hover = texts => ({ text: texts.map(rich), hovertemplate: "%{text}<extra></extra>" });
  const narrow = () => innerWidth < 640 && !root.classList.contains("print");

  const make = (tag, options = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), options);
    element.append(...inside);
    return element;
  };

  // --- drawings with axes -------------------------------------------------------------------

  const font = () => ({ family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") });
  const title = text => ({ text, standoff: 10, font: { size: 13 } });
  const axis = more => ({
    gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"),
    automargin: true, ...more,
  });
  const ticks = found => ({ tickmode: "array", tickvals: found.values, ticktext: found.texts });
  const layout = more => ({
    font: font(), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 10, r: 14, t: 14, b: 10 }, hovermode: "closest", bargap: 0.28,
    hoverlabel: { bgcolor: css("--ink"), bordercolor: css("--ink"), align: "left", font: { ...font(), color: css("--paper") } },
    legend: { orientation: "h", x: 0, y: 1.0, yanchor: "bottom", traceorder: "normal", itemsizing: "constant" }, ...more,
  });

  const drawings = {
    Flows(at) {
      return [[{
        type: "sankey", arrangement: "snap",
        node: {
          label: at.nodes.map((name, n) => plain(narrow() ? (at.devices[n] === null ? name : "") : `${name}  ${at.sizes[n]}`)), pad: 12, thickness: 14, line: { width: 0 },
          color: at.devices.map(one => one === null ? css("--idle") : colour(one)),
          customdata: at.nodes.map((name, n) => plain(`${name}: ${at.sizes[n]}`)), hovertemplate: "%{customdata}<extra></extra>",
        },
        link: {
          source: at.links.map(one => one.source), target: at.links.map(one => one.target),
          value: at.links.map(one => one.payload_bytes),
          color: at.links.map(one => faint(colour(one.device), 0.42)),
          customdata: at.links.map(one => rich(one.text)), hovertemplate: "%{customdata}<extra></extra>",
        },
      }], layout({ margin: { l: 4, r: 4, t: 8, b: 8 } })];
    },

    Bars(at, { across }) {
      const [along, up] = across ? ["y", "x"] : ["x", "y"];
      const traces = at.series.map(one => ({
        type: "bar", name: plain(one.name), orientation: across ? "h" : "v",
        [along]: at.categories.map(plain), [up]: one.values, ...hover(one.texts), textposition: "none",
        marker: { color: one.device ? colour(one.device) : css("--idle") },
      }));
      return [traces, layout({
        barmode: "stack", showlegend: true,
        [`${along}axis`]: axis({
          type: "category", fixedrange: true, showgrid: false,
          ...(across ? { autorange: "reversed" } : { title: title("layer"), nticks: narrow() ? 8 : 40, tickangle: 0 }),
        }),
        [`${up}axis`]: axis({ ...ticks(at.ticks), rangemode: "tozero", fixedrange: true, title: title(at.axis) }),
      })];
    },

    Growth(at) {
      const dashes = ["solid", "dash", "dot", "dashdot"], marks = ["circle", "square", "diamond", "triangle-up"];
      const traces = at.lines.map((line, n) => ({
        type: "scatter", mode: "lines+markers", name: plain(line.policies.join(", ")), x: at.sizes, y: line.values,
        line: { color: css(`--d${n % 6}`), width: 2, dash: dashes[Math.floor(n / 6) % 4] },
        marker: { size: 6, symbol: marks[(n + Math.floor(n / 6)) % 4] }, ...hover(line.texts),
      }));
      if (at.crossings.length) traces.push({
        type: "scatter", mode: "markers", name: "crossover", x: at.crossings.map(one => one.size),
        y: at.crossings.map(one => one.payload_bytes), ...hover(at.crossings.map(one => one.text)),
        marker: { size: 14, symbol: "circle-open", color: css("--mark"), line: { width: 2 } },
      });
      return [traces, layout({
        showlegend: true,
        legend: narrow() ? { orientation: "h", x: 0, y: -0.2, yanchor: "top" } : { x: 1.02, y: 1, traceorder: "normal" },
        xaxis: axis({ type: "log", ...ticks(at.x_ticks), title: title(at.variable), tickangle: 0, tickfont: { size: narrow() ? 10 : 13 } }),
        yaxis: axis({ type: "log", ...ticks(at.y_ticks) }),
        shapes: [{ type: "line", x0: at.here, x1: at.here, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } }],
        annotations: [{ x: Math.log10(at.here), yref: "paper", y: 1, yanchor: "top", xanchor: "right", text: "this trace ", showarrow: false, font: { color: css("--soft") } }],
      })];
    },

    Roofline(at) {
      const kinds = [["compute", "most time computing", "--d1"], ["memory", "most time reading and writing", "--d0"], ["overhead", "most time starting ops", "--d3"]];
      const traces = at.roofs.map(roof => ({
        type: "scatter", mode: "lines", name: plain(`roof in ${roof.dtype}`), x: roof.intensities, y: roof.rates,
        line: { color: css("--soft"), width: 2 }, ...hover(roof.rates.map(() => roof.text)),
      }));
      for (const [bound, name, tone] of kinds) {
        const marks = at.marks.filter(one => one.bound === bound);
        if (marks.length) traces.push({
          type: "scatter", mode: "markers", name, x: marks.map(one => one.intensity), y: marks.map(one => one.rate),
          ...hover(marks.map(one => one.text)),
          marker: { color: css(tone), opacity: 0.85, sizemode: "area", sizeref: 1 / 900, sizemin: 3.5, size: marks.map(one => one.share) },
        });
      }
      return [traces, layout({
        showlegend: true,
        xaxis: axis({ type: "log", title: title("FLOPs a byte"), ...ticks(at.x_ticks), range: at.x_range.map(Math.log10) }),
        yaxis: axis({ type: "log", title: title("FLOP/s"), ...ticks(at.y_ticks), range: at.y_range.map(Math.log10) }),
        shapes: at.roofs.map(roof => ({ type: "line", x0: roof.ridge, x1: roof.ridge, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } })),
        annotations: [
          ...at.roofs.map((roof, n) => ({ x: Math.log10(roof.ridge), yref: "paper", y: 0.02 + 0.07 * n, yanchor: "bottom", xanchor: "right", text: plain(roof.label) + " ", showarrow: false, font: { color: css("--soft") } })),
          ...at.marks.filter(one => one.labelled).map(one => ({
            x: Math.log10(one.intensity), y: Math.log10(one.rate), text: plain(one.name), showarrow: false,
            xanchor: "right", yanchor: "bottom", xshift: -6, yshift: 5, font: { size: 12, color: css("--ink") },
          })),
        ],
      })];
    },
  };

  const draw = (place, at, height, options = {}) => {
    if (at.why !== undefined) {
      place.replaceChildren(make("p", { className: "why", textContent: at.why }));
      return null;
    }
    if (at.kind === "Block") return block(place, at);
    let plot = place.querySelector(".plot");
    if (!plot) {
      plot = make("div", { className: "plot" });
      place.replaceChildren(plot, make("p", { className: "note" }));
    }
    place.querySelector(".note").textContent = at.note || "";
    const [traces, how] = drawings[at.kind](at, options);
    how.height = height;
    const bar = ["Growth", "Roofline"].includes(at.kind);
    return Plotly.newPlot(plot, traces, how, {  // not react: what is printed may not fade in
      responsive: true, displaylogo: false, displayModeBar: bar ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
    });
  };

  // --- the op graph of a block ----------------------------------------------------------------

  const svg = (tag, options, ...inside) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
    element.append(...inside);
    return element;
  };
  const tip = make("div", { id: "tip", hidden: true });
  const showTip = (text, box) => {
    tip.textContent = text;
    tip.hidden = false;
    const size = tip.getBoundingClientRect(), right = box.right + 10;
    tip.style.left = `${right + size.width < innerWidth ? right : Math.max(6, box.left - size.width - 10)}px`;
    tip.style.top = `${Math.max(6, Math.min(box.top, innerHeight - size.height - 6))}px`;
  };
  const curve = points => points.slice(1).reduce((path, [x, y], n) => {
    const [x0, y0] = points[n], half = (y0 + y) / 2;
    return `${path}C${x0} ${half} ${x} ${half} ${x} ${y}`;
  }, `M${points[0][0]} ${points[0][1]}`);

  const block = (place, at) => {
    const whole = [0, 0, at.width, at.height];
    const tone = device => `var(--d${data.devices.indexOf(device) % 6})`;
    const drawn = svg("svg", { class: "block", viewBox: whole.join(" "), role: "img", "aria-label": at.title });
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
    for (const box of at.boxes) {
      const label = svg("text", { x: box.x, y: box.y });
      label.textContent = box.label;
      const edge = svg("rect", { x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height });
      edge.style.stroke = tone(box.device);
      edge.style.fill = `color-mix(in srgb, ${tone(box.device)} ${box.sort === "transfer" ? 30 : 9}%, var(--paper))`;
      const node = svg("g", { class: `box ${box.sort}`, tabindex: 0 }, edge, label);
      for (const event of ["mouseenter", "focus"]) node.addEventListener(event, () => showTip(box.text, edge.getBoundingClientRect()));
      for (const event of ["mouseleave", "blur"]) node.addEventListener(event, () => { tip.hidden = true; });
      drawn.append(node);
    }
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
    place.replaceChildren(make("h3", { textContent: at.title }), make("div", { className: "zoom" },
      make("div", { className: "tools" },
        button("+", "Zoom in (or Ctrl and the wheel)", () => zoom(1 / 1.4)),
        button("−", "Zoom out", () => zoom(1.4)), button("Reset", "Show all (or double-click)", () => look(whole))),
      make("div", { className: "scroll" }, drawn)));
    return null;
  };

  // --- the first screen -----------------------------------------------------------------------

  const by = id => document.getElementById(id);

  const scoreBar = (bar, n) => make("div", { className: `bar ${n ? "" : "mine"}`.trim() },
    make("span", { className: "who", textContent: bar.role === "shown" ? bar.policy : `${bar.policy} (${bar.role.replace("shown, ", "")})` }),
    make("span", { className: "track" }, make("i", { style: `width:${100 * (bar.share || 0)}%` })),
    make("span", { className: "text", textContent: bar.text }));

  const decide = sheet => {
    const { limit, scores, step, command } = sheet.verdict;
    by("headline").textContent = limit;
    by("step").textContent = step;
    by("command").textContent = command;
    by("more").textContent = sheet.more;
    by("scores").replaceChildren(...scores.map(score => make("div", { className: "score" },
      make("h2", { textContent: score.name }),
      make("p", { className: `value ${score.bars[0].text.length > 16 ? "long" : ""}`.trim(), textContent: score.bars[0].text }),
      make("p", { className: "claim", textContent: score.claim }),
      ...score.bars.map(scoreBar))));
  };

  by("copy").addEventListener("click", async event => {
    const said = text => { event.target.textContent = text; setTimeout(() => { event.target.textContent = "Copy"; }, 1500); };
    try {
      await navigator.clipboard.writeText(by("command").textContent);
      said("Copied");
    } catch {  // a browser that does not let a page copy: the command is selected, to copy by hand
      getSelection().selectAllChildren(by("command"));
      said("Selected");
    }
  });

  // --- the page -------------------------------------------------------------------------------

  const select = by("policy");
  const drawAll = () => {
    const sheet = data.sheets[select.selectedIndex], jobs = [], squeezed = root.classList.contains("print") ? 0.7 : 1;
    const put = (id, at, height, options) => { if (by(`draw-${id}`)) jobs.push(draw(by(`draw-${id}`), at, height, options)); };
    decide(sheet);
    document.querySelectorAll("tbody tr").forEach((row, n) => row.classList.toggle("shown", n === select.selectedIndex));
    put("flows", sheet.flows, sheet.flows.nodes ? (120 + 26 * sheet.flows.nodes.length) * squeezed : 0);
    put("layers", sheet.layers, 340);
    put("calls", sheet.calls, sheet.calls.categories ? 90 + 34 * sheet.calls.categories.length : 0, { across: true });
    put("block", sheet.block);
    put("growth", data.growth, narrow() ? 620 : 480);
    data.devices.forEach((device, n) => {
      put(`roofline-${n}`, sheet.rooflines[n], 460);
      const at = sheet.cycles[n];
      put(`cycles-${n}`, at, at.categories ? 90 + 34 * at.categories.length : 0, { across: true });
    });
    return Promise.all(jobs);
  };

  data.sheets.forEach((sheet, n) => select.add(new Option(sheet.policy, n)));
  select.selectedIndex = data.shown;
  document.querySelectorAll(".key i").forEach(one => { one.style.background = `var(--d${one.dataset.device % 6})`; });
  document.body.append(tip);
  select.addEventListener("change", drawAll);
  document.querySelectorAll("tbody button").forEach((button, n) => button.addEventListener("click", () => {
    select.selectedIndex = n;
    drawAll();
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const printing = on => {
    if (root.classList.contains("print") === on) return;
    root.classList.toggle("print", on);
    root.classList.toggle("light", on);
    drawAll();
  };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));
  matchMedia("print").addEventListener("change", event => printing(event.matches));
  drawAll().then(() => { root.dataset.drawn = Math.round(performance.now()); });
})();

// The first screen: what limits the run, five figures with their bars, and what to do next.

const scoreBar = (bar, n) => make("div", { className: `bar ${n ? "" : "mine"}`.trim() },
  make("span", { className: "who", textContent: n ? `${bar.policy} (${bar.role})` : bar.role === "shown" ? bar.policy : `${bar.policy} (${bar.role.replace("shown, ", "")})` }),
  make("span", { className: "text", textContent: bar.text }),
  make("span", { className: "track" }, make("i", { style: `width:${100 * (bar.share || 0)}%` })));

const decide = sheet => {
  const { limit, scores, step, command } = sheet.verdict;
  by("headline").textContent = limit;
  by("step").textContent = step;
  by("command").textContent = command;
  by("more").textContent = sheet.more;
  by("scores").replaceChildren(...scores.map(score => make("div", { className: "score" },
    make("h2", { textContent: score.name }),
    make("p", { className: `value ${score.text.length > 16 ? "long" : ""}`.trim(), textContent: score.text }),
    make("p", { className: "claim", textContent: score.claim }),
    ...score.bars.map(scoreBar))));
};

by("copy").addEventListener("click", async event => {
  const button = event.currentTarget;
  const said = text => { button.textContent = text; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
  try {
    await navigator.clipboard.writeText(by("command").textContent);
    said("Copied");
  } catch {  // a browser that lets no page copy: the command is selected, to be copied by hand
    getSelection().selectAllChildren(by("command"));
    said("Selected");
  }
});

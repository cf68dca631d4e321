// Shows what every method says about the pair under the pointer. All text comes from the page's own <title> elements.
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  const words = new Map();
  for (const cell of document.querySelectorAll("svg .cell")) {
    const title = cell.querySelector("title");
    const [pair, value] = title.textContent.split("\n");
    const lines = words.get(cell.dataset.pair) ?? { pair, values: [] };
    if (!lines.values.includes(value)) lines.values.push(value);
    words.set(cell.dataset.pair, lines);
    cell.setAttribute("aria-label", `${pair}: ${value}`);
    title.remove(); // the browser's own slow hint would cover ours
  }
  const hide = () => { tip.hidden = true; };
  const show = (event) => {
    const cell = event.target.closest?.(".cell");
    if (!cell) return hide();
    const { pair, values } = words.get(cell.dataset.pair);
    tip.textContent = [pair, ...values].join("\n");
    tip.hidden = false;
    const box = cell.getBoundingClientRect();
    const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
    const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8)}px`;
  };
  document.addEventListener("mouseover", show);
  document.addEventListener("click", show);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();

(() => {
  "use strict";
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const words = new Map();
  let shown = null;

  const alike = new Map();
  const mark = (spot, on) => {
    for (const other of alike.get(spot.dataset.name)) other.classList.toggle("same", on);
  };
  const hide = () => {
    if (shown) mark(shown, false);
    tip.hidden = true;
    shown = null;
  };
  const place = () => {
    const at = shown.querySelector(".mark").getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const middle = (at.left + at.right - size.width) / 2;
    const above = at.top - size.height - 10;
    tip.style.left = Math.max(8, Math.min(middle, room - size.width - 8)) + "px";
    tip.style.top = (above > 4 ? above : at.bottom + 10) + "px";
  };
  const show = (spot) => {
    if (shown === spot) return;
    hide();
    shown = spot;
    tip.replaceChildren(...words.get(spot).map((line, at) => {
      const part = document.createElement(at === 0 ? "b" : "span");
      part.textContent = line;
      return part;
    }));
    tip.hidden = false;
    place();
    mark(spot, true);
  };
  // The nearest of another line, up or down.
  const beside = (all, spot, step) => {
    const lines = [...new Set(all.map((one) => one.dataset.line))];
    const next = lines[lines.indexOf(spot.dataset.line) + step];
    const x = (one) => one.getBoundingClientRect().left;
    const near = all.filter((one) => one.dataset.line === next);
    return near.sort((a, b) => Math.abs(x(a) - x(spot)) - Math.abs(x(b) - x(spot)))[0];
  };

  for (const plot of document.querySelectorAll(".plot")) {
    const all = [...plot.querySelectorAll(".spot[data-name]")];
    all.forEach((spot, at) => {
      const title = spot.querySelector("title");
      words.set(spot, title.textContent.split("\n"));
      if (!alike.has(spot.dataset.name)) alike.set(spot.dataset.name, []);
      alike.get(spot.dataset.name).push(spot);
      spot.setAttribute("aria-label", title.textContent);
      title.remove();
      // One stop of the tabulator a plot; arrows move within.
      spot.setAttribute("tabindex", at === 0 ? "0" : "-1");
      spot.addEventListener("pointerenter", () => show(spot));
      spot.addEventListener("pointerleave", hide);
      spot.addEventListener("focus", () => show(spot));
      spot.addEventListener("blur", hide);
      spot.addEventListener("keydown", (event) => {
        const target = {
          ArrowRight: () => all[at + 1],
          ArrowLeft: () => all[at - 1],
          ArrowDown: () => beside(all, spot, 1),
          ArrowUp: () => beside(all, spot, -1),
          Home: () => all[0],
          End: () => all[all.length - 1],
        }[event.key];
        if (event.key === "Escape") hide();
        if (!target) return;
        event.preventDefault();
        const next = target();
        if (next) {
          spot.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
        }
      });
    });
  }
  addEventListener("scroll", () => {
    if (shown === document.activeElement) place();
    else hide();
  }, { passive: true });
  // Paper shows every point's table; afterwards the reader finds the page as it was.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.point:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();

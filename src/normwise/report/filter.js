"use strict";
// What the reader chose to see: methods and batch sizes. Kept in the address, so that a link shows the same and a page
// that loads itself again while a study runs keeps the choice.
const filter = (() => {
  const hidden = { method: new Set(), size: new Set() };

  /** Anything with data-method and data-size, or one of them, is shown if neither is switched off. */
  const shown = ({ method, size }) => !hidden.method.has(String(method)) && !hidden.size.has(String(size));
  const shows = (setup) => shown({ method: setup.method, size: setup.batch_size });

  function apply() {
    for (const element of document.querySelectorAll("[data-method], [data-size]")) {
      if (!element.matches("button")) element.hidden = !shown(element.dataset);
    }
    for (const button of document.querySelectorAll("[data-toggle]")) {
      button.setAttribute("aria-pressed", String(!hidden[button.dataset.toggle].has(button.value)));
    }
  }

  function remember() {
    const query = new URLSearchParams();
    for (const [kind, names] of Object.entries(hidden)) for (const name of names) query.append(`hide-${kind}`, name);
    try {
      history.replaceState(null, "", `${location.pathname}?${query}${location.hash}`);
    } catch { /* A frame without an address of its own: the choice lasts as long as the page. */ }
  }

  function recall() {
    const query = new URLSearchParams(location.search);
    for (const [kind, names] of Object.entries(hidden)) for (const name of query.getAll(`hide-${kind}`)) names.add(name);
    apply();
  }

  /** Let the buttons work; `redraw` draws what is seen now. */
  function listen(redraw) {
    for (const button of document.querySelectorAll("[data-toggle]")) {
      button.addEventListener("click", () => {
        const names = hidden[button.dataset.toggle];
        if (names.has(button.value)) names.delete(button.value); else names.add(button.value);
        apply();
        remember();
        redraw();
      });
    }
  }

  recall();
  return { shows, listen };
})();

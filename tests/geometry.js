// What is wrong with how a page lies on a screen: a function that geometry.py evaluates in the page.
() => {
  const found = [], width = innerWidth, seen = (box) => box.width > 0 && box.height > 0;
  const name = (text) => JSON.stringify(text.trim().slice(0, 40));
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} px wide`);
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(".scroll, svg, .skip, .hidden, script")) continue;
    const box = element.getBoundingClientRect();
    if (seen(box) && box.right > width + 1) found.push(`<${element.tagName}> runs over the edge: ${name(element.textContent)}`);
  }
  for (const scroll of document.querySelectorAll(".scroll")) {
    const wider = scroll.scrollWidth > scroll.clientWidth + 1, said = getComputedStyle(scroll, "::before").content.includes("scroll");
    if (wider !== said) found.push(`a table ${wider ? "scrolls and does not say so" : "says that it scrolls"}: ${name(scroll.textContent)}`);
  }
  for (const chart of document.querySelectorAll(".chart")) {
    const outer = chart.getBoundingClientRect(), which = `${chart.dataset.chart} ${chart.dataset.name || ""}`;
    if (!seen(outer)) continue;
    const texts = [...chart.querySelectorAll("svg text")].filter((t) => t.textContent.trim() && seen(t.getBoundingClientRect()))
      .map((t) => ({ said: t.textContent, box: t.getBoundingClientRect() }));
    for (const axis of ["x", "y"]) {
      const alone = axis === "y" && chart.data.every((trace) => trace.y.length === 1) && chart.data.length < 2;
      const marks = chart.querySelectorAll(`.${axis}tick text`).length;
      if (marks < 2 && !alone) found.push(`${which}: ${marks} marks on ${axis}`);
    }
    for (const { said, box } of texts) {
      if (box.left < outer.left - 2 || box.right > outer.right + 2) found.push(`${which}: ${name(said)} is outside of its chart`);
    }
    for (const [i, a] of texts.entries()) for (const b of texts.slice(i + 1)) {
      const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const down = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (across > 1 && down > 3) found.push(`${which}: ${name(a.said)} and ${name(b.said)} overlap`);
    }
    if (chart.dataset.name) {
      const wanted = JSON.parse(document.getElementById("data").textContent).charts[chart.dataset.name][chart.dataset.part].rows.length;
      const named = chart.querySelectorAll(".ytick text").length;
      if (named < Math.min(wanted, 60)) found.push(`${which}: ${named} of ${wanted} rows are named`);
    }
  }
  return found;
}

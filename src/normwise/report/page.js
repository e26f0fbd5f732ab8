"use strict";
// What every page shares: the embedded data, colours and texts, drawing, themes, paper. A page's own script gives its
// kinds of charts to page.start(); each is a function of the chart's element that returns plotly's traces and layout.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { looks } = data;
  let kinds = {};

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const color = (method) => looks[method][isDark() ? "dark" : "light"];
  // Plotly reads a pseudo-HTML in every text: escape what came from the user.
  const safe = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const short = (text, most) =>
    text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(text.length - Math.floor(most / 2))}`;
  const pen = document.createElement("canvas").getContext("2d");
  /** The width of a 13 px text in pixels. */
  function wide(text, weight = "400") {
    pen.font = `${weight} 13px ${css("--font")}`;
    return pen.measureText(text).width;
  }
  /** Cut the middle out of a text until it fits. */
  function fitted(text, room, width) {
    let most = text.length;
    while (most > 4 && width(short(text, most)) > room) most -= 1;
    return short(text, most);
  }
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const mean = (values) => sum(values) / values.length;
  const minus = (text) => text.replace("-", "−");
  const significant = (value) => (value === 0 ? "0" : value.toFixed(Math.min(Math.max(2 - Math.floor(Math.log10(Math.abs(value))), 0), 6)));
  /** Of lists of marks, the densest first, the one that there is room for; else the ends of the sparsest. */
  function roomy(choices, most, ends) {
    const enough = choices.filter((marks) => marks.length >= 2), last = enough[enough.length - 1] || ends;
    return enough.find((marks) => marks.length <= most) || [last[0], last[last.length - 1]];
  }

  /** Even marks of an axis. */
  function evenMarks([low, high], most) {
    const span = Math.floor(Math.log10(high - low));
    const every = (step) => [...Array(Math.max(Math.floor(high / step) - Math.ceil(low / step) + 1, 0)).keys()]
      .map((k) => Number(((Math.ceil(low / step) + k) * step).toPrecision(12)));
    return roomy([-1, 0].flatMap((e) => [1, 2, 5].map((m) => every(m * 10 ** (span + e)))), most, [low, high]);
  }

  /** Marks of a logarithmic axis, as powers where they are far from 1. */
  function logMarks([low, high], most) {
    const first = Math.floor(Math.log10(low)), decades = [...Array(Math.ceil(Math.log10(high)) - first + 1).keys()].map((k) => first + k);
    const at = (digits, every = 1) => decades.filter((d) => d % every === 0).flatMap((d) => digits.map((m) => m * 10 ** d)).filter((v) => v >= low && v <= high);
    const tickvals = high / low < 8 ? evenMarks([low, high], most) : roomy([at([1, 2, 5]), at([1, 3]), at([1]), at([1], 2), at([1], 4)], most, [low, high]);
    return { tickvals, ticktext: tickvals.map(asPower) };
  }

  function asPower(value) {
    const [digits, power] = value.toExponential(2).split("e").map(Number);
    if (power >= -3 && power < 5) return String(Number(value.toPrecision(3)));
    return `${digits === 1 ? "" : `${digits}·`}10<sup>${minus(String(power))}</sup>`;
  }

  const titled = (text) => ({ text, standoff: 8, font: { size: 13 } });

  function layout(extra) {
    const ink = css("--ink"), muted = css("--muted"), line = css("--line");
    const axis = {
      color: muted, gridcolor: line, linecolor: line, zeroline: false, fixedrange: true, automargin: false,
      tickfont: { size: 13 },
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false, autosize: true,
      font: { family: css("--font"), size: 13, color: ink }, hovermode: "closest",
      hoverlabel: { bgcolor: css("--card"), bordercolor: muted, font: { color: ink, size: 13 }, align: "left" },
      ...extra,
      xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
    };
  }

  /** Black or white, whichever is easier to read on `hex`. */
  function readable(hex) {
    const [r, g, b] = [1, 3, 5].map((i) => {
      const c = parseInt(hex.slice(i, i + 2), 16) / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
  }

  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, scrollZoom: false };

  function draw(element) {
    if (!element.clientWidth) return Promise.resolve(); // filtered out; drawn when it is shown again
    const { traces, layout } = kinds[element.dataset.chart](element);
    element.style.height = `${layout.height}px`;
    return Plotly.react(element, traces, { ...layout, width: element.clientWidth }, CONFIG).then(() => {
      element.dataset.drawn = "";
      // The element's own label says it all; without this a screen reader would spell out every tick.
      for (const svg of element.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
    });
  }

  function drawAll() {
    for (const swatch of document.querySelectorAll("[data-look]")) swatch.style.fill = color(swatch.dataset.look);
    return Promise.all([...document.querySelectorAll(".chart")].map(draw));
  }

  /** Unpack and run the chart library; see _frame.py for why it is packed. */
  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
  }

  function listen() {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    let width = innerWidth, waiting = 0;
    addEventListener("resize", () => {
      if (innerWidth === width) return; // a phone's address bar came or went
      width = innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(drawAll, 120);
    });
    const printing = (on) => {
      // Paper is light, whatever the screen is, and about this wide.
      document.documentElement.toggleAttribute("data-print", on);
      document.body.style.width = on ? "700px" : "";
      drawAll();
    };
    addEventListener("beforeprint", () => printing(true));
    addEventListener("afterprint", () => printing(false));
  }

  /** Mark what is wider than its place, now and whenever that changes. */
  function markWide() {
    const look = new ResizeObserver((seen) => {
      for (const { target } of seen) target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
    });
    for (const box of document.querySelectorAll(".scroll")) look.observe(box);
  }

  /** Draw the page's charts and keep them in step with theme, width and paper; `own` adds the page's controls. */
  function start(chartKinds, own = () => {}) {
    kinds = chartKinds;
    markWide();
    loadPlotly().then(drawAll).then(listen).then(own).then(() => { document.documentElement.dataset.ready = ""; }).catch((error) => {
      document.getElementById("chart-trouble").hidden = false;
      console.error(error);
    });
  }

  return { data, looks, css, color, safe, short, wide, fitted, sum, mean, minus, significant, evenMarks, logMarks, titled, layout, readable, draw, drawAll, start };
})();

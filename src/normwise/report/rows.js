"use strict";
// Charts of one row per name, from top to bottom: their layout, what they show, and those that a result's charts ask for.
const rows = (() => {
  const { data, css, color, safe, wide, fitted, minus, significant, looks, evenMarks, logMarks } = page;
  const ROW = 34, TALLEST = 1600;

  /** Rows with their names at the left; a column of numbers at the right. Where rows are low, not every one has its name. */
  function layout(element, names, numbers, xaxis, { row = ROW, bold = -1, lines = true } = {}) {
    const room = Math.min(0.44 * element.clientWidth, 240), every = Math.ceil(17 / row);
    const star = (text, i) => (i === bold ? `★ ${text}` : text);
    const labels = names.map((name, i) => fitted(name, room, (text) => wide(star(text, i), i === bold ? "700" : "400")));
    const left = 10 + Math.max(...labels.map((text, i) => wide(star(text, i), i === bold ? "700" : "400")));
    const right = numbers ? 14 + Math.max(...numbers.map((n) => wide(n))) : 10;
    const most = Math.max((element.clientWidth - left - right) / 50, 2);
    const marks = xaxis.tickvals ? {} : xaxis.type === "log" ? logMarks(xaxis.range.map((power) => 10 ** power), most) : { tickvals: evenMarks(xaxis.range, most) };
    return page.layout({
      height: names.length * row + 40,
      margin: { l: left, r: right, t: 8, b: 32 },
      xaxis: { ...marks, ...xaxis },
      yaxis: {
        range: [names.length - 0.5, -0.5], showgrid: lines, color: css("--ink"), ticklabelstandoff: 6,
        tickvals: names.map((_, i) => i).filter((i) => i % every === 0),
        ticktext: labels.map((text, i) => (i === bold ? `<b>${star(safe(text), i)}</b>` : safe(text))).filter((_, i) => i % every === 0),
      },
      annotations: (numbers || []).map((number, i) => ({
        xref: "paper", x: 1, xanchor: "left", xshift: 10, y: i, text: number, showarrow: false, font: { size: 13, color: css("--ink") },
      })).filter((_, i) => i % every === 0),
    });
  }

  /**
   * The range that shows the contenders: one that fell far behind would squeeze the rest into one point, so it is
   * drawn as an arrow at the edge, its number beside it.
   */
  function focus(estimates, worst, floor) {
    const best = worst < 0 ? Math.max(...estimates.map((e) => e.value)) : Math.min(...estimates.map((e) => e.value));
    const gaps = estimates.map((e) => Math.abs(e.value - best)).sort((a, b) => a - b);
    const reach = Math.max(4 * gaps[Math.floor((gaps.length - 1) / 2)], floor);
    const near = estimates.filter((e) => Math.abs(e.value - best) <= reach);
    // An interval may be far wider than the contenders' spread: let it run out of the picture.
    const inside = (v) => (Math.abs(v - best) <= 1.5 * reach ? v : best + Math.sign(v - best) * 1.5 * reach);
    const ends = near.flatMap((e) => [inside(e.low), inside(e.high)]);
    const low = Math.min(...ends), high = Math.max(...ends), pad = Math.max(0.06 * (high - low), 0.2 * floor);
    return [low - pad, high + pad];
  }

  /** What stands for a value beyond the picture; `null` for one within. */
  function beyond(value, range, worst, tone) {
    if (!(worst < 0 ? value < range[0] : worst > 0 && value > range[1])) return null;
    const inset = 0.02 * (range[1] - range[0]);
    return { x: worst < 0 ? range[0] + inset : range[1] - inset, marker: { symbol: worst < 0 ? "triangle-left" : "triangle-right", size: 12, color: tone } };
  }

  const told = (v) => Number.isInteger(v) ? minus(String(v)) : minus(v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(1) : significant(v));

  /** The axis of a chart: logarithmic, around what contends, or from zero. */
  function axis(chart, estimates) {
    const ends = estimates.flatMap((e) => [e.low, e.high]);
    if (chart.log) {
      return { type: "log", range: [Math.log10(Math.min(...ends) / 1.3), Math.log10(Math.max(...ends) * 1.3)] };
    }
    if (chart.worst) return { range: focus(estimates, chart.worst, 0.5) };
    const low = Math.min(...ends, 0), high = Math.max(...ends, 0), pad = 0.04 * (high - low || 1);
    return { range: [low < 0 ? low - pad : 0, high + pad] };
  }

  /** A chart of the record, by its name. */
  function drawn(element) {
    const chart = data.charts[element.dataset.name][Number(element.dataset.part)];
    const estimates = chart.rows.map((r) => ({ value: r.value, low: r.low ?? r.value, high: r.high ?? r.value }));
    const tones = chart.rows.map((r) => (r.look === null ? css("--focus") : color(r.look)));
    const n = chart.rows.length, row = n <= 12 ? 30 : Math.max(Math.min(21, TALLEST / n), 4);
    const xaxis = axis(chart, estimates), result = layout(element, chart.rows.map((r) => r.name), estimates.map((e) => told(e.value)), xaxis, { row, lines: chart.form !== "bars" });
    const out = estimates.map((e, i) => (chart.worst ? beyond(e.value, result.xaxis.range, chart.worst, tones[i]) : null));
    const symbols = chart.rows.map((r, i) => (out[i] ? out[i].marker.symbol : r.look === null ? "circle" : looks[r.look].symbol));
    const trace = {
      type: chart.form === "bars" ? "bar" : "scatter", orientation: "h", mode: chart.form === "line" ? "lines+markers" : "markers",
      x: estimates.map((e, i) => (out[i] ? out[i].x : e.value)), y: estimates.map((_, i) => i), hoverinfo: "text", cliponaxis: false,
      hovertext: chart.rows.map((r, i) => `<b>${safe(r.name)}</b><br>${told(estimates[i].value)} ${safe(chart.unit)}`),
      marker: { color: tones, ...(chart.form === "bars" ? {} : { symbol: symbols, size: row > 24 ? 11 : 8 }) },
      ...(chart.form === "bars" ? { width: 0.56 } : { line: { width: 1.5, color: css("--focus") } }),
    };
    if (estimates.some((e) => e.low !== e.high)) {
      trace.error_x = { type: "data", symmetric: false, array: estimates.map((e) => e.high - e.value), arrayminus: estimates.map((e) => e.value - e.low), color: css("--muted"), thickness: 1.5, width: 3 };
    }
    if (chart.mark !== null && estimates.some((e) => e.value > chart.mark / 4)) {
      result.shapes = [{ type: "line", x0: chart.mark, x1: chart.mark, yref: "paper", y0: 0, y1: 1, line: { color: css("--warn"), dash: "dot", width: 1.5 } }];
    }
    return { traces: [trace], layout: result };
  }

  return { layout, focus, beyond, drawn };
})();

// The charts of a diagnosis: one value a layer, in the order in which the layers run.
(() => {
  const { data, css, fitted, wide, safe, significant, titled, layout, start } = page;
  const { weights, norms } = data.diagnosis;
  const label = (row) => row.layer.names[0] || "the model";

  /** Dots from left to right; names only where there is room, always on hover. */
  function profile(element, rows, value, extra, mark) {
    const known = rows.filter((row) => value(row) !== null && value(row) !== undefined);
    const names = known.map(label);
    const few = names.length <= element.clientWidth / 34;
    const room = few ? Math.min(Math.max(...names.map((name) => wide(name))), 100) : 0;
    const trace = {
      type: "scatter", mode: known.length > 1 ? "lines+markers" : "markers", x: names.map((_, i) => i), y: known.map(value),
      text: names.map(safe), customdata: known.map((row) => Math.abs(value(row)) < 1e-3 ? value(row).toExponential(1) : significant(value(row))),
      hovertemplate: "%{text}<br>%{customdata}<extra></extra>",
      marker: { size: 8, color: css("--focus") }, line: { width: 1.5, color: css("--focus") },
    };
    const shapes = mark === undefined || !known.some((row) => value(row) > mark / 4) ? [] : [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: mark, y1: mark, line: { color: css("--warn"), dash: "dot", width: 1.5 },
    }];
    return {
      traces: [trace],
      layout: layout({
        height: 260, margin: { l: 58, r: 12, t: 12, b: few ? 26 + 0.87 * room : 40 }, shapes,
        xaxis: few ? {
          tickvals: names.map((_, i) => i), ticktext: names.map((name) => safe(fitted(name, 100, wide))), tickangle: -60, range: [-0.5, names.length - 0.5],
        } : { title: titled("layer, in order of execution"), range: [-0.5, names.length - 0.5], showticklabels: false },
        yaxis: { rangemode: "tozero", ...extra },
      }),
    };
  }

  start({
    gradients: (element) => profile(element, weights.filter((w) => w.gradient > 0), (w) => w.gradient, { type: "log", exponentformat: "power", dtick: 1 }),
    gaps: (element) => profile(element, norms, (n) => n.mean_gap, {}, 0.5),
    shifts: (element) => profile(element, weights, (w) => w.moved_mean, {}, 1),
  });
})();

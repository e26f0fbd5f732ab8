"use strict";
// The figures of claims: lines over numbers or names, and single numbers side by side; each point with its interval.
(() => {
  const { data, looks, css, color, safe, short, wide, minus, titled, layout, logMarks } = page;
  const number = (value) => minus(Number(value.toPrecision(3)).toString());

  function figure(element) {
    const found = data.figures[element.dataset.claim][Number(element.dataset.index)];
    return isBars(found) ? bars(element, found) : lines(element, found);
  }

  /** One number per name: no line to draw. */
  const isBars = (f) => f.ticks.length > 0 && f.series.length === f.ticks.length && f.series.every((s, k) => s.x.length === 1 && s.x[0] === k);

  const scaled = (f, i) => ({ value: i.value * f.factor, low: i.low * f.factor, high: i.high * f.factor });
  const told = (i) => `${number(i.value)} [${number(i.low)}, ${number(i.high)}]`;

  function bars(element, f) {
    const points = f.series.map((s) => scaled(f, s.y[0]));
    const top = Math.max(...points.map((p) => p.high), 0), bottom = Math.min(...points.map((p) => p.value), 0);
    const traces = [{
      type: "bar", orientation: "h", x: points.map((p) => p.value), y: points.map((_, k) => k), width: 0.56,
      marker: { color: f.series.map((s) => color(s.look)) }, hoverinfo: "text",
      hovertext: points.map((p, k) => `<b>${safe(f.ticks[k])}</b><br>${told(p)}`),
      error_x: { type: "data", symmetric: false, array: points.map((p) => p.high - p.value), arrayminus: points.map((p) => p.value - p.low), color: css("--ink"), thickness: 1.5, width: 3 },
    }];
    const xaxis = { range: [bottom * 1.05, (top || 1) * 1.03] };
    return { traces, layout: rows.layout(element, f.ticks, points.map((p) => number(p.value)), xaxis, { row: 32, lines: false }) };
  }

  function lines(element, f) {
    const spread = f.ticks.length ? Math.min(0.22, 0.05 * (f.series.length - 1)) : 0;
    const traces = f.series.map((s, k) => {
      // Named positions have room to set series side by side, so that their intervals can be told apart.
      const aside = spread && f.series.length > 1 ? spread * ((2 * k) / (f.series.length - 1) - 1) : 0;
      const points = s.y.map((i) => scaled(f, i));
      return {
        x: s.x.map((x) => x + aside), y: points.map((p) => p.value), mode: "lines+markers", hoverinfo: "text", cliponaxis: false,
        line: { color: color(s.look), width: 2, dash: s.dashed ? "dash" : "solid" },
        marker: { symbol: looks[s.look].symbol + (s.dashed ? "-open" : ""), size: 9, color: color(s.look), line: { width: s.dashed ? 2 : 0, color: color(s.look) } },
        error_y: { type: "data", symmetric: false, array: points.map((p) => p.high - p.value), arrayminus: points.map((p) => p.value - p.low), color: color(s.look), thickness: 1.5, width: 0 },
        hovertext: points.map((p, j) => `<b>${safe(s.name)}</b><br>${safe(f.ticks.length ? f.ticks[s.x[j]] : s.x[j])}: ${told(p)}`),
      };
    });
    const values = f.series.flatMap((s) => s.y.map((i) => scaled(f, i)));
    const y = range(values, f.log_y), texts = values.map((p) => number(p.value));
    const xs = f.series.flatMap((s) => s.x);
    return {
      traces,
      layout: layout({
        height: Math.min(340, Math.max(250, element.clientWidth * 0.6)),
        margin: { l: f.log_y ? 62 : 20 + Math.max(...texts.map((t) => wide(short(t, 7)))), r: 14, t: 10, b: f.x_name ? 50 : 34 },
        xaxis: {
          title: f.x_name ? titled(safe(f.x_name)) : undefined, showgrid: false, showline: true,
          ...(f.ticks.length ? { range: [-0.4, f.ticks.length - 0.6], tickvals: f.ticks.map((_, k) => k), ticktext: f.ticks.map(safe) }
            : f.log_x ? { type: "log", tickvals: [...new Set(xs)], ticktext: [...new Set(xs)].map(number) } : { nticks: 8 }),
        },
        yaxis: f.log_y ? { type: "log", range: y.map(Math.log10), ...logMarks(y, 7) } : { range: y, nticks: 6 },
        shapes: f.guides.map((g) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: g * f.factor, y1: g * f.factor, layer: "below", line: { color: css("--muted"), width: 1.5, dash: "dot" } })),
      }),
    };
  }

  /** What to show: every value, and of intervals at most as much again as the values span. */
  function range(points, log) {
    const scale = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
    const values = points.map((p) => scale(p.value));
    const low = Math.min(...values), high = Math.max(...values), span = high - low || Math.abs(high) * 0.1 || 1;
    const ends = points.flatMap((p) => [p.low, p.high]).filter((v) => !log || v > 0).map(scale);
    const least = Math.max(Math.min(...ends, low), low - span), most = Math.min(Math.max(...ends, high), high + span);
    const pad = 0.06 * (most - least || span);
    return [back(least - pad), back(most + pad)];
  }

  page.start({ figure });
})();

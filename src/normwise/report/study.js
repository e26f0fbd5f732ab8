"use strict";
// The charts of a study's report. One small function per kind of chart, listed in KINDS; each gets its element and
// returns plotly's traces and layout. To add a chart: a function, a row in KINDS, a chart() in the template.
(() => {
  const { css, color, safe, short, wide, fitted, mean, minus, significant, titled, layout, readable, looks, draw } = page;
  const { study, scale, methods, blends } = page.data;
  const { layout: rowsLayout, focus, beyond } = rows;

  const score = (value) => value * scale.factor;
  const fixed = (value) => minus(value.toFixed(scale.decimals)).replace(/^−(0\.?0*)$/, "$1");
  const interval = (i) => `${fixed(score(i.value))} [${fixed(score(i.low))}, ${fixed(score(i.high))}]`;
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const group = (element) => study.standings.filter((s) => s.batch_size === Number(element.dataset.size) && filter.shows(s));
  const verdict = (size) => study.verdicts.find((v) => v.batch_size === size);
  const isLost = (s) => s.runs > 0 && s.diverged === s.runs;

  // ---- one row per method ------------------------------------------------------------------------------------------

  const advisedRow = (rows) => {
    const found = rows.length ? verdict(rows[0].batch_size) : undefined;
    return !found || rows.every(isLost) ? -1 : rows.findIndex((s) => s.method === found.use);
  };

  /** Dots with intervals; `worst` is the side (−1 left, 1 right) on which the bad ones lie. */
  function dots(element, rows, estimates, range, worst, zero) {
    const shown = rows.map((s, i) => ({ s, i, e: estimates[i] })).filter((r) => r.e);
    const traces = shown.map((r) => {
      const tone = color(r.s.method), text = hover(r.s), y = r.i;
      const out = beyond(r.e.value, range, worst, tone);
      if (out) return { x: [out.x], y: [y], mode: "markers", cliponaxis: false, hoverinfo: "text", hovertext: text, marker: out.marker };
      return {
        x: [r.e.value], y: [y], mode: "markers", hoverinfo: "text", hovertext: text, cliponaxis: true,
        marker: { symbol: looks[r.s.method].symbol, size: 11, color: r.s.tied ? tone : css("--card"), line: { width: 2, color: tone } },
        error_x: { type: "data", symmetric: false, array: [r.e.high - r.e.value], arrayminus: [r.e.value - r.e.low], color: tone, thickness: 2, width: 0 },
      };
    });
    const numbers = rows.map((_, i) => (estimates[i] ? fixed(estimates[i].value) : "best"));
    const result = rowsLayout(element, rows.map((s) => s.method), numbers, { range, ticksuffix: "" }, { bold: advisedRow(rows) });
    if (zero) {
      result.shapes = [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: css("--muted"), width: 1.5 } }];
    }
    return { traces, layout: result };
  }

  const scaled = (i) => i && { value: score(i.value), low: score(i.low), high: score(i.high) };

  function hover(s) {
    const lines = [`<b>${safe(s.method)}</b>`, `test ${interval(s.test)}`, `validation ${interval(s.valid)}`];
    if (s.behind) lines.push(`behind the best ${interval(s.behind)}`);
    if (s.diverged) lines.push(`${s.diverged} of ${s.runs} runs diverged or failed`);
    return lines.join("<br>");
  }

  function scoreChart(element) {
    const rows = group(element);
    // All batch sizes share one axis, so that their charts can be compared.
    const seen = study.standings.filter(filter.shows), sizes = [...new Set(seen.map((s) => s.batch_size))];
    const ranges = sizes.map((b) => focus(seen.filter((s) => s.batch_size === b).map((s) => scaled(s.test)), -1, score(0.005)));
    const range = [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
    return dots(element, rows, rows.map((s) => scaled(s.test)), range, -1, false);
  }

  function behindChart(element) {
    const rows = group(element);
    const estimates = rows.map((s) => scaled(s.behind));
    const present = [{ value: 0, low: 0, high: 0 }, ...estimates.filter(Boolean)];
    return dots(element, rows, estimates, focus(present, 1, score(0.005)), 1, true);
  }

  /** Bars from zero, one per method. */
  function bars(element, pick, unit) {
    const rows = group(element), values = rows.map(pick);
    const most = Math.max(...values.filter((v) => v !== null), 0) || 1;
    const traces = [{
      type: "bar", orientation: "h", x: values, y: rows.map((_, i) => i), width: 0.56, marker: { color: rows.map((s) => color(s.method)) },
      hoverinfo: "text", hovertext: rows.map((s, i) => `<b>${safe(s.method)}</b><br>${values[i] === null ? "not measured" : `${significant(values[i])} ${unit}`}`),
    }];
    const numbers = values.map((v) => (v === null ? "–" : significant(v)));
    return { traces, layout: rowsLayout(element, rows.map((s) => s.method), numbers, { range: [0, most * 1.02] }, { lines: false, row: 30, bold: advisedRow(rows) }) };
  }

  const timeChart = (element) => bars(element, (s) => (s.step_seconds === null ? null : s.step_seconds * 1e3), "ms per step");
  const memoryChart = (element) => bars(element, (s) => (s.peak_bytes === null ? null : s.peak_bytes / 2 ** 20), "MiB");

  const COSTS = {
    step_seconds: { title: "ms per step", unit: 1e-3 },
    peak_bytes: { title: "MiB at the peak of a step", unit: 2 ** 20 },
  };

  /** The score against a cost, the best trade-offs joined; a method far below the rest is an open arrow at the edge. */
  function tradeoffChart(element) {
    const cost = chosen("cost"), { title, unit } = COSTS[cost];
    const rows = group(element).filter((s) => s[cost] !== null && !isLost(s));
    const costs = rows.map((s) => s[cost] / unit);
    const y = rows.length ? focus(rows.map((s) => scaled(s.test)), -1, score(0.005)) : [0, 1];
    const most = Math.max(...costs, 0) || 1, least = Math.min(...costs, most);
    const pad = Math.max((most - least) * 0.35, most * 0.1), x = [Math.max(least - pad, 0), most + pad];
    const height = Math.max(group(element).length * 30 + 40, 200), margin = { l: 46, r: 8, t: 8, b: 46 };
    const points = rows.map((s, i) => {
      const at = scaled(s.test).value, below = at < y[0];
      return { s, below, x: costs[i], at, y: below ? y[0] + 0.04 * (y[1] - y[0]) : at, name: short(s.method, 14) };
    });
    const front = {
      x: [], y: [], mode: "lines", hoverinfo: "skip", name: "front", line: { color: css("--muted"), width: 1.5, dash: "dot", shape: "hv" },
    };
    for (const p of unbeaten(points)) { front.x.push(p.x); front.y.push(p.y); }
    const marks = points.map((p) => ({
      x: [p.x], y: [p.y], mode: "markers", hoverinfo: "text", cliponaxis: false, hovertext: `${hover(p.s)}<br>${significant(p.x)} ${title}`,
      marker: { symbol: p.below ? "triangle-down-open" : looks[p.s.method].symbol, size: 11, color: color(p.s.method), line: { width: p.below ? 2 : 0 } },
    }));
    const use = (verdict(Number(element.dataset.size)) || {}).use;
    const annotations = apart(points, x, y, element.clientWidth - margin.l - margin.r, height - margin.t - margin.b).map(({ p, dx, dy }) => ({
      x: p.x, y: p.y, text: p.s.method === use ? `<b>${safe(p.name)}</b>` : safe(p.name), showarrow: false, font: { size: 12, color: css("--ink") }, bgcolor: css("--card"), borderpad: 0,
      xanchor: ["right", "center", "left"][dx + 1], xshift: dx * 9, yshift: dy * -15,
    }));
    return { traces: [front, ...marks], layout: layout({ height, margin, annotations, xaxis: { title: titled(title), range: x, nticks: 5 }, yaxis: { range: y, nticks: 5 } }) };
  }

  /** Those than which none is both cheaper and better, cheapest first. */
  function unbeaten(points) {
    let best = -Infinity;
    return [...points].sort((a, b) => a.x - b.x || b.at - a.at).filter((p) => {
      const better = p.at > best;
      best = Math.max(best, p.at);
      return better;
    });
  }

  /** Put each label where it meets no other: right, left, above or below its point, or nowhere (hovering still tells). */
  function apart(points, x, y, width, height) {
    const at = points.map((p) => ({ p, px: ((p.x - x[0]) / (x[1] - x[0])) * width, py: ((y[1] - p.y) / (y[1] - y[0])) * height }));
    const taken = at.map(({ px, py }) => [px - 7, px + 7, py - 7, py + 7]);
    const placed = [];
    for (const { p, px, py } of at) {
      const long = wide(p.name, "700");
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]]) {
        const left = dx > 0 ? px + 8 : dx < 0 ? px - 8 - long : px - long / 2, top = py - 8 + dy * 15;
        const box = [left, left + long, top, top + 16];
        if (box[0] < 0 || box[1] > width + 8 || box[3] > height) continue;
        if (taken.some((t) => box[0] < t[1] && t[0] < box[1] && box[2] < t[3] && t[2] < box[3])) continue;
        taken.push(box);
        placed.push({ p, dx, dy });
        break;
      }
    }
    return placed;
  }

  // ---- learning curves ---------------------------------------------------------------------------------------------

  function curvesChart(element) {
    const size = Number(chosen("curve-size")), measure = chosen("curve-measure"), loss = measure === "train_loss";
    const value = (p) => (p[measure] === null || (loss && p[measure] <= 0) ? null : loss ? p[measure] : score(p[measure]));
    const trials = study.trials.filter((t) => t.setup.stage === "final" && t.setup.batch_size === size && filter.shows(t.setup));
    const whole = trials.filter((t) => t.state === "complete");
    const means = methods.map((method) => ({ method, points: averaged(whole.filter((t) => t.setup.method === method), value) }));
    const bold = means.filter((m) => m.points.length).map(({ method, points }) => ({
      x: points.map((p) => p.epoch), y: points.map((p) => p.y), mode: "lines+markers", line: { color: color(method), width: 2.4 },
      marker: { symbol: looks[method].symbol, color: color(method), opacity: 1, size: onlyLast(points, 11) }, cliponaxis: false, hoverinfo: "text",
      hovertext: points.map((p) => `<b>${safe(method)}</b>, mean of ${p.runs}<br>epoch ${significant(p.epoch)}: ${loss ? significant(p.y) : fixed(p.y)}`),
    }));
    const range = curveRange((whole.length ? whole : trials).flatMap((t) => t.curve.map(value)), loss);
    const faint = trials.map((t) => seedCurve(t, value, range)).filter(Boolean);
    return {
      traces: [...faint, ...bold],
      layout: layout({
        height: Math.min(440, Math.max(300, element.clientWidth * 0.5)), margin: { l: 52, r: 14, t: 10, b: 46 },
        xaxis: { title: titled("epoch"), range: [0, 1.015 * Math.max(...trials.flatMap((t) => t.curve.map((p) => p.epoch)), 0.01)], showgrid: false, showline: true, nticks: 8 },
        yaxis: loss ? { type: "log", range: range.map(Math.log10), dtick: "D2", exponentformat: "none" } : { range, nticks: 6 },
      }),
    };
  }

  const onlyLast = (points, size) => points.map((_, i) => (i === points.length - 1 ? size : 0));

  /** One run, faint; a diverged one ends in a cross, which stays in the picture however far the run went astray. */
  function seedCurve(trial, value, [low, high]) {
    const { method, seed } = trial.setup, lost = trial.state !== "complete";
    const points = trial.curve.map((p) => ({ x: p.epoch, y: value(p) })).filter((p) => p.y !== null);
    if (!points.length) return null;
    if (lost) points[points.length - 1].y = Math.min(Math.max(points[points.length - 1].y, low), high);
    return {
      x: points.map((p) => p.x), y: points.map((p) => p.y), mode: lost ? "lines+markers" : "lines", opacity: lost ? 0.8 : 0.28, cliponaxis: !lost,
      line: { color: color(method), width: 1.2, dash: lost ? "dot" : "solid" }, hoverinfo: lost ? "text" : "skip",
      marker: { symbol: "x-thin", opacity: 1, line: { width: 2, color: color(method) }, size: onlyLast(points, 9) },
      hovertext: `<b>${safe(method)}</b>, seed ${seed}<br>${safe(trial.state)}${trial.reason ? `: ${safe(short(trial.reason, 80))}` : ""}`,
    };
  }

  /** One trial's score and loss over its steps. */
  function trialChart(element) {
    const { curve, setup } = study.trials[Number(element.dataset.trial)];
    const drawn = [["valid_score", score, "y", `validation ${scale.name}`, "solid"], ["train_loss", (v) => v, "y2", "training loss", "dot"]];
    const traces = drawn.map(([what, value, yaxis, name, dash]) => {
      const points = curve.filter((p) => p[what] !== null);
      return {
        x: points.map((p) => p.step), y: points.map((p) => value(p[what])), yaxis, mode: "lines+markers", name, line: { color: color(setup.method), width: 2, dash },
        marker: { size: 6, color: color(setup.method) }, hoverinfo: "text", hovertext: points.map((p) => `step ${p.step}: ${name} ${significant(value(p[what]))}`),
      };
    });
    const right = { overlaying: "y", side: "right", title: titled("training loss, dotted"), showgrid: false, zeroline: false, fixedrange: true, color: css("--muted"), tickfont: { size: 13 } };
    return {
      traces,
      layout: layout({ height: 240, margin: { l: 66, r: 66, t: 10, b: 46 }, xaxis: { title: titled("step"), showgrid: false, showline: true }, yaxis: { title: titled(`validation ${scale.name}`), nticks: 5 }, yaxis2: right }),
    };
  }

  /** The mean over runs at each epoch at which all of them were measured. */
  function averaged(runs, value) {
    const at = new Map();
    for (const run of runs) {
      for (const p of run.curve) {
        if (value(p) !== null) at.set(p.epoch, [...(at.get(p.epoch) || []), value(p)]);
      }
    }
    return [...at].filter(([, ys]) => ys.length === runs.length).sort((a, b) => a[0] - b[0])
      .map(([epoch, ys]) => ({ epoch, y: mean(ys), runs: ys.length }));
  }

  /** What to show of the curves: a steep start is left out where it would flatten all that follows. */
  function curveRange(values, loss) {
    const all = values.filter((v) => v !== null).sort((a, b) => a - b);
    if (!all.length) return loss ? [0.1, 1] : [0, 1];
    const high = all[all.length - 1];
    if (loss) return [all[0] / 1.15, high * 1.15];
    const low = Math.max(all[0], high - 2.5 * (high - all[Math.floor(all.length * 0.25)]) - score(0.005));
    const pad = 0.05 * (high - low || 1);
    return [low - pad, high + pad];
  }

  // ---- mixtures ----------------------------------------------------------------------------------------------------

  function mixtureChart(element) {
    const kind = element.dataset.chart;
    const blend = blends.find((b) => b.batch_size === Number(element.dataset.size) && b.method === element.dataset.method);
    const members = [...new Set(blend.layers.flatMap((l) => l.members))];
    const row = blend.layers.length > 16 ? 20 : 34;
    const traces = members.map((member) => {
      const weights = blend.layers.map((l) => (l.members.includes(member) ? l[kind][l.members.indexOf(member)] : null));
      return {
        type: "bar", orientation: "h", x: weights, y: weights.map((_, i) => i), width: 0.7,
        marker: { color: color(member), line: { color: css("--card"), width: 1.5 } },
        text: weights.map((w) => (w !== null && w >= 0.14 ? w.toFixed(2) : "")), textposition: "inside", insidetextanchor: "middle",
        textangle: 0, textfont: { color: readable(color(member)), size: row > 24 ? 13 : 11 }, constraintext: "none", hoverinfo: "text",
        hovertext: weights.map((w, i) => (w === null ? "" : `<b>${safe(blend.layers[i].layer)}</b><br>${safe(member)} ${w.toFixed(3)}`)),
      };
    });
    const result = rowsLayout(element, blend.layers.map((l) => l.layer), null, { range: [0, 1], tickvals: [0, 0.5, 1], showgrid: false }, { lines: false, row });
    return { traces, layout: { ...result, barmode: "stack" } };
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------

  const KINDS = {
    score: scoreChart, behind: behindChart, curves: curvesChart, time: timeChart, memory: memoryChart, tradeoff: tradeoffChart,
    mean_weights: mixtureChart, var_weights: mixtureChart, trial: trialChart,
  };

  const drawKind = (kind) => { for (const element of document.querySelectorAll(`[data-chart="${kind}"]`)) draw(element); };

  function listen() {
    for (const input of document.querySelectorAll(".choice input")) {
      input.addEventListener("change", () => drawKind(input.name === "cost" ? "tradeoff" : "curves"));
    }
    filter.listen(page.drawAll);
    trials.listen();
  }

  page.start(KINDS, listen);
})();

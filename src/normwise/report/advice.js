// The chart of advice: what is expected of each method, against what a step costs.
(() => {
  const { data, looks, css, color, safe, significant, minus, titled, layout, start } = page;
  const rows = data.advice.ranking.filter((r) => r.refused === null && r.points !== null && r.cost && r.cost.step_seconds !== null);

  function merit(element) {
    const ms = rows.map((r) => r.cost.step_seconds * 1000), most = Math.max(...ms), least = Math.min(...ms);
    const points = rows.map((r) => r.points), top = Math.max(...points, 0), low = Math.min(...points);
    const traces = rows.map((r, i) => ({
      x: [ms[i]], y: [r.points], mode: "markers", hoverinfo: "text", cliponaxis: false,
      hovertext: `${safe(r.method)}<br>${minus(r.points.toFixed(1))} points<br>${significant(ms[i])} ms a step`,
      marker: { symbol: looks[r.method].symbol, size: 11, color: color(r.method) },
    }));
    const annotations = rows.map((r, i) => ({
      x: ms[i], y: r.points, text: i ? safe(r.method) : `<b>${safe(r.method)}</b>`, showarrow: false, xanchor: "left", xshift: 9, font: { size: 12, color: css("--ink") },
    }));
    const pad = (most - least || most) * 0.25, above = (top - low || 1) * 0.1;
    return {
      traces,
      layout: layout({
        height: 300, margin: { l: 52, r: 12, t: 12, b: 46 }, annotations,
        xaxis: { title: titled("ms a training step"), range: [Math.max(least - pad, 0), most + 1.6 * pad], nticks: 5 },
        yaxis: { title: titled("points"), range: [low - above, top + above], nticks: 5 },
      }),
    };
  }

  start({ merit });
})();

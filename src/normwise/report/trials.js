"use strict";
// The table of all trials: sorted by a click on a column's head, a trial opened by a click on its row.
const trials = (() => {
  const { study } = page.data;

  const cellOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

  function sort(button) {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    close(body);
    const order = [...body.rows].sort((a, b) => {
      const [x, y] = [a, b].map((row) => cellOf(row, head.cellIndex));
      const both = x !== "" && y !== "" && !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
      return (down ? -1 : 1) * (both ? Number(x) - Number(y) : x.localeCompare(y));
    });
    body.append(...order);
  }

  function close(body) {
    for (const row of body.querySelectorAll("tr.opened")) row.remove();
    for (const button of body.querySelectorAll("[data-trial]")) button.setAttribute("aria-expanded", "false");
  }

  const line = (list, name, value) => {
    if (value === null || value === undefined || value === "") return;
    list.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
  };

  /** One trial whole: why it ended, what it measured, its learning curve. */
  function open(button) {
    const row = button.closest("tr"), body = row.parentNode, was = button.getAttribute("aria-expanded") === "true";
    close(body);
    if (was) return;
    button.setAttribute("aria-expanded", "true");
    const trial = study.trials[Number(button.dataset.trial)];
    const opened = body.insertRow(row.rowIndex - body.rows[0].rowIndex + 1);
    opened.className = "opened";
    const cell = opened.insertCell();
    cell.colSpan = row.cells.length;
    const list = document.createElement("dl");
    line(list, "Ended", trial.reason ? `${trial.state}: ${trial.reason}` : trial.state);
    line(list, "Validation loss", trial.valid_loss === null ? null : page.significant(trial.valid_loss));
    line(list, "Test loss", trial.test_loss === null ? null : page.significant(trial.test_loss));
    line(list, "Notes", (trial.notes || []).join("; ") || null);
    line(list, "Parameters", trial.parameters.toLocaleString("en"));
    for (const m of trial.mixtures) {
      line(list, m.layer, m.members.map((member, i) => `${member} ${m.mean_weights[i].toFixed(2)} / ${m.var_weights[i].toFixed(2)}`).join(", ") + " (means / variances)");
    }
    for (const [name, value] of Object.entries(trial.observed || {})) {
      const text = typeof value === "number" ? page.significant(value) : JSON.stringify(value);
      line(list, name, page.short(text, 400));
    }
    cell.append(list);
    if (trial.curve.length) {
      const chart = document.createElement("div");
      chart.className = "chart";
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", `Validation score after ${trial.curve.map((p) => p.step).join(", ")} steps: ${trial.curve.map((p) => p.valid_score).join(", ")}`);
      chart.dataset.chart = "trial";
      chart.dataset.trial = button.dataset.trial;
      cell.append(chart);
      page.draw(chart);
    }
  }

  function listen() {
    for (const button of document.querySelectorAll("#trials thead button")) button.addEventListener("click", () => sort(button));
    for (const button of document.querySelectorAll("button[data-trial]")) button.addEventListener("click", () => open(button));
  }

  return { listen };
})();

// The page of some runs; labelstore's `shell.js` stands before it in the same function.
const R = D.runs, SETTINGS = D.settings;
const plural = (number, what) => count(number) + " " + what + (number === 1 ? "" : "s");
const points = (value, digits = 2) => value === null || value === undefined ? "-" : value.toFixed(digits) + " %";
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);
const spread = (result) => result.mean === null ? "-" : result.mean.toFixed(2) + (result.ci95 === null ? "" : " \u00b1 " + result.ci95.toFixed(2)) + " %";
const big = (value) => value === null || value === undefined ? "-" : value >= 1e7 ? +(value / 1e6).toPrecision(3) + " M" : count(value);
// eight colours, then the same with dashes
const lineClass = (setting) => "c" + setting % 8;
const dashes = (setting) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(setting / 8) % 4] || null;

const finished = R.filter((run) => run.status === "finished").length;
const best = R.reduce((found, run) => run.problem === null && run.best !== null && (found === null || run.best > found.best) ? run : found, null);
heading(R.length === 1 ? "Run " + R[0].name : R.length + " runs");

// ---- summary -----------------------------------------------------------------------------------------------------
const state = (run) => run.status === "unfinished" ? `epoch ${run.epochs} of ${run.of}` : run.status;
const measured = Boolean(D.metrics.measured);
section("summary", "Runs",
  tiles([["runs", count(R.length)], ["settings", count(SETTINGS.length)], ["finished", count(finished)],
    ...(best ? [["best top-1: " + best.name, points(best.best)]] : [])]),
  ...D.notes.map(note));
const runTable = sortableTable({ id: "run", label: "Runs", things: "runs", rows: R, sorted: R.some((run) => run.best !== null) ? 8 : 0, descending: true, firstPress: true, columns: [
  ["run", "name", (run) => run.name, String], ["labels", "name", (run) => run.labels, (value) => value || "-"], ["student", "name", (run) => run.model, (value) => value || "-"],
  ["crops per image", "number", (run) => run.crops_per_image, count], ["seed", "number", (run) => run.seed, (value) => value === null ? "-" : String(value)],
  ["state", "", (run) => state(run), String], ["loss", "number", (run) => run.loss, (value) => fixed(value, 4)],
  ["top-1", "number", (run) => run.top1, points], ["best top-1", "number", (run) => run.best, points], ["at epoch", "number", (run) => run.best_epoch, count],
  ["top-5", "number", (run) => run.top5, points],
  ...(R.some((run) => run.ema !== null) ? [["best, averaged weights", "number", (run) => run.ema, points]] : []),
  ...(measured ? [["measured top-1", "number", (run) => run.measured, points]] : []),
  ["crops seen", "number", (run) => run.crops, big], ["time", "number", (run) => run.seconds, seconds], ["crops/s", "number", (run) => run.rate, count]] });
document.getElementById("summary").append(runTable.fields, runTable.table,
  quiet("Top-1 and top-5 are of the validation images after the last pass; the best top-1 is the largest of any pass, and so a little too high. Time is that of the passes, " +
    "without evaluation." + (measured ? " Measured: the best weights on " + D.images + ", now." : "")));
runTable.draw();

// ---- comparison --------------------------------------------------------------------------------------------------
if (SETTINGS.length > 1 && Object.keys(D.metrics).length) {
  const metric = el("select", { id: "metric" }, ...Object.entries(D.metrics).map(([name, words]) => el("option", { value: name }, words)));
  const reference = el("select", { id: "reference" });
  const holder = el("div");
  const known = (name) => SETTINGS.map((_, i) => i).filter((i) => D.pairs[name].some((pair) => pair.first === i || pair.second === i));
  function references() {
    const held = reference.value, found = known(metric.value);
    reference.replaceChildren(...found.map((i) => el("option", { value: i }, SETTINGS[i].name)));
    if (found.some((i) => String(i) === held)) reference.value = held;
  }
  function compare() {
    const pairs = D.pairs[metric.value], base = Number(reference.value);
    const rows = pairs.filter((pair) => pair.first === base || pair.second === base).map((pair) => {
      const turned = pair.second === base;
      return { other: turned ? pair.first : pair.second, mean: turned ? -pair.mean : pair.mean, ci95: pair.ci95, seeds: pair.seeds,
        verdict: pair.verdict === "undecided" ? "undecided" : (pair.verdict === "higher") !== turned ? "higher" : "lower" };
    }).sort((a, b) => b.mean - a.mean);
    const results = table([["setting", "name"], ["finished runs", "number"], [D.metrics[metric.value], "number"]],
      SETTINGS.map((setting) => [setting.name, count(setting.results[metric.value].runs), spread(setting.results[metric.value])]));
    if (!rows.length) { holder.replaceChildren(results, note("No two settings have a finished run of the same seed: there is nothing to pair.")); return; }
    const name = SETTINGS[base].name;
    holder.replaceChildren(el("div", { class: "two" }, el("div", {}, el("h3", {}, "Means over the runs"), results),
      el("div", {}, el("h3", {}, "Minus " + name + ", paired by seed"), table([["setting", "name"], ["seeds", "number"], ["difference", "number"], ["95 % interval", "number"], ["verdict"]],
        rows.map((row) => [SETTINGS[row.other].name, count(row.seeds.length), signed(row.mean), row.ci95 === null ? "-" : "\u00b1 " + row.ci95.toFixed(2),
          row.ci95 === null ? "one seed: nothing" : row.verdict])))), intervals(rows, name));
  }
  function intervals(rows, name) {
    const W = 640, step = 26, H = rows.length * step + 34, left = 200;
    const most = Math.max(...rows.map((row) => Math.abs(row.mean) + (row.ci95 || 0)), 0.1), x = (value) => left + (W - left - 20) * (0.5 + value / most / 2);
    const figure = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Differences to " + name + " with their 95 % intervals" },
      svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 4, y2: H - 26 }));
    for (const value of [-most, 0, most]) figure.append(svg("text", { x: x(value), y: H - 10, "text-anchor": "middle" }, signed(value)));
    rows.forEach((row, i) => {
      const y = 18 + i * step, text = SETTINGS[row.other].name;
      figure.append(svg("text", { class: "ink", x: left - 12, y: y + 4, "text-anchor": "end" }, text.length > 28 ? text.slice(0, 27) + "\u2026" : text));
      if (row.ci95 !== null) figure.append(svg("line", { class: "whisker", x1: x(row.mean - row.ci95), x2: x(row.mean + row.ci95), y1: y, y2: y }));
      figure.append(svg("circle", { class: "mean", cx: x(row.mean), cy: y, r: 4.5 }));
    });
    return el("div", { class: "scroll intervals" }, figure);
  }
  metric.addEventListener("change", () => { references(); compare(); });
  reference.addEventListener("change", compare);
  section("comparison", "Comparison",
    quiet("Runs whose settings are equal but for the seed count as one setting. Differences are in percentage points, over the seeds that both settings have finished runs of; " +
      "\u00b1 is the 95 % interval of the mean over seeds (Student's t). Many comparisons at once find differences that are none: one in twenty."),
    el("div", { class: "fields no-print" }, el("label", { for: "metric" }, "Result", metric), el("label", { for: "reference" }, "Compared with", reference)), holder);
  references();
  compare();
}

// ---- curves ------------------------------------------------------------------------------------------------------
const CURVES = [["eval_top1", "Top-1, %", 2], ["train_loss", "Training loss", 4], ["eval_loss", "Validation loss", 4], ["lr", "Learning rate", 6], ["ema_top1", "Top-1 of the averaged weights, %", 2], ["eval_top5", "Top-5, %", 2]];
const drawn = CURVES.filter(([name]) => R.some((run) => run.curves[name]));
if (drawn.length) {
  const hidden = new Set();
  const axis = el("select", { id: "axis" }, el("option", { value: "epoch" }, "epoch"), ...(R.some((run) => run.curves.step) ? [el("option", { value: "step" }, "optimiser step")] : []));
  const legend = el("ul", { class: "legend" }, ...SETTINGS.map((setting, i) => {
    const box = el("input", { type: "checkbox", id: "show-" + i });
    box.checked = true;
    box.addEventListener("change", () => { if (box.checked) hidden.delete(i); else hidden.add(i); curves(); });
    return el("li", {}, el("label", { for: "show-" + i }, box, svg("svg", { viewBox: "0 0 32 12", "aria-hidden": "true" },
      svg("line", { class: "curve " + lineClass(i), x1: 0, x2: 32, y1: 6, y2: 6, "stroke-dasharray": dashes(i) })), setting.name + (setting.runs.length > 1 ? ` (${setting.runs.length} runs)` : "")));
  }));
  const holder = el("div", { class: "charts" });
  const W = 520, H = 300, left = 62, right = 12, top = 10, bottom = 36;
  // round numbers between two values
  function ticks(low, high) {
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) found.push(+(i * step).toPrecision(12));
    return found;
  }
  const short = (value) => Math.abs(value) >= 1e6 ? +(value / 1e6).toPrecision(3) + " M" : Math.abs(value) >= 1e4 ? +(value / 1e3).toPrecision(3) + " k" : Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(0) : String(+value.toPrecision(6));
  // of a run with phases: which one a pass was in, and where on an axis the next one begins
  const phaseAt = (run, i) => run.curves.phase ? run.curves.phase[i] : null;
  function phaseOf(run, epoch) {
    const phase = phaseAt(run, run.curves.epoch.indexOf(epoch));
    return phase ? `, phase ${phase} (${(run.phases[phase - 1] || "").split(":")[0]})` : "";
  }
  const borders = (run, key) => run.curves.epoch.map((_, i) => i).filter((i) => phaseAt(run, i + 1) && phaseAt(run, i + 1) !== phaseAt(run, i)).map((i) => run.curves[key][i]);
  function chart([name, title, digits]) {
    const key = axis.value;
    const lines = R.filter((run) => run.setting !== null && !hidden.has(run.setting) && run.curves[name] && run.curves[key]).map((run) => ({ run,
      at: run.curves[key].map((x, i) => [x, run.curves[name][i], run.curves.epoch[i]]).filter(([x, y]) => x !== null && y !== null) })).filter((line) => line.at.length);
    const figure = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "data-curve": name,
      "aria-label": `${title} by ${axis.selectedOptions[0].textContent}, ${plural(lines.length, "run")}; left and right go along a run, up and down to another` });
    const all = lines.flatMap((line) => line.at);
    if (!all.length) return el("figure", {}, el("figcaption", {}, title), quiet("No run that is shown has it."));
    let x0 = 0, x1 = all.reduce((most, [x]) => Math.max(most, x), 0) || 1, y0 = all.reduce((least, [, y]) => Math.min(least, y), Infinity), y1 = all.reduce((most, [, y]) => Math.max(most, y), -Infinity);
    if (name === "lr") y0 = Math.min(0, y0);
    if (y1 - y0 < 1e-12 * Math.max(1, Math.abs(y1))) { const pad = Math.abs(y1) * 0.05 || 1; y0 -= pad; y1 += pad; }
    const x = (value) => left + (W - left - right) * (value - x0) / (x1 - x0), y = (value) => top + (H - top - bottom) * (1 - (value - y0) / (y1 - y0));
    for (const value of ticks(y0, y1)) figure.append(svg("line", { class: "axis", x1: left, x2: W - right, y1: y(value), y2: y(value) }), svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
    for (const value of ticks(x0, x1)) figure.append(svg("text", { x: x(value), y: H - bottom + 17, "text-anchor": "middle" }, short(value)));
    figure.append(svg("text", { x: (left + W - right) / 2, y: H - 4, "text-anchor": "middle" }, axis.selectedOptions[0].textContent));
    for (const at of new Set(lines.flatMap(({ run }) => borders(run, key)))) figure.append(svg("line", { class: "axis border", x1: x(at), x2: x(at), y1: top, y2: H - bottom, "stroke-dasharray": "4 3" }));
    for (const line of lines) {
      const places = line.at.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`);
      line.mark = places.length > 1 ? svg("polyline", { class: "curve " + lineClass(line.run.setting), points: places.join(" "), "stroke-dasharray": dashes(line.run.setting) })
        : svg("circle", { class: "curve " + lineClass(line.run.setting), cx: x(line.at[0][0]), cy: y(line.at[0][1]), r: 3 });
      line.mark.setAttribute("data-run", line.run.name);
      figure.append(line.mark);
    }
    const cross = svg("circle", { class: "cross", r: 4.5, visibility: "hidden" });
    figure.append(cross);
    let held = null;
    function point(line, i, px, py) {
      if (held) held.line.mark.classList.remove("pointed-at");
      held = line ? { line, i } : null;
      cross.setAttribute("visibility", line ? "visible" : "hidden");
      if (!line) return hideTip();
      const [a, b, epoch] = line.at[i];
      line.mark.classList.add("pointed-at");
      cross.setAttribute("cx", x(a)); cross.setAttribute("cy", y(b));
      const box = cross.getBoundingClientRect();
      showTip(`${line.run.name}\n${title.replace(", %", "")} ${name === "lr" ? String(+b.toPrecision(4)) : b.toFixed(digits)}${title.endsWith("%") ? " %" : ""} after epoch ${epoch}` + phaseOf(line.run, epoch) + (key === "step" ? `, step ${count(a)}` : ""), px === undefined ? box.x : px, py === undefined ? box.y : py);
    }
    figure.addEventListener("mousemove", (event) => {
      const box = figure.getBoundingClientRect(), mx = (event.clientX - box.x) * W / box.width, my = (event.clientY - box.y) * H / box.height;
      let near = null, least = 40 ** 2;
      for (const line of lines) line.at.forEach(([a, b], i) => { const d = (x(a) - mx) ** 2 + (y(b) - my) ** 2; if (d < least) { least = d; near = [line, i]; } });
      if (near) point(near[0], near[1], event.clientX, event.clientY); else point(null);
    });
    figure.addEventListener("mouseleave", () => point(null));
    figure.addEventListener("blur", () => point(null));
    figure.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
      if (!move) return;
      event.preventDefault();
      const which = held ? lines.indexOf(held.line) : 0, next = lines[Math.max(0, Math.min(lines.length - 1, which + move[0]))];
      const i = held ? held.i + (move[1] === -Infinity ? -held.i : move[1] === Infinity ? next.at.length : move[1]) : 0;
      point(next, Math.max(0, Math.min(next.at.length - 1, i)));
    });
    return el("figure", {}, el("figcaption", {}, title), figure);
  }
  function curves() { holder.replaceChildren(...drawn.map(chart)); hideTip(); }
  axis.addEventListener("change", curves);
  section("curves", "Curves", el("div", { class: "fields no-print" }, el("label", { for: "axis" }, "Along", axis)), legend, holder,
    quiet("A point is the end of a pass." + (R.some((run) => run.curves.phase) ? " Dashed lines are where a phase ends." : "") + " Runs of one setting have one colour; point at a curve, or press the arrow keys on a chart, for its figures."));
  curves();
}

// ---- by class ----------------------------------------------------------------------------------------------------
const C = D.classes;
const classes = section("classes", "Classes", C ? null : note(D.classes_refused));
if (C) {
  const having = SETTINGS.map((_, i) => i).filter((i) => C.images[i].some((number) => number > 0));
  const rows = C.names.map((name, c) => ({ name, c }));
  const share = (i, row) => C.images[i][row.c] ? 100 * C.correct[i][row.c] / C.images[i][row.c] : null;
  const choice = (id, at) => { const made = el("select", { id }, ...having.map((i) => el("option", { value: i }, SETTINGS[i].name))); made.value = String(having[at]); return made; };
  const one = choice("class-one", 0), two = choice("class-two", Math.min(1, having.length - 1));
  const change = (row) => { const a = share(Number(one.value), row), b = share(Number(two.value), row); return a === null || b === null ? null : b - a; };
  const shown = having.slice(0, 8);
  const perClass = sortableTable({ id: "class", label: "Classes", things: "classes", rows, sorted: having.length > 1 ? 2 + shown.length : 2, descending: false,
    columns: [["class", "name", (row) => row.name, String], ["images", "number", (row) => Math.max(...having.map((i) => C.images[i][row.c] / Math.max(1, SETTINGS[i].runs.length))), count],
      ...shown.map((i) => [SETTINGS[i].name, "number", (row) => share(i, row), (value) => points(value, 1)]),
      ...(having.length > 1 ? [["difference", "number", change, (value) => value === null ? "-" : signed(value)]] : [])] });
  classes.append(quiet((C.measured ? `Top-1 of the best weights on ${D.images}` : "Top-1 on the validation images at each run's best top-1, as the runs recorded it") +
    ", by class, mean over the runs of a setting." + (having.length > shown.length ? ` The first ${shown.length} of ${having.length} settings have columns.` : "") +
    (having.length > 1 ? " The difference is the second setting minus the first, in points; with few images per class it is mostly chance." : "")));
  if (having.length > 1) classes.append(el("div", { class: "fields no-print" }, el("label", { for: "class-one" }, "Difference between", one), el("label", { for: "class-two" }, "and", two)));
  classes.append(perClass.fields, perClass.table);
  for (const select of [one, two]) select.addEventListener("change", perClass.draw);
  perClass.draw();
}

// ---- settings ----------------------------------------------------------------------------------------------------
section("settings", "Settings",
  D.differing.length ? el("h3", {}, "What differs") : null,
  D.differing.length ? (SETTINGS.length > D.differing.length
    ? table([["setting", "name"], ...D.differing.map((name) => [name, "name"])], SETTINGS.map((setting) => [setting.name, ...setting.values.map((value) => value === null ? "-" : value)]))
    : table([["setting"], ...SETTINGS.map((setting) => [setting.name, "name"])], D.differing.map((name, i) => [name, ...SETTINGS.map((setting) => setting.values[i] === null ? "-" : setting.values[i])]))) : null,
  el("h3", {}, SETTINGS.length > 1 ? "The same in all, other than the defaults" : "Other than the defaults"), facts(Object.entries(D.common)),
  quiet("`trainer run --config RUN/config.yaml --output NEW` repeats a run, with everything that its folder says. Digests under provenance tell from which labels and teacher it learnt."));
document.documentElement.dataset.ready = "yes";

// The page of a store; `shell.js` stands before it in the same function.
const className = (id) => id >= 0 && id < D.class_names.length ? D.class_names[id] : "no ground truth";
const teacherClass = (id) => { const name = D.explorer.names[String(id)]; return name === undefined ? "class " + id : name; };
// Colour of a probability: dark red over yellow to blue, readable on photographs.
const STOPS = [[0, [178, 24, 43]], [0.25, [239, 108, 60]], [0.5, [253, 205, 85]], [0.75, [118, 200, 175]], [1, [44, 123, 200]]];
function colour(p) {
  for (let i = 1; i < STOPS.length; i += 1) {
    if (p <= STOPS[i][0] || i === STOPS.length - 1) {
      const [low, from] = STOPS[i - 1], [high, to] = STOPS[i];
      const t = Math.max(0, Math.min(1, (p - low) / (high - low)));
      return "rgb(" + from.map((value, c) => Math.round(value + t * (to[c] - value))).join(",") + ")";
    }
  }
}
function scaleBar() {
  const parts = Array.from({ length: 40 }, (_, i) => svg("rect", { x: i, y: 0, width: 1.05, height: 4, fill: colour((i + 0.5) / 40) }));
  return el("div", { class: "scale" }, "0", svg("svg", { viewBox: "0 0 40 4", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts), "1",
    el("span", {}, "largest probability of the label"));
}

// ---- head and summary --------------------------------------------------------------------------------------------
heading("Labels of " + D.name, ", seed " + D.seed + " of its samples");
const S = D.summary;
const chosen = D.label_sets.find((row) => row.name === D.chosen);
const isPart = Boolean(D.counted), partly = isPart ? `${count(D.counted.crops)} of ${count(D.counted.of)} crops` : "";
const isSampled = D.sample && D.sample.crops < D.sample.of;
section("summary", "Summary",
  tiles([["images", count(D.images)], ["classes", count(D.class_names.length)], ["crops per image", count(D.num_crops)],
    [D.label_sets.length === 1 ? "label set" : "label sets", count(D.label_sets.length)],
    [D.teachers.length === 1 ? "teacher" : "teachers", count(D.teachers.length)]]),
  D.bad_images ? quiet((D.bad_images === 1 ? "One image was" : count(D.bad_images) + " images were") + " left out as bad.") : null,
  D.is_complete ? null : note("Label set " + D.chosen + " is not finished: only committed crops count on this page."),
  isSampled ? note("A large store: figures per class and plots of single crops are from a sample of " + count(D.sample.crops) + " of " +
    count(D.sample.of) + " crops. " + (isPart ? `Table 1 and what the thresholds do are counted over ${partly}: as many crops of every image.` : "Table 1 and what the thresholds do are counted over all crops.")) : null,
  table([["label set", "name"], ["teacher", "name"], ["plan"], ["compression"], ["classes", "number"], ["shards", "number"], ["labels", "number"]],
    D.label_sets.map((row) => [row.name + (row.name === D.chosen && D.label_sets.length > 1 ? " (looked into below)" : ""), row.teacher, row.plan, words(row.codec),
      count(row.num_classes), row.shards === row.of ? "all " + count(row.of) : count(row.shards) + " of " + count(row.of), size(row.bytes)])),
  S ? el("h3", {}, D.chosen) : null,
  S ? facts([
    ["labelled images", count(S.labelled_images) + " of " + count(S.num_images)],
    ["mean largest probability", fixed(S.mean_max_probability, 4)],
    ["mean probability of the ground truth", fixed(S.mean_ground_truth_probability, 4)],
    ["crops above 0.999", percent(S.certain_crops)],
    ["read from", count(S.sampled_crops) + " crops of " + count(S.sampled_blocks) + " of " + count(S.blocks) + " image blocks"]]) : missing("summary"));

// ---- provenance and cost -----------------------------------------------------------------------------------------
section("provenance", "Provenance and cost",
  el("div", { class: "two" }, ...D.teachers.map((teacher) => el("div", {}, el("h3", {}, titled("Teacher", teacher.name)), facts([
    ["source", teacher.source], ["architecture", teacher.architecture], ["weights, SHA-256", teacher.digest],
    ["top-1", teacher.top1 === null ? "not measured" : percent(teacher.top1) +
      (teacher.facts.evaluation && teacher.facts.evaluation.num_images ? " on " + count(teacher.facts.evaluation.num_images) + " images" : "")],
    ["input", teacher.input_size + " px, " + teacher.interpolation + ", crop " + teacher.crop_pct],
    ["versions", words(teacher.versions)]]))),
  ...D.plans.map((plan) => el("div", {}, el("h3", {}, titled("Crop plan", plan.name)), facts([
    ["crops per image", count(plan.num_crops)], ["boxes", plan.stored ? "stored" : "computed from the seed"],
    ...rowsOf(plan.parameters), ["shard", plan.images_per_shard + " images x " + plan.crops_per_shard + " crops"]]))),
  ...D.label_sets.map((row) => el("div", {}, el("h3", {}, titled("Label set", row.name)), facts([
    ["uuid", row.uuid], ["compression", words(row.codec)], ["temperature", row.temperature], ...rowsOf(row.facts)])))),
  ...(D.masks.length ? [el("h3", {}, "Masks"), table([["mask", "name"], ["label set", "name"], ["rule"]],
    D.masks.map((mask) => [mask.name, mask.label_set, words(mask.rule)]))] : []),
  el("h3", {}, "Teacher time"),
  table([["label set", "name"], ["device"], ["time", "number"], ["crops", "number"], ["crops/s", "number"], ["images/s", "number"]],
    D.cost.label_sets.flatMap((part) => part.devices.map((device) => [part.label_set + (part.derived ? " (no teacher)" : ""),
      device.device || "not recorded", seconds(device.seconds), count(device.crops), fixed(device.crops_per_second, 1), fixed(device.images_per_second, 2)]))),
  table([["teacher", "name"], ["plan"], ["time", "number"], ["students", "number"], ["time per student", "number"], ["ahead of an online teacher after", "number"]],
    D.cost.teachers.map((part) => [part.teacher, part.plan, seconds(part.seconds), count(part.students.length), seconds(part.seconds_per_student),
      count(part.epochs_to_break_even) + " student epochs"])));

// ---- Table 1 -----------------------------------------------------------------------------------------------------
function figureOfTable1(rows) {
  const W = 720, H = 220, left = 46, bottom = 40, top = 12;
  const most = Math.max(...rows.map((row) => Math.max(row.ratio, row.paper_ratio || 0)), 0.01);
  const wide = (W - left - 8) / rows.length, y = (share) => top + (H - top - bottom) * (1 - share / most);
  const figure = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": "Share of the crops in each bin of Table 1; arrow keys go through the bins" });
  for (const part of [0, 0.5, 1]) figure.append(
    svg("line", { class: "axis", x1: left, x2: W - 8, y1: y(part * most), y2: y(part * most) }),
    svg("text", { x: left - 6, y: y(part * most) + 4, "text-anchor": "end" }, percent(part * most, most > 0.2 ? 0 : 1)));
  const bars = rows.map((row, i) => svg("rect", { class: "accent-fill", x: left + i * wide + wide * 0.1, width: wide * 0.8, y: y(row.ratio), height: Math.max(0, H - bottom - y(row.ratio)) }));
  const targets = rows.map((row, i) => { const made = svg("rect", { x: left + i * wide, width: wide, y: top, height: H - top - bottom, fill: "transparent" }); made.mark = bars[i]; return made; });
  figure.append(...bars);
  rows.forEach((row, i) => {
    if (row.paper_ratio !== null) figure.append(svg("line", { class: "paper", x1: left + i * wide + wide * 0.06, x2: left + (i + 0.94) * wide, y1: y(row.paper_ratio), y2: y(row.paper_ratio) }));
    figure.append(svg("text", { x: left + (i + 0.5) * wide, y: H - bottom + 16, "text-anchor": "middle" }, row.low + "-" + row.high));
  });
  figure.append(svg("text", { x: (W + left) / 2, y: H - 4, "text-anchor": "middle" }, "largest probability; lines: the paper's EfficientNet-L2"), ...targets);
  hoverable(figure, bars, (i) => `${rows[i].low} to ${rows[i].high}: ${count(rows[i].count)} crops, ${percent(rows[i].ratio)}\nbelow ${rows[i].high}: ${percent(rows[i].cumulative)}` +
    (rows[i].paper_ratio === null ? "" : `\npaper: ${percent(rows[i].paper_ratio)}`));
  return el("div", { class: "scroll wide" }, figure);
}
section("table1", "FerKD Table 1", quiet("Crops of " + D.chosen + ` by the largest probability of their label, counted over ${isPart ? partly : "all of them"}, beside the paper's EfficientNet-L2.`), missing("table1"),
  ...(D.table1 ? [figureOfTable1(D.table1), table([["range (P)"], ["crops", "number"], ["ratio", "number"], ["agg. ratio", "number"], ["paper ratio", "number"], ["paper agg. ratio", "number"]],
    D.table1.map((row) => ["[" + row.low + ", " + row.high + (row.high === 1 ? "]" : ")"), count(row.count), percent(row.ratio), percent(row.cumulative), percent(row.paper_ratio), percent(row.paper_cumulative)]))] : []));

// ---- Table 2 -----------------------------------------------------------------------------------------------------
section("sizes", "FKD Table 2: sizes", missing("sizes"), ...(D.sizes ? [
  quiet(`At ${count(D.sizes.scale[0])} images x ${count(D.sizes.scale[1])} crops; predicted from ${count(D.sizes.sampled_crops)} crops of ${D.sizes.source}, encoded and compressed. ` +
    "* in part bytes before compression. FKD's calculation is 4 bytes per number; the last column is what the paper prints for 1.2 M images x 200 crops of 1,000 classes."),
  table([["kind"], ["dtype"], ["labels B/crop", "number"], ["predicted", "number"], ["label set", "name"], ["measured B/crop", "number"], ["measured", "number"], ["FKD calculation", "number"], ["FKD files", "number"], ["paper", "number"]],
    D.sizes.rows.map((row) => { const star = row.basis === "raw" ? "*" : ""; return [row.kind, row.dtype || "-", fixed(row.labels_per_crop, 2) + star, size(row.predicted_bytes) + star,
      row.label_set || "-", fixed(row.measured_per_crop, 2), size(row.measured_bytes), size(row.fkd_table_bytes), size(row.fkd_disk_bytes), row.printed || "-"]; }))] : []));

// ---- thresholds --------------------------------------------------------------------------------------------------
const T = D.thresholds;
const REGIONS = [["too_hard", "discarded: too hard"], ["hard", "calibrated: ground truth"], ["important", "kept"], ["too_easy", "discarded: too easy"]];
let at = { low: 30, middle: 60, top: 190 };
const listeners = [];
const STEPS = T ? T.steps : 200;
const single = new Float32Array(1);
const float32 = (value) => { single[0] = value; return single[0]; };
const threshold = (name) => at[name] / STEPS;
function regionOf(p) {
  if (p < float32(threshold("low"))) return "too_hard";
  if (p > float32(threshold("top"))) return "too_easy";
  return p < float32(threshold("middle")) ? "hard" : "important";
}
function regionsOf(below, above, labelled) {
  const tooHard = below[at.low], tooEasy = above[at.top], hard = below[at.middle] - tooHard;
  return { too_hard: tooHard, hard, important: labelled - tooHard - hard - tooEasy, too_easy: tooEasy };
}
// counts by class were kept as differences, since these are short
const byClass = T && T.classes ? T.classes.map((row, c) => {
  let sum = 0;
  const below = row.below.map((more) => (sum += more));
  const above = below.map((value) => T.class_labelled[c] - value);
  for (const [i, ties] of row.equal) above[i] -= ties;
  return { below, above };
}) : null;
const classRegions = (id) => { const row = byClass && byClass[id < 0 ? byClass.length - 1 : id]; return row ? regionsOf(row.below, row.above, T.class_labelled[id < 0 ? byClass.length - 1 : id]) : null; };

const calibration = section("calibration", "What a calibration would do", missing("thresholds"));
if (T) {
  const ruled = D.mask ? (D.masks.find((mask) => mask.name === D.mask) || {}).rule : null;
  const fits = ruled && typeof ruled.low === "number" && (ruled.criterion || "max_probability") === "max_probability";
  if (fits) for (const name of Object.keys(at)) at[name] = Math.round(ruled[name] * STEPS);
  calibration.append(quiet(`Crops of ${D.chosen} by region (FerKD Eq. 4), counted over ${isPart ? partly + ", as many of every image: \`labelstore calibrate --dry-run\` counts all, and finds nearly the same shares" : "all " + count(T.labelled) + ": the same counts that \`labelstore calibrate --dry-run\` prints for these thresholds"}. ` +
    "The epsilon of the ground truth changes no count. Thresholds do not carry over between teachers."));
  if (D.mask && !fits) calibration.append(note(`Mask ${D.mask} is made by another rule than thresholds of the largest probability: the sliders do not show it.`));
  if (fits && Object.keys(at).some((name) => Math.abs(ruled[name] - threshold(name)) > 1e-9))
    calibration.append(note(`The thresholds of mask ${D.mask} lie between the sliders' steps; its exact counts are in the table below.`));
  const box = el("div", { class: "sliders" });
  const inputs = {}, outputs = {};
  for (const [name, about] of [["low", "below it discarded"], ["middle", "from low to below it: ground truth"], ["top", "above it discarded"]]) {
    outputs[name] = el("output", { id: "value-" + name, for: "slider-" + name });
    inputs[name] = el("input", { type: "range", id: "slider-" + name, min: 0, max: STEPS, step: 1 });
    box.append(el("label", { for: "slider-" + name }, name + " ", outputs[name], el("span", { class: "quiet" }, " " + about), inputs[name]));
  }
  const cells = {};
  const shown = el("div", { class: "tiles", id: "regions", "aria-live": "polite" }, ...[...REGIONS, ["usable", "usable: calibrated and kept"]].map(([name, about]) => {
    cells[name] = [el("b", { id: "count-" + name }), el("span", { id: "share-" + name })];
    return el("div", { class: "tile " + name }, cells[name][0], cells[name][1], el("br"), el("span", {}, about));
  }));
  const command = el("code", { id: "command" });
  const logarithm = el("input", { type: "checkbox", id: "logarithm" });
  const figure = svg("svg", { viewBox: "0 0 1000 240", role: "img", id: "histogram", "aria-label": "Histogram of the largest probability in bins of 0.005, coloured by region; arrow keys go through the bins" });
  const bars = Array.from({ length: STEPS }, (_, i) => svg("rect", { x: 50 + i * 940 / STEPS, width: 940 / STEPS - 0.6 }));
  const bins = bars.map((_, i) => (i === STEPS - 1 ? T.labelled : T.below[i + 1]) - T.below[i]);
  const most = Math.max(...bins, 1);
  const targets = bars.map((bar, i) => { const made = svg("rect", { x: 50 + i * 940 / STEPS, width: 940 / STEPS, y: 8, height: 200, fill: "transparent" }); made.mark = bar; return made; });
  const ticks = svg("g", {});
  figure.append(ticks, ...bars);
  for (let i = 0; i <= 10; i += 1) figure.append(svg("text", { x: 50 + i * 94, y: 224, "text-anchor": "middle" }, (i / 10).toFixed(1)));
  figure.append(svg("text", { x: 520, y: 238, "text-anchor": "middle" }, "largest probability of the label"), ...targets);
  const high = (value) => logarithm.checked ? Math.log1p(value) / Math.log1p(most) : value / most;
  function heights() {
    bars.forEach((bar, i) => { const height = 200 * high(bins[i]); bar.setAttribute("y", 208 - height); bar.setAttribute("height", height); });
    const wanted = logarithm.checked ? Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, i) => 10 ** i) : [most / 2, most];
    ticks.replaceChildren(svg("line", { class: "axis", x1: 50, x2: 990, y1: 208, y2: 208 }), ...wanted.flatMap((value) => [svg("line", { class: "axis", x1: 50, x2: 990, y1: 208 - 200 * high(value), y2: 208 - 200 * high(value) }),
      svg("text", { x: 46, y: 212 - 200 * high(value), "text-anchor": "end" }, short(value))]));
  }
  const short = (value) => value >= 1e6 ? +(value / 1e6).toPrecision(2) + " M" : value >= 1e4 ? Math.round(value / 1e3) + " k" : count(value);
  hoverable(figure, bars, (i) => `${(i / STEPS).toFixed(3)} to ${((i + 1) / STEPS).toFixed(3)}: ${count(bins[i])} crops, ${percent(bins[i] / (T.labelled || 1))}\nbelow ${((i + 1) / STEPS).toFixed(3)}: ${percent((T.below[i] + bins[i]) / (T.labelled || 1))}`);
  function update() {
    const found = regionsOf(T.below, T.above, T.labelled);
    found.usable = found.hard + found.important;
    for (const [name, [number, share]] of Object.entries(cells)) { number.textContent = count(found[name]); share.textContent = percent(found[name] / (T.labelled || 1)); }
    for (const name of Object.keys(at)) { inputs[name].value = at[name]; outputs[name].textContent = threshold(name); inputs[name].setAttribute("aria-valuetext", threshold(name)); }
    command.textContent = `labelstore calibrate STORE --label-set ${D.chosen} --low ${threshold("low")} --middle ${threshold("middle")} --top ${threshold("top")} --dry-run`;
    bars.forEach((bar, i) => { const p = (i + 0.5) / STEPS; bar.setAttribute("class", regionOf(p) + "-fill"); });
    for (const listener of listeners) listener();
  }
  for (const name of Object.keys(at)) inputs[name].addEventListener("input", () => {
    at[name] = Number(inputs[name].value);
    // low <= middle <= top: the other two give way
    const order = ["low", "middle", "top"], mine = order.indexOf(name);
    order.forEach((other, i) => { at[other] = i < mine ? Math.min(at[other], at[name]) : i > mine ? Math.max(at[other], at[name]) : at[other]; });
    update();
  });
  const reset = el("button", { type: "button" }, "FerKD's thresholds");
  reset.addEventListener("click", () => { at = { low: 30, middle: 60, top: 190 }; update(); });
  logarithm.addEventListener("change", heights);
  heights();
  calibration.append(box, shown, el("div", { class: "scroll wide" }, figure),
    el("div", { class: "fields no-print" }, el("label", { class: "row" }, logarithm, "logarithmic heights"), reset), el("p", { class: "quiet" }, command));
  // when everything below is there
  queueMicrotask(update);
}
if (D.choices) {
  const columns = [["choice", "name"], ["rule"], ["too hard", "number"], ["too easy", "number"], ["calibrated", "number"], ["kept", "number"], ["images left out", "number"]];
  const cell = (choice, name) => count(choice.counts[name]) + "\n" + percent(choice.shares[name]);
  calibration.append(el("h3", {}, "Usual choices"), table(columns, D.choices.map((choice) => [choice.title, choice.described, cell(choice, "too_hard"), cell(choice, "too_easy"), cell(choice, "hard"), cell(choice, "important"), count(choice.counts.images_without_crop)])),
    ...D.choices.flatMap((choice) => choice.notes.map((text) => quiet(choice.title + ": " + text))));
} else if (T) calibration.append(note(D.unavailable.choices || ""));

// ---- classes -----------------------------------------------------------------------------------------------------
const X = D.sample;
const classes = section("classes", "Classes", missing("sample"));
if (X) {
  const withTruth = X.classes.some((row) => row.agrees !== undefined);
  const columns = [["class", "name", (row) => className(row.class), String], ["crops", "number", (row) => row.crops, count],
    ["mean max p", "number", (row) => row.max_probability, fixed],
    ...(withTruth ? [["ground-truth p", "number", (row) => row.ground_truth_probability, fixed], ["top-1", "number", (row) => row.agrees, (value) => percent(value, 1)]] : []),
    ["entropy", "number", (row) => row.entropy, fixed], ["area", "number", (row) => row.area, fixed],
    ...(byClass ? [["discarded", "number", (row) => { const r = classRegions(row.class); return r && (r.too_hard + r.too_easy) / ((r.too_hard + r.hard + r.important + r.too_easy) || 1); }, percent],
      ["calibrated", "number", (row) => { const r = classRegions(row.class); return r && r.hard / ((r.too_hard + r.hard + r.important + r.too_easy) || 1); }, percent]] : [])];
  const { draw, fields, table: sortable } = sortableTable({ id: "class", label: "Classes", things: "classes", columns, rows: X.classes, sorted: withTruth ? 4 : 2 });
  let waiting = 0;
  listeners.push(() => { if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); }); });
  classes.append(quiet((isSampled ? `Means over a sample of ${count(X.crops)} of ${count(X.of)} crops` : `Means over all ${count(X.crops)} crops`) + ", by ground truth" +
    (byClass ? `; discarded and calibrated are shares of ${isPart ? "the counted" : "all"} crops of the class, and follow the sliders above.` : ".")),
  fields, sortable);
  draw();
}

// ---- plots of single crops ---------------------------------------------------------------------------------------
if (X && X.dots.p.length) {
  const plots = section("crops", "Where the crops lie");
  const present = [...new Set(X.dots.class)].sort((a, b) => className(a) < className(b) ? -1 : 1);
  const select = el("select", { id: "plot-class" }, el("option", { value: "all" }, "all classes"), ...present.map((id) => el("option", { value: id }, className(id))));
  const holder = el("div", { class: "two" });
  const N = 20;
  function frame(label, across, down) {
    const figure = svg("svg", { viewBox: "0 0 420 400", role: "img", "aria-label": label + "; arrow keys go through the marks" });
    figure.append(svg("rect", { class: "axis", x: 50, y: 10, width: 340, height: 340, fill: "none" }));
    for (const part of [0, 0.5, 1]) figure.append(svg("text", { x: 50 + 340 * part, y: 366, "text-anchor": "middle" }, String(part)),
      svg("text", { x: 44, y: (label.startsWith("Mean") ? 14 + 340 * part : 354 - 340 * part), "text-anchor": "end" }, String(part)));
    figure.append(svg("text", { x: 220, y: 386, "text-anchor": "middle" }, across), svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: "translate(12 180) rotate(-90)" }, down));
    return figure;
  }
  function plot() {
    const wanted = select.value, chosenDots = X.dots.class.map((id, i) => i).filter((i) => wanted === "all" || String(X.dots.class[i]) === wanted);
    const sums = new Map();
    for (const i of chosenDots) {
      const cell = Math.min(N - 1, Math.floor(X.dots.y[i] / 10000 * N)) * N + Math.min(N - 1, Math.floor(X.dots.x[i] / 10000 * N));
      const held = sums.get(cell) || [0, 0];
      held[0] += 1; held[1] += X.dots.p[i] / 10000; sums.set(cell, held);
    }
    const centres = frame("Mean probability by centre of the crop", "centre, share of the width", "centre, share of the height");
    const cells = [...sums.keys()].sort((a, b) => a - b);
    const squares = cells.map((cell) => svg("rect", { x: 50 + 17 * (cell % N), y: 10 + 17 * Math.floor(cell / N), width: 16.6, height: 16.6, fill: colour(sums.get(cell)[1] / sums.get(cell)[0]) }));
    centres.append(...squares);
    hoverable(centres, squares, (k) => `${count(sums.get(cells[k])[0])} crops, mean probability ${fixed(sums.get(cells[k])[1] / sums.get(cells[k])[0])}`);
    const areas = frame("Probability by area of the crop", "area, share of the image", "largest probability");
    const few = chosenDots.slice(0, 2500);
    areas.append(...few.map((i) => svg("circle", { class: "accent-fill", cx: 50 + 0.034 * X.dots.area[i], cy: 350 - 0.034 * X.dots.p[i], r: 1.7, "fill-opacity": few.length > 800 ? 0.25 : 0.55 })));
    const groups = Array.from({ length: N }, () => []);
    for (const i of chosenDots) groups[Math.min(N - 1, Math.floor(X.dots.area[i] / 10000 * N))].push(X.dots.p[i] / 10000);
    const medians = groups.map((group, g) => [g, group.sort((a, b) => a - b)]).filter(([, group]) => group.length >= 5).map(([g, group]) => [(g + 0.5) / N, (group[(group.length - 1) >> 1] + group[group.length >> 1]) / 2, group.length]);
    areas.append(svg("polyline", { class: "median", points: medians.map(([x, y]) => `${50 + 340 * x},${350 - 340 * y}`).join(" ") }));
    const marks = medians.map(([x, y]) => svg("circle", { class: "hard-fill", cx: 50 + 340 * x, cy: 350 - 340 * y, r: 5 }));
    areas.append(...marks);
    hoverable(areas, marks, (k) => `area ${(medians[k][0] - 0.5 / N).toFixed(2)} to ${(medians[k][0] + 0.5 / N).toFixed(2)}: median ${fixed(medians[k][1])} of ${count(medians[k][2])} crops`);
    holder.replaceChildren(el("div", {}, el("h3", {}, "Mean probability by centre"), centres, scaleBar()), el("div", {}, el("h3", {}, "Probability by area, medians"), areas));
  }
  select.addEventListener("change", plot);
  plots.append(quiet(`${count(X.dots.p.length)} crops chosen by seed ${D.seed} (FerKD Fig. 1).`), el("div", { class: "fields no-print" }, el("label", { for: "plot-class" }, "Class", select)), holder);
  plot();
}

// ---- explorer ----------------------------------------------------------------------------------------------------
const E = D.explorer;
let openImage = () => {};
const explorer = section("explorer", "Explorer");
if (!E.images.length) explorer.append(note("No image has labels yet."));
else {
  const present = [...new Set(E.images.map((image) => image.class))].sort((a, b) => className(a) < className(b) ? -1 : 1);
  const classSelect = el("select", { id: "explore-class" }, el("option", { value: "all" }, "all classes"), ...present.map((id) => el("option", { value: id }, className(id))));
  const imageSelect = el("select", { id: "explore-image" });
  const which = el("select", { id: "explore-crops" }, ...[["all", "all crops"], ["extremes", "5 hardest and 5 easiest"], ["hardest", "5 hardest"], ["easiest", "5 easiest"],
    ...(T ? REGIONS.map(([name, about]) => [name, about]) : [])].map(([value, text]) => el("option", { value }, text)));
  // two hundred boxes at once hide each other
  if (D.num_crops > 40) which.value = "extremes";
  const stage = svg("svg", { id: "stage", tabindex: 0, role: "group", "aria-label": "Crops of the image; arrow keys go from the hardest crop to the easiest" });
  const side = el("div", { id: "crop-label", "aria-live": "polite" });
  let image = null, rects = [], order = [], current = 0;
  function choose(index) {
    if (rects[current]) rects[current].classList.remove("chosen");
    current = index;
    const crop = order[current];
    if (crop === undefined) { side.replaceChildren(quiet("No crop of this image is in that choice.")); return; }
    rects[current].classList.add("chosen");
    // drawn last, so that it lies above the others
    const held = document.activeElement;
    stage.append(rects[current]);
    if (held === stage) stage.focus({ preventScroll: true });
    const [top, left, height, width] = image.boxes[crop];
    side.replaceChildren(el("h3", {}, `Crop ${crop}`), facts([["top, left, height, width", `${top}, ${left}, ${height}, ${width}`], ["area", percent(height * width / (image.width * image.height), 1)],
      ["flip", image.flips[crop] ? "yes" : "no"], ["largest probability", fixed(image.max[crop], 4)], ["region now", T ? REGIONS.find(([name]) => name === regionOf(image.max[crop]))[1] : ""]]),
    ...image.ids[crop].map((id, k) => {
      const share = image.probs[crop][k] / 10000;
      return el("div", { class: "label-row" }, el("span", { class: id === image.truth ? "truth" : null }, teacherClass(id) + (id === image.truth ? " (ground truth)" : "")), el("span", { class: "number" }, fixed(share, 4)),
        svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "accent-fill", x: 0, y: 0, height: 1, width: 100 * share })));
    }));
  }
  function drawImage() {
    image = E.images[Number(imageSelect.value)];
    order = image.max.map((_, i) => i).sort((a, b) => image.max[a] - image.max[b] || a - b);
    if (which.value === "hardest") order = order.slice(0, 5);
    else if (which.value === "easiest") order = order.slice(-5);
    else if (which.value === "extremes") order = order.length > 10 ? [...order.slice(0, 5), ...order.slice(-5)] : order;
    else if (which.value !== "all") order = order.filter((i) => regionOf(image.max[i]) === which.value);
    stage.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    rects = order.map((crop) => {
      const [top, left, height, width] = image.boxes[crop];
      return svg("rect", { class: "box", "data-crop": crop, x: left, y: top, width, height, stroke: colour(image.max[crop]) });
    });
    rects.forEach((rect, i) => { rect.addEventListener("mouseenter", () => choose(i)); rect.addEventListener("click", () => choose(i)); });
    // large boxes below small ones, so that each can be pointed at
    const layered = rects.map((rect, i) => [image.boxes[order[i]][2] * image.boxes[order[i]][3], rect]).sort(([a], [b]) => b - a).map(([, rect]) => rect);
    const picture = image.picture ? svg("image", { href: image.picture, x: 0, y: 0, width: image.width, height: image.height, preserveAspectRatio: "none" }) : null;
    stage.replaceChildren(...[picture, svg("rect", { class: "frame", x: 0, y: 0, width: image.width, height: image.height }), ...layered].filter(Boolean));
    caption.textContent = `${image.key}: ${className(image.class)}, ${image.width} x ${image.height} px, ${order.length} of ${image.max.length} crops`;
    current = 0;
    choose(0);
  }
  const caption = el("p", { class: "quiet", id: "image-caption" });
  function listImages() {
    const wanted = E.images.map((_, i) => i).filter((i) => classSelect.value === "all" || String(E.images[i].class) === classSelect.value);
    imageSelect.replaceChildren(...wanted.map((i) => el("option", { value: i }, E.images[i].key)));
    drawImage();
  }
  stage.addEventListener("keydown", (event) => {
    const next = { ArrowRight: current + 1, ArrowDown: current + 1, ArrowLeft: current - 1, ArrowUp: current - 1, Home: 0, End: order.length - 1 }[event.key];
    if (next === undefined || !order.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(order.length - 1, next)));
  });
  classSelect.addEventListener("change", listImages);
  imageSelect.addEventListener("change", drawImage);
  which.addEventListener("change", drawImage);
  listeners.push(() => { if (REGIONS.some(([name]) => name === which.value)) drawImage(); else if (order.length) choose(current); });
  openImage = (row) => {
    classSelect.value = "all";
    listImages();
    imageSelect.value = E.images.findIndex((entry) => entry.image === row);
    drawImage();
    explorer.scrollIntoView();
    stage.focus({ preventScroll: true });
  };
  explorer.append(quiet(`${count(E.images.length)} of ${count(E.of)} labelled images, chosen by seed ${D.seed}` + (D.noise && D.noise.images.length ? " and the suspects below" : "") + ". Point at a box, or press the arrow keys, for the label of the crop; colours go by its largest probability." +
    (E.without_picture === null ? " Made without --images: boxes are shown on an empty frame." : E.without_picture ? ` ${count(E.without_picture)} images are not in the folder, or are not those that were labelled.` : "")),
  el("div", { class: "fields no-print" }, el("label", { for: "explore-class" }, "Class", classSelect), el("label", { for: "explore-image" }, "Image", imageSelect), el("label", { for: "explore-crops" }, "Crops", which)),
  el("div", { class: "explorer" }, el("div", {}, caption, stage, scaleBar()), side));
  listImages();
}

// ---- label noise -------------------------------------------------------------------------------------------------
const noise = section("noise", "Labels that may be wrong", missing("noise"));
if (D.noise) {
  const found = D.noise;
  noise.append(quiet(`${count(found.num_suspects)} of ${count(found.looked_at)} images looked at` + (found.looked_at < found.num_images ? ` (${count(found.num_images)} in all: a sample of the image blocks)` : "") +
    `: more than half of their crops get one class that is not the ground truth, with a probability above ${found.confidence}.`));
  if (found.images.length) noise.append(el("ul", { class: "gallery" }, ...found.images.map((row) => {
    const image = E.images.find((entry) => entry.image === row.image);
    const crop = image.boxes[row.crop];
    const press = el("button", { type: "button", class: "no-print" }, "open in the explorer");
    press.addEventListener("click", () => openImage(row.image));
    return el("li", {}, svg("svg", { viewBox: `0 0 ${image.width} ${image.height}`, role: "img", "aria-label": row.key },
      image.picture ? svg("image", { href: image.picture, width: image.width, height: image.height, preserveAspectRatio: "none" }) : null,
      svg("rect", { class: "frame", width: image.width, height: image.height }),
      svg("rect", { x: crop[1], y: crop[0], width: crop[3], height: crop[2], fill: "none", stroke: colour(image.max[row.crop]), "stroke-width": 2.5, "vector-effect": "non-scaling-stroke" })),
    el("div", {}, row.key), el("div", {}, "ground truth: ", el("b", {}, row.class_name)), el("div", {}, "teacher: ", el("b", {}, row.suggested_name)),
    el("div", { class: "quiet" }, `${percent(row.share, 0)} of the crops; the ground truth gets ${fixed(row.ground_truth_probability)}`), press);
  })));
  if (found.pairs.length) noise.append(el("h3", {}, "Classes taken for each other"), table([["ground truth", "name"], ["teacher", "name"], ["images", "number"]], found.pairs.map((row) => [row.class_name, row.suggested_name, count(row.images)])));
}

// ---- teachers compared -------------------------------------------------------------------------------------------
if (D.label_sets.length > 1) section("teachers", "Label sets compared",
  quiet(`Divergences are means in nats over the crops that both label, in at most ${D.compared.blocks} image blocks spread evenly.`),
  D.compared.pairs.length ? table([["first", "name"], ["second", "name"], ["crops", "number"], ["same first class", "number"], ["KL(first || second)", "number"], ["KL(second || first)", "number"], ["JS", "number"], ["worst JS", "number"]],
    D.compared.pairs.map((pair) => [pair.label_sets[0], pair.label_sets[1], count(pair.num_crops), percent(pair.top1_agreement), fixed(pair.kl, 4), fixed(pair.kl_reversed, 4), fixed(pair.js, 4), fixed(pair.js_worst, 4)])) : null,
  ...D.compared.refused.map(quiet));
document.documentElement.dataset.ready = "yes";

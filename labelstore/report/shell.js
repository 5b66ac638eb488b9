const D = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const main = document.getElementById("main");
const tip = document.getElementById("tip");

// ---- small tools -------------------------------------------------------------------------------------------------
function el(name, attributes, ...children) {
  const made = document.createElement(name);
  return fill(made, attributes, children);
}
function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  return fill(made, attributes, children);
}
function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const count = (value) => value === null || value === undefined ? "-" : Math.round(value).toLocaleString("en-US");
const percent = (share, digits = 2) => share === null || share === undefined || Number.isNaN(share) ? "-" : (100 * share).toFixed(digits) + " %";
const fixed = (value, digits = 3) => value === null || value === undefined || Number.isNaN(value) ? "-" : value.toFixed(digits);
function size(bytes) {
  if (bytes === null || bytes === undefined) return "-";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (bytes >= 999.5 && at < units.length - 1) { bytes /= 1000; at += 1; }
  return (at === 0 ? bytes : bytes.toPrecision(3)) + " " + units[at];
}
function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value < 120) return value.toFixed(value < 10 ? 1 : 0) + " s";
  if (value < 7200) return (value / 60).toFixed(0) + " min";
  return (value / 3600).toFixed(value < 360000 ? 1 : 0) + " h";
}

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
}
const hideTip = () => { tip.hidden = true; };
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// A figure whose marks are reached by the mouse, and by the arrow keys as one stop of the tab order.
function hoverable(figure, marks, words) {
  let at = -1;
  const place = (index, x, y) => {
    if (at >= 0 && marks[at]) marks[at].classList.remove("pointed");
    at = index;
    if (at < 0) return hideTip();
    marks[at].classList.add("pointed");
    showTip(words(at), x, y);
  };
  figure.setAttribute("tabindex", "0");
  figure.addEventListener("mousemove", (event) => {
    const index = marks.indexOf(event.target.mark || event.target);
    place(index, event.clientX, event.clientY);
  });
  figure.addEventListener("mouseleave", () => place(-1));
  figure.addEventListener("blur", () => place(-1));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !marks.length) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(marks.length - 1, step === Infinity ? marks.length - 1 : step === -Infinity ? 0 : at + step));
    const box = marks[next].getBoundingClientRect();
    place(next, box.x + box.width / 2, box.y);
  });
}

function table(columns, rows, caption) {
  const head = el("tr", {}, ...columns.map(([title, kind]) => el("th", { scope: "col", class: kind }, title)));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, at) => el("td", { class: columns[at][1] }, cell))));
  const made = el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, head), el("tbody", {}, ...body));
  return el("div", { class: "scroll" }, made);
}
function facts(pairs) {
  return el("dl", {}, ...pairs.filter((pair) => pair[1] !== "" && pair[1] !== null && pair[1] !== undefined)
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}
function section(id, title, ...children) {
  document.getElementById("contents").append(el("a", { href: "#" + id }, title));
  const made = el("section", { id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), ...children);
  main.append(made);
  return made;
}
function heading(title, more = "") {
  document.title = title;
  document.getElementById("heading").textContent = title;
  document.getElementById("made").textContent = "made " + D.made + " by labelstore " + D.version + more;
}
// What stands between backticks is typed by a user, or a name in code.
const prose = (text) => String(text).split("`").map((part, i) => i % 2 ? el("code", {}, part) : part);
const quiet = (text) => el("p", { class: "quiet" }, ...prose(text));
const note = (text) => el("p", { class: "note" }, ...prose(text));
const missing = (name) => D[name] ? null : note(D.unavailable[name] || "not there");
// A record in words: its name first, then "key value" by commas. Rows of such records are `[key, value]` pairs.
const spoken = (key) => key.replaceAll("_", " ");
function said(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return String(+value.toPrecision(6));
  if (Array.isArray(value)) return value.length > 6 ? count(value.length) + " values" : value.map(said).join(", ");
  return value !== null && typeof value === "object" ? words(value) : String(value);
}
const given = (record) => Object.entries(record || {}).filter(([, value]) => value !== null && value !== "");
const words = (record) => given(record).sort(([a], [b]) => (b === "name") - (a === "name"))
  .map(([key, value]) => key === "name" ? value : spoken(key) + " " + said(value)).join(", ");
const rowsOf = (record) => given(record).map(([key, value]) => [spoken(key), said(value)]);
// "Teacher resnet50"; of one that is called teacher, "Teacher".
const titled = (kind, name) => kind.toLowerCase().split(" ").includes(name.toLowerCase()) ? kind : kind + " " + name;
function tiles(pairs) {
  return el("div", { class: "tiles" }, ...pairs.map(([name, value]) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name))));
}

// ---- theme -------------------------------------------------------------------------------------------------------
const dark = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
let chosenTheme = null;
function theme() {
  const isDark = chosenTheme === null ? dark.matches : chosenTheme;
  document.documentElement.classList.toggle("dark", isDark);
  button.textContent = isDark ? "light" : "dark";
}
dark.addEventListener("change", theme);
button.addEventListener("click", () => { chosenTheme = !document.documentElement.classList.contains("dark"); theme(); });
theme();

// ---- a table that is sorted by its titles and filtered by its first column ----------------------------------------
// Columns are [title, kind, value of a row, text of a value]. `descending` is what the first press on a title gives.
function sortableTable({ id, label, things, columns, rows, sorted, descending = false, firstPress = false, most = 2000 }) {
  const filter = el("input", { type: "search", id: id + "-filter", placeholder: "part of a name" });
  const body = el("tbody"), shown = el("span", { class: "quiet", "aria-live": "polite" });
  const heads = columns.map(([title, kind], i) => {
    const press = el("button", { type: "button" }, title), head = el("th", { scope: "col", class: kind }, press);
    press.addEventListener("click", () => { descending = sorted === i ? !descending : firstPress; sorted = i; draw(); });
    return head;
  });
  const isMissing = (value) => value === null || value === undefined || Number.isNaN(value);
  function draw() {
    const wanted = filter.value.toLowerCase(), [, , value] = columns[sorted];
    const found = rows.filter((row) => String(columns[0][2](row)).toLowerCase().includes(wanted));
    const keyed = found.map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => (isMissing(a) ? (isMissing(b) ? 0 : 1) : isMissing(b) ? -1 : (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1)));
    heads.forEach((head, i) => i === sorted ? head.setAttribute("aria-sort", descending ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    body.replaceChildren(...keyed.slice(0, most).map(([, row]) => el("tr", {}, ...columns.map(([, kind, of, text]) => el("td", { class: kind }, text(of(row)))))));
    shown.textContent = `${count(Math.min(found.length, most))} of ${count(rows.length)} ${things}`;
  }
  filter.addEventListener("input", draw);
  return { draw, fields: el("div", { class: "fields no-print" }, el("label", { for: id + "-filter" }, "Filter " + things, filter), shown),
    table: el("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": label }, el("table", { id: id + "-table" }, el("thead", {}, el("tr", {}, ...heads)), body)) };
}


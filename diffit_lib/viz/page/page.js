// Knobs and views.
import { biasRow, placeInWindow, windowOf } from "./attention.js";
import { heat, paint, paintImage, signed } from "./draw.js";
import { readModel } from "./model.js";
import { Trajectory } from "./trajectory.js";

const $ = (id) => document.getElementById(id);
const text = (id) => $(id).textContent;
const model = readModel(JSON.parse(text("model")), text("weights"), text("noise"));
const [HEIGHT, WIDTH] = model.network.config.size;
const PATCH = model.network.config.patch;
const blocks = model.network.blocks();
const heads = model.network.config.heads;

const query = { row: HEIGHT >> 1, column: WIDTH >> 1 };
const trajectories = { true: new Trajectory(model, show), frozen: new Trajectory(model, show) };
let player = null; // the timer while the steps play

// ---- Knobs

function settings() {
  return {
    label: Number(document.querySelector("[name=label]:checked").value),
    seed: Number($("seed").value),
    steps: Number($("steps").value),
    guidance: Number($("guidance").value),
  };
}

// The frozen slider is even in log sigma.
function frozenSigma() {
  return model.sigmaMin * (model.sigmaMax / model.sigmaMin) ** ($("frozen").value / 100);
}

// The true picture first: it is what the knob is for.
async function redraw() {
  trajectories.frozen.stop();
  const finished = trajectories.true.start(settings());
  showKnobs();
  if (await finished) redrawFrozen();
}

function redrawFrozen() {
  if (!$("freeze").checked) trajectories.frozen.stop();
  else if (!trajectories.true.running) trajectories.frozen.start({ ...settings(), frozen: frozenSigma() });
  show();
}

function changeSteps() {
  const atEnd = $("step").value === $("step").max;
  $("step").max = $("steps").value;
  if (atEnd) $("step").value = $("step").max;
  redraw();
}

function goTo(step) {
  $("step").value = step;
  show();
}

function play() {
  if (player !== null) return pause();
  if ($("step").value === $("step").max) goTo(1);
  $("play").textContent = "Pause";
  player = setInterval(() => {
    goTo(Number($("step").value) + 1);
    if ($("step").value === $("step").max) pause();
  }, 200);
}

function pause() {
  clearInterval(player);
  player = null;
  $("play").textContent = "Play";
}

function moveQuery(row, column) {
  query.row = Math.min(Math.max(row, 0), HEIGHT - 1);
  query.column = Math.min(Math.max(column, 0), WIDTH - 1);
  show();
}

// ---- Views

function show() {
  showKnobs();
  for (const name of shownNames()) {
    if (trajectories[name].states.length) showPictures(name);
  }
  if (trajectories.true.states.length) showAttention();
}

function shownNames() {
  return $("freeze").checked ? ["true", "frozen"] : ["true"];
}

function showKnobs() {
  for (const id of ["seed", "steps", "guidance"]) say($(`${id}-value`), $(id).value);
  const [freeze, told] = [$("freeze").checked, short(frozenSigma())];
  say($("frozen-value"), told);
  $("frozen").disabled = !freeze;
  for (const id of ["frozen-row", "frozen-guesses", "frozen-part"]) $(id).hidden = !freeze;
  document.querySelector(".off").hidden = freeze;
  say(document.querySelector(".told"), `σ = ${told}`);
  const now = current(trajectories.true);
  say($("step-value"), `${$("step").value} of ${$("step").max}${now ? `, σ = ${short(now.sigma)}` : ""}`);
  $("main").setAttribute("aria-busy", trajectories.true.running || trajectories.frozen.running);
}

// The state at the chosen step, or the latest one there is.
function current({ states }) {
  return states[Math.min($("step").value, states.length) - 1];
}

function showPictures(name) {
  const [row, trajectory, size] = [$(`${name}-row`), trajectories[name], [HEIGHT, WIDTH]];
  const state = current(trajectory);
  const last = trajectory.states.at(-1);
  const noisy = [row.querySelector(".seen"), ...(name === "true" ? [$("picker").querySelector(".seen")] : [])];
  for (const canvas of noisy) paintImage(canvas, state.seen, size, Math.hypot(1, state.sigma));
  paintImage(row.querySelector(".guess"), state.guess, size);
  paintImage(row.querySelector(".final"), last.guess, size);
  say(row.querySelector(".sigma"), `σ = ${short(state.sigma)}`);
  showStrip($(`${name}-guesses`), trajectory, (canvas, { guess }) => paintImage(canvas, guess, size));
  if (name === "frozen" && !trajectory.running && !trajectories.true.running) {
    const truth = trajectories.true.states.at(-1).guess;
    const change = last.guess.reduce((sum, value, i) => sum + Math.abs(value - truth[i]), 0) / truth.length;
    say(row.querySelector(".change"), `${(change * 127.5).toFixed(0)} of 255 grey levels from the true one.`);
  }
}

function showAttention() {
  const block = blocks[$("block").value];
  const { name, level, height, width, window: size } = block;
  const [high, wide] = size;
  const [row, column] = [query.row, query.column].map((pixel) => Math.floor(pixel / PATCH) >> level);
  const { window, n } = windowOf(row, column, width, size);
  const shares = (state) => attentionOf(state.maps.get(`${name}.attention`), window, n, high * wide);
  const states = shownNames().flatMap((which) => trajectories[which].states);
  const most = Math.max(...states.map((state) => Math.max(...shares(state)))); // one scale for all
  for (const which of shownNames()) {
    const draw = (canvas, state) => {
      const values = shares(state);
      paint(canvas, high, wide, (j) => heat(values[j] / most));
    };
    showStrip($(`${which}-strip`), trajectories[which], draw);
  }
  say($("most"), percent(most));

  const values = shares(current(trajectories.true));
  const places = Array.from(values, (_, j) => placeInWindow(window, j, width, size));
  paint($("map"), height, width, (place) => {
    const j = places.indexOf(place);
    return j < 0 ? [0, 0, 0, 0] : heat(values[j] / most); // nothing outside the window
  });
  const best = values.indexOf(Math.max(...values));
  const where = (place) => `row ${Math.floor(place / width) + 1}, column ${(place % width) + 1}`;
  const look = `On this block's ${height}×${width} map, ${where(places[n])} looks most at ${where(places[best])}: `;
  const even = `Evenly spread, each place of the window would get ${percent(1 / places.length)}.`;
  say($("query-text"), `${look}${percent(values[best])}. ${even}`);
  $("picker").setAttribute("aria-valuenow", query.row * WIDTH + query.column + 1);
  $("picker").setAttribute("aria-valuetext", where(places[n]));
  frame(".window", row - (row % high), column - (column % wide), high, wide, block);
  frame(".query", row, column, 1, 1, block);
  showBias(block);
}

// One small picture for each step, by `draw(canvas, state)`; a click goes to that step.
function showStrip(strip, { states, steps }, draw) {
  while (strip.children.length > steps) strip.lastChild.remove();
  while (strip.children.length < steps) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const step = strip.children.length + 1;
    button.append(document.createElement("canvas"), document.createElement("span"));
    button.addEventListener("click", () => goTo(step));
    strip.append(button);
  }
  const chosen = Math.min($("step").value, states.length);
  for (const state of states) {
    const button = strip.children[state.step - 1];
    draw(button.firstChild, state);
    say(button.lastChild, short(state.sigma));
    button.setAttribute("aria-label", `Step ${state.step}, noise level ${short(state.sigma)}`);
  }
  for (let i = 0; i < steps; i++) strip.children[i].setAttribute("aria-current", i + 1 === chosen);
}

// Shares of one query, `count` of them: of the chosen head, or the mean of all.
function attentionOf(map, window, n, count) {
  const share = (head, j) => map[((window * heads + head) * count + n) * count + j];
  return Array.from({ length: count }, (_, j) => mean(chosenHeads().map((head) => share(head, j))));
}

function chosenHeads() {
  return $("head").value === "mean" ? [...Array(heads).keys()] : [Number($("head").value)];
}

function mean(values) {
  return values.reduce((a, b) => a + b) / values.length;
}

function frame(selector, row, column, high, wide, { height, width }) {
  const { style } = $("picker").querySelector(selector);
  [style.top, style.height] = [`${(100 * row) / height}%`, `${(100 * high) / height}%`];
  [style.left, style.width] = [`${(100 * column) / width}%`, `${(100 * wide) / width}%`];
}

function showBias({ name, window: [high, wide] }) {
  const table = model.network.weight(`${name}.block.attn.relative_position_bias_table`).data;
  const rows = table.length / heads;
  const of = (row) => mean(chosenHeads().map((head) => table[row * heads + head]));
  // The table goes by query minus key; the picture shows where the key lies as seen from the query.
  const values = Array.from({ length: rows }, (_, i) => of(rows - 1 - i));
  const most = Math.max(...values.map(Math.abs));
  paint($("bias"), 2 * high - 1, 2 * wide - 1, (i) => signed(values[i] / most));
  const itself = values[biasRow(0, 0, [high, wide])].toFixed(2).replace("-", "−");
  say($("bias-text"), `From −${short(most)} (blue) to ${short(most)} (red); the place itself: ${itself}.`);
}

// Text that is already there is left alone, so that the page is not laid out again.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function short(value) {
  return value >= 10 ? value.toFixed(0) : value.toPrecision(2);
}

function percent(share) {
  return `${(100 * share).toFixed(0)}\u00a0%`;
}

// ---- Start

function setUp() {
  const count = model.tensors.reduce((sum, [name]) => sum + model.network.weight(name).data.length, 0);
  $("parameters").textContent = `${(count / 1e6).toFixed(1)} million`;
  for (let label = 0; label <= model.numClasses; label++) addClass(label);
  const [firstClass] = document.getElementsByName("label");
  (document.getElementsByName("label")[3] ?? firstClass).checked = true;
  Object.assign($("seed"), { max: model.seeds - 1, value: 1 });
  Object.assign($("steps"), { max: model.maxSteps, value: model.steps });
  Object.assign($("step"), { max: model.steps, value: Math.ceil(model.steps / 2) });
  $("guidance").value = model.guidance;
  $("frozen").value = 20;
  $("picker").setAttribute("aria-valuemax", HEIGHT * WIDTH);
  const bottom = model.network.config.windows.length - 1;
  blocks.forEach(({ side, level, height, width }, i) => {
    $("block").append(new Option(`${level === bottom ? "bottom" : side}, ${height}×${width}`, i));
  });
  for (let head = 0; head < heads; head++) $("head").append(new Option(head + 1, head));
  $("head").append(new Option(`mean of ${heads}`, "mean"));
  paint($("scale"), 1, 64, (i) => heat(i / 63));
  $("same").textContent =
    `The same pictures as diffit_lib.load("${model.name}") draws for the same seed, class, steps and guidance: ` +
    `Heun's sampler, churn ${model.churn}, σ from ${model.sigmaMax} to ${model.sigmaMin}. ` +
    `On offer here are the seeds 0 to ${model.seeds - 1} and at most ${model.maxSteps} steps: ` +
    "the page stores the library's noise for them. Churn adds a little fresh noise before each step, " +
    "so the network sees slightly more noise than the sampler's σ. Noisy pictures are shown divided by √(1 + σ²).";
}

function addClass(label) {
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "label", value: label });
  const caption = document.createElement("span");
  caption.textContent = label < model.numClasses ? (model.classNames[label] ?? label) : "any";
  const choice = document.createElement("label");
  choice.append(radio, caption);
  $("classes").append(choice);
}

function listen() {
  for (const id of ["classes", "seed", "guidance"]) $(id).addEventListener("input", redraw);
  $("steps").addEventListener("input", changeSteps);
  for (const id of ["freeze", "frozen"]) $(id).addEventListener("input", redrawFrozen);
  for (const id of ["block", "head"]) $(id).addEventListener("input", show);
  $("step").addEventListener("input", () => {
    pause();
    show();
  });
  $("play").addEventListener("click", play);
  $("knobs").addEventListener("submit", (event) => event.preventDefault());
  $("picker").addEventListener("pointerdown", ({ clientX, clientY }) => {
    const { left, top, width, height } = $("picker").getBoundingClientRect();
    moveQuery(Math.floor(((clientY - top) / height) * HEIGHT), Math.floor(((clientX - left) / width) * WIDTH));
  });
  $("picker").addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [down, right] = moves[event.key];
    const stride = 2 ** blocks[$("block").value].level; // one place of this block's map
    moveQuery(query.row + down * stride, query.column + right * stride);
  });
}

setUp();
listen();
redraw();

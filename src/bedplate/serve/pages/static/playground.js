// The playground: a conversation with one model, or with two side by side.
import { ask, Trouble } from "./answer.js";
import { copy, say, shown } from "./text.js";

const $ = (id) => document.getElementById(id);
const play = $("play");
const KEPT = "playground";
const SETTINGS = ["model", "beside", "system", "temperature", "top_p", "longest", "seed", "labels"];

// turns: [{ question, answers: [{ model, text, told, trouble }] }]. What is drawn follows it; a turn's nodes are kept beside it.
let turns = [];
const nodes = new WeakMap();
let running = null; // the AbortController of what is being answered

if (play) start();

function start() {
  restore();
  turns.forEach(draw);
  follow(true);
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); running ? stop() : send(); });
  $("fresh").addEventListener("click", fresh);
  $("settings").addEventListener("input", keep);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("question").addEventListener("input", keep);
  $("open-settings").addEventListener("click", () => {
    const open = $("settings").classList.toggle("open");
    $("open-settings").setAttribute("aria-expanded", String(open));
    if (open) $("model").focus();
  });
  document.addEventListener("keydown", keys);
}

// Keys that work anywhere on the page.
function keys(event) {
  if (event.key === "Escape") {
    if (document.activeElement?.closest(".editing")) document.activeElement.closest(".editing").querySelector(".cancel").click();
    else if (running) stop();
    return;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    const editing = document.activeElement?.closest(".editing");
    if (editing) editing.requestSubmit();
    else if (!running) send();
  }
  if (event.key === "ArrowUp" && event.target === $("question") && !$("question").value && turns.length && !running) {
    event.preventDefault();
    edit(turns.at(-1));
  }
}

function send() {
  const question = $("question").value.trim();
  if (!question) {
    $("question").focus();
    return;
  }
  $("question").value = "";
  const turn = { question, answers: [] };
  turns.push(turn);
  draw(turn);
  answer(turn);
}

// Ask what a turn asks, of the models that are chosen now; what came after it is forgotten.
async function answer(turn) {
  stop();
  turns.splice(turns.indexOf(turn) + 1).forEach((later) => nodes.get(later).section.remove());
  const models = [$("model").value, $("beside").value].filter(Boolean);
  turn.answers = models.map((model) => ({ model, text: "", told: null, trouble: null }));
  const node = nodes.get(turn);
  node.answers.replaceChildren(...turn.answers.map((one) => drawAnswer(turn, one)));
  node.answers.classList.toggle("two", models.length > 1);
  const mine = new AbortController();
  running = mine;
  busy(true);
  keep();
  follow(true);
  say(`Asked ${models.join(" and ")}`);
  await Promise.all(turn.answers.map((one, lane) => fill(turn, one, lane, mine.signal)));
  if (running === mine) {
    running = null;
    busy(false);
  }
  keep();
}

async function fill(turn, one, lane, signal) {
  const node = nodes.get(one);
  const speak = speaker(turn.answers.length > 1 ? `${one.model}: ` : "");
  let waiting = "";
  let drawn = false;
  const flush = () => { // once a frame, however many pieces came
    drawn = false;
    if (!waiting) return;
    const atEnd = isAtEnd();
    node.words.firstChild.appendData(shown(waiting));
    waiting = "";
    facts(node, one.told, false);
    if (atEnd) follow();
  };
  node.article.classList.add("coming");
  try {
    one.told = await ask(body(turn, lane, one.model), {
      labels: $("labels")?.value ?? "",
      signal,
      onHead: (told) => facts(node, told, false),
      onPiece: (text, told) => {
        one.text += text;
        one.told = { ...told };
        waiting += text;
        speak(text);
        if (!drawn) requestAnimationFrame(flush);
        drawn = true;
      },
    });
    speak("", `${one.model} has ended: ${one.told.finish}`);
  } catch (error) {
    one.trouble = error instanceof Trouble ? { message: error.message, todo: error.todo, status: error.status, retryAfter: error.retryAfter } : { message: `This page failed: ${error.message}`, todo: "Reload it." };
    speak("", `${one.trouble.message} ${one.trouble.todo}`);
  }
  if (waiting) flush();
  node.article.classList.remove("coming");
  const atEnd = isAtEnd();
  facts(node, one.told, true);
  if (one.trouble) node.article.append(drawTrouble(one.trouble));
  else if (!one.text) node.words.classList.add("nothing");
  if (atEnd) follow();
}

// What is asked: the instructions, the conversation as this lane had it, and the settings.
function body(turn, lane, model) {
  const messages = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  for (const earlier of turns.slice(0, turns.indexOf(turn))) {
    messages.push({ role: "user", content: earlier.question });
    const said = (earlier.answers[lane] ?? earlier.answers[0])?.text;
    if (said) messages.push({ role: "assistant", content: said });
  }
  messages.push({ role: "user", content: turn.question });
  const asked = { model, messages };
  for (const [id, key, read] of [["temperature", "temperature", Number], ["top_p", "top_p", Number], ["longest", "max_tokens", Math.round], ["seed", "seed", Math.round]]) {
    if ($(id).value !== "") asked[key] = read($(id).value);
  }
  return asked;
}

function stop() {
  if (!running) return;
  running.abort();
  running = null;
  busy(false);
  $("question").focus();
}

function busy(yes) {
  $("send").textContent = yes ? "Stop" : "Send";
  $("send").classList.toggle("stop", yes);
}

function fresh() {
  stop();
  turns.forEach((turn) => nodes.get(turn).section.remove());
  turns = [];
  $("nothing").hidden = false;
  keep();
  $("question").focus();
}

// Drawing.

function draw(turn) {
  $("nothing").hidden = true;
  const section = $("turn").content.firstElementChild.cloneNode(true);
  const node = { section, question: section.querySelector(".question"), answers: section.querySelector(".answers") };
  nodes.set(turn, node);
  node.question.querySelector(".words").textContent = shown(turn.question);
  node.question.querySelector(".copy").addEventListener("click", (event) => copy(shown(turn.question), event.target));
  node.question.querySelector(".edit").addEventListener("click", () => edit(turn));
  node.answers.replaceChildren(...turn.answers.map((one) => drawAnswer(turn, one)));
  node.answers.classList.toggle("two", turn.answers.length > 1);
  $("transcript").append(section);
}

function drawAnswer(turn, one) {
  const article = $("answer").content.firstElementChild.cloneNode(true);
  const node = { article, words: article.querySelector(".words") };
  nodes.set(one, node);
  article.setAttribute("aria-label", `Answer of ${one.model}`);
  article.querySelector(".by").textContent = one.model;
  node.words.textContent = "";
  node.words.append(document.createTextNode(shown(one.text)));
  article.querySelector(".copy").addEventListener("click", (event) => copy(shown(one.text), event.target));
  article.querySelector(".again").addEventListener("click", () => { answer(turn); $("question").focus(); });
  facts(node, one.told, true);
  if (one.trouble) article.append(drawTrouble(one.trouble));
  return article;
}

// What is known of an answer; while it comes, its tokens are counted by pieces.
function facts(node, told, ended) {
  if (!told) return;
  const set = (name, text) => { node.article.querySelector(`.facts .${name}`).textContent = text; };
  const tokens = told.usage?.completion_tokens ?? told.pieces;
  const about = told.usage ? "" : "≈ ";
  set("first", told.firstMs === null ? "-" : `${(told.firstMs / 1000).toFixed(2)} s`);
  set("speed", told.seconds > 0.05 && tokens > 1 ? about + ((tokens - 1) / told.seconds).toFixed(1) : "-");
  set("length", tokens ? about + tokens.toLocaleString("en") : "-");
  set("finish", ended ? told.finish || "-" : "…");
  set("route", told.route ? shown(told.route) : "-");
  node.article.querySelector(".route").title = shown(told.route);
  if (told.receipt && !node.article.querySelector(".receipt a")) {
    const place = node.article.querySelector(".receipt");
    const link = document.createElement(play.dataset.receipts ? "a" : "span");
    if (play.dataset.receipts) Object.assign(link, { href: `/pages/receipts/${encodeURIComponent(told.receipt)}`, target: "_blank", rel: "noopener" });
    link.textContent = told.receipt.slice(-8);
    link.title = told.receipt;
    place.replaceChildren(link);
  }
}

function drawTrouble(trouble) {
  const box = document.createElement("p");
  box.className = "trouble";
  const what = document.createElement("b");
  what.textContent = shown(trouble.message);
  const later = trouble.retryAfter ? ` It is worth trying again in ${trouble.retryAfter} s.` : "";
  box.append(what, ` ${trouble.todo}${later} `);
  if (trouble.status === 401) {
    const link = document.createElement("a");
    link.href = `/login?next=${encodeURIComponent(location.pathname)}`;
    link.textContent = "Log in";
    box.append(link);
  }
  return box;
}

function edit(turn) {
  const node = nodes.get(turn);
  if (node.question.querySelector(".editing")) return;
  const form = $("edit").content.firstElementChild.cloneNode(true);
  const field = form.querySelector("textarea");
  field.value = turn.question;
  const words = node.question.querySelector(".words");
  const end = () => { form.remove(); words.hidden = false; };
  form.querySelector(".cancel").addEventListener("click", () => { end(); node.question.querySelector(".edit").focus(); });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    turn.question = field.value.trim();
    words.textContent = shown(turn.question);
    end();
    $("question").focus();
    answer(turn);
  });
  words.hidden = true;
  node.question.append(form);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

// The end of the transcript stays in sight while an answer comes, unless somebody has scrolled up to read.
function isAtEnd() {
  const box = $("transcript");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

function follow() {
  $("transcript").scrollTop = $("transcript").scrollHeight;
}

// Says an answer sentence by sentence: a screen reader that is told every token says none of them.
function speaker(before) {
  let kept = "";
  return (text, end = "") => {
    kept += text;
    const upTo = end ? kept.length : Math.max(kept.lastIndexOf(". "), kept.lastIndexOf("? "), kept.lastIndexOf("! "), kept.lastIndexOf("\n"), kept.length > 240 ? kept.lastIndexOf(" ") : -1) + 1;
    if (upTo <= 0 && !end) return;
    say(`${before}${shown(kept.slice(0, upTo))} ${end}`.trim());
    kept = kept.slice(upTo);
  };
}

// A tab remembers its conversation, for its own caller alone, until it is closed or logged out.
function keep() {
  const settings = Object.fromEntries(SETTINGS.filter($).map((id) => [id, $(id).value]));
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ caller: play.dataset.caller, settings, question: $("question").value, turns }));
  } catch { /* full: it is only convenience */ }
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(sessionStorage.getItem(KEPT));
  } catch { /* written by another version */ }
  if (kept?.caller !== play.dataset.caller || !Array.isArray(kept.turns)) {
    sessionStorage.removeItem(KEPT);
    return;
  }
  for (const id of SETTINGS.filter($)) {
    const field = $(id);
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === kept.settings?.[id])) continue;
    field.value = kept.settings?.[id] ?? field.value;
  }
  $("question").value ||= kept.question ?? "";
  turns = kept.turns;
}

const votes = document.getElementById("votes");
const forms = [...document.querySelectorAll("form[data-id]")];
const FIELDS = ["choice", "helpful", "harmless", "instructions", "comment"];
const PER_SCREEN = 10;
const key = "votes-" + votes.dataset.answers;
const served = "served" in votes.dataset;
const state = load();
let screen = 0;
let current = 0;
let sending = false;

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    if (found && found.rater) return found;
  } catch { /* no storage, or not ours */ }
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return {rater: [...bytes].map(byte => byte.toString(16).padStart(2, "0")).join(""), votes: {}, unsent: []};
}

function store() {
  try {
    localStorage.setItem(key, JSON.stringify(state));
  } catch {
    say("This browser keeps nothing: do not close the page before you have " + (served ? "finished." : "saved."));
  }
}

function say(text) { document.getElementById("message").textContent = text; }

function read(form) {
  const data = new FormData(form);
  return Object.fromEntries(FIELDS.filter(name => data.get(name)).map(name => [name, data.get(name)]));
}

function restore(form) {
  for (const [name, value] of Object.entries(state.votes[form.dataset.id] || {})) {
    const fields = [...form.elements].filter(field => field.name === name);
    for (const field of fields) {
      if (field.type === "radio") field.checked = field.value === value;
      else field.value = value;
    }
  }
}

function chosen() { return forms.map(form => form.dataset.id).filter(id => (state.votes[id] || {}).choice); }

function show() {
  const screens = Math.ceil(forms.length / PER_SCREEN), first = screen * PER_SCREEN;
  forms.forEach((form, i) => {
    form.hidden = i < first || i >= first + PER_SCREEN;
    form.classList.toggle("current", i === current);
  });
  document.getElementById("back").disabled = screen === 0;
  document.getElementById("next").disabled = screen === screens - 1;
  const last = Math.min(first + PER_SCREEN, forms.length);
  document.getElementById("where").textContent = (first + 1) + " to " + last + " of " + forms.length;
  count();
}

function count() {
  const done = chosen().length;
  document.getElementById("progress").value = done;
  document.getElementById("done").textContent = done + " of " + forms.length + " answered";
}

function go(to) {
  current = Math.max(0, Math.min(forms.length - 1, to));
  screen = Math.floor(current / PER_SCREEN);
  show();
  forms[current].focus({preventScroll: true});
  forms[current].scrollIntoView({block: "start"});
}

function keep(form) {
  const id = form.dataset.id;
  state.votes[id] = read(form);
  if (served && state.votes[id].choice && !state.unsent.includes(id)) state.unsent.push(id);
  say("");
  store();
  count();
}

async function send() {
  if (!served || sending) return;
  sending = true;
  try {
    while (state.unsent.length) {
      const id = state.unsent[0], vote = state.votes[id];
      const sent = JSON.stringify({answers: votes.dataset.answers, rater: state.rater, id: id, vote: vote});
      const reply = await fetch("votes" + location.search, {method: "POST", body: sent});
      if (!reply.ok) throw new Error(await reply.text());
      if (JSON.stringify(state.votes[id]) === JSON.stringify(vote)) state.unsent.shift();
      store();
    }
    say(chosen().length === forms.length ? "Stored. That was the last one: thank you." : "Stored.");
  } catch (error) {
    say("Not stored yet (" + error.message + "). It is tried again with your next choice, or when you load the page.");
  } finally {
    sending = false;
  }
}

function save() {
  const ids = chosen();
  if (!ids.length) return say("There is nothing to save: choose an answer for at least one prompt.");
  const choices = Object.fromEntries(ids.map(id => [id, state.votes[id]]));
  const text = JSON.stringify({answers: votes.dataset.answers, rater: state.rater, choices: choices}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "choices-" + state.rater.slice(0, 6) + ".json";
  link.click();
  say("Saved " + ids.length + " choices as " + link.download + ". Send this file to the person who asked you.");
}

document.addEventListener("input", event => event.target.form && keep(event.target.form));
document.addEventListener("change", event => event.target.form && (keep(event.target.form), send()));
document.addEventListener("submit", event => event.preventDefault());
document.addEventListener("focusin", event => {
  const i = forms.indexOf(event.target.closest("form"));
  if (i >= 0 && i !== current) { current = i; show(); }
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "TEXTAREA") return;
  const value = {"1": "left", "2": "right", "0": "tie"}[event.key];
  if (value) {
    const form = forms[current];
    [...form.elements].find(field => field.name === "choice" && field.value === value).checked = true;
    keep(form);
    send();
    if (current < forms.length - 1) go(current + 1);
  } else if (event.key === "j" || event.key === "k") {
    go(current + (event.key === "j" ? 1 : -1));
  } else return;
  event.preventDefault();
});
document.getElementById("back").addEventListener("click", () => go((screen - 1) * PER_SCREEN));
document.getElementById("next").addEventListener("click", () => go((screen + 1) * PER_SCREEN));
document.getElementById("save")?.addEventListener("click", save);

forms.forEach(restore);
const open = forms.findIndex(form => !(state.votes[form.dataset.id] || {}).choice);
current = open < 0 ? 0 : open;
screen = Math.floor(current / PER_SCREEN);
show();
store();
if (state.unsent.length) send();

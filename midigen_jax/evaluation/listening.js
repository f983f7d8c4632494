"use strict";
// The script of the listening page; DATA comes before it.

const KEY = JSON.parse(atob(DATA.key));
const STORE = "midigen-listening-" + DATA.page;
const $ = (id) => document.getElementById(id);
const players = { a: $("play-a"), b: $("play-b") };
const buttons = { a: $("vote-a"), none: $("vote-none"), b: $("vote-b") };

let state = { votes: {}, shown: false }; // votes: by number of the pair, "a", "b" or "none"
let here = 0;

try {
  state = JSON.parse(localStorage.getItem(STORE)) || state;
} catch {
  // The browser keeps nothing, or something else; votes last as long as the page.
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    // As above.
  }
}

function voted() {
  return Object.keys(state.votes).length;
}

function records() {
  return KEY.flatMap((pair, i) => {
    const vote = state.votes[i];
    if (!vote) return [];
    const preferred = vote === "none" ? null : pair.names[vote === "a" ? 0 : 1];
    return [{ pair: i, song: pair.song, compared: pair.compared, preferred: preferred }];
  });
}

function percent(share) {
  return Math.round(100 * share) + " %";
}

// One line for each comparison, as `midigen votes` prints it.
function results() {
  const counts = new Map();
  for (const { compared, preferred } of records()) {
    const [one, other] = compared;
    const name = JSON.stringify(compared);
    if (!counts.has(name)) counts.set(name, { one, other, wins: 0, decided: 0, undecided: 0 });
    const count = counts.get(name);
    if (preferred === null) count.undecided += 1;
    else {
      count.decided += 1;
      count.wins += preferred === one;
    }
  }
  return [...counts.values()].map((x) => {
    let text = x.one + " preferred to " + x.other + ": " + x.wins + " of " + x.decided + " votes";
    if (x.decided) {
      const [share, low, high] = DATA.intervals[x.decided][x.wins];
      text += " (" + percent(share) + ", 95 % interval " + percent(low) + " to " + percent(high) + ")";
    }
    return text + (x.undecided ? "; no preference: " + x.undecided : "");
  });
}

function update() {
  const vote = state.votes[here];
  for (const [name, button] of Object.entries(buttons)) {
    button.setAttribute("aria-pressed", String(vote === name));
    button.disabled = state.shown;
  }
  const names = state.shown ? ": A is " + KEY[here].names[0] + ", B is " + KEY[here].names[1] : "";
  $("heading").textContent = "Pair " + (here + 1) + " of " + DATA.pairs.length + names;
  $("progress").textContent = voted() + " of " + DATA.pairs.length + " pairs have a vote";
  $("previous").disabled = here === 0;
  $("next").disabled = here === DATA.pairs.length - 1;
  $("show").disabled = state.shown || voted() < DATA.pairs.length;
  $("download").disabled = voted() === 0;
  const lines = (state.shown ? results() : []).map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  });
  $("result").replaceChildren(...lines);
}

function go(pair) {
  if (pair < 0 || pair >= DATA.pairs.length) return;
  here = pair;
  for (const player of Object.values(players)) player.pause();
  [players.a.src, players.b.src] = DATA.pairs[here];
  update();
}

function vote(name) {
  if (state.shown) return; // now the listener knows which is which
  state.votes[here] = name;
  keep();
  update();
}

function toggle(name) {
  const player = players[name];
  if (!player.paused) return player.pause();
  player.currentTime = 0;
  player.play();
}

function download() {
  const votes = { format_version: DATA.version, page: DATA.page, votes: records() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(votes, null, 1)], { type: "application/json" }));
  link.download = "votes-" + DATA.page + ".json";
  link.click();
}

for (const [name, button] of Object.entries(buttons)) button.addEventListener("click", () => vote(name));
for (const player of Object.values(players)) {
  player.addEventListener("play", () => {
    for (const other of Object.values(players)) if (other !== player) other.pause();
  });
}
$("previous").addEventListener("click", () => go(here - 1));
$("next").addEventListener("click", () => go(here + 1));
$("download").addEventListener("click", download);
$("show").addEventListener("click", () => {
  state.shown = true;
  keep();
  update();
});

const SHORTCUTS = {
  a: () => toggle("a"),
  b: () => toggle("b"),
  1: () => vote("a"),
  0: () => vote("none"),
  2: () => vote("b"),
  ArrowLeft: () => go(here - 1),
  ArrowRight: () => go(here + 1),
};
document.addEventListener("keydown", (event) => {
  const seeking = event.target.tagName === "AUDIO" && event.key.startsWith("Arrow");
  if (event.ctrlKey || event.metaKey || event.altKey || seeking || !SHORTCUTS[event.key]) return;
  event.preventDefault();
  SHORTCUTS[event.key]();
});

if (DATA.pairs.length) go(0);
else $("heading").textContent = "No pairs: the models added nothing to these songs";

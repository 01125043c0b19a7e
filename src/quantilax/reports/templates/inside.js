"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = id => document.getElementById(id);
// Numbers come as 16 bits between a lowest and a highest one; 65535 stands for none.
const unpack = packed => {
  const bytes = Uint8Array.from(atob(packed.data), c => c.charCodeAt(0));
  const words = new Uint16Array(bytes.buffer), out = new Float64Array(words.length);
  const step = (packed.high - packed.low) / 65534;
  for (let i = 0; i < words.length; i++) out[i] = words[i] === 65535 ? NaN : packed.low + step * words[i];
  return out;
};
const T = data.steps.length, A = data.rows.length, N = data.taus.length;
const quantiles = unpack(data.quantiles);
const z = (t, a) => quantiles.subarray((t * A + a) * N, (t * A + a + 1) * N);
const mean = of => of.reduce((sum, x) => sum + x, 0) / of.length;
const cvar = (t, a) => mean(z(t, a).subarray(0, Math.round(data.worst * N)));
const at = (of, share) => { // the quantile at a share, between those that are there
  const place = Math.min(Math.max(share * of.length - 0.5, 0), of.length - 1), i = Math.floor(place);
  return of[i] + (place - i) * ((of[i + 1] ?? of[i]) - of[i]);
};
const rolled = data.rollouts && {...data.rollouts, returns: unpack(data.rollouts.returns)};
const rollouts = (t, a) => {
  const s = rolled ? rolled.stops.indexOf(t) : -1, M = rolled ? rolled.number : 0;
  return s < 0 ? null : [...rolled.returns.subarray((s * A + a) * M, (s * A + a + 1) * M)].sort((x, y) => x - y);
};
const legal = (t, a) => !data.legal || data.legal[t][a];
const exact = x => String(Number(x.toPrecision(5))).replaceAll("-", "−");
const number = x => {
  const size = Math.abs(x);
  return size < 0.1 ? exact(Number(x.toPrecision(3))) : x.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : 2).replace("-", "−");
};
const ends = values => {
  let low = Infinity, high = -Infinity;
  for (const x of values) { if (x < low) low = x; if (x > high) high = x; }
  const margin = 0.03 * (high - low) || 0.5;
  return [low - margin, high + margin];
};
const scale = ([low, high], from, to) => x => from + (to - from) * (Math.min(Math.max(x, low), high) - low) / (high - low);
const ticks = ([low, high], most) => {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
};
const plain = x => Math.abs(x) >= 10000 ? exact(x / 1000) + "k" : exact(x);
const path = (points, kind) => `<path class="${kind}" d="M${points.map(p => p.map(v => v.toFixed(1)).join(" ")).join("L")}"/>`;
const safe = words => words.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
const text = (kind, x, y, words, anchor = "start") =>
  `<text class="${kind}" x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${safe(words)}</text>`;
const draw = (id, height, label, body, role = "img") => {
  const width = element(id).clientWidth;
  element(id).innerHTML = `<svg class="figure" role="${role}" aria-label="${label}" viewBox="0 0 ${width} ${height}" height="${height}">${body(width)}</svg>`;
};

// What stays the same over the episode.
let t = 0, chosen = null, timer = null;
const shown = () => chosen !== null && legal(t, chosen) ? chosen : data.taken[t];
const everywhere = ends((function* () {
  for (let i = 0; i < T; i++) {
    for (let a = 0; a < A; a++) if (legal(i, a)) { yield z(i, a)[0]; yield z(i, a)[N - 1]; }
    yield data.earned[i];
  }
  if (rolled) for (const x of rolled.returns) if (!Number.isNaN(x)) yield x;
})());
const here = () => {
  if (!element("zoom").checked) return everywhere;
  const values = [data.earned[t]];
  for (let a = 0; a < A; a++) if (legal(t, a)) values.push(z(t, a)[0], z(t, a)[N - 1], ...(rollouts(t, a) || []));
  const [low, high] = ends(values), least = 0.02 * (everywhere[1] - everywhere[0]), missing = Math.max(least - (high - low), 0) / 2;
  return [low - missing, high + missing];
};
const images = data.frames && data.frames.images.map(source => Object.assign(new Image(), {src: source}));
const observations = data.observations && unpack(data.observations);

const axis = (range, x, height, width) => ticks(range, width < 420 ? 4 : 7).map(tick =>
  `<path class="grid" d="M${x(tick).toFixed(1)} 4V${height - 22}"/>` + text("tick", x(tick), height - 6, plain(tick), "middle")).join("");

function drawRows() {
  const row = A > 8 ? 34 : 50, height = A * row + 26, range = here();
  draw("rows", height, "Predicted return of each action", width => {
    const x = scale(range, 10, width - 10);
    let body = axis(range, x, height, width);
    for (let a = 0; a < A; a++) {
      const top = a * row + 2, of = z(t, a), isTaken = a === data.taken[t], middle = top + row - (A > 8 ? 10 : 20);
      const played = rollouts(t, a), words = data.rows[a] + (A > 1 && isTaken ? ", taken" : "") + (legal(t, a) ? "" : ", not legal");
      const told = legal(t, a) ? `${words}: mean ${number(mean(of))}` : words;
      body += `<g class="row${isTaken ? " taken" : ""}${a === shown() ? " chosen" : ""}" data-row="${a}" tabindex="${a === shown() ? 0 : -1}" role="button" aria-pressed="${a === shown()}" aria-label="${safe(told)}">`;
      body += `<rect x="1" y="${top}" width="${width - 2}" height="${row - 4}" rx="6"/>`;
      body += text("name halo", 8, top + 14, words);
      if (legal(t, a)) {
        body += text("tick strong halo", width - 8, top + 14, number(mean(of)), "end");
        body += path([[x(at(of, .05)), middle], [x(at(of, .95)), middle]], "reach");
        const [low, high] = [x(at(of, .25)), x(at(of, .75))];
        body += path([[low, middle - 6], [high, middle - 6], [high, middle + 6], [low, middle + 6], [low, middle - 6]], "box");
        body += path([[x(at(of, .5)), middle - 6], [x(at(of, .5)), middle + 6]], "median");
        const m = x(mean(of));
        body += path([[m, middle - 4.5], [m + 4.5, middle], [m, middle + 4.5], [m - 4.5, middle], [m, middle - 4.5]], "mean");
        if (played) body += `<g class="rolled">${played.map(g => `<circle cx="${x(g).toFixed(1)}" cy="${middle + (A > 8 ? 0 : 12)}" r="2.6"/>`).join("")}</g>`;
      }
      body += "</g>";
    }
    return body;
  }, "group");
}

function drawCurve() {
  const height = 210, a = shown(), of = z(t, a), range = here(), played = rollouts(t, a);
  element("chosen").textContent = `${A > 1 ? `“${data.rows[a]}”: share` : "Share"} of returns up to a value`;
  draw("curve", height, "Cumulative distribution of the return", width => {
    const x = scale(range, 42, width - 10), y = scale([0, 1], height - 24, 8);
    let body = axis(range, x, height, width);
    for (const share of [0, .25, .5, .75, 1]) {
      body += `<path class="grid" d="M42 ${y(share)}H${width - 10}"/>` + text("tick", 36, y(share) + 3.5, `${share * 100}%`, "end");
    }
    const line = [[x(of[0]), y(0)], ...[...of].map((q, i) => [x(q), y(data.taus[i])]), [x(of[N - 1]), y(1)]];
    const k = Math.round(data.worst * N), worst = line.slice(0, k + 1);
    worst.push([x(at(of, data.worst)), y(data.worst)]);
    body += path([...worst, [x(at(of, data.worst)), y(0)]], "tail");
    if (played) {
      const n = played.length, reach = Math.sqrt(Math.log(2 / .05) / (2 * n)); // Dvoretzky, Kiefer, Wolfowitz; Massart 1990
      const stairs = by => {
        const points = [[42, y(Math.min(Math.max(by, 0), 1))]];
        played.forEach((g, i) => {
          const share = Math.min(Math.max((i + 1) / n + by, 0), 1);
          points.push([x(g), points.at(-1)[1]], [x(g), y(share)]);
        });
        points.push([width - 10, points.at(-1)[1]]);
        return points;
      };
      body += path([...stairs(reach), ...stairs(-reach).reverse()], "spread") + path(stairs(0), "empirical");
    }
    body += path(line, "learned");
    if (a === data.taken[t]) body += path([[x(data.earned[t]), 8], [x(data.earned[t]), height - 24]], "earned");
    return body;
  });
}

let timed = null; // the figure over time, without its cursor, and how to place a step in it
function drawTime() {
  const height = 240;
  draw("time", height, "Predicted and earned return over the episode", width => {
    const x = scale([data.steps[0], Math.max(data.steps[T - 1], 1)], 46, width - 10), y = scale(everywhere, height - 26, 8);
    timed = {x, y, height, left: 46, right: width - 10};
    let body = "";
    for (const tick of ticks(everywhere, 5)) body += `<path class="grid" d="M46 ${y(tick).toFixed(1)}H${width - 10}"/>` + text("tick", 40, y(tick) + 3.5, plain(tick), "end");
    for (const tick of ticks([0, Math.max(data.steps[T - 1], 1)], width < 420 ? 4 : 8)) body += text("tick", x(tick), height - 8, plain(tick), "middle");
    const all = [...Array(T).keys()], point = (i, value) => [x(data.steps[i]), y(value)], of = i => z(i, data.taken[i]);
    body += path([...all.map(i => point(i, at(of(i), .95))), ...all.map(i => point(i, at(of(i), .05))).reverse()], "band");
    body += path(all.map(i => point(i, data.earned[i])), "earned");
    body += path(all.map(i => point(i, cvar(i, data.taken[i]))), "cvar");
    body += path(all.map(i => point(i, mean(of(i)))), "learned");
    if (rolled) for (const i of rolled.stops) {
      const played = rollouts(i, data.taken[i]);
      body += path([point(i, at(played, .05)), point(i, at(played, .95))], "whisker");
      const [px, py] = point(i, mean(played));
      body += `<g class="rolled mean"><circle cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="3.2"/></g>`;
    }
    return body + '<g id="cursor"></g>';
  });
}

function drawCursor() {
  const {x, y, height} = timed, px = x(data.steps[t]);
  element("cursor").innerHTML = `<path class="cursor" d="M${px.toFixed(1)} 4V${height - 22}"/><circle class="now" cx="${px.toFixed(1)}" cy="${y(mean(z(t, data.taken[t]))).toFixed(1)}" r="4.5"/>`;
}

function tell() {
  const taken = data.taken[t], of = z(t, taken), played = rollouts(t, taken);
  const facts = [
    ["step", `${data.steps[t]} of ${data.facts.length - 1}`],
    [A > 1 ? "action taken" : "action", data.actions[t]],
    ["reward of this step", exact(data.rewards[t])],
    ["predicted mean", number(mean(of))],
    ["predicted 5 to 95%", `${number(at(of, .05))} to ${number(at(of, .95))}`],
    ["predicted CVaR 10%", number(cvar(t, taken))],
    ["earned from here", number(data.earned[t])],
  ];
  if (rolled) facts.push(["rollouts, mean", played ? number(mean(played)) : "–"]);
  element("readout").replaceChildren(...facts.flatMap(([name, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
  element("where").textContent = `step ${data.steps[t]}`;
  element("at").value = t;
  element("at").setAttribute("aria-valuetext", `step ${data.steps[t]}`);
  const told = element("told");
  told.textContent = data.no_rollouts;
  if (!rolled) return;
  const s = rolled.stops.indexOf(t);
  if (s >= 0) {
    const cut = rolled.cut[s][shown()], weight = rolled.weight[s][shown()];
    told.textContent = `${rolled.number} rollouts were played from this state for each action.` + (cut
      ? ` Of those for this action ${cut} were cut off by the time limit.` + (data.facts.bootstraps
        ? ` A return drawn from the prediction stands for the rest; the discount gives it a weight of ${weight.toFixed(2)} on average.` : "") : "");
    return;
  }
  const nearest = rolled.stops.reduce((best, i) => Math.abs(i - t) < Math.abs(best - t) ? i : best);
  const button = Object.assign(document.createElement("button"), {type: "button", textContent: `Go to step ${data.steps[nearest]}`});
  button.addEventListener("click", () => go(nearest));
  told.append(`Rollouts were played from ${rolled.stops.length} steps only. `, button);
}

function observe() {
  if (images) {
    const image = images[data.frames.order[t]];
    element("frame").src = image.src;
  }
  const box = element("observation"), D = data.names.length;
  if (!D || !box.parentNode.open) return;
  box.replaceChildren(...data.names.flatMap((name, d) => {
    const value = observations[t * D + d], label = document.createElement("span"), bar = document.createElement("i");
    const mark = document.createElement("b"), told = document.createElement("span");
    const [low, high] = bounds[d];
    label.textContent = name;
    mark.style.left = `calc(${100 * (high > low ? (value - low) / (high - low) : .5)}% - 1.5px)`;
    bar.append(mark);
    told.textContent = number(value);
    return [label, bar, told];
  }));
}
const bounds = data.names.map((_, d) => {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < T; i++) {
    const value = observations[i * data.names.length + d];
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
});

const render = () => { observe(); drawRows(); drawCurve(); drawCursor(); tell(); };
const go = to => {
  t = Math.min(Math.max(to, 0), T - 1);
  render();
};
const choose = a => {
  chosen = a === data.taken[t] ? null : a;
  const focused = document.activeElement && document.activeElement.classList.contains("row");
  render();
  if (focused) document.querySelector(`.row[data-row="${shown()}"]`).focus();
};
const pause = () => {
  clearInterval(timer);
  timer = null;
  element("play").textContent = "▶";
  element("play").setAttribute("aria-label", "Play");
};
const play = () => {
  if (timer) return pause();
  if (t === T - 1) go(0);
  timer = setInterval(() => t < T - 1 ? go(t + 1) : pause(), 66);
  element("play").textContent = "❚❚";
  element("play").setAttribute("aria-label", "Pause");
};
element("at").addEventListener("input", event => { pause(); go(Number(event.target.value)); });
element("back").addEventListener("click", () => { pause(); go(t - 1); });
element("forth").addEventListener("click", () => { pause(); go(t + 1); });
element("play").addEventListener("click", play);
element("zoom").addEventListener("change", render);
element("rows").addEventListener("click", event => {
  const row = event.target.closest("[data-row]");
  if (row && legal(t, Number(row.dataset.row))) choose(Number(row.dataset.row));
});
if (data.names.length) element("observation").parentNode.addEventListener("toggle", observe);
const drag = event => {
  if (event.type === "pointermove" && !event.buttons) return;
  const box = element("time").getBoundingClientRect(), {left, right} = timed;
  const share = (event.clientX - box.left - left) / (right - left);
  const step = data.steps[0] + share * (data.steps[T - 1] - data.steps[0]);
  pause();
  go(data.steps.reduce((best, s, i) => Math.abs(s - step) < Math.abs(data.steps[best] - step) ? i : best, 0));
};
element("time").addEventListener("pointerdown", drag);
element("time").addEventListener("pointermove", drag);
document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const onSlider = event.target === element("at"), far = event.shiftKey ? 10 : 1;
  const next = rolled ? rolled.stops.find(i => i > t) ?? rolled.stops[0] : t;
  const another = by => {
    for (let i = 1; i <= A; i++) {
      const a = (((shown() + by * i) % A) + A) % A;
      if (legal(t, a)) return choose(a);
    }
  };
  const pressed = {
    ArrowLeft: () => go(t - far), ArrowRight: () => go(t + far), Home: () => go(0), End: () => go(T - 1),
    ArrowUp: () => another(-1), ArrowDown: () => another(1), r: () => go(next), R: () => go(next),
    " ": play, Enter: event.target.dataset && event.target.dataset.row ? () => choose(Number(event.target.dataset.row)) : null,
  }[event.key];
  const native = event.key === " " && ["BUTTON", "SUMMARY", "INPUT"].includes(event.target.tagName) && !onSlider;
  if (!pressed || native || (A === 1 && event.key.startsWith("Arrow") && !/Left|Right/.test(event.key))) return;
  event.preventDefault();
  if (event.key !== " ") pause();
  pressed();
});
if (images && data.frames.small) element("frame").classList.add("small");
if (images) element("frame").style.aspectRatio = `${data.frames.width} / ${data.frames.height}`;
const redraw = () => { drawTime(); render(); };
let width = 0;
new ResizeObserver(() => {
  if (element("time").clientWidth === width) return;
  width = element("time").clientWidth;
  redraw();
}).observe(element("time"));
t = Math.max(data.steps.indexOf(Number(location.hash.slice(1) || NaN)), 0); // x.html#120 opens at step 120
redraw();

"use strict";

// Okabe and Ito's colours, which stay apart under the common kinds of colour blindness.
const COLOURS = ["#d55e00", "#e69f00", "#999999", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#b8a800", "#333333"];
const SVG = "http://www.w3.org/2000/svg";
const RATE = 16000;
const byId = (id) => document.getElementById(id);

let about = null; // what the server says of itself
let current = null; // {blob, name, reference} that was judged last
let recorder = null; // while one records
let turn = 0; // an answer to an older question is not shown

async function start() {
  about = await (await fetch("about")).json();
  const heads = ["emotion", "gender"].filter((head) => about[`${head}s`].length);
  if (about.transcript) heads.push("transcript");
  const members = about.members.length > 3 ? `${about.members.length} members` : about.members.join(", ");
  byId("model").textContent = `${about.title}, ${members}: ${heads.join(", ")}`;
  document.title = `${about.title} – jax_mtlser`;
  byId("limits").textContent = `Up to ${about.max_seconds} s and ${about.max_megabytes} MB: WAV, FLAC, MP3, OGG, and more `
    + "where the server has ffmpeg.";
  const [shortest, longest] = about.window_seconds;
  const seconds = Math.min(Math.max(3, shortest), longest);
  Object.assign(byId("window"), {min: shortest, max: longest, value: seconds});
  byId("hop").value = Math.max(0.1, Math.round(10 * seconds / 3) / 10);
  about.examples.forEach(addExample);
  byId("examples").hidden = !about.examples.length;
  const canRecord = navigator.mediaDevices && window.MediaRecorder;
  byId("record").disabled = !canRecord;
  if (!canRecord) byId("record").title = "Browsers allow recording on localhost and over https only";
}

function addExample(example, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = button.title = example.name;
  button.addEventListener("click", async () => {
    const file = await fetch(`examples/${number}`);
    judge({blob: await file.blob(), name: example.name, reference: example.reference});
  });
  byId("examples").append(button);
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

async function judge(recording) {
  const own = ++turn;
  byId("result").hidden = true;
  if (recording.blob.size > about.max_megabytes * 1e6) {
    say(`${recording.name} has ${(recording.blob.size / 1e6).toFixed(1)} MB; the limit is ${about.max_megabytes} MB`, true);
    return;
  }
  current = recording;
  byId("again").disabled = false;
  say(`Judging ${recording.name} … (the first recording of each length takes longer)`);
  const query = new URLSearchParams({outline: 450});
  if (about.emotions.length) {
    query.set("window", byId("window").value);
    if (byId("hop").value) query.set("hop", byId("hop").value);
  }
  let answer;
  try {
    const reply = await fetch(`predict?${query}`, {
      method: "POST", body: recording.blob, headers: {"content-type": "application/octet-stream"},
    });
    answer = await reply.json();
  } catch (error) {
    answer = {error: `the server does not answer (${error.message}); is it still running?`};
  }
  if (own !== turn) return;
  if (answer.error) say(answer.error, true);
  else show(answer, recording);
}

function show(answer, recording) {
  say("");
  byId("result").hidden = false;
  const reference = recording.reference ? ` – the corpus says ${recording.reference}` : "";
  byId("name").textContent = `${recording.name}${reference}`;
  const player = byId("player");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(recording.blob);
  bars("emotion", answer.probabilities, answer.emotion, (i) => COLOURS[i % COLOURS.length]);
  bars("gender", answer.gender_probabilities, answer.gender, () => "#5a6270");
  byId("transcript").hidden = answer.transcript === undefined;
  const text = byId("transcript").querySelector("p");
  text.textContent = answer.transcript || "(no word heard)";
  text.className = answer.transcript ? "" : "quiet";
  byId("calibrated").textContent = `whole recording${about.calibrated ? ", calibrated" : ""}`;
  draw(answer);
}

function bars(head, shares, top, colour) {
  byId(head).hidden = !shares;
  const rows = Object.entries(shares || {}).map(([name, share], i) => {
    const row = element("div", name === top ? "bar top" : "bar");
    const track = element("div", "track");
    const fill = element("div", "fill");
    fill.style.width = `${100 * share}%`;
    fill.style.background = colour(i);
    track.append(fill);
    row.append(element("span", "label", name), track, element("span", "share", percent(share)));
    return row;
  });
  byId(head).querySelector(".bars").replaceChildren(...rows);
}

function element(tag, kind, text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The time that each window stands for: what is nearer to its middle than to any other's.
function cells(timeline) {
  const middle = (one) => (one.start + one.end) / 2;
  return timeline.map((one, i) => ({
    ...one,
    from: i ? (middle(timeline[i - 1]) + middle(one)) / 2 : one.start,
    to: i < timeline.length - 1 ? (middle(one) + middle(timeline[i + 1])) / 2 : one.end,
  }));
}

// Waveform on top, coloured by the most probable emotion; shares of all emotions below it.
function draw(answer) {
  const width = 900, left = 46, right = 888, top = 22, tall = 100, gap = 14, deep = 110;
  const parts = cells((answer.timeline || []).filter((one) => one.start !== undefined));
  const several = parts.length > 1;
  const bands = top + tall + gap, bottom = several ? bands + deep : top + tall;
  const place = (time) => left + (right - left) * time / answer.seconds;
  const svg = shape("svg", {viewBox: `0 0 ${width} ${bottom + 38}`, role: "img"});
  svg.setAttribute("aria-label", described(parts));

  const loudest = Math.max(...answer.outline, 1e-9);
  const step = (right - left) / answer.outline.length;
  let part = 0;
  answer.outline.forEach((peak, i) => {
    const time = (i + 0.5) * answer.seconds / answer.outline.length;
    while (part < parts.length - 1 && parts[part].to < time) part++;
    const half = Math.max(0.5, tall / 2 * peak / loudest);
    const fill = parts.length ? colourOf(parts[part]) : COLOURS[3];
    svg.append(shape("rect", {x: left + i * step, y: top + tall / 2 - half, width: step * 0.8, height: 2 * half, fill}));
  });

  if (several) {
    for (const one of parts) {
      let y = bands;
      about.emotions.forEach((name, i) => {
        const height = one.probabilities ? deep * one.probabilities[name] : 0;
        // A little wider than its time, so that no light shines through between neighbours.
        svg.append(shape("rect", {x: place(one.from), y, width: place(one.to) - place(one.from) + 0.4, height,
          fill: COLOURS[i % COLOURS.length]}));
        y += height;
      });
      const hint = shape("rect", {x: place(one.from), y: top, width: place(one.to) - place(one.from),
        height: bottom - top, fill: "transparent"});
      const title = shape("title", {});
      title.textContent = `${one.start.toFixed(1)} to ${one.end.toFixed(1)} s: `
        + (one.error || about.emotions.map((name) => `${name} ${percent(one.probabilities[name])}`).join(", "));
      hint.append(title);
      svg.append(hint);
    }
    for (const share of [0, 50, 100]) {
      const y = bands + deep * (1 - share / 100);
      write(svg, `${share} %`, left - 7, y + 4, "end");
      svg.append(shape("line", {x1: left - 4, x2: left, y1: y, y2: y, stroke: "#999"}));
    }
    runs(parts).forEach((run) => {
      const room = place(run.to) - place(run.from);
      const text = run.emotion || "silent";
      if (room > 7.5 * text.length) write(svg, text, (place(run.from) + place(run.to)) / 2, top - 8, "middle", "run");
      if (run.from > 0) svg.append(shape("line", {x1: place(run.from), x2: place(run.from), y1: top - 6, y2: top + tall,
        stroke: "#bbb", "stroke-dasharray": "2 3"}));
    });
  }

  svg.append(shape("line", {x1: left, x2: right, y1: bottom + 1, y2: bottom + 1, stroke: "#999"}));
  const every = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((s) => answer.seconds / s <= 12) || 1800;
  for (let i = 0; i * every <= answer.seconds + 1e-6; i++) {
    const x = place(i * every);
    svg.append(shape("line", {x1: x, x2: x, y1: bottom + 1, y2: bottom + 5, stroke: "#999"}));
    write(svg, every < 1 ? (i * every).toFixed(1) : String(i * every), x, bottom + 18, "middle");
  }
  write(svg, "seconds", (left + right) / 2, bottom + 34, "middle");

  const head = shape("line", {y1: top - 4, y2: bottom, stroke: "#111", "stroke-width": 1.5, visibility: "hidden"});
  svg.append(head);
  const player = byId("player");
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * width / box.width;
    player.currentTime = answer.seconds * Math.min(1, Math.max(0, (x - left) / (right - left)));
    player.play();
  });
  player.ontimeupdate = player.onseeked = move;
  player.onplay = function follow() { move(); if (!player.paused) requestAnimationFrame(follow); };
  function move() {
    const x = place(Math.min(player.currentTime, answer.seconds));
    for (const end of ["x1", "x2"]) head.setAttribute(end, x);
    head.setAttribute("visibility", "visible");
  }
  byId("timeline").replaceChildren(...(several ? [legend(), svg, caption(answer)] : [svg]));
}

function legend() {
  const row = element("div", "legend");
  about.emotions.forEach((name, i) => {
    const one = element("span", "quiet"), swatch = element("span", "swatch");
    swatch.style.background = COLOURS[i % COLOURS.length];
    one.append(swatch, name);
    row.append(one);
  });
  return row;
}

function caption(answer) {
  return element("p", "quiet", `Above: the waveform in the colour of the most probable emotion. Below: the probability `
    + `of each, in windows of ${answer.window} s every ${+answer.hop.toFixed(2)} s, averaged over three. A click plays `
    + "from there.");
}

// Neighbours with the same emotion.
function runs(parts) {
  const joined = [];
  for (const one of parts) {
    const last = joined[joined.length - 1];
    if (last && last.emotion === one.emotion) last.to = one.to;
    else joined.push({emotion: one.emotion, from: one.from, to: one.to});
  }
  return joined;
}

function described(parts) {
  if (parts.length < 2) return "waveform";
  const told = runs(parts).map((run) => `${run.from.toFixed(1)} to ${run.to.toFixed(1)} s ${run.emotion || "silent"}`);
  return `waveform and timeline: ${told.join(", ")}`;
}

function colourOf(part) {
  const place = about.emotions.indexOf(part.emotion);
  return place < 0 ? "#cccccc" : COLOURS[place % COLOURS.length];
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function write(svg, text, x, y, anchor, kind = "") {
  const made = shape("text", {x, y, "text-anchor": anchor, class: kind});
  made.textContent = text;
  svg.append(made);
}

async function toggleRecording() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: true});
  } catch (error) {
    say(`no microphone: ${error.message}`, true);
    return;
  }
  const pieces = [], began = performance.now();
  recorder = new MediaRecorder(stream);
  const stopMeter = meter(stream, () => {
    const seconds = (performance.now() - began) / 1000;
    byId("record-text").textContent = `Stop (${seconds.toFixed(0)} s)`;
    if (seconds > about.max_seconds - 1 && recorder && recorder.state === "recording") recorder.stop();
  });
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = async () => {
    recorder = null;
    stopMeter();
    stream.getTracks().forEach((track) => track.stop());
    byId("record").classList.remove("recording");
    byId("record-text").textContent = "Record";
    try {
      judge({blob: await asWav(new Blob(pieces)), name: "your recording", reference: null});
    } catch (error) {
      say(`the recording cannot be used: ${error.message}`, true);
    }
  };
  byId("record").classList.add("recording");
  byId("result").hidden = true;
  say("Recording …");
  recorder.start();
}

function meter(stream, everyTick) {
  const context = new AudioContext(), analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize), level = byId("level");
  level.hidden = false;
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    level.value = Math.min(1, 2 * samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0));
    everyTick();
  }, 100);
  return () => {
    clearInterval(timer);
    level.hidden = true;
    context.close();
  };
}

// What browsers record in (WebM, MP4) the server reads through ffmpeg only, so it gets plain WAV.
async function asWav(blob) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  const mono = new OfflineAudioContext(1, Math.ceil(decoded.duration * RATE), RATE);
  const source = mono.createBufferSource();
  source.buffer = decoded;
  source.connect(mono.destination);
  source.start();
  const samples = (await mono.startRendering()).getChannelData(0);
  const file = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const ascii = (at, text) => [...text].forEach((letter, i) => file.setUint8(at + i, letter.charCodeAt(0)));
  ascii(0, "RIFF");
  file.setUint32(4, 36 + 2 * samples.length, true);
  ascii(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, RATE, 4], [28, 2 * RATE, 4], [32, 2, 2], [34, 16, 2]].forEach(
    ([at, value, bytes]) => (bytes === 4 ? file.setUint32(at, value, true) : file.setUint16(at, value, true)));
  ascii(36, "data");
  file.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => file.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(32768 * x))), true));
  return new Blob([file], {type: "audio/wav"});
}

byId("record").addEventListener("click", toggleRecording);
byId("again").addEventListener("click", () => current && judge(current));
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same file can be chosen again
  if (file) judge({blob: file, name: file.name, reference: null});
});
const input = byId("input");
input.addEventListener("dragover", (event) => { event.preventDefault(); input.classList.add("over"); });
input.addEventListener("dragleave", () => input.classList.remove("over"));
input.addEventListener("drop", (event) => {
  event.preventDefault();
  input.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) judge({blob: file, name: file.name, reference: null});
});
start().catch((error) => say(`the server does not answer (${error.message})`, true));

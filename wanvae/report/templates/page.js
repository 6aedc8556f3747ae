"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const COLOURS = 8;

const colour = (index) => `var(--line-${index % COLOURS})`;
const dataOf = (element) => JSON.parse(element.querySelector("script.data").textContent);
const shown = (value) => value === null ? "–" : String(Number(value.toPrecision(4)));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

function shape(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

// The bytes of a part; its text is let go, for pages can be large.
function takeBytes(part) {
  const script = part.querySelector("script.media");
  const bytes = Uint8Array.from(atob(script.textContent.trim()), (letter) => letter.charCodeAt(0));
  script.textContent = "";
  return bytes;
}

// Parts of a section agree on the frame they show.
const sectionOf = (part) => part.closest(".section");
const tellFrame = (part, frame) => sectionOf(part).dispatchEvent(
  new CustomEvent("frame", {detail: {frame, from: part}}));
function onFrame(part, hear) {
  sectionOf(part).addEventListener("frame", ({detail}) => {
    if (detail.from !== part) hear(detail.frame);
  });
}

// Each part begins to work at once, so that it is there on paper too; what is folded when it opens.
function whenOpen(selector, start) {
  for (const part of document.querySelectorAll(selector)) {
    const folded = part.closest("details:not([open])");
    if (folded) folded.addEventListener("toggle", () => start(part), {once: true});
    else start(part);
  }
}

// Tables

function sortable(table) {
  const body = table.tBodies[0];
  const key = (row, index) => {
    const cell = row.cells[index];
    if (cell.dataset.value === undefined) return cell.textContent;
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => heading.addEventListener("click", () => {
    const downwards = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", downwards ? "descending" : "ascending");
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [key(first, index), key(second, index)];
      if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b));
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return a - b;
    });
    body.append(...(downwards ? rows.reverse() : rows));
  }));
}

// Curves

// Each a value and its text, with as many digits as tell it from the next one.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const digits = Math.min(100, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  const made = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    made.push([i * step, String(Number((i * step).toFixed(digits)))]);
  }
  return made;
}

function curves(part) {
  const {x, lines, xLabel, yLabel, byFrame, fromZero, markers, firstColour} = dataOf(part);
  const svg = part.querySelector("svg");
  const legend = part.querySelector(".legend");
  const names = Object.keys(lines);
  const length = Math.max(...names.map((name) => lines[name].length));
  const at = (index) => x === null ? index : x[index];
  const values = names.flatMap((name) => lines[name]).filter((value) => value !== null);
  // On a narrow screen the drawing is narrower, not smaller, so that its labels can be read.
  const breadth = Math.min(760, Math.max(280, svg.clientWidth));
  svg.setAttribute("viewBox", `0 0 ${breadth} 260`);
  if (!values.length) {
    shape(svg, "text", {x: breadth / 2, y: 130, "text-anchor": "middle"}, "no values");
    return;
  }
  const [right, top, bottom] = [breadth - 16, 14, 222];
  const extent = (all, zero) => {
    // Not spread over arguments, of which there may be too many.
    let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    if (zero) low = Math.min(low, 0);
    const room = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
    return [low === 0 || zero ? low : low - room, high + room];
  };
  const [yLow, yHigh] = extent(values, fromZero);
  const yTicks = ticks(yLow, yHigh, 5);
  const left = Math.max(56, 14 + 7 * Math.max(...yTicks.map(([, text]) => text.length)));
  const [xLow, xHigh] = [at(0), Math.max(at(length - 1), at(0) + 1e-9)];
  const px = (value) => left + (value - xLow) / (xHigh - xLow) * (right - left);
  const py = (value) => bottom - (value - yLow) / (yHigh - yLow) * (bottom - top);

  for (const [value, text] of yTicks) {
    shape(svg, "line", {class: "grid", x1: left, x2: right, y1: py(value), y2: py(value)});
    shape(svg, "text", {x: left - 6, y: py(value) + 4, "text-anchor": "end"}, text);
  }
  // Of frames, layers and the like there are no halves.
  const whole = x === null || x.every(Number.isInteger);
  const room = Math.max(3, Math.round(breadth / 95));
  const most = whole ? Math.min(room, at(length - 1) - at(0)) : room;
  for (const [value, text] of length > 1 ? ticks(xLow, xHigh, most) : [[xLow, shown(xLow)]]) {
    // The last one may be too long for where it belongs.
    const x = Math.min(px(value), breadth - 4 - 3.6 * text.length);
    shape(svg, "text", {x, y: bottom + 16, "text-anchor": "middle"}, text);
  }
  shape(svg, "text", {x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle"}, xLabel);
  shape(svg, "text", {x: 14, y: (top + bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(top + bottom) / 2})`}, yLabel);
  names.forEach((name, index) => {
    let path = "", lifted = true;
    lines[name].forEach((value, i) => {
      if (value !== null) {
        path += `${lifted ? "M" : "L"}${px(at(i)).toFixed(1)} ${py(value).toFixed(1)}`;
        const alone = [lines[name][i - 1], lines[name][i + 1]].every((near) => near == null);
        if (markers || alone) {
          shape(svg, "circle", {cx: px(at(i)), cy: py(value), r: 3.5, style: `fill: ${colour(firstColour + index)}`});
        }
      }
      lifted = value === null;
    });
    // All but the last are wider, so that they show under lines that lie on them.
    const stroke = index < names.length - 1 ? 3.4 : 1.6;
    shape(svg, "path", {d: path, style: `stroke: ${colour(firstColour + index)}; stroke-width: ${stroke}`});
  });

  const cursor = shape(svg, "line", {class: "cursor", y1: top, y2: bottom, visibility: "hidden"});
  const read = (index) => {
    legend.replaceChildren(...names.map((name, i) => {
      const swatch = element("i");
      swatch.style.background = colour(firstColour + i);
      const value = index === null ? "" : ` ${shown(lines[name][index] ?? null)}`;
      return element("span", {}, swatch, `${name}${value}`);
    }));
    if (index !== null) legend.append(element("span", {}, `${xLabel} ${shown(at(index))}`));
    cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index !== null) {
      cursor.setAttribute("x1", px(at(index)));
      cursor.setAttribute("x2", px(at(index)));
    }
  };
  const nearest = (wanted) => {
    let low = 0, high = length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((at(middle) + at(middle + 1)) / 2 < wanted) low = middle + 1; else high = middle;
    }
    return low;
  };
  const under = (event) => {
    const box = svg.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width * breadth;
    return nearest(xLow + (across - left) / (right - left) * (xHigh - xLow));
  };
  let current = null;
  svg.addEventListener("pointermove", (event) => read(under(event)));
  svg.addEventListener("pointerleave", () => read(current));
  read(null);
  if (!byFrame) return;
  svg.style.cursor = "pointer";
  const go = (frame) => { current = nearest(frame); read(current); };
  svg.addEventListener("click", (event) => {
    const index = under(event);
    go(at(index));
    tellFrame(part, at(index));
  });
  onFrame(part, go);
}

// Players: buttons and a bar over frames, for what `play`, `pause` and `seek` move.

function timeBar(part, {frames, fps, first, play, pause, seek, setSpeed}) {
  const button = element("button", {type: "button", className: "play", textContent: "▶"});
  const back = element("button", {type: "button", textContent: "‹", title: "one frame back"});
  const next = element("button", {type: "button", textContent: "›", title: "one frame on"});
  const bar = element("input", {type: "range", className: "frame", min: 0, max: frames - 1, value: 0});
  const speed = element("select", {title: "speed"}, ...SPEEDS.map(
    (each) => element("option", {value: each, textContent: `${each}×`, selected: each === 1})));
  const output = element("output");
  button.setAttribute("aria-label", "play");
  bar.setAttribute("aria-label", "frame");
  part.querySelector(".time").append(back, button, next, bar, output, speed);
  let playing = false;
  const show = (frame) => {
    bar.value = frame;
    output.textContent = `frame ${first + frame}, ${((first + frame) / fps).toFixed(2)} s`;
    tellFrame(part, first + frame);
  };
  const set = (on) => {
    playing = on;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-label", on ? "pause" : "play");
    if (on) play(); else pause();
  };
  const go = (frame) => { set(false); seek(Math.min(Math.max(frame, 0), frames - 1)); };
  button.addEventListener("click", () => set(!playing));
  back.addEventListener("click", () => go(Number(bar.value) - 1));
  next.addEventListener("click", () => go(Number(bar.value) + 1));
  bar.addEventListener("input", () => go(Number(bar.value)));
  speed.addEventListener("change", () => setSpeed(Number(speed.value)));
  onFrame(part, (frame) => go(Math.round(frame - first)));
  return {show, isPlaying: () => playing};
}

// A slider between two panels of one video or picture, which therefore are of the same moment.

function comparison(part) {
  const {panels, fps, first} = dataOf(part);
  const canvas = part.querySelector("canvas");
  const context = canvas.getContext("2d");
  const split = part.querySelector(".split");
  const difference = part.querySelector(".difference");
  const sides = ["left", "right"].map((side) => ({
    select: part.querySelector(`select.${side}`), label: part.querySelector(`.label.${side}`),
  }));
  sides.forEach(({select}, side) => panels.forEach((name, index) => select.append(
    element("option", {value: index, textContent: name, selected: index === Math.min(side, panels.length - 1)}))));

  const type = part.querySelector("script.media").dataset.type;
  const url = URL.createObjectURL(new Blob([takeBytes(part)], {type}));
  const moving = type.startsWith("video/");
  const source = moving ? element("video", {muted: true, loop: true, playsInline: true, preload: "auto"})
    : element("img");
  let width = 0, height = 0;

  const draw = () => {
    if (!width) return;
    const border = Math.round(split.value / 1000 * width);
    const panel = (side, from, to) => {
      const index = Number(sides[side].select.value);
      if (to > from) {
        context.drawImage(source, index * width + from, 0, to - from, height, from, 0, to - from, height);
      }
    };
    panel(0, 0, width);
    if (difference.checked) {
      context.save();
      context.beginPath();
      context.rect(border, 0, width - border, height);
      context.clip();
      context.globalCompositeOperation = "difference";
      panel(1, border, width);
      context.globalCompositeOperation = "lighter";  // each time twice as bright
      context.drawImage(canvas, 0, 0);
      context.drawImage(canvas, 0, 0);
      context.restore();
    } else {
      panel(1, border, width);
    }
    context.fillStyle = "#fff";
    context.fillRect(border - Math.max(1, width / 500), 0, Math.max(1, width / 250), height);
    sides.forEach(({select, label}) => { label.textContent = panels[select.value]; });
    if (difference.checked) sides[1].label.textContent = `difference to ${panels[sides[1].select.value]}`;
  };
  const ready = (fullWidth, fullHeight) => {
    width = fullWidth / panels.length;
    height = fullHeight;
    canvas.width = width;
    canvas.height = height;
    // Small pictures are enlarged by whole numbers, so that each pixel stays one.
    canvas.style.width = `${width * Math.max(1, Math.floor(800 / width))}px`;
    draw();
  };
  for (const input of [split, difference, ...sides.map(({select}) => select)]) {
    input.addEventListener("input", draw);
  }
  if (!moving) {
    part.querySelector(".time").remove();
    source.addEventListener("load", () => ready(source.naturalWidth, source.naturalHeight));
    source.src = url;
    return;
  }
  source.addEventListener("error", () => console.error("this browser cannot play the video"));
  source.addEventListener("loadeddata", () => {
    ready(source.videoWidth, source.videoHeight);
    const frameNow = () => Math.min(Math.floor(source.currentTime * fps + 1e-3), frames - 1);
    const frames = Math.max(1, Math.round(source.duration * fps));
    const tick = () => {
      if (!time.isPlaying()) return;
      draw();
      time.show(frameNow());
      requestAnimationFrame(tick);
    };
    const time = timeBar(part, {
      frames, fps, first,
      play: () => source.play().then(tick),
      pause: () => source.pause(),
      seek: (frame) => { source.currentTime = (frame + 0.5) / fps; },
      setSpeed: (speed) => { source.playbackRate = speed; },
    });
    source.addEventListener("seeked", () => {
      draw();
      if (!time.isPlaying()) time.show(frameNow());
    });
    // A busy browser says "loaded" or "seeked" before the frame can be drawn: draw again with it.
    const drawShown = () => {
      if (!time.isPlaying()) draw();  // `tick` draws a video that plays
      source.requestVideoFrameCallback?.(drawShown);
    };
    source.requestVideoFrameCallback?.(drawShown);
    time.show(0);
  }, {once: true});
  source.src = url;
}

// Stick figures, seen in parallel projection by a camera that follows their first point: side by
// side each one's, one over the other that of the first figure.

function figures(part) {
  const {labels, frames, points, bones, fps, first, low, step, ...data} = dataOf(part);
  const numbers = new Int16Array(takeBytes(part).buffer);
  const canvas = part.querySelector("canvas");
  const context = canvas.getContext("2d");
  const apart = part.querySelector(".apart");
  const point = (figure, frame, index) => {
    const start = ((figure * frames + frame) * points + index) * 3;
    return [0, 1, 2].map((axis) => low[axis] + (numbers[start + axis] + 32768) * step);
  };
  const boxes = labels.map((label, index) => {
    const box = element("input", {type: "checkbox", checked: index < 2});
    const dot = element("i");
    dot.style.background = colour(index);
    part.querySelector(".shown").append(element("label", {}, box, dot, label));
    return box;
  });

  // Where the first point is on average over half a second.
  const around = Math.round(fps / 4);
  const placeOf = (figure, frame) => {
    const [from, to] = [Math.max(0, frame - around), Math.min(frames - 1, frame + around)];
    const mean = [0, 0, 0];
    for (let near = from; near <= to; near++) {
      point(figure, near, 0).forEach((value, axis) => { mean[axis] += value / (to - from + 1); });
    }
    return mean;
  };
  // The floor of the first figure, how far it reaches, and how far each goes from it, at any time.
  let floor = Infinity, ceiling = -Infinity, reach = 0.05;
  const drifts = labels.map(() => 0);
  for (let frame = 0; frame < frames; frame++) {
    const place = placeOf(0, frame);
    labels.forEach((_, figure) => {
      const [x, , z] = placeOf(figure, frame);
      drifts[figure] = Math.max(drifts[figure], Math.hypot(x - place[0], z - place[2]));
    });
    for (let index = 0; index < points; index++) {
      const [x, y, z] = point(0, frame, index);
      floor = Math.min(floor, y);
      ceiling = Math.max(ceiling, y);
      reach = Math.max(reach, Math.hypot(x - place[0], z - place[2]));
    }
  }

  let yaw = data.yaw, pitch = 0.22, zoom = 1, frame = 0, speed = 1, clock = 0;
  const draw = () => {
    const style = getComputedStyle(part);
    const visible = labels.map((_, index) => index).filter((index) => boxes[index].checked);
    // A narrow screen shows the canvas small: labels and lines are larger there.
    const pixel = canvas.width / (canvas.clientWidth || canvas.width);
    const room = canvas.width / (apart.checked ? Math.max(visible.length, 1) : 1);
    const width = reach + (apart.checked ? 0 : Math.max(0, ...visible.map((figure) => drifts[figure])));
    const scale = zoom * Math.min(0.82 * canvas.height / Math.max(ceiling - floor, 2 * reach), 0.46 * room / width);
    const [sin, cos, up, along] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const middle = (floor + ceiling) / 2;
    const project = ([x, y, z], offset, place) => {
      const [dx, dy, dz] = [x - place[0], y - middle, z - place[2]];
      const [across, depth] = [dx * cos - dz * sin, dx * sin + dz * cos];
      return [canvas.width / 2 + offset + across * scale,
        canvas.height / 2 - (dy * along - depth * up) * scale, depth * along + dy * up];
    };
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.lineCap = "round";
    visible.forEach((figure, order) => {
      const offset = apart.checked ? (order - (visible.length - 1) / 2) * room : 0;
      const place = placeOf(apart.checked ? figure : visible[0], frame);
      const seen = (corner) => project(corner, offset, place);
      if (order === 0 || apart.checked) {
        context.save();
        context.beginPath();
        context.rect((canvas.width - room) / 2 + offset, 0, room, canvas.height);
        context.clip();
        ground(seen, place, style);
        context.restore();
      }
      const places = Array.from({length: points}, (_, index) => seen(point(figure, frame, index)));
      context.strokeStyle = style.getPropertyValue(`--line-${figure % COLOURS}`);
      context.globalAlpha = apart.checked ? 1 : 0.8;
      for (const [from, to] of bones) {
        const [a, b] = [places[from], places[to]];
        context.lineWidth = Math.hypot(a[0] - b[0], a[1] - b[1]) > 0.07 * scale ? Math.max(6, 3 * pixel) : Math.max(2.5, 1.2 * pixel);
        context.beginPath();
        context.moveTo(a[0], a[1]);
        context.lineTo(b[0], b[1]);
        context.stroke();
      }
      context.globalAlpha = 1;
      if (apart.checked) {
        context.fillStyle = style.getPropertyValue("--faint");
        context.font = `${Math.max(22, 13 * pixel)}px system-ui, sans-serif`;
        context.textAlign = "center";
        context.fillText(labels[figure], canvas.width / 2 + offset, canvas.height - 14, 0.96 * room);
      }
    });
  };
  const ground = (seen, place, style) => {
    const [cell, half] = [0.5, 1.5];
    context.strokeStyle = style.getPropertyValue("--line");
    context.lineWidth = 1.5;
    const [x0, z0] = [place[0], place[2]].map((value) => Math.round(value / cell) * cell);
    context.beginPath();
    for (let away = -half; away <= half + 1e-9; away += cell) {
      for (const [from, to] of [[[x0 + away, z0 - half], [x0 + away, z0 + half]],
        [[x0 - half, z0 + away], [x0 + half, z0 + away]]]) {
        const [a, b] = [from, to].map(([x, z]) => seen([x, floor, z]));
        context.moveTo(a[0], a[1]);
        context.lineTo(b[0], b[1]);
      }
    }
    context.stroke();
  };

  const tick = (now) => {
    if (!time.isPlaying()) return;
    frame = Math.floor((now - clock) / 1000 * fps * speed) % frames;
    draw();
    time.show(frame);
    requestAnimationFrame(tick);
  };
  const startClock = () => { clock = performance.now() - frame / fps / speed * 1000; };
  const time = timeBar(part, {
    frames, fps, first,
    play: () => { startClock(); requestAnimationFrame(tick); },
    pause: () => {},
    seek: (wanted) => { frame = wanted; draw(); time.show(frame); },
    setSpeed: (wanted) => { speed = wanted; startClock(); },
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    yaw -= event.movementX * 0.01;
    pitch = Math.min(Math.max(pitch + event.movementY * 0.01, -0.2), 1.5);
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom = Math.min(Math.max(zoom * Math.exp(-event.deltaY * 0.001), 0.2), 8);
    draw();
  }, {passive: false});
  for (const input of [apart, ...boxes]) input.addEventListener("input", draw);
  draw();
  time.show(0);
}

// The page

const nav = document.querySelector("nav");
for (const section of document.querySelectorAll(".section")) {
  nav.append(element("a", {href: `#${section.id}`, textContent: section.querySelector("h2").textContent}));
}
// A link to a section that is folded opens it.
const openTarget = () => {
  const section = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!(section instanceof HTMLDetailsElement)) return;
  section.open = true;
  section.scrollIntoView();
};
addEventListener("hashchange", openTarget);
openTarget();
document.querySelectorAll("table").forEach(sortable);
whenOpen(".curves", curves);
whenOpen(".comparison", comparison);
whenOpen(".figures", figures);

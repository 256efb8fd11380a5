// Knobs turned one at a time, each through its published runs: pictures, curves and scores are all there from the start.

// Ticks of a logarithmic axis: decades, or 1, 2 and 5 of each where there are few.
function logTicks(low, high) {
  const ticks = [], steps = Math.log10(high / low) > 2 ? [1] : [1, 2, 5];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
    for (const step of steps) if (step * 10 ** decade >= low && step * 10 ** decade <= high) ticks.push(step * 10 ** decade);
  }
  return ticks;
}

// The curves of a run against step, on a logarithmic axis that is the same for all stops; faint behind them, those of the
// knob's own value.
function trainingPlot(svg, knob, stop) {
  const [left, right, top, bottom] = [46, 16, 34, 34], [width, height] = [300, 210];
  const every = knob.stops.flatMap(s => s.curves.flat()).filter(y => y > 0);
  const last = Math.max(...knob.stops.map(s => s.steps.at(-1)));
  const [low, high] = [Math.min(...every) / 1.15, Math.max(...every) * 1.15];
  const x = step => left + ((width - left - right) * step) / last;
  const y = value => height - bottom - ((height - top - bottom) * Math.log(value / low)) / Math.log(high / low);
  const word = (at, text, more = {}) => {
    const made = drawing("text", { x: at[0], y: at[1], fill: "currentColor", "text-anchor": "middle", ...more }, svg);
    made.style.fontSize = "11px"; // of the drawing: it grows and shrinks with it
    made.textContent = text;
  };
  const looks = [{}, { "stroke-dasharray": "5 3" }], colours = ["var(--dials-first)", "var(--dials-second)"];
  svg.replaceChildren();
  for (const tick of logTicks(low, high)) {
    drawing("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "currentColor", "stroke-opacity": 0.15 }, svg);
    word([left - 5, y(tick) + 4], String(+tick.toPrecision(3)), { "text-anchor": "end" });
  }
  drawing("path", { d: `M${left} ${top} V${height - bottom} H${width - right}`, stroke: "currentColor", fill: "none" }, svg);
  [0, last].forEach(step => word([x(step), height - bottom + 14], step));
  word([(left + width - right) / 2, height - 6], "step");
  word([12, (top + height - bottom) / 2], "nats", { transform: `rotate(-90 12 ${(top + height - bottom) / 2})` });
  const lines = (shown, faint) => shown.curves.forEach((curve, k) => {
    const known = curve.map((value, i) => [x(shown.steps[i]), value]).filter(([, value]) => value > 0);
    const points = known.map(([at, value]) => [at, y(value)]);
    const d = points.map(([at, up], i) => `${i ? "L" : "M"}${at.toFixed(1)} ${up.toFixed(1)}`).join("");
    const look = { stroke: colours[k], "stroke-width": 2, "stroke-opacity": faint ? 0.45 : 1, ...looks[k] };
    drawing("path", { d, fill: "none", ...look }, svg);
    if (faint) return;
    for (const [cx, cy] of points) drawing("circle", { cx, cy, r: 2.6, fill: colours[k] }, svg);
  });
  const own = knob.stops.find(s => s.value === knob.own);
  if (own !== stop) lines(own, true);
  lines(stop, false);
  let at = left;
  knob.curves.forEach((name, k) => {
    drawing("line", { x1: at, x2: at + 18, y1: 12, y2: 12, stroke: colours[k], "stroke-width": 2, ...looks[k] }, svg);
    word([at + 22, 16], name, { "text-anchor": "start" });
    at += 34 + 5.8 * name.length;
  });
}

views.dials = ui => {
  const { spec, tables } = ui, find = id => spec.knobs.find(knob => knob.id === id);
  const pictures = element("div"), beside = element("div"), svg = drawing("svg", { viewBox: "0 0 300 210", role: "img" });
  // Two rows of four; on a wide page the curves stand beside them.
  Object.assign(ui.images.style, { alignItems: "flex-start", gap: "1rem" });
  const columns = { display: "grid", gridTemplateColumns: "repeat(4, minmax(0, 1fr))", gap: "0.4rem" };
  Object.assign(pictures.style, { ...columns, flex: "3 1 19rem", minWidth: 0 });
  Object.assign(beside.style, { flex: "2 1 15rem", minWidth: 0, maxWidth: "26rem" });
  // Blue and vermilion, both over 3 : 1 on white and on a dark page.
  svg.style.setProperty("--dials-first", "#2b86c5");
  svg.style.setProperty("--dials-second", "#d9641e");
  const panes = spec.panes.map(title => ui.pane(title, spec.size, spec.size));
  panes.forEach(pane => {
    const figure = pane.canvas.parentElement;
    Object.assign(figure.style, { minWidth: 0, padding: 0 });
    Object.assign(pane.caption.style, { fontSize: "0.75em", margin: "0.1rem 0 0", color: "inherit", lineHeight: 1.3 });
    pane.caption.textContent = pane.title.split(", ").at(-1);
    pictures.append(figure);
  });
  beside.append(svg);
  ui.images.append(pictures, beside);
  ui.hidden("dial", spec.knobs[0].id);
  const sliders = new Map(spec.knobs.map(knob => {
    const texts = new Map(knob.stops.map(stop => [stop.value, stop.text]));
    const stops = [...texts.keys()];
    return [knob.id, ui.slider(knob.id, knob.name, { stops, start: knob.own, text: value => texts.get(value) })];
  }));
  const table = element("table", { class: "live-scores" });
  Object.assign(table.style, { fontSize: "0.85em", margin: "0.5rem 0", width: "auto", borderCollapse: "collapse", display: "table" });
  ui.fields.append(table);

  const scores = (knob, stop) => {
    const own = knob.stops.find(s => s.value === knob.own), columns = own === stop ? [stop] : [stop, own];
    const cell = (kind, text, bold) => {
      const made = element(kind, { text });
      const look = { padding: "0.1rem 0.7rem 0.1rem 0", textAlign: "right", color: "inherit" };
      Object.assign(made.style, { ...look, fontWeight: bold ? "600" : "400" });
      if (kind === "td" && text.length < 9) made.style.whiteSpace = "nowrap"; // a number stays in one piece
      return made;
    };
    const line = (kind, name, values) => {
      const first = cell("th", name, kind === "th");
      first.style.textAlign = "left";
      return element("tr", {}, first, ...values.map((text, k) => cell(kind, text, kind === "th" || !k)));
    };
    table.replaceChildren(
      line("th", knob.name, columns.map((s, k) => (k ? `${s.text} (the book's)` : s.text))),
      ...knob.scores.map((name, k) => line("td", name, columns.map(s => s.scores[k]))),
    );
  };
  // A table's bytes are a picture file; the browser unpacks it once.
  const sheets = new Map();
  const sheet = id => {
    if (!sheets.has(id)) sheets.set(id, createImageBitmap(new Blob([tables[id].data], { type: "image/webp" })));
    return sheets.get(id);
  };
  return {
    note: "Every stop is a published run: nothing is trained or decoded here. "
      + "Turning one knob puts the others back to the book's own values.",
    before: id => {
      if (!sliders.has(id)) return;
      ui.controls.get("dial").set(id);
      spec.knobs.forEach(knob => { if (knob.id !== id) sliders.get(knob.id).set(knob.own); });
    },
    async draw(state) {
      const knob = find(state.dial), { size } = knob;
      const at = knob.stops.findIndex(s => s.value === state[knob.id]), stop = knob.stops[at];
      const stored = await sheet(knob.id);
      panes.forEach((pane, k) => {
        const heart = k < 4 && k % 2 === 0, column = k < 4 ? k >> 1 : k - 2, context = pane.canvas.getContext("2d");
        context.imageSmoothingEnabled = false;
        context.drawImage(stored, column * size, heart ? 0 : (at + 1) * size, size, size, 0, 0, spec.size, spec.size);
      });
      trainingPlot(svg, knob, stop);
      scores(knob, stop);
      sliders.forEach((control, id) => { control.input.parentElement.firstChild.style.fontWeight = id === knob.id ? "600" : ""; });
      const ends = knob.curves.map((name, k) => `${name} ${stop.curves[k].at(-1) ?? "not finite"}`).join(", ");
      svg.setAttribute("aria-label", `Curves of training on a logarithmic axis. At the last step, in nats: ${ends}.`);
      Object.assign(ui.root.dataset, { dial: knob.id, value: stop.value, run: stop.run, found: JSON.stringify(stop.scores) });
      ui.say(`${knob.name} ${stop.text}${stop.meaning && `: ${stop.meaning}`}. At the last step, in nats: ${ends}.`);
    },
    python: state => call(spec.python, { dial: state.dial, [state.dial]: state[state.dial] }),
  };
};

// Draws Gaussian experts and their product; drag a curve, or use the sliders. No dependencies, no network.
export function experts(root, state) {
  const W = 640, H = 260, LEFT = 10, BASE = 225, NS = "http://www.w3.org/2000/svg";
  const COLOURS = ["#0072B2", "#D55E00", "#009E73"], DASHES = ["7 4", "9 3 2 3", "2 3"];
  const start = JSON.stringify(state);
  const make = (name, attributes, parent) => {
    const e = document.createElementNS(NS, name);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    return parent.appendChild(e);
  };
  const x = z => LEFT + (z + 4) / 8 * (W - 2 * LEFT);
  const density = (z, m, s) => Math.exp(-0.5 * ((z - m) / s) ** 2) / (s * Math.sqrt(2 * Math.PI));
  const path = (m, s) => {
    let d = "";
    for (let z = -4; z <= 4.001; z += 0.02) d += `${d ? "L" : "M"}${x(z).toFixed(1)} ${(BASE - 130 * density(z, m, s)).toFixed(1)}`;
    return d;
  };
  function product() {
    let precision = state.prior ? 1 : 0, weighted = 0;
    for (const e of state.experts) if (e.on) { precision += 1 / e.sd ** 2; weighted += e.mu / e.sd ** 2; }
    return precision ? { mu: weighted / precision, sd: Math.sqrt(1 / precision) } : null;
  }
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", style: "width:100%;max-width:640px;background:#fff;touch-action:none" }, root);
  const title = make("title", {}, svg);
  make("clipPath", { id: `c${state.id}` }, svg).appendChild(make("rect", { x: 0, y: 0, width: W, height: BASE }, svg));
  make("line", { x1: LEFT, x2: W - LEFT, y1: BASE, y2: BASE, stroke: "#222" }, svg);
  for (let z = -4; z <= 4; z++) make("text", { x: x(z), y: BASE + 16, "text-anchor": "middle", "font-size": 12, fill: "#222" }, svg).textContent = z;
  make("text", { x: W / 2, y: H - 3, "text-anchor": "middle", "font-size": 12, fill: "#222" }, svg).textContent = "latent dimension z";
  const clip = make("g", { "clip-path": `url(#c${state.id})` }, svg);
  const prior = make("path", { fill: "none", stroke: "#999", "stroke-dasharray": "2 3", "stroke-width": 2 }, clip);
  const joint = make("path", { fill: "#222", "fill-opacity": 0.2, stroke: "#222", "stroke-width": 2.5 }, clip);
  const curves = state.experts.map((e, k) => make("path", { fill: "none", stroke: COLOURS[k], "stroke-dasharray": DASHES[k], "stroke-width": 3 }, clip));
  // What the pointer takes hold of: a wide, unseen line on top of each curve, without its gaps.
  const grips = state.experts.map(() => make("path", { fill: "none", stroke: "transparent", "stroke-width": 18, "pointer-events": "stroke", style: "cursor:ew-resize" }, clip));
  const out = root.appendChild(document.createElement("p"));
  out.setAttribute("aria-live", "polite");
  const controls = root.appendChild(document.createElement("div"));
  const inputs = [];
  const field = (parent, label, attributes, read, write) => {
    const holder = parent.appendChild(document.createElement("label"));
    holder.style.cssText = "display:inline-block;margin-right:1em";
    const input = document.createElement("input");
    for (const [k, v] of Object.entries(attributes)) input.setAttribute(k, v);
    const text = document.createElement("span");
    holder.append(input, text);
    input.addEventListener("input", () => { write(input); draw(); });
    inputs.push(() => { read(input); text.textContent = " " + label(); });
  };
  state.experts.forEach((e, k) => {
    const row = controls.appendChild(document.createElement("div"));
    field(row, () => e.name, { type: "checkbox" }, i => { i.checked = e.on; }, i => { e.on = i.checked; });
    field(row, () => `mean ${e.mu.toFixed(1)}`, { type: "range", min: -3, max: 3, step: 0.1, "aria-label": `mean of ${e.name}` }, i => { i.value = e.mu; }, i => { e.mu = +i.value; });
    field(row, () => `sd ${e.sd.toFixed(2)}`, { type: "range", min: 0.2, max: 2, step: 0.05, "aria-label": `standard deviation of ${e.name}` }, i => { i.value = e.sd; }, i => { e.sd = +i.value; });
    row.style.color = COLOURS[k];
  });
  const last = controls.appendChild(document.createElement("div"));
  field(last, () => "the prior is an expert", { type: "checkbox" }, i => { i.checked = state.prior; }, i => { state.prior = i.checked; });
  const reset = last.appendChild(document.createElement("button"));
  reset.textContent = "reset";
  reset.addEventListener("click", () => {
    const first = JSON.parse(start);
    state.prior = first.prior;
    first.experts.forEach((e, k) => Object.assign(state.experts[k], e));
    draw();
  });
  function draw() {
    const q = product();
    prior.setAttribute("d", state.prior ? path(0, 1) : "");
    state.experts.forEach((e, k) => [curves[k], grips[k]].forEach(c => c.setAttribute("d", e.on ? path(e.mu, e.sd) : "")));
    joint.setAttribute("d", q ? path(q.mu, q.sd) + "Z" : "");
    out.textContent = q ? `product: mean ${q.mu.toFixed(2)}, sd ${q.sd.toFixed(2)}` : "nobody knows anything: no product";
    title.textContent = `Gaussian experts and their product. ${out.textContent}`;
    root.dataset.mu = q ? q.mu : ""; root.dataset.sd = q ? q.sd : "";
    inputs.forEach(update => update());
  }
  grips.forEach((curve, k) => {
    curve.addEventListener("pointerdown", event => { curve.setPointerCapture(event.pointerId); });
    curve.addEventListener("pointermove", event => {
      if (!curve.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect();
      const z = ((event.clientX - box.left) / box.width * W - LEFT) / (W - 2 * LEFT) * 8 - 4;
      state.experts[k].mu = Math.max(-3, Math.min(3, Math.round(z * 10) / 10));
      draw();
    });
  });
  draw();
}

// Gaussian experts of one latent dimension and their product: bell curves to take hold of. The stills of people.py look the same.

const EXPERT_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
const EXPERT_DASHES = ["7 4", "9 3 2 3", "2 3", "12 3", "5 2 1 2", "1 4"];
// Outlines of a mark around (0, 0), one for each modality: colour is never the only cue.
const EXPERT_MARKS = [
  r => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  r => `M${-0.9 * r} ${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
  r => `M0 ${-1.2 * r}L${1.1 * r} ${0.8 * r}H${-1.1 * r}Z`,
  r => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
  r => `M0 ${1.2 * r}L${1.1 * r} ${-0.8 * r}H${-1.1 * r}Z`,
  r => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
];
const expertColour = k => EXPERT_COLOURS[k % EXPERT_COLOURS.length];
const expertMark = (k, r) => EXPERT_MARKS[k % EXPERT_MARKS.length](r);

// The precision-weighted product of `experts`, [{mu, sd}], and of the prior N(0, 1) if it speaks; null when nobody does.
function multiplied(experts, prior) {
  let precision = prior ? 1 : 0, weighted = 0;
  for (const { mu, sd } of experts) { precision += 1 / sd ** 2; weighted += mu / sd ** 2; }
  return precision ? { mu: weighted / precision, sd: Math.sqrt(1 / precision) } : null;
}

// A piece of a legend: the dash of expert `k` with its mark on it.
function swatch(k) {
  const svg = drawing("svg", { viewBox: "0 0 34 14", class: "live-swatch", "aria-hidden": "true" });
  drawing("path", { d: "M1 7H33", stroke: expertColour(k), "stroke-width": 3, "stroke-dasharray": EXPERT_DASHES[k % EXPERT_DASHES.length] }, svg);
  drawing("path", { d: expertMark(k, 5), transform: "translate(17 7)", fill: expertColour(k), stroke: expertColour(k) }, svg);
  return svg;
}

// Curves over [-ends, ends]; `dragged(k, z)` when expert k is carried to z. `draw` takes the experts' {mu, sd}, null where one is off.
function bells(into, count, { ends, dragged }) {
  const W = 640, H = 260, LEFT = 10, BASE = 225;
  const svg = drawing("svg", { viewBox: `0 0 ${W} ${H}`, class: "live-curves", role: "img" }, into);
  const x = z => LEFT + ((z + ends) / (2 * ends)) * (W - 2 * LEFT);
  drawing("line", { x1: LEFT, x2: W - LEFT, y1: BASE, y2: BASE, stroke: "currentColor" }, svg);
  for (let z = -ends; z <= ends; z++) drawing("text", { x: x(z), y: BASE + 14, "text-anchor": "middle" }, svg).textContent = String(z).replace("-", "−");
  const label = drawing("text", { x: W / 2, y: H - 5, "text-anchor": "middle" }, svg);
  const prior = drawing("path", { fill: "none", stroke: "#888", "stroke-dasharray": "2 3", "stroke-width": 2 }, svg);
  const joint = drawing("path", { fill: "currentColor", "fill-opacity": 0.2, stroke: "currentColor", "stroke-width": 2.5 }, svg);
  const several = make => Array.from({ length: count }, (_, k) => make(k));
  const curves = several(k => drawing("path", {
    fill: "none", stroke: expertColour(k), "stroke-dasharray": EXPERT_DASHES[k % EXPERT_DASHES.length], "stroke-width": 3,
  }, svg));
  const marks = several(k => drawing("path", { d: expertMark(k, 6), fill: expertColour(k), stroke: expertColour(k) }, svg));
  // What the pointer takes hold of: a wide, unseen line on top of each curve, without its gaps.
  const grips = several(k => {
    const grip = drawing("path", { fill: "none", stroke: "transparent", "stroke-width": 18, "pointer-events": "stroke", class: "live-grip" }, svg);
    grip.addEventListener("pointerdown", event => grip.setPointerCapture(event.pointerId));
    grip.addEventListener("pointermove", event => {
      if (!grip.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect();
      const z = ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - 2 * LEFT)) * 2 * ends - ends;
      dragged(k, Math.round(z * 10) / 10);
    });
    return grip;
  });
  // `scale`: height of a density of 1. What is taller than the picture is cut off at its edge.
  const path = ({ mu, sd }, scale) => {
    const points = [], step = ends / 200;
    for (let k = -200; k <= 200; k++) {
      const density = Math.exp(-0.5 * ((k * step - mu) / sd) ** 2) / (sd * Math.sqrt(2 * Math.PI));
      points.push(`${x(k * step).toFixed(1)} ${Math.max(-5, BASE - scale * density).toFixed(1)}`);
    }
    return `M${points.join("L")}`;
  };
  return {
    svg,
    fix() { grips.forEach(grip => { grip.style.display = "none"; }); },
    draw(experts, { speaks, product, scale, axis, told }) {
      prior.setAttribute("d", speaks ? path({ mu: 0, sd: 1 }, scale) : "");
      joint.setAttribute("d", product ? `${path(product, scale)}Z` : "");
      experts.forEach((expert, k) => {
        const d = expert ? path(expert, scale) : "";
        curves[k].setAttribute("d", d);
        grips[k].setAttribute("d", d);
        // The mark stands on the top of its curve, or at the edge that the top is beyond.
        const at = expert && Math.max(-ends, Math.min(ends, expert.mu));
        const top = expert && scale * Math.exp(-0.5 * ((at - expert.mu) / expert.sd) ** 2) / (expert.sd * Math.sqrt(2 * Math.PI));
        marks[k].setAttribute("transform", expert ? `translate(${x(at).toFixed(1)} ${Math.max(8, BASE - top).toFixed(1)})` : "");
        marks[k].style.display = expert ? "" : "none";
      });
      label.textContent = `${axis} (shaded: product${speaks ? "; dotted: prior" : ""})`;
      svg.setAttribute("aria-label", told);
    },
  };
}

views.experts = ui => {
  const { spec } = ui, names = spec.experts.map(e => e.name), id = (k, what) => `${names[k]}_${what}`;
  const clamp = z => Math.max(-3, Math.min(3, z));
  const place = ui.images.appendChild(element("div", { class: "live-drawing" }));
  const plot = bells(place, names.length, {
    ends: 4,
    dragged: (k, z) => { const mean = ui.controls.get(id(k, "mean")); mean.set(clamp(z)); mean.changed(); },
  });
  spec.experts.forEach(({ name, mu, sd }, k) => {
    const own = ui.fields.appendChild(element("div", { class: "live-expert", role: "group", "aria-label": `expert ${name}` }));
    const on = ui.check(name, name, true, { into: own });
    on.input.after(swatch(k));
    const mean = ui.slider(id(k, "mean"), "mean", { min: -3, max: 3, step: 0.1, start: mu, digits: 1, into: own });
    const width = ui.slider(id(k, "sd"), "sd", { min: 0.2, max: 2, step: 0.05, start: sd, digits: 2, into: own });
    mean.input.setAttribute("aria-label", `mean of ${name}`);
    width.input.setAttribute("aria-label", `standard deviation of ${name}`);
  });
  ui.check("prior", "the prior is an expert", spec.prior);
  return {
    note: "Drag a curve, or use its sliders.",
    draw(state) {
      const experts = names.map((name, k) => (state[name] ? { mu: state[id(k, "mean")], sd: state[id(k, "sd")] } : null));
      const product = multiplied(experts.filter(Boolean), state.prior);
      const told = product ? `Product: mean ${product.mu.toFixed(2)}, sd ${product.sd.toFixed(2)}.` : "Nobody knows anything: no product.";
      plot.draw(experts, {
        speaks: state.prior, product, scale: 130, axis: "latent dimension z", told: `Gaussian experts and their product. ${told}`,
      });
      ui.say(told);
      Object.assign(ui.root.dataset, { mu: product?.mu ?? "", sd: product?.sd ?? "" });
    },
    python(state) {
      const pairs = names.map((name, k) => [name, state[name], state[id(k, "mean")], state[id(k, "sd")]]).filter(([, on]) => on);
      const told = pairs.map(([name, , mu, sd]) => `${python(name)}: (${mu}, ${sd})`).join(", ");
      return pairs.length ? `widgets.Experts({${told}}, prior=${python(state.prior)})` : "None  # nobody speaks";
    },
  };
};

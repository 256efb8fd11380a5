// One person through some modalities: what the experts say of one latent dimension, and what deviates of all regions.

// The exact z of a deviation: by its rank among so many healthy people, from a stored map that is odd in t.
function ranked(d, { mean, sd, rank, step }) {
  const t = (d - mean) / sd, size = Math.abs(t) / step, k = Math.min(Math.floor(size), rank.length - 2);
  return Math.sign(t) * (rank[k] + (size - k) * (rank[k + 1] - rank[k]));
}

// A dot a region, modality by modality. `draw(z, seen)`; `pick` is called with the region under the pointer.
function deviationStrip(into, { modalities, regions, beyond, pick }) {
  const W = 640, H = 300, LEFT = 58, MIDDLE = 140, HIGH = 125, GAP = 12;
  const svg = drawing("svg", { viewBox: `0 0 ${W} ${H}`, class: "live-strip", role: "img" }, into);
  const lines = [0, beyond, -beyond].map(value => ({
    value,
    line: drawing("line", { x1: LEFT - 6, x2: W - 10, stroke: "currentColor", ...(value ? { "stroke-dasharray": "4 4", "stroke-opacity": 0.6 } : {}) }, svg),
    text: drawing("text", { x: LEFT - 9, "text-anchor": "end" }, svg),
  }));
  lines.forEach(({ value, text }) => { text.textContent = String(value).replace("-", "−"); });
  drawing("text", { x: 4, y: 14 }, svg).textContent = "deviation z";
  const ring = drawing("circle", { r: 8, fill: "none", stroke: "currentColor", "stroke-width": 2 }, svg);
  // Bands as wide as the root of their size, so that few regions are not squeezed by many.
  const total = modalities.reduce((sum, { size }) => sum + Math.sqrt(size), 0), dots = [];
  let left = LEFT;
  const bands = modalities.map(({ name, size }, m) => {
    const width = ((W - 10 - LEFT) * Math.sqrt(size)) / total, step = (width - GAP) / size;
    for (let k = 0; k < size; k++) {
      dots.push({ m, x: left + (k + 0.5) * step, y: null, dot: drawing("path", { d: expertMark(m, 3.5), stroke: expertColour(m), "stroke-width": 1.2 }, svg) });
    }
    const text = drawing("text", { x: left + (width - GAP) / 2, y: H - 5, "text-anchor": "middle" }, svg);
    left += width;
    return { name, text };
  });
  const nearest = event => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * W, y = ((event.clientY - box.top) / box.height) * H;
    let found = null, least = 30 ** 2;
    dots.forEach((d, k) => {
      const far = d.y === null ? Infinity : (d.x - x) ** 2 + (d.y - y) ** 2;
      if (far < least) [found, least] = [k, far];
    });
    if (found !== null) pick(found);
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  const mark = k => {
    ring.style.display = dots[k].y === null ? "none" : "";
    if (dots[k].y !== null) { ring.setAttribute("cx", dots[k].x); ring.setAttribute("cy", dots[k].y); }
  };
  return {
    mark,
    draw(z, seen, { limit, told }) {
      const y = value => MIDDLE - (HIGH * value) / limit;
      lines.forEach(({ value, line, text }) => {
        line.setAttribute("y1", y(value));
        line.setAttribute("y2", y(value));
        text.setAttribute("y", y(value) + 4);
      });
      dots.forEach((d, k) => {
        d.y = Number.isFinite(z[k]) ? y(z[k]) : null;
        d.dot.style.display = d.y === null ? "none" : "";
        if (d.y === null) return;
        d.dot.setAttribute("transform", `translate(${d.x.toFixed(1)} ${d.y.toFixed(1)})`);
        d.dot.setAttribute("fill", seen[d.m] ? expertColour(d.m) : "none");
        d.dot.dataset.region = regions[k];
      });
      bands.forEach(({ name, text }, m) => { text.textContent = seen[m] ? name : `${name} (hidden)`; });
      svg.setAttribute("aria-label", told);
    },
  };
}

views.people = ui => {
  const { spec, tables } = ui, { modalities, regions } = spec, names = modalities.map(m => m.name), { healthy, beyond } = spec;
  const slab = (name, k) => {
    const { shape, data } = tables[name], size = shape.slice(1).reduce((a, b) => a * b, 1);
    return data.subarray(k * size, (k + 1) * size);
  };
  const latents = tables.mu.shape[2], features = regions.length;
  const signed = (value, digits = 2) => `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;
  // One scale for all people and sets of modalities.
  const furthest = Math.ceil(tables.z.data.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 4));
  let off = false; // nothing can be computed: no dragging
  let told = null; // what the experts say of the person as changed: {key, mu, logvar}

  const above = ui.images.appendChild(element("div", { class: "live-drawing" }));
  const plot = bells(above, names.length, {
    ends: spec.ends,
    dragged: (k, z) => { const mean = ui.controls.get(`${names[k]}_mean`); mean.set(Math.max(-spec.ends, Math.min(spec.ends, z))); mean.changed(); },
  });
  const below = ui.images.appendChild(element("div", { class: "live-drawing" }));
  const strip = deviationStrip(below, { modalities, regions, beyond, pick: k => read(k, true) });
  // The same with a keyboard, and with a finger too wide for a dot.
  const region = element("input", { type: "range", min: 0, max: features - 1, step: 1, "aria-label": "region to read" });
  const reading = element("output", { class: "live-reading" });
  below.append(element("label", { class: "live-reader" }, element("span", { text: "read" }), region, reading));
  let z = [], chosen = false;
  const read = (k, asked) => {
    if (asked) chosen = true;
    region.value = k;
    strip.mark(k);
    reading.textContent = `${regions[k]}: ${Number.isFinite(z[k]) ? `z ${signed(z[k])}` : "not measured"}`;
    region.setAttribute("aria-valuetext", reading.textContent);
  };
  region.addEventListener("input", () => read(+region.value, true));

  ui.pick("person", "person", spec.people.map((name, k) => [k, name]), spec.people.length - 1);
  const name = ({ at, spread, used }) => `${at} (${used ? `varies by ${spread.toFixed(2)}` : "unused"})`;
  ui.pick("dimension", "latent dimension", spec.dimensions.map(d => [d.at, name(d)]), spec.dimension);
  const state = () => ui.state, has = (person, m) => !!slab("has", person)[m];
  // Where an expert stands when nobody has moved it.
  const rest = m => () => {
    const { person, dimension } = state();
    return (told?.mu ?? slab("mu", person))[m * latents + dimension];
  };
  names.forEach((of, m) => {
    const own = ui.fields.appendChild(element("div", { class: "live-expert", role: "group", "aria-label": `expert ${of}` }));
    ui.check(of, of, true, { into: own }).input.after(swatch(m));
    const mean = ui.slider(`${of}_mean`, "mean", { min: -spec.ends, max: spec.ends, step: 0.1, start: null, text: at => signed(+at, 1), rest: rest(m), into: own });
    mean.input.setAttribute("aria-label", `mean of ${of}`);
  });
  const shifted = ui.fields.appendChild(element("div", { class: "live-expert", role: "group", "aria-label": "change what was measured" }));
  ui.pick("changed", "move all volumes", names.map(of => [of, of]), names[names.length - 1], { into: shifted });
  const shift = ui.slider("shift", "by", { min: -3, max: 3, step: 0.1, start: 0, digits: 1, unit: "SD", into: shifted });
  shift.input.setAttribute("aria-label", "move volumes by, SD");

  const regionsOf = names.flatMap((of, m) => Array(modalities[m].size).fill(m));
  const bits = seen => seen.reduce((sum, on, m) => sum + (on ? 2 ** m : 0), 0);
  // Regions as changed, and the same with 0 for what was not measured.
  function measured({ person, changed, shift }) {
    const x = slab("x", person), own = slab("has", person), at = names.indexOf(changed);
    const moved = x.map((value, k) => value + (regionsOf[k] === at && own[at] ? shift : 0));
    return { moved, own };
  }
  async function asked(now) {
    const key = JSON.stringify([now.person, now.changed, now.shift]);
    if (told?.key === key) return told;
    const found = await ui.engine.run("experts", { x: measured(now).moved, c: slab("c", now.person).slice() });
    return { key, mu: found.mu.data, logvar: found.logvar.data };
  }

  function show(now, { mu, logvar }, seen, deviations) {
    const at = (m, d) => m * latents + d, sd = k => Math.exp(0.5 * Math.max(-20, Math.min(20, logvar[k])));
    const experts = names.map((_, m) => {
      const k = at(m, now.dimension), moved = now[`${names[m]}_mean`];
      return { mu: moved ?? mu[k], sd: sd(k) };
    });
    const product = multiplied(experts.filter((_, m) => seen[m]), spec.prior);
    // As high as the product of everyone the person has: switching somebody off does not change the scale.
    const all = multiplied(experts.filter((_, m) => has(now.person, m)), spec.prior);
    const sentence = `Dimension ${now.dimension}: the product has mean ${signed(product.mu)}, sd ${product.sd.toFixed(2)}.`;
    plot.draw(experts.map((expert, m) => (seen[m] ? expert : null)), {
      speaks: spec.prior, product, scale: 190 * all.sd * Math.sqrt(2 * Math.PI), axis: `latent dimension ${now.dimension}`,
      told: `Bell curves of ${names.filter((_, m) => seen[m]).join(", ") || "no expert"}${spec.prior ? ", the prior" : ""} and their product. ${sentence}`,
    });
    z = deviations;
    const known = [...z.keys()].filter(k => Number.isFinite(z[k])), size = k => Math.abs(z[k]);
    const mean = known.reduce((sum, k) => sum + size(k), 0) / known.length, out = known.filter(k => size(k) > beyond).length;
    const largest = [...known].sort((a, b) => size(b) - size(a)).slice(0, 5);
    const summary = `Mean |z| ${mean.toFixed(2)} (healthy people: ${healthy[0].toFixed(2)}). ${out} of ${known.length} regions beyond ±${beyond} (healthy: ${
      (healthy[1] * known.length).toFixed(1)} on average).`;
    const list = largest.map(k => `${regions[k]} ${signed(z[k])}`).join(", ");
    strip.draw(z, seen, { limit: Math.max(furthest, Math.ceil(size(largest[0]))), told: `Deviations of ${known.length} regions. ${summary} Largest: ${list}.` });
    if (!chosen || !Number.isFinite(z[+region.value])) read(largest[0], false);
    else read(+region.value, false);
    ui.say(`${sentence} ${summary} Largest: ${list}.`);
    Object.assign(ui.root.dataset, {
      mu: product.mu, sd: product.sd, deviation: mean, beyond: out, seen: names.filter((_, m) => seen[m]).join(" "),
      largest: JSON.stringify(largest.map(k => [regions[k], z[k]])),
    });
  }
  // Experts that nobody moved stand where the encoder puts them, which may just have changed.
  const settle = now => names.forEach((of, m) => {
    const mean = ui.controls.get(`${of}_mean`);
    if (now[`${of}_mean`] === null) mean.set(null);
    if (!off) mean.input.disabled = !has(now.person, m);
    ui.controls.get(of).input.disabled = !has(now.person, m);
  });
  const seenBy = now => names.map((of, m) => now[of] && has(now.person, m));

  return {
    live: ["changed", "shift", ...names.map(of => `${of}_mean`)],
    before(id) {
      // Another person or dimension: nobody has moved its experts yet.
      if (id === "person" || id === "dimension") names.forEach(of => ui.controls.get(`${of}_mean`).set(null));
      if (id === "person" || id === null) [told, chosen] = [null, false];
      const now = state();
      // Without a prior expert somebody has to speak.
      if (!spec.prior && !seenBy(now).some(Boolean)) {
        const back = names.includes(id) && has(now.person, names.indexOf(id)) ? id : names.find((_, m) => has(now.person, m));
        ui.controls.get(back).set(true);
      }
    },
    async draw(now) {
      told = await asked(now);
      const seen = seenBy(now), row = bits(seen), code = new Float32Array(latents);
      for (let d = 0; d < latents; d++) {
        const experts = names.map((of, m) => ({
          mu: (d === now.dimension ? now[`${of}_mean`] : null) ?? told.mu[m * latents + d],
          sd: Math.exp(0.5 * Math.max(-20, Math.min(20, told.logvar[m * latents + d]))),
        }));
        code[d] = multiplied(experts.filter((_, m) => seen[m]), spec.prior).mu;
      }
      const { expected } = await ui.engine.run("decode", { z: code, c: slab("c", now.person).slice() });
      const { moved, own } = measured(now), [mean, sd, which] = ["mean", "sd", "which"].map(name => slab(name, row));
      show(now, told, seen, expected.data.map((value, k) => (own[regionsOf[k]]
        ? ranked(moved[k] - value, { mean: mean[k], sd: sd[k], rank: slab("ranks", which[k]), step: spec.rank_step }) : NaN)));
      settle(now);
    },
    stored(now) {
      if (!off) plot.fix();
      off = true;
      const seen = seenBy(now), people = spec.people.length;
      show(now, { mu: slab("mu", now.person), logvar: slab("logvar", now.person) }, seen,
        tables.z.data.subarray((bits(seen) * people + now.person) * features, (bits(seen) * people + now.person + 1) * features));
      settle(now);
    },
    python: now => `${spec.python}.deviations(${Object.entries(now).map(([key, value]) => `${key}=${python(value)}`).join(", ")})`,
  };
};

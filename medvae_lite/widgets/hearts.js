// Hearts from latent codes: walks in one model or several, and the way between two subjects.

// Volumes of what the decoder drew: pixels of each region, through the ruler.
function ruled(labels, dims, spec) {
  const area = spec.pixel_mm ** 2, plane = dims[2] * dims[3];
  return spec.regions.map(([channel, label], k) => {
    let pixels = 0;
    for (let p = channel * plane; p < (channel + 1) * plane; p++) if (labels[p] === label) pixels++;
    return Math.exp(spec.ruler.log_scale[k] + spec.ruler.power[k] * Math.log(Math.max(pixels * area, spec.ruler.min_area)));
  });
}

// Pixels of a region that touch another.
function outline(labels, frame, size, wanted) {
  const found = [], at = (r, c) => labels[frame * size * size + r * size + c];
  for (let r = 1; r < size - 1; r++) for (let c = 1; c < size - 1; c++) {
    if (at(r, c) === wanted && [at(r - 1, c), at(r + 1, c), at(r, c - 1), at(r, c + 1)].some(l => l !== wanted)) found.push(r * size + c);
  }
  return found;
}

function heartPanes(ui) {
  const { models, frames, size } = ui.spec;
  return models.map(model => frames.map(frame => ui.pane(models.length > 1 ? `${model.name}, ${frame}` : frame, size, size)));
}

// Decodes one code a model and paints its frames; then measures, and writes what was found beside the volumes.
function hearts(ui, codes) {
  const { spec } = ui, panes = heartPanes(ui), plane = spec.size ** 2;
  let images = [], labels = [];
  const paint = state => images.forEach((image, m) => panes[m].forEach((pane, f) => {
    const marks = state.outlines && labels[m] ? outline(labels[m].data, f, spec.size, spec.outlined) : undefined;
    pane.paint(image.data.subarray(f * plane, (f + 1) * plane), { marks });
  }));
  return {
    async draw(state) {
      const next = [];
      for (const [m, z] of codes(state).entries()) next.push((await ui.engine.run(spec.models[m].graph, { z })).image);
      [images, labels] = [next, []];
      paint(state);
    },
    async measure(state) {
      const found = [];
      for (const image of images) {
        const { label } = await ui.engine.run("labels", { image: image.data });
        labels.push(label);
        found.push(ruled(label.data, label.dims, spec));
      }
      if (state.outlines) paint(state);
      ui.root.dataset.found = JSON.stringify(found);
      this.told(state, found);
    },
    python: state => codes(state).map((z, m) => `${spec.models[m].python}.decode(torch.tensor([${python([...z].map(v => +v.toFixed(4)))}]))`).join("; "),
  };
}

// x of A x = b, for a covariance A: elimination needs no pivoting.
function solve(A, b) {
  A = A.map((line, i) => [...line, b[i]]);
  for (let i = 0; i < A.length; i++) for (let j = 0; j < A.length; j++) if (j !== i) {
    const factor = A[j][i] / A[i][i];
    for (let k = i; k <= A.length; k++) A[j][k] -= factor * A[i][k];
  }
  return A.map((line, i) => line[A.length] / line[i]);
}

const row = (table, k) => table.data.subarray(k * table.shape[1], (k + 1) * table.shape[1]);

views.walk = ui => {
  const { spec, tables } = ui, ends = spec.attributes.map((_, k) => row(tables.volumes, k));
  // Where the subject's own code stands on the first model's dial.
  const own = k => {
    const at = row(tables.codes0, ui.controls.get("subject").get())[k], codes = row(tables.dial0, k);
    const sign = codes[codes.length - 1] < codes[0] ? -1 : 1;
    return interpolate(sign * at, codes.map(c => sign * c), ends[k]);
  };
  ui.pick("subject", "test subject", spec.subjects.map((name, k) => [k, name]));
  ui.fields.append(element("div", { class: "live-head" }, element("span", { text: "volume asked" }), element("span", { text: `volume found${spec.models.length > 1 ? ` (${spec.models.map(({ name }) => name).join(" | ")})` : ""}, mL` })));
  spec.attributes.forEach(({ name, min, max }, k) => ui.slider(name, name, { min, max, step: 1, start: null, unit: "mL", rest: () => own(k) }));
  if (tables.covariance0) ui.check("along", "let the other dimensions go along, as in the cohort");
  ui.check("outlines", `outline the ${spec.outlined_name}`);
  const drawn = hearts(ui, state => spec.models.map((_, m) => {
    const z = row(tables[`codes${m}`], state.subject).slice(), asked = [...spec.attributes.keys()].filter(k => state[spec.attributes[k].name] !== null);
    const wanted = asked.map(k => interpolate(state[spec.attributes[k].name], ends[k], row(tables[`dial${m}`], k)));
    if (state.along) {
      // The Gaussian's conditional mean, given the dimensions asked of.
      const sigma = asked.map(k => row(tables[`covariance${m}`], k));
      const weights = solve(sigma.map(of => asked.map(k => of[k])), wanted.map((w, i) => w - z[asked[i]]));
      for (let d = 0; d < z.length; d++) sigma.forEach((of, i) => { z[d] += weights[i] * of[d]; });
    }
    asked.forEach((k, i) => { z[k] = wanted[i]; });
    return z;
  }));
  drawn.before = id => { if (id === "subject") spec.attributes.forEach(({ name }) => ui.controls.get(name).set(null)); };
  drawn.told = (state, found) => {
    spec.attributes.forEach(({ name }, k) => ui.controls.get(name).aside(found.map(of => of[k].toFixed(0)).join(" | ")));
    const asked = spec.attributes.filter(({ name }) => state[name] !== null).map(({ name }) => `${name} ${state[name]} mL`);
    ui.say(`${asked.length ? `Asked: ${asked.join(", ")}` : "The subject as encoded"}. Found${found.length > 1 ? ` (${spec.models.map(m => m.name).join(" | ")})` : ""}: ${
      spec.attributes.map(({ name }, k) => `${name} ${found.map(of => of[k].toFixed(0)).join(" | ")}`).join(", ")} mL.`);
  };
  return drawn;
};

views.interpolation = ui => {
  const { spec, tables } = ui, people = spec.subjects.map((name, k) => [k, name]);
  ui.pick("a", "from", people, 0);
  ui.pick("b", "to", people, 1);
  ui.slider("t", "how far", { min: 0, max: 1, step: 0.01, start: 0.5, digits: 2 });
  ui.check("outlines", `outline the ${spec.outlined_name}`);
  const drawn = hearts(ui, ({ a, b, t }) => spec.models.map((_, m) => {
    const [from, to] = [row(tables[`codes${m}`], a), row(tables[`codes${m}`], b)];
    return from.map((z, d) => (1 - t) * z + t * to[d]);
  }));
  drawn.told = ({ a, b }, found) => {
    const truth = k => [a, b].map(s => row(tables.truth, s)[k].toFixed(0));
    ui.say(`Found between the true volumes of both: ${spec.attributes.map(({ name }, k) => {
      const [from, to] = truth(k);
      return `${name} ${from} → ${found.map(of => of[k].toFixed(0)).join(" | ")} → ${to}`;
    }).join(", ")} mL.`);
  };
  return drawn;
};

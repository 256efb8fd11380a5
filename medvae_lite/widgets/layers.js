// Two brains mixed by layer: whose, how strongly, and what of it is kept.

// Which component of the top prior a seed draws from: the uniform number after the `count` that make its noise.
// The same as int(components * medvae_lite.export.uniform(seed, used + 1)[used]), `used` being `count` made even.
function drawnComponent(seed, count, components) {
  return Math.floor(components * uniform(seed, 2 * Math.ceil(count / 2)));
}

views.layers = ui => {
  const { spec, tables } = ui, [height, width] = spec.size, plane = height * width, layers = spec.dims.map((_, n) => n);
  const everything = spec.dims.reduce((sum, dim) => sum + dim, 0), people = spec.people.map((name, k) => [k, name]);
  const panes = ["A", "B", "result"].map(title => ui.pane(title, width, height));
  ui.images.classList.add("live-three"); // beside each other on a phone too

  ui.pick("a", "person A", people, 0);
  ui.pick("b", "person B", people, people.length - 1);
  ui.pick("model", "model", spec.models.map(({ name }) => [name, name]), spec.models[0].name);
  ui.pick("kept", "kept of a layer", spec.kept, "residual");
  const table = element("div", { class: "live-layers" });
  ui.fields.append(table);
  layers.forEach(n => {
    const line = element("div", { class: "live-layer" }), [rows, columns] = spec.grids[n];
    table.append(line);
    const whose = ui.pick(`layer${n}`, `z${n}`, spec.sources, n === spec.exchanged ? "B" : "A", { into: line });
    whose.input.setAttribute("aria-label", `whose layer z${n}, ${rows} by ${columns}`);
    whose.input.previousElementSibling.append(element("small", { text: ` ${rows} × ${columns}` }));
    const times = ui.slider(`scale${n}`, `factor of z${n}`, {
      min: spec.factors[0], max: spec.factors[1], step: 0.1, start: 1, digits: 1, into: line,
    });
    times.input.previousElementSibling.textContent = "×";
  });
  ui.check("marks", "mark what is found");
  ui.hidden("seed", 0);
  // It waits until something is drawn.
  const again = ui.button("Draw again", () => {
    ui.set({ seed: (ui.controls.get("seed").get() + 1) % 2 ** 31 });
    ui.moved("seed");
  });
  again.disabled = true;

  // A and B were searched before they were rounded to eight bits: a bit a pixel, row by row.
  const bytes = tables.found.shape[1], stored = who => {
    const grey = tables.people.data.subarray(who * plane, (who + 1) * plane), marks = [];
    for (let k = 0; k < plane; k++) if ((tables.found.data[who * bytes + (k >> 3)] >> (7 - (k & 7))) & 1) marks.push(k);
    return { grey, marks };
  };
  const brighter = image => {
    const marks = [];
    image.forEach((grey, k) => { if (grey >= spec.bright) marks.push(k); });
    return marks;
  };
  const used = new Set([spec.models[0].name]);
  let found = [];

  const inputs = (state, components) => {
    const who = new Float32Array(layers.length * people.length), component = new Float32Array(components);
    layers.forEach(n => { who[n * people.length + (state[`layer${n}`] === "B" ? state.b : state.a)] = 1; });
    component[drawnComponent(state.seed, everything, components)] = 1;
    return {
      who, component, noise: normal(state.seed, everything),
      drawn: Float32Array.from(layers, n => (state[`layer${n}`] === "drawn" ? 1 : 0)),
      factor: Float32Array.from(layers, n => state[`scale${n}`]),
      relative: Float32Array.of(state.kept === "residual" ? 1 : 0),
    };
  };

  // "z0, z1 × 2 from A; z2 from B".
  const recipe = state => spec.sources.map(([source]) => {
    const own = layers.filter(n => state[`layer${n}`] === source);
    const named = own.map(n => `z${n}${state[`scale${n}`] === 1 ? "" : ` × ${state[`scale${n}`]}`}`).join(", ");
    return own.length ? `${named} ${source === "drawn" ? "drawn anew" : `from ${source}`}` : "";
  }).filter(Boolean).join("; ");

  return {
    async draw(state) {
      const { name, graph, components } = spec.models.find(model => model.name === state.model);
      if (!used.has(name)) ui.say(`Fetching ${name}.`);
      const { image } = await ui.engine.run(graph, inputs(state, components));
      used.add(name);
      const [a, b] = [stored(state.a), stored(state.b)], seen = brighter(image.data);
      found = [a.marks, b.marks, seen].map(marks => marks.length * spec.pixel_mm ** 2);
      panes[0].paint(a.grey, { high: 255, marks: state.marks ? a.marks : undefined });
      panes[1].paint(b.grey, { high: 255, marks: state.marks ? b.marks : undefined });
      panes[2].paint(image.data, { low: spec.low, high: spec.high, marks: state.marks ? seen : undefined });
      panes.forEach((pane, k) => {
        pane.caption.textContent = `${pane.title}: ${found[k].toFixed(0)} mm² found`;
        pane.canvas.setAttribute("aria-label", `${pane.title}, lesions found on ${found[k].toFixed(0)} mm²`);
      });
      ui.root.dataset.found = JSON.stringify(found);
      again.disabled = !layers.some(n => state[`layer${n}`] === "drawn");
    },
    measure(state) {
      const [a, b, result] = found.map(area => `${area.toFixed(0)} mm²`);
      ui.say(`${state.model}: ${recipe(state)}. Lesion area found: ${a} in A, ${b} in B, ${result} in the result.`);
    },
    python: state => call(spec.python, state),
  };
};

// What every view is built from: panes that show images, controls that hold one value each, and the loop between them.
// A view is `views.name = ui => ({ draw(state), python(state) })`; it makes its panes and controls when called. It may also have
// `measure(state)`, run once the reader rests; `before(id)`, which corrects what a change implies; `note`, said below the figure.
// Where nothing can be decoded, `stored(state)` draws instead of `draw`, and the controls whose ids are in `live` stand still;
// a view without it shows the stored pictures of its axes.

const views = {};

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawing(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return parent ? parent.appendChild(made) : made;
}

// Python literals, so that a copied line can be pasted.
const python = value =>
  value === null ? "None" : value === true ? "True" : value === false ? "False"
    : Array.isArray(value) ? `[${value.map(python).join(", ")}]` : typeof value === "string" ? JSON.stringify(value) : String(value);
const call = (name, state) => `${name}.image(${Object.entries(state).map(([key, value]) => `${key}=${python(value)}`).join(", ")})`;

// Linear interpolation in ascending `xs`, flat beyond its ends, as numpy's.
function interpolate(x, xs, ys) {
  if (x <= xs[0]) return ys[0];
  for (let k = 1; k < xs.length; k++) {
    if (x <= xs[k]) return xs[k] === xs[k - 1] ? ys[k] : ys[k - 1] + ((x - xs[k - 1]) / (xs[k] - xs[k - 1])) * (ys[k] - ys[k - 1]);
  }
  return ys[xs.length - 1];
}

class Interface {
  constructor(root, spec, tables, engine, model) {
    Object.assign(this, { root, spec, tables, engine, model, controls: new Map(), panes: [], busy: false, dirty: false, drawn: 0 });
    this.images = element("div", { class: "live-panes" });
    this.fields = element("div", { class: "live-controls" });
    this.note = element("p", { class: "live-note", role: "status" });
    this.found = element("p", { class: "live-found", "aria-live": "polite" });
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", spec.title);
  }

  // A grey image of `width` x `height` values in [0, 1]; the canvas's pixels are the data's.
  pane(title, width, height) {
    const canvas = element("canvas", { width, height, class: "pixels", role: "img", "aria-label": title });
    const caption = element("figcaption", { text: title });
    this.images.append(element("figure", {}, canvas, caption));
    const pane = {
      canvas, caption, title, width, height,
      paint: (values, { low = 0, high = 1, marks } = {}) => {
        const pixels = new ImageData(width, height), scale = 255 / (high - low);
        for (let k = 0; k < width * height; k++) {
          const grey = (values[k] - low) * scale; // a clamped array rounds by itself
          pixels.data.set([grey, grey, grey, 255], 4 * k);
        }
        if (marks) marks.forEach(k => pixels.data.set([255, 176, 0, 255], 4 * k));
        canvas.getContext("2d").putImageData(pixels, 0, 0);
      },
      // A piece of a stored sheet.
      copy: (sheet, x, y) => canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height),
    };
    this.panes.push(pane);
    return pane;
  }

  _add(id, control) {
    this.controls.set(id, control);
    control.changed = () => this.moved(id);
    return control;
  }

  // `start` may be null: nothing asked yet, and the handle stands at `rest()`. With `stops`, ascending, it has those values and no
  // others; `text` says what each is called.
  slider(id, label, { min, max, step, start, unit = "", digits = 0, rest = () => start, stops, text, into = this.fields }) {
    const ends = stops ? { min: 0, max: stops.length - 1, step: 1 } : { min, max, step };
    const input = element("input", { type: "range", ...ends, "aria-label": `${label}${unit && `, ${unit}`}` });
    const output = element("output"), aside = element("span", { class: "live-aside" });
    into.append(element("label", { class: "live-slider" }, element("span", { class: "live-name", text: label }), input, output, aside));
    const told = text ?? (at => `${(+at).toFixed(digits)}${unit && ` ${unit}`}`);
    let value = start;
    const control = this._add(id, {
      start, input,
      get: () => value,
      set: next => {
        value = next;
        const at = next ?? rest();
        input.value = stops ? stops.indexOf(at) : at;
        output.textContent = `${next === null ? "≈ " : ""}${told(at)}`;
        input.setAttribute("aria-valuetext", output.textContent);
      },
      aside: text => { aside.textContent = text; },
    });
    input.addEventListener("input", () => { control.set(stops ? stops[+input.value] : +input.value); control.changed(); });
    return control;
  }

  pick(id, label, options, start = 0, { into = this.fields } = {}) {
    const input = element("select", { "aria-label": label }, ...options.map(([value, text]) => element("option", { value, text })));
    const name = element("span", { class: "live-name", text: label });
    into.append(element("label", { class: "live-pick" }, name, input));
    const number = typeof options[0][0] === "number";
    const control = this._add(id, { start, input, get: () => (number ? +input.value : input.value), set: value => { input.value = value; } });
    input.addEventListener("input", () => control.changed());
    return control;
  }

  check(id, label, start = false, { into = this.fields } = {}) {
    const input = element("input", { type: "checkbox" });
    into.append(element("label", { class: "live-check" }, input, element("span", { text: label })));
    const control = this._add(id, { start, input, get: () => input.checked, set: value => { input.checked = value; } });
    input.addEventListener("input", () => control.changed());
    return control;
  }

  // A value without an input of its own.
  hidden(id, start) {
    let value = start;
    return this._add(id, { start, get: () => value, set: next => { value = next; } });
  }

  button(text, press, { into = this.bar } = {}) {
    const made = element("button", { type: "button", text });
    made.addEventListener("click", press);
    into.append(made);
    return made;
  }

  get state() {
    return Object.fromEntries([...this.controls].map(([id, control]) => [id, control.get()]));
  }

  set(values) {
    for (const [id, value] of Object.entries(values)) this.controls.get(id)?.set(value);
  }

  start() {
    return Object.fromEntries([...this.controls].map(([id, control]) => [id, control.start]));
  }

  say(text) {
    this.found.textContent = text;
  }

  // A view may correct what a change implies (another subject starts at its own volumes).
  moved(id) {
    this.view.before?.(id);
    if (this.engine.show) this.engine.show(id);
    else this.update();
  }

  // The newest state wins: what changed while one was drawn is drawn next, what lay between is not.
  async update() {
    this.dirty = true;
    this.wake?.();
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.dirty) {
        this.dirty = false;
        const stored = this.engine.mode === "stored";
        await (stored ? this.view.stored(this.state) : this.view.draw(this.state));
        this.root.dataset.drawn = ++this.drawn;
        if (!stored && this.view.measure && (await this.restful())) {
          await this.view.measure(this.state);
          this.measured = performance.now();
        }
        // A page with one thread: let it take the reader's next move.
        await new Promise(resolve => setTimeout(resolve));
      }
      this.root.dataset.settled = this.drawn;
      this.model?.set("state", this.state);
      this.model?.save_changes();
    } catch (problem) {
      this.fail(problem);
    }
    this.busy = false;
  }

  // While a slider is dragged pictures go first: measuring waits for a pause, but not for ever.
  async restful() {
    if (performance.now() - (this.measured ?? 0) > 400) return !this.dirty;
    if (!this.dirty) {
      await new Promise(resolve => {
        this.wake = resolve;
        setTimeout(resolve, 50);
      });
    }
    return !this.dirty;
  }

  fail(problem) {
    console.warn(problem); // for whoever wants to know more
    this.root.dataset.mode = "failed";
    this.note.textContent = `This picture stands still: ${problem.message}.`;
  }

  mount() {
    this.bar = element("div", { class: "live-bar" });
    this.view = views[this.spec.view](this);
    this.button("Reset", () => { this.set(this.start()); this.moved(null); });
    if (this.view.python) this.button("Copy as Python", () => this.copy());
    this.set(this.start());
    this.images.style.setProperty("--panes", this.panes.length);
    this.root.replaceChildren(this.images, this.fields, this.bar, this.found, this.note);
    this.root.dataset.mode = this.engine.mode;
    this.note.textContent = this.view.note ?? this.engine.note;
  }

  async copy() {
    const line = this.view.python(this.state);
    this.root.dataset.python = line;
    try {
      await navigator.clipboard.writeText(line);
      this.note.textContent = "Copied: a line of Python that makes this picture.";
    } catch {
      // Not every page may write to the clipboard.
      this.note.replaceChildren("Copy this line: ", element("code", { text: line }));
    }
  }
}

const SERVE = "For free movement serve the book with `make serve`.";

// The view draws what it can without decoding.
function viewEngine(ui, reason) {
  for (const id of ui.view.live ?? []) if (ui.controls.get(id)?.input) ui.controls.get(id).input.disabled = true;
  return { mode: "stored", note: `${reason}: what has to be decoded stands still. ${SERVE}`, ready: () => Promise.resolve() };
}

// One axis at a time from a stored sheet: a row an axis, a column a value; panes stand side by side in a tile.
function storedEngine(ui, reason) {
  const { file, axes } = ui.spec.stored, rows = Object.entries(axes);
  const [width, height] = [ui.panes.reduce((sum, pane) => sum + pane.width, 0), ui.panes[0].height];
  const sheet = new Image();
  const show = id => {
    const row = rows.findIndex(([name]) => name === id), values = row < 0 ? null : rows[row][1];
    const wanted = values && ui.controls.get(id).get();
    let column = 0;
    if (values) values.forEach((value, k) => { if (value === wanted || Math.abs(value - wanted) < Math.abs(values[column] - wanted)) column = k; });
    ui.set(ui.start());
    if (values) ui.controls.get(id).set(values[column]);
    // Without an axis: the start, which every row holds somewhere; it is kept as a tile of its own, the last.
    let x = values ? column * width : 0;
    const y = (values ? row : rows.length) * height;
    ui.panes.forEach(pane => { pane.copy(sheet, x, y); x += pane.width; });
    ui.root.dataset.drawn = ui.root.dataset.settled = ++ui.drawn;
  };
  for (const [id, control] of ui.controls) if (control.input && !(id in axes)) control.input.disabled = true;
  return {
    mode: "stored",
    note: `${reason}: stored pictures, one slider at a time. ${SERVE}`,
    show,
    ready: () => new Promise((resolve, reject) => {
      sheet.onload = resolve;
      sheet.onerror = () => reject(new Error("its stored pictures are not here"));
      sheet.src = new URL(`live/${file}`, statics()).href;
    }),
  };
}

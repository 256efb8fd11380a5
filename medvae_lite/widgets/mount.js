// The two ways in: `mount(root)` for a rendered page, `render({ model, el })` for JupyterLab.

async function mount(root) {
  const spec = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const still = [...root.children].filter(child => child.tagName !== "SCRIPT"), tables = tablesOf(spec.tables);
  const ui = new Interface(root, spec, tables, pageEngine(spec.graphs));
  try {
    await ui.engine.ready();
    ui.mount();
    await ui.update();
  } catch (problem) {
    await walkStored(ui, still, problem);
  }
}

// Where nothing can be decoded: what the view can draw itself, else stored pictures if there are any, else the published one stays.
async function walkStored(ui, still, problem) {
  const opened = location.protocol === "file:";
  const reason = opened ? "Opened from disk" : `Nothing can be decoded here (${problem.message})`;
  try {
    ui.mount();
    if (!ui.view.stored && !ui.spec.stored) throw problem;
    ui.engine = ui.view.stored ? viewEngine(ui, reason) : storedEngine(ui, reason);
    await ui.engine.ready();
    ui.root.dataset.mode = "stored";
    ui.note.textContent = ui.engine.note;
    ui.moved(null);
  } catch {
    ui.root.dataset.mode = "still";
    ui.note.textContent = `${reason}: the published picture. For the live one serve the book with \`make serve\`.`;
    ui.root.replaceChildren(...still.filter(child => child.tagName === "IMG"), ui.note);
  }
}

function render({ model, el }) {
  const root = element("div", { class: "live" });
  el.append(root);
  const ui = new Interface(root, model.get("spec"), tablesOf(model.get("tables")), kernelEngine(model), model);
  ui.mount();
  ui.update();
}

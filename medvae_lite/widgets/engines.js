// Who answers a view: the kernel behind it, or onnxruntime-web in this page.
// An engine has `run(graph, inputs)`: a graph's name and Float32Arrays by name; a promise of {output: {data, dims}}.

// The kernel, over the widget's channel: names and shapes in the message, numbers in its buffers. What it answers reaches every view
// of a figure, so questions are numbered across views.
let questions = 0;
const PATIENCE = 30_000; // ms
function kernelEngine(model) {
  const waiting = new Map();
  model.on("msg:custom", (message, buffers) => {
    const wait = waiting.get(message.id);
    if (!wait) return;
    waiting.delete(message.id);
    if (message.error) return wait.reject(new Error(message.error));
    const outputs = {};
    message.outputs.forEach(([name, dims], k) => {
      const b = buffers[k];
      outputs[name] = { data: new Float32Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength)), dims };
    });
    wait.resolve(outputs);
  });
  return {
    mode: "kernel",
    note: "The Python kernel decodes.",
    ready: () => Promise.resolve(),
    run(graph, inputs) {
      const id = ++questions, names = Object.keys(inputs);
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        // A kernel that was ended or started again knows nothing of this figure, and says nothing.
        setTimeout(() => { if (waiting.delete(id)) reject(new Error("its kernel does not answer, run the cell again")); }, PATIENCE);
        model.send({ id, graph, inputs: names }, undefined, names.map(name => inputs[name].buffer));
      });
    },
  };
}

// Where the book's own files are: Sphinx says how far up, whatever path the book is served from.
const statics = () => new URL(`${document.documentElement.dataset.content_root ?? "./"}_static/`, location.href);

async function bytesOf(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} for ${url.pathname}`);
  return answer.arrayBuffer();
}

// A server may have unpacked it already: the first bytes tell.
async function unpacked(buffer) {
  const [a, b] = new Uint8Array(buffer, 0, 2);
  if (a !== 0x1f || b !== 0x8b) return buffer;
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// One runtime and one session a file for all widgets of a page.
let runtime;
const sessions = new Map();
function onnxruntime() {
  return (runtime ??= (async () => {
    const folder = new URL("vendor/onnxruntime/", statics());
    const [ort, wasm] = await Promise.all([
      import(new URL("ort.wasm.bundle.min.mjs", folder).href),
      bytesOf(new URL("ort-wasm-simd-threaded.wasm.gz", folder)).then(unpacked),
    ]);
    ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
    ort.env.wasm.wasmBinary = wasm;
    return ort;
  })());
}
function session(file) {
  if (!sessions.has(file)) {
    sessions.set(file, (async () => {
      const [ort, model] = await Promise.all([onnxruntime(), bytesOf(new URL(`live/${file}`, statics()))]);
      return { ort, model: await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] }) };
    })());
  }
  return sessions.get(file);
}

// `graphs`: name -> {file, inputs: {name: dims}}. Sessions are made at their first use; without graphs nothing can be missing.
function pageEngine(graphs) {
  const needed = Object.keys(graphs).length > 0;
  return {
    mode: "page",
    note: needed ? "Decoded in this page, on your machine." : "",
    async ready() {
      if (!needed) return;
      if (location.protocol === "file:") throw new Error("opened from disk");
      if (typeof WebAssembly === "undefined") throw new Error("this browser refuses WebAssembly");
      await session(Object.values(graphs)[0].file);
    },
    async run(graph, inputs) {
      const { file, inputs: shapes } = graphs[graph], { ort, model } = await session(file), feeds = {};
      for (const [name, data] of Object.entries(inputs)) feeds[name] = new ort.Tensor("float32", data, shapes[name]);
      return model.run(feeds);
    },
  };
}

// Little tables beside a view: a safetensors file as a data URI, or as a DataView from the kernel.
function tablesOf(source) {
  let buffer;
  if (typeof source === "string") buffer = Uint8Array.from(atob(source.slice(source.indexOf(",") + 1)), c => c.charCodeAt(0)).buffer;
  else buffer = source.buffer.slice(source.byteOffset, source.byteOffset + source.byteLength);
  if (!buffer.byteLength) return {};
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const kinds = { F32: Float32Array, U8: Uint8Array };
  const tables = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (name !== "__metadata__") tables[name] = { shape, data: new kinds[dtype](buffer.slice(8 + size + from, 8 + size + to)) };
  }
  return tables;
}

// A number between 0 and 1, the same as `medvae_lite.export.uniform(seed, count)[k]`.
function uniform(seed, k) {
  let h = Math.imul(k + 1, 0x9e3779b9) ^ Math.imul(seed + 1, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return (((h ^ (h >>> 16)) >>> 0) + 0.5) / 2 ** 32;
}

// Standard normal numbers, the same as `medvae_lite.export.normal(seed, count)`.
function normal(seed, count) {
  const drawn = new Float32Array(count);
  for (let k = 0; k < count; k += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(seed, k))), angle = 2 * Math.PI * uniform(seed, k + 1);
    drawn[k] = radius * Math.cos(angle);
    if (k + 1 < count) drawn[k + 1] = radius * Math.sin(angle);
  }
  return drawn;
}

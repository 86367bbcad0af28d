// The trace processor that Perfetto's web page runs, as a process: RPC bytes in, RPC bytes out.
// Its folder, with trace_processor.wasm and engine_bundle.node.js, is the one argument.
const fs = require("fs");
const path = require("path");

const folder = process.argv[2];
console.log = console.warn = () => {}; // standard output is for replies
globalThis.self = globalThis;
self.location = { href: "" };
self.WorkerGlobalScope = function () {};
self.XMLHttpRequest = class {
  open() {}
  send() {
    this.response = fs.readFileSync(path.join(folder, "trace_processor.wasm"));
  }
};
const engine = fs.readFileSync(path.join(folder, "engine_bundle.node.js"), "utf8");
(0, eval)(engine.replace("= hasMemory64Support()", "= false"));
const port = { postMessage: (data) => fs.writeSync(1, data) };
self.onmessage({ data: port });
// A turn of the loop later the engine is set up.
setImmediate(() => {
  process.stdin.on("data", (data) => port.onmessage({ data: new Uint8Array(data) }));
});

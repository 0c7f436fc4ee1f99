// Perfetto's own engine, the WebAssembly of its page, in node: frames on stdin and stdout, a u32 length and the bytes;
// an empty frame ends an answer. The argument is the folder of engine_bundle.js.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];
const write = (bytes) => {
  const head = Buffer.alloc(4);
  head.writeUInt32LE(bytes.length);
  fs.writeSync(1, Buffer.concat([head, Buffer.from(bytes)]));
};

class FileRequest {
  open(method, url) {
    this.url = url;
  }
  send() {
    const bytes = fs.readFileSync(path.join(folder, path.basename(this.url)));
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    this.status = 200;
  }
}

const silent = () => {};
const box = {
  console: { log: silent, warn: silent, error: silent, info: silent, debug: silent },
  XMLHttpRequest: FileRequest,
  TextDecoder, TextEncoder, performance, setTimeout, clearTimeout, URL,
  crypto: globalThis.crypto,
  location: { href: "http://x/engine_bundle.js" },
  importScripts: silent,
  navigator: {},
  WorkerGlobalScope: function () {},
};
box.self = box;
const context = vm.createContext(box);
const Bytes = vm.runInContext("Uint8Array", context);
const port = { postMessage: write };
vm.runInContext(fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8"), context);

// The module says nowhere that it has been compiled; a second was enough wherever this was tried.
setTimeout(() => {
  box.onmessage({ data: port });
  let todo = Buffer.alloc(0);
  process.stdin.on("data", (chunk) => {
    todo = Buffer.concat([todo, chunk]);
    while (todo.length >= 4 && todo.length >= 4 + todo.readUInt32LE(0)) {
      const length = todo.readUInt32LE(0);
      port.onmessage({ data: new Bytes(todo.subarray(4, 4 + length)) });
      write(Buffer.alloc(0));
      todo = todo.subarray(4 + length);
    }
  });
  process.stdin.on("end", () => process.exit(0));
}, 1000);

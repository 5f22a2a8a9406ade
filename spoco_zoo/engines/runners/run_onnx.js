// Run an ONNX file in onnxruntime-node: ENGINE_FOLDER MODEL INPUT.npy PREFIX.
// Writes PREFIX0.npy, PREFIX1.npy ... and prints one line of JSON; without a model, only the version.
"use strict";
const fs = require("fs");
const path = require("path");

// NumPy's descr of little-endian arrays, ONNX Runtime's name, and the array that holds them
const KINDS = [
  ["<f4", "float32", Float32Array],
  ["<f8", "float64", Float64Array],
  ["<i8", "int64", BigInt64Array],
  ["<u8", "uint64", BigUint64Array],
  ["<i4", "int32", Int32Array],
  ["<u4", "uint32", Uint32Array],
  ["<i2", "int16", Int16Array],
  ["<u2", "uint16", Uint16Array],
  ["|i1", "int8", Int8Array],
  ["|u1", "uint8", Uint8Array],
  ["|b1", "bool", Uint8Array],
];
const MAGIC = Buffer.from("\x93NUMPY", "latin1");

function readNpy(file) {
  const bytes = fs.readFileSync(file);
  if (!bytes.subarray(0, 6).equals(MAGIC)) throw new Error(`${file} is no NPY file`);
  const wide = bytes[6] > 1;
  const start = wide ? 12 : 10;
  const end = start + (wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8));
  const header = bytes.toString("latin1", start, end);
  const descr = /'descr': *'([^']*)'/.exec(header)[1];
  const kind = KINDS.find((k) => k[0] === descr);
  if (!kind) throw new Error(`numbers of type ${descr} are not known to this runner`);
  if (/'fortran_order': *True/.test(header)) throw new Error("the array is not in C order");
  const shape = /'shape': *\(([^)]*)\)/.exec(header)[1].split(",").filter((n) => n.trim());
  const content = Uint8Array.from(bytes.subarray(end)); // a copy, which is aligned
  return { type: kind[1], data: new kind[2](content.buffer), dims: shape.map(Number) };
}

function writeNpy(file, tensor) {
  const kind = KINDS.find((k) => k[1] === tensor.type);
  if (!kind) throw new Error(`an output of type ${tensor.type} is not known to this runner`);
  const shape = tensor.dims.map((n) => `${n},`).join(" ");
  const words = `{'descr': '${kind[0]}', 'fortran_order': False, 'shape': (${shape}), }`;
  const header = words.padEnd(Math.ceil((words.length + 11) / 64) * 64 - 11) + "\n";
  const front = Buffer.alloc(10);
  MAGIC.copy(front);
  front[6] = 1;
  front.writeUInt16LE(header.length, 8);
  const { buffer, byteOffset, byteLength } = tensor.data;
  const content = Buffer.from(buffer, byteOffset, byteLength);
  fs.writeFileSync(file, Buffer.concat([front, Buffer.from(header, "latin1"), content]));
}

async function main([folder, model, image, prefix]) {
  const home = path.join(folder, "node_modules", "onnxruntime-node");
  const told = { engine: JSON.parse(fs.readFileSync(path.join(home, "package.json"))).version };
  try {
    told.stage = "open";
    const runtime = require(home);
    if (model) {
      // as the Java programs of Fiji open a model
      const options = { graphOptimizationLevel: "basic", logSeverityLevel: 4 };
      const session = await runtime.InferenceSession.create(model, options);
      told.stage = "run";
      const { type, data, dims } = readNpy(image);
      const feeds = { [session.inputNames[0]]: new runtime.Tensor(type, data, dims) };
      const start = process.hrtime.bigint();
      const results = await session.run(feeds);
      told.seconds = Number(process.hrtime.bigint() - start) / 1e9;
      const outputs = session.outputNames.map((name) => results[name]);
      outputs.forEach((output, number) => writeNpy(`${prefix}${number}.npy`, output));
      told.outputs = outputs.map((output) => output.dims);
    }
  } catch (error) {
    told.error = String((error && error.message) || error);
  }
  console.log("\n" + JSON.stringify(told));
  process.exitCode = told.error === undefined ? 0 : 1;
}

main(process.argv.slice(2));
